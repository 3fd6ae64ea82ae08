//! Ownership of tasks: the code that starts one can stop it and wait for its end.

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt;
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{error::Error, runtime::sync::MutexExt as _};

/// Owns the tasks it starts. [`stop`](Self::stop) waits for their end and reports a panic; dropping it only signals.
#[derive(Debug)]
pub struct TaskOwner {
    runtime: Option<Handle>,
    tracker: TaskTracker,
    stop: CancellationToken,
    panicked: Arc<Mutex<Option<&'static str>>>,
}

impl Default for TaskOwner {
    fn default() -> Self {
        Self::new()
    }
}

impl TaskOwner {
    /// An owner whose tasks run on the runtime that [`spawn`](Self::spawn) is called from.
    pub fn new() -> Self {
        Self::with_runtime(None)
    }

    /// An owner whose tasks all run on `runtime`.
    pub fn on(runtime: Handle) -> Self {
        Self::with_runtime(Some(runtime))
    }

    fn with_runtime(runtime: Option<Handle>) -> Self {
        Self { runtime, tracker: TaskTracker::new(), stop: CancellationToken::new(), panicked: Arc::default() }
    }

    /// The stop signal, which the tasks of this owner have to watch.
    pub fn stop_signal(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task. `name` is used in logs and in the report of a panic.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] outside a runtime (unless one was given), or after a stop. The task does not run then.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
        let runtime = match &self.runtime {
            Some(runtime) => runtime.clone(),
            None => Handle::try_current().map_err(|_| Error::Closed)?,
        };
        if self.stop.is_cancelled() {
            return Err(Error::Closed);
        }
        let panicked = Arc::clone(&self.panicked);
        // Boxed: each layer around a future may hold it twice.
        let task = Box::pin(task);
        let guarded = async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                tracing::error!(task = name, "task panicked");
                panicked.locked().get_or_insert(name);
            }
        };
        self.tracker.spawn_on(guarded, &runtime);
        Ok(())
    }

    /// Starts a task that a stop ends at its next await.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    pub fn spawn_until_stopped(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), Error> {
        let (stop, task) = (self.stop.clone(), Box::pin(task));
        self.spawn(name, async move {
            stop.run_until_cancelled_owned(task).await;
        })
    }

    /// Waits at most `limit` for the tasks to end by themselves. Returns `true` if they did.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }

    /// Signals all tasks to stop and waits for them, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`StopError`] if a task was still running at the limit, or had panicked.
    ///
    /// # Cancel safety
    ///
    /// The stop signal remains set; a repeated call waits again.
    pub async fn stop(&self, limit: Duration) -> Result<(), StopError> {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(limit, self.tracker.wait()).await.is_err() {
            return Err(StopError::StillRunning { tasks: self.tracker.len() });
        }
        match *self.panicked.locked() {
            Some(task) => Err(StopError::Panicked { task }),
            None => Ok(()),
        }
    }
}

impl Drop for TaskOwner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Runs the user's code, and catches its panic.
///
/// # Errors
///
/// The message of a panic.
///
/// # Cancel safety
///
/// As `call`.
pub async fn caught<T>(call: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(call).catch_unwind().await.map_err(|panic| message(&*panic))
}

/// Runs synchronous code of the user, and catches its panic. With `panic = "abort"` a panic in it ends the process.
///
/// # Errors
///
/// The message of a panic.
pub fn caught_now<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| message(&*panic))
}

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message").to_owned()
}

/// Failure of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// Some tasks had not ended at the limit. Their stop signal is set.
    #[error("{tasks} tasks were still running")]
    StillRunning {
        /// Number of them.
        tasks: usize,
    },
    /// A task panicked.
    #[error("task {task} panicked")]
    Panicked {
        /// The first task that panicked.
        task: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn stop_waits_for_the_end_of_every_task() {
        let owner = TaskOwner::new();
        let stop = owner.stop_signal();
        let (ended, seen) = tokio::sync::oneshot::channel();
        owner
            .spawn("worker", async move {
                stop.cancelled().await;
                ended.send(()).unwrap();
            })
            .unwrap();
        owner.stop(LIMIT).await.unwrap();
        seen.await.unwrap();
        assert!(owner.spawn("late", async {}).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_reported() {
        let owner = TaskOwner::new();
        owner.spawn("bad", async { panic!("on purpose") }).unwrap();
        assert_eq!(owner.stop(LIMIT).await, Err(StopError::Panicked { task: "bad" }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_will_not_end_is_reported() {
        let owner = TaskOwner::new();
        owner.spawn("stuck", std::future::pending()).unwrap();
        assert_eq!(owner.stop(LIMIT).await, Err(StopError::StillRunning { tasks: 1 }));
    }

    #[tokio::test]
    async fn a_panic_that_is_caught_keeps_its_message() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        assert_eq!(caught(async { panic!("on purpose") }).await, Err::<(), _>("on purpose".to_owned()));
        assert_eq!(caught(async { panic!("{} times", 3) }).await, Err::<(), _>("3 times".to_owned()));
        assert_eq!(caught_now(|| 7), Ok(7));
        assert_eq!(caught_now(|| panic!("{} times", 3)), Err::<(), _>("3 times".to_owned()));
        let odd = caught(async { std::panic::panic_any(7) }).await;
        assert_eq!(odd, Err::<(), _>("without a message".to_owned()));
    }

    #[test]
    fn outside_a_runtime_it_refuses_instead_of_panicking() {
        assert!(matches!(TaskOwner::new().spawn("x", async {}), Err(Error::Closed)));
    }
}
