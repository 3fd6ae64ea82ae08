//! Futures that run in the background of a test and end with it.

use std::future::Future;

use tokio::task::JoinSet;

use crate::wait::soon;

/// A future that runs in the background. Dropping the task drops the future at its current await.
#[derive(Debug)]
pub struct BackgroundTask<T> {
    tasks: JoinSet<T>,
}

impl<T: Send + 'static> BackgroundTask<T> {
    /// Starts the future.
    ///
    /// # Panics
    ///
    /// Outside a runtime.
    pub fn run(future: impl Future<Output = T> + Send + 'static) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(future);
        Self { tasks }
    }

    /// Waits for the output. `what` names it in the message of a failure.
    ///
    /// # Panics
    ///
    /// If the future panicked, does not end within [`LIMIT`](crate::LIMIT), or its output was taken before.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn done(&mut self, what: &str) -> T {
        soon(what, self.tasks.join_next()).await.expect("the output is taken once").expect("did not panic")
    }

    /// Checks that the future still runs.
    ///
    /// # Panics
    ///
    /// If it has ended.
    pub fn assert_running(&mut self) {
        assert!(self.tasks.try_join_next().is_none(), "it ended too early");
    }

    /// Drops the future at its current await.
    ///
    /// # Cancel safety
    ///
    /// Dropping this call drops the future as well.
    pub async fn abort(mut self) {
        self.tasks.shutdown().await;
    }
}
