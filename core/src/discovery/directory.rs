//! Directory: shared local views of services, from which users read and pick.
//!
//! Each service has one watch per process, shared by all its views. Readers never take a lock: the latest snapshot is
//! in an atomic pointer.
//!
//! A view keeps its last known instances. An outage of the store makes the view old, never empty, and its freshness
//! reports the age. If all instances that take calls disappear at once without a departure, the last ones are held for
//! a grace period, see [`DirectoryOptions::hold`].

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

/// Returns views of services. Clones share everything.
#[derive(Clone)]
pub struct Directory {
    inner: Arc<DirectoryInner>,
}

impl Directory {
    /// A directory of the instances that `resolver` finds.
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
    /// If the watch ended with its runtime, this call restarts it on the caller's runtime, for all views and pickers of
    /// the service. Waiting for [`ViewChanges::next`](crate::ViewChanges::next) or [`ready`](ServiceView::ready) does
    /// the same. The view is closed if this is called outside a runtime or after [`close`](Self::close).
    pub fn view(&self, service: &ServiceRef) -> ServiceView {
        let user = {
            let mut views = self.inner.views.by_service.locked();
            let shared = views.entry(service.clone()).or_insert_with(|| Arc::new(PublishedState::new(service.clone())));
            ViewUser::count(&self.inner, shared)
        };
        user.revive();
        ServiceView { user }
    }

    /// Returns `true` if `service` is watched: it has a view, or had one until a short time ago
    /// ([`DirectoryOptions::idle`](crate::DirectoryOptions::idle)).
    pub fn has_view(&self, service: &ServiceRef) -> bool {
        self.inner.views.by_service.locked().contains_key(service)
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
