//! State of a view, as its task publishes it.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use enlist::{
    ConfigScope, Counter, Counters, Error, Freshness, Revision,
    backend::{count, rounded},
    escape::escaped,
    with_causes,
};
use tokio::sync::watch;

use crate::rejection::Rejection;

/// Source of the values of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The store.
    Store,
    /// The copy on disk, at a start without the store.
    Disk,
    /// Defaults and environment alone, at a start without the store.
    Defaults,
}

/// State of a view.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConfigState {
    /// Source of the current value.
    pub source: Source,
    /// Revision of the state of the store from which the current value was read; `None` without the store.
    pub revision: Option<Revision>,
    /// Report of the latest state of the store, if it is not used. The current value is then an older one.
    pub rejected: Option<Arc<Rejection>>,
    /// Freshness of the known state of the store, used or not; `None` while none is known.
    pub freshness: Option<Freshness>,
    /// Error of the watch that will not pass by itself, such as [`Error::PermissionDenied`].
    pub refused: Option<Error>,
}

/// State that the task of a view writes and its handles read.
pub(crate) struct PublishedView<T> {
    pub(crate) scope: ConfigScope,
    pub(crate) current: ArcSwap<Current<T>>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) counters: Arc<Counters>,
}

/// The current value, and the number of values before it.
pub(crate) struct Current<T> {
    pub(crate) generation: u64,
    pub(crate) value: Arc<T>,
}

#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) state: ConfigState,
    /// No task follows the store.
    pub(crate) closed: bool,
}

impl<T> PublishedView<T> {
    pub(crate) fn new(scope: ConfigScope, value: T, state: ConfigState, counters: Arc<Counters>) -> Self {
        let current = ArcSwap::from_pointee(Current { generation: 0, value: Arc::new(value) });
        let status = watch::Sender::new(Status { state, closed: false });
        Self { scope, current, status, counters }
    }

    /// Publishes a value of the store.
    pub(crate) fn accept(&self, value: T, revision: Revision, freshness: Freshness) {
        count(&self.counters, Counter::ConfigUpdates);
        tracing::info!(scope = %escaped(&self.scope), %revision, "configuration changed");
        // The value is published before the state that announces it. There is one writer.
        let generation = self.current.load().generation + 1;
        self.current.store(Arc::new(Current { generation, value: Arc::new(value) }));
        self.change(|state| {
            (state.source, state.revision, state.rejected) = (Source::Store, Some(revision), None);
            state.heard(freshness);
        });
    }

    /// Publishes a report of a state of the store that is not used.
    pub(crate) fn reject(&self, rejection: Rejection, freshness: Freshness) {
        report(&self.scope, &rejection, &self.counters);
        self.change(|state| {
            state.rejected = Some(Arc::new(rejection));
            state.heard(freshness);
        });
    }

    /// Publishes the freshness of unchanged values.
    pub(crate) fn refresh(&self, freshness: Freshness) {
        self.change(|state| state.heard(freshness));
    }

    /// Publishes a failure of the watch.
    pub(crate) fn fail(&self, error: Error) {
        self.change(|state| state.fail(error));
    }

    /// Records that no task follows the store any more.
    pub(crate) fn close(&self) {
        // An orderly end is no reason for a warning, so it is not logged.
        self.status.send_modify(|status| {
            status.closed = true;
            status.state.fail(Error::Closed);
        });
    }

    fn change(&self, change: impl FnOnce(&mut ConfigState)) {
        let mut before = None;
        self.status.send_modify(|status| {
            before.clone_from(&status.state.freshness);
            change(&mut status.state);
        });
        let now = self.status.borrow().state.freshness.clone();
        log_freshness(&self.scope, before.as_ref(), now.as_ref());
    }
}

impl ConfigState {
    /// Changes to the state after a failure of the watch.
    fn fail(&mut self, error: Error) {
        if !error.is_retryable() {
            self.refused = Some(error.clone());
        }
        if let Some(freshness) = &mut self.freshness {
            *freshness = Freshness::Stale { proven: freshness.proven(), cause: error };
        }
    }

    /// Changes to the state after the store answered.
    fn heard(&mut self, freshness: Freshness) {
        (self.freshness, self.refused) = (Some(freshness), None);
    }
}

/// Logs and counts a report. It is called once per state of the store.
pub(crate) fn report(scope: &ConfigScope, rejection: &Rejection, counters: &Counters) {
    count(counters, Counter::ConfigRejections);
    let Rejection { origin, revision, reason } = rejection;
    let scope = escaped(scope);
    tracing::warn!(%scope, %origin, %revision, %reason, "configuration rejected, the last good value stays");
}

fn log_freshness(scope: &ConfigScope, before: Option<&Freshness>, now: Option<&Freshness>) {
    let scope = escaped(scope);
    match (before.map(Freshness::is_live), now) {
        (Some(false), Some(Freshness::Live { .. })) => tracing::info!(%scope, "configuration live again"),
        (Some(true) | None, Some(stale @ Freshness::Stale { cause, .. })) => {
            tracing::warn!(%scope, age = %rounded(stale.age()), cause = %with_causes(cause), "configuration stale");
        }
        _ => {}
    }
}

impl<T> fmt::Debug for PublishedView<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishedView").field("scope", &self.scope).finish_non_exhaustive()
    }
}
