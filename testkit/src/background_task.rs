//! A future that runs beside a test and ends with it.

use std::future::Future;

use tokio::task::JoinSet;

use crate::wait::soon;

/// A future that runs beside a test, and is dropped where it is when this is dropped.
#[derive(Debug)]
pub struct BackgroundTask<T> {
    tasks: JoinSet<T>,
}

impl<T: Send + 'static> BackgroundTask<T> {
    /// Starts it.
    ///
    /// # Panics
    ///
    /// Outside a runtime.
    pub fn run(future: impl Future<Output = T> + Send + 'static) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(future);
        Self { tasks }
    }

    /// Its result. `what` names it in the message of a failure.
    ///
    /// # Panics
    ///
    /// If it panicked, does not end within [`LIMIT`](crate::LIMIT), or was asked before.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn done(&mut self, what: &str) -> T {
        soon(what, self.tasks.join_next()).await.expect("asked once").expect("did not panic")
    }

    /// Checks that it still runs.
    ///
    /// # Panics
    ///
    /// If it has ended.
    pub fn assert_running(&mut self) {
        assert!(self.tasks.try_join_next().is_none(), "it ended too early");
    }

    /// Drops the future where it is.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped all the same.
    pub async fn abort(mut self) {
        self.tasks.shutdown().await;
    }
}
