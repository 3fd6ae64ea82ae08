//! Users of the views of a service: while there is one, the task behind the views runs.

use std::{fmt, pin::pin, sync::Arc};

use tokio::runtime::Handle;
use tracing::Instrument;

use super::{
    published_state::PublishedState,
    resolver::Resolver,
    view_options::DirectoryOptions,
    view_task::{ViewTask, Views},
};
use crate::{
    balancing::candidate_table::ViewCell,
    model::escape::escaped,
    runtime::{sync::MutexExt as _, task::TaskOwner},
};

pub(super) struct DirectoryInner {
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) options: DirectoryOptions,
    pub(super) views: Arc<Views>,
    pub(super) tasks: TaskOwner,
}

impl DirectoryInner {
    /// Starts the task behind the views of a service, if there is none. Returns `true` if it runs now.
    fn revive(&self, shared: &Arc<PublishedState>) -> bool {
        // One start at a time: two tasks would overwrite each other's publications.
        let _one = self.views.by_service.locked();
        if !shared.is_closed() {
            return true;
        }
        if self.tasks.stop_signal().is_cancelled() || Handle::try_current().is_err() {
            return false;
        }
        shared.status.send_modify(|status| status.closed = false);
        let task = ViewTask {
            resolver: Arc::clone(&self.resolver),
            views: Arc::downgrade(&self.views),
            shared: Arc::clone(shared),
            options: self.options.clone(),
        };
        let stop = self.tasks.stop_signal();
        let span = tracing::info_span!("view", service = %escaped(&shared.service));
        let end = EndOfTask(Arc::clone(shared));
        let keep = async move {
            // Dropped with the future: a runtime that shuts down ends its tasks without a notice.
            let _end = end;
            // Pinned here: the other future would have two places for it.
            let keep = pin!(task.keep());
            stop.run_until_cancelled(keep).await;
        };
        self.tasks.spawn("view", keep.instrument(span)).is_ok()
    }
}

/// Reports the end of the task behind a view, once this is dropped.
struct EndOfTask(Arc<PublishedState>);

impl Drop for EndOfTask {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// One user of the views of a service: while there is one, the watch goes on. It keeps its directory alive.
pub(crate) struct ViewUser {
    directory: Arc<DirectoryInner>,
    pub(super) shared: Arc<PublishedState>,
}

impl ViewUser {
    /// Counts one more user.
    pub(super) fn count(directory: &Arc<DirectoryInner>, shared: &Arc<PublishedState>) -> Self {
        // The task is notified of the first and the last user only.
        shared.users.send_if_modified(|users| {
            *users += 1;
            *users == 1
        });
        Self { directory: Arc::clone(directory), shared: Arc::clone(shared) }
    }

    /// Starts the watch again if it has ended. Returns `true` if it is followed now.
    pub(super) fn revive(&self) -> bool {
        self.directory.revive(&self.shared)
    }

    /// The cell that the task publishes in.
    pub(crate) fn published(&self) -> &Arc<ViewCell> {
        &self.shared.published
    }
}

impl Clone for ViewUser {
    fn clone(&self) -> Self {
        Self::count(&self.directory, &self.shared)
    }
}

impl Drop for ViewUser {
    fn drop(&mut self) {
        self.shared.users.send_if_modified(|users| {
            *users -= 1;
            *users == 0
        });
    }
}

impl fmt::Debug for ViewUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ViewUser").field("service", &self.shared.service).finish_non_exhaustive()
    }
}
