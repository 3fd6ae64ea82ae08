//! The shared, local picture of services that users read and pick from.
//!
//! One watch per service and process, however many views. Readers never take a lock: the latest snapshot lies in an
//! atomic pointer.
//!
//! A view keeps what is known: an outage of the store makes it old, never empty, and says how old. If the store itself
//! lists nobody any more, all at once and without their having left, the last ones are held for a while.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    published_state::PublishedState,
    resolver::Resolver,
    service_view::ServiceView,
    view_options::DirectoryOptions,
    view_task::Views,
    view_user::{DirectoryInner, ViewUser},
};
use crate::{
    model::name::ServiceRef,
    runtime::{sync::MutexExt as _, task::TaskOwner},
};

/// Hands out views of services. Clones share everything.
#[derive(Clone)]
pub struct Directory {
    inner: Arc<DirectoryInner>,
}

impl Directory {
    /// A directory of what `resolver` finds.
    pub fn new(resolver: Arc<dyn Resolver>) -> Self {
        Self::with_options(resolver, DirectoryOptions::default())
    }

    /// A directory with options.
    pub fn with_options(resolver: Arc<dyn Resolver>, options: DirectoryOptions) -> Self {
        let options = options.clamped();
        let inner = DirectoryInner { resolver, options, views: Arc::new(Views::default()), tasks: TaskOwner::new() };
        Self { inner: Arc::new(inner) }
    }

    /// A view of `service`. The first one starts the watch; the others share it.
    ///
    /// If the watch ended with the runtime that it ran on, this starts it anew on the runtime of the caller, as does
    /// waiting for [`ViewChanges::next`](crate::ViewChanges::next) or [`ready`](ServiceView::ready): for all views and
    /// pickers that there are. Called outside a runtime, or after [`close`](Self::close), the view is closed.
    pub fn view(&self, service: &ServiceRef) -> ServiceView {
        let user = {
            let mut views = self.inner.views.by_service.locked();
            let shared = views.entry(service.clone()).or_insert_with(|| Arc::new(PublishedState::new(service.clone())));
            ViewUser::count(&self.inner, shared)
        };
        user.revive();
        ServiceView { user }
    }

    /// Ends all watches and waits for their tasks, at most `limit`. Views keep their last snapshot.
    ///
    /// # Errors
    ///
    /// [`StopError`](crate::StopError) if a task did not end in time or had panicked.
    ///
    /// # Cancel safety
    ///
    /// The tasks end in the background.
    pub async fn close(&self, limit: Duration) -> Result<(), crate::StopError> {
        self.inner.tasks.stop(limit).await
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("resolver", &self.inner.resolver).finish_non_exhaustive()
    }
}
