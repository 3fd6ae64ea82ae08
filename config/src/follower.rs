//! The watch of a view, which is opened again after it ended.

use std::{fmt, sync::Arc};

use enlist::{
    Backoff, BackoffPolicy, Config, ConfigChange, ConfigScope, ConfigWatcher, Error, Namespace, backend::caught,
    escape::escaped,
};
use tokio::time::{Instant, sleep_until};

/// Follows the values of a scope without end.
pub(crate) struct Follower {
    config: Arc<dyn Config>,
    pub(crate) namespace: Namespace,
    pub(crate) scope: ConfigScope,
    watcher: Option<Box<dyn ConfigWatcher>>,
    backoff: Backoff,
    /// Time of the next attempt after a failure.
    not_before: Option<Instant>,
}

impl Follower {
    pub(crate) fn new(config: Arc<dyn Config>, namespace: Namespace, scope: ConfigScope) -> Self {
        let backoff = BackoffPolicy::default().start();
        Self { config, namespace, scope, watcher: None, backoff, not_before: None }
    }

    /// Returns the next change. After a failure the next call waits before it tries again.
    ///
    /// # Cancel safety
    ///
    /// A change that was not returned is returned by the next call.
    pub(crate) async fn next(&mut self) -> Result<ConfigChange, Error> {
        if let Some(at) = self.not_before {
            sleep_until(at).await;
            self.not_before = None;
        }
        // The backend is foreign code, so a panic in it is handled like an error.
        let answer = caught(self.ask()).await;
        let error = match answer {
            Ok(Ok(change)) => {
                self.backoff.reset();
                return Ok(change);
            }
            Ok(Err(error)) => error,
            Err(message) => {
                tracing::error!(scope = %escaped(&self.scope), message, "backend panicked, its watch is started anew");
                self.watcher = None;
                Error::unavailable(format!("the backend panicked: {message}"))
            }
        };
        if let Error::Closed = error {
            self.watcher = None;
        }
        self.not_before = Some(Instant::now() + self.backoff.next_delay());
        Err(error)
    }

    async fn ask(&mut self) -> Result<ConfigChange, Error> {
        let watcher = match &mut self.watcher {
            Some(watcher) => watcher,
            none => none.insert(self.config.watch(&self.namespace, &self.scope).await?),
        };
        watcher.next().await
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("scope", &self.scope).finish_non_exhaustive()
    }
}
