//! A typed view of configuration.

use std::{fmt, sync::Arc, time::Duration};

use enlist::{ConfigScope, Counters, Error, Freshness, StopError, TaskOwner, backend::caught_now, escape::escaped};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::{
    rejection::Rejection,
    state::{ConfigState, PublishedView, Source, Status},
    task::ViewTask,
};

/// Time for which [`ConfigView::close`] waits for the tasks.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A value of the type `T` that follows the configuration in a store: one value, or those of a subtree.
///
/// - [`current`](Self::current) takes no lock and is never absent: a view opens with its first good value.
/// - A state of the store that does not parse, does not convert to `T` or is refused by the validation function never
///   replaces the last good value. It is reported in [`state`](Self::state), as a log line and in
///   [`counters`](Self::counters), once, without its content.
/// - An outage changes [`freshness`](Self::freshness), not the value.
/// - The value is that of one state of the store: the values of a subtree are taken over together, or none of them.
///
/// Clones share the value. Each has a position of its own for [`changed`](Self::changed). Dropping the last clone ends
/// the watch.
///
/// ```
/// use std::sync::Arc;
///
/// use enlist::{Config, ConfigPath, ConfigScope, Expect, Namespace};
/// use enlist_config::ConfigView;
/// use enlist_memory::MemoryStore;
///
/// #[derive(serde::Deserialize)]
/// struct Settings {
///     port: u16,
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), enlist::Error> {
/// let (config, namespace) = (MemoryStore::new().client(), Namespace::default());
/// let path = ConfigPath::parse("app.toml")?;
/// config.put(&namespace, &path, b"port = 80".to_vec(), Expect::Any).await?;
///
/// let scope = ConfigScope::Path(path.clone());
/// let mut view = ConfigView::<Settings>::builder(Arc::new(config.clone()), scope).open().await?;
/// assert_eq!(view.current().port, 80);
///
/// config.put(&namespace, &path, b"port = true".to_vec(), Expect::Any).await?;
/// config.put(&namespace, &path, b"port = 81".to_vec(), Expect::Any).await?;
/// assert_eq!(view.changed().await?.port, 81);
/// # Ok(())
/// # }
/// ```
pub struct ConfigView<T> {
    inner: Arc<Inner<T>>,
    /// Generation of the value that this handle returned last.
    seen: u64,
    status: watch::Receiver<Status>,
}

struct Inner<T> {
    shared: Arc<PublishedView<T>>,
    tasks: TaskOwner,
}

impl<T: DeserializeOwned + Send + Sync + 'static> ConfigView<T> {
    /// Starts the task of a view.
    pub(crate) fn start(task: ViewTask<T>) -> Result<Self, Error> {
        let (shared, tasks) = (Arc::clone(&task.shared), TaskOwner::new());
        let end = EndOfTask(Arc::clone(&shared));
        let follow = async move {
            // Dropped with the future: a runtime that shuts down ends its tasks without a notice.
            let _end = end;
            task.run().await;
        };
        tasks.spawn_until_stopped("configuration", follow)?;
        let status = shared.status.subscribe();
        Ok(Self { inner: Arc::new(Inner { shared, tasks }), seen: 0, status })
    }
}

impl<T: Send + Sync + 'static> ConfigView<T> {
    /// The current value. Takes no lock.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.inner.shared.current.load().value)
    }

    /// Waits for a value that this handle has not returned from `changed` and that is newer than the one at the opening
    /// or cloning of the handle, and returns it. A slow caller skips values.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] once the view is closed and the last value was returned.
    ///
    /// # Cancel safety
    ///
    /// A value that was not returned is returned by the next call.
    pub async fn changed(&mut self) -> Result<Arc<T>, Error> {
        loop {
            let closed = self.status.borrow_and_update().closed;
            let current = self.inner.shared.current.load();
            if current.generation != self.seen {
                self.seen = current.generation;
                return Ok(Arc::clone(&current.value));
            }
            drop(current);
            if closed {
                return Err(Error::Closed);
            }
            self.status.changed().await.map_err(|_| Error::Closed)?;
        }
    }

    /// Calls `callback` with the current value, and with each later one, until the view is closed or dropped. A slow
    /// callback skips values. A panic in it is logged, and the next value is passed as usual.
    ///
    /// The callback runs on the runtime and must not block for long. If it contains a clone of the view, the view ends
    /// only by [`close`](Self::close).
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] outside a runtime or after a close; the callback is not called then.
    pub fn on_change(&self, mut callback: impl FnMut(Arc<T>) + Send + 'static) -> Result<(), Error> {
        let (shared, mut status) = (Arc::clone(&self.inner.shared), self.inner.shared.status.subscribe());
        self.inner.tasks.spawn_until_stopped("configuration callback", async move {
            let mut seen = None;
            loop {
                let closed = status.borrow_and_update().closed;
                let current = shared.current.load_full();
                if seen.replace(current.generation) != Some(current.generation)
                    && let Err(message) = caught_now(|| callback(Arc::clone(&current.value)))
                {
                    tracing::error!(scope = %escaped(&shared.scope), message, "callback of a configuration panicked");
                }
                drop(current);
                if closed || status.changed().await.is_err() {
                    return;
                }
            }
        })
    }

    /// Waits until the current value is one of the store, and returns it. Returns at once if it was before, even if
    /// the store is away now.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidConfig`] if the store answered, and its state is not used. The view goes on, so the call may
    ///   be repeated.
    /// - An error that will not pass by itself, such as [`Error::PermissionDenied`]. The view goes on trying.
    /// - [`Error::Closed`] once the view is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn ready(&self) -> Result<Arc<T>, Error> {
        let mut status = self.inner.shared.status.subscribe();
        loop {
            let Status { state, closed } = status.borrow_and_update().clone();
            if state.source == Source::Store {
                return Ok(self.current());
            }
            if let Some(rejection) = state.rejected {
                return Err(Error::from(Rejection::clone(&rejection)));
            }
            if let Some(error) = state.refused {
                return Err(error);
            }
            if closed {
                return Err(Error::Closed);
            }
            status.changed().await.map_err(|_| Error::Closed)?;
        }
    }

    /// The state of the view.
    pub fn state(&self) -> ConfigState {
        self.inner.shared.status.borrow().state.clone()
    }

    /// Freshness of the known state of the store; `None` while none is known.
    pub fn freshness(&self) -> Option<Freshness> {
        self.inner.shared.status.borrow().state.freshness.clone()
    }

    /// The values that the view covers.
    pub fn scope(&self) -> &ConfigScope {
        &self.inner.shared.scope
    }

    /// Counters of the view: [`Counter::ConfigUpdates`](enlist::Counter::ConfigUpdates) and
    /// [`Counter::ConfigRejections`](enlist::Counter::ConfigRejections). The others stay 0.
    pub fn counters(&self) -> &Counters {
        &self.inner.shared.counters
    }

    /// Ends the watch and the callbacks of all clones, and waits for it, at most 5 s. The current value remains.
    ///
    /// # Errors
    ///
    /// [`StopError`] if a callback was still running at the limit.
    ///
    /// # Cancel safety
    ///
    /// The end goes on if the future is dropped.
    pub async fn close(&self) -> Result<(), StopError> {
        self.inner.tasks.stop(CLOSE_TIMEOUT).await
    }
}

impl<T> Clone for ConfigView<T> {
    fn clone(&self) -> Self {
        let seen = self.inner.shared.current.load().generation;
        Self { inner: Arc::clone(&self.inner), seen, status: self.inner.shared.status.subscribe() }
    }
}

impl<T> fmt::Debug for ConfigView<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.shared.status.borrow().state.clone();
        f.debug_struct("ConfigView")
            .field("scope", &self.inner.shared.scope)
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

/// Reports the end of the task of a view, once this is dropped.
struct EndOfTask<T>(Arc<PublishedView<T>>);

impl<T> Drop for EndOfTask<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}
