//! State that the task behind the views of a service writes and the views read.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{freshness::Freshness, publication::Publication, snapshot::Snapshot};
use crate::{
    balancing::candidate_table::ViewCell,
    error::{Error, with_causes},
    model::{escape::escaped, name::ServiceRef},
    runtime::clock::rounded,
    telemetry,
};

/// State that the watch task writes and the views read.
pub(super) struct PublishedState {
    pub(super) service: ServiceRef,
    pub(super) published: Arc<ViewCell>,
    pub(super) status: watch::Sender<ViewStatus>,
    /// Number of views.
    pub(super) users: watch::Sender<usize>,
}

#[derive(Clone, Default)]
pub(super) struct ViewStatus {
    /// Grows with every publication and every change of freshness.
    pub(super) generation: u64,
    pub(super) freshness: Option<Freshness>,
    /// Error that will not pass by itself, while nothing is known yet.
    pub(super) refused: Option<Error>,
    /// No task follows the watch.
    pub(super) closed: bool,
}

impl PublishedState {
    /// The state of a service's views before their task is started.
    pub(super) fn new(service: ServiceRef) -> Self {
        let status = ViewStatus { closed: true, ..ViewStatus::default() };
        Self { service, published: Arc::default(), status: watch::Sender::new(status), users: watch::Sender::new(0) }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.status.borrow().closed
    }

    /// Records that no task follows the watch any more: the published state is no longer live.
    pub(super) fn close(&self) {
        let published = self.published.get();
        let stale = published.as_deref().filter(|published| published.freshness.is_live()).map(|published| {
            let freshness = Freshness::Stale { proven: published.freshness.proven(), cause: Error::Closed };
            Publication { snapshot: published.snapshot.clone(), freshness, max_age: published.max_age }
        });
        let freshness = stale.as_ref().map(|stale| stale.freshness.clone());
        if let Some(stale) = stale {
            self.published.publish(Arc::new(stale));
        }
        self.status.send_modify(|status| {
            status.closed = true;
            status.generation += 1;
            status.freshness = freshness.or_else(|| status.freshness.take());
        });
    }

    pub(super) fn publish(
        &self,
        snapshot: Snapshot,
        freshness: Freshness,
        max_age: Option<Duration>,
    ) -> Arc<Publication> {
        let published = Arc::new(Publication { snapshot, freshness: freshness.clone(), max_age });
        self.published.publish(Arc::clone(&published));
        let mut before = None;
        let now = freshness.clone();
        self.status.send_modify(|status| {
            status.generation += 1;
            before = status.freshness.replace(freshness);
            status.refused = None;
        });
        let (service, age) = (&self.service, now.age());
        match (before.map(|before| before.is_live()), &now) {
            (Some(false), Freshness::Live { .. }) => tracing::info!(service = %escaped(service), "view live again"),
            (Some(true) | None, Freshness::Stale { cause, .. }) => {
                let (service, cause) = (escaped(service), with_causes(cause));
                tracing::warn!(%service, age = %rounded(age), %cause, "view stale");
            }
            _ => {}
        }
        self.report();
        published
    }

    pub(super) fn refuse(&self, error: Error) {
        self.status.send_modify(|status| {
            status.refused = Some(error);
            status.generation += 1;
        });
    }

    pub(super) fn report(&self) {
        if let Some(published) = &*self.published.get() {
            telemetry::view(&self.service, published.snapshot.len(), published.freshness.age());
        }
    }
}
