//! Lifetime of a session: its runtime, its tasks, and the end of both.
//!
//! All parts of a session hold the [`Lifecycle`]. When the last of them is gone, the session ends.

use std::{sync::Arc, time::Duration};

use enlist::{Error, TaskOwner, backend::Departures};
use tokio::{runtime::Handle, sync::oneshot};

/// Maximum time for which the end of a session waits for its tasks, such as those that revoke leases or remove keys.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Runtime of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionRuntime {
    /// On a thread of its own, so that starving the caller's runtime does not stop renewals.
    #[default]
    OwnThread,
    /// On the runtime in which the client is created, for instance one with a paused clock.
    Caller,
}

/// Runtime of a session, the tasks on it, and the signal that ends its thread.
#[derive(Debug)]
pub(crate) struct RuntimeHandle {
    pub(crate) runtime: Handle,
    pub(crate) tasks: Arc<TaskOwner>,
    thread: Option<oneshot::Sender<()>>,
}

impl RuntimeHandle {
    pub(crate) fn new(kind: SessionRuntime) -> Result<Self, Error> {
        match kind {
            SessionRuntime::OwnThread => Self::own_thread(),
            SessionRuntime::Caller => {
                let runtime = Handle::try_current()
                    .map_err(|_| Error::invalid_config("runtime", "`Caller` needs a tokio runtime to be in"))?;
                Ok(Self { tasks: Arc::new(TaskOwner::on(runtime.clone())), runtime, thread: None })
            }
        }
    }

    fn own_thread() -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::invalid_config("runtime", format!("no thread: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let tasks = Arc::new(TaskOwner::on(handle.clone()));
        let (thread, ended) = oneshot::channel();
        let draining = Arc::clone(&tasks);
        std::thread::Builder::new()
            .name("enlist-session".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    // An error means that the session was dropped, which is the signal.
                    let _ = ended.await;
                    draining.drain(SHUTDOWN_TIMEOUT).await;
                });
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Self { runtime: handle, tasks, thread: Some(thread) })
    }
}

/// Runtime and tasks of a session. The session ends when the last reference is dropped.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    pub(crate) tasks: Arc<TaskOwner>,
    /// Registrations whose leases this session does not revoke. They are removed one by one when it is closed.
    pub(crate) departures: Departures,
    runtime: Handle,
    /// Dropping it ends the thread.
    _thread: Option<oneshot::Sender<()>>,
}

impl Lifecycle {
    pub(crate) fn new(runtime: RuntimeHandle) -> Arc<Self> {
        let RuntimeHandle { runtime, tasks, thread } = runtime;
        Arc::new(Self { tasks, departures: Departures::default(), runtime, _thread: thread })
    }

    pub(crate) fn runtime(&self) -> Handle {
        self.runtime.clone()
    }

    /// Refuses calls after the end, and calls from outside a runtime, where waiting would panic.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        Handle::try_current().map_err(|_| Error::Closed)?;
        let closed = self.departures.has_begun() || self.tasks.stop_signal().is_cancelled();
        if closed { Err(Error::Closed) } else { Ok(()) }
    }
}
