//! The shared, local picture of services that users read and pick from.
//!
//! One watch per service and process, however many views. Readers never take a lock: the latest snapshot lies in an
//! atomic pointer. See [`crate::picker`] for picking.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use crate::{
    backoff::BackoffPolicy,
    error::Error,
    freshness::Freshness,
    name::ServiceRef,
    picker::{Filter, Picker, Policy},
    resolver::{Change, Resolver, Watcher},
    snapshot::Snapshot,
    task::TaskOwner,
};

/// How long a watch goes on after the last view of it was dropped, unless said otherwise.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(5);

/// How a directory behaves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DirectoryOptions {
    /// How long a watch goes on after the last view of it was dropped. Default: 5 s.
    pub idle: Duration,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self { idle: DEFAULT_IDLE }
    }
}

impl DirectoryOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long a watch goes on after the last view of it was dropped.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }
}

/// Hands out views of services. Clones share everything.
#[derive(Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

struct Inner {
    resolver: Arc<dyn Resolver>,
    options: DirectoryOptions,
    views: Mutex<HashMap<ServiceRef, Arc<Shared>>>,
    tasks: TaskOwner,
}

/// What the watch task writes and the views read.
struct Shared {
    service: ServiceRef,
    snapshot: Arc<ArcSwapOption<Snapshot>>,
    status: watch::Sender<Status>,
    /// How many views there are.
    users: watch::Sender<usize>,
}

#[derive(Clone, Default)]
struct Status {
    /// Grows with every publication and every change of freshness.
    generation: u64,
    freshness: Option<Freshness>,
    /// Trouble that will not pass by itself while nothing is known yet.
    refused: Option<Error>,
    closed: bool,
}

impl Directory {
    /// A directory of what `resolver` finds.
    pub fn new(resolver: Arc<dyn Resolver>) -> Self {
        Self::with_options(resolver, DirectoryOptions::default())
    }

    /// A directory with options.
    pub fn with_options(resolver: Arc<dyn Resolver>, options: DirectoryOptions) -> Self {
        let inner = Inner { resolver, options, views: Mutex::default(), tasks: TaskOwner::new() };
        Self { inner: Arc::new(inner) }
    }

    /// A view of `service`. The first one starts the watch; the others share it.
    ///
    /// Called outside a runtime, or after [`close`](Self::close), the view is closed from the start.
    pub fn view(&self, service: &ServiceRef) -> ServiceView {
        let mut views = self.inner.views.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = views.get(service) {
            shared.users.send_modify(|users| *users += 1);
            return ServiceView::new(&self.inner, Arc::clone(shared));
        }
        let shared = Arc::new(Shared {
            service: service.clone(),
            snapshot: Arc::default(),
            status: watch::Sender::default(),
            users: watch::Sender::new(1),
        });
        let keeper = Keeper {
            resolver: Arc::clone(&self.inner.resolver),
            directory: Arc::downgrade(&self.inner),
            shared: Arc::clone(&shared),
            idle: self.inner.options.idle,
        };
        let stop = self.inner.tasks.stop_signal();
        let started = self.inner.tasks.spawn("view", async move {
            stop.run_until_cancelled(keeper.keep()).await;
            keeper.shared.status.send_modify(|status| status.closed = true);
        });
        match started {
            Ok(()) => {
                views.insert(service.clone(), Arc::clone(&shared));
            }
            Err(_) => shared.status.send_modify(|status| status.closed = true),
        }
        ServiceView::new(&self.inner, shared)
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

/// The task behind the views of one service.
struct Keeper {
    resolver: Arc<dyn Resolver>,
    directory: std::sync::Weak<Inner>,
    shared: Arc<Shared>,
    idle: Duration,
}

impl Keeper {
    /// Follows the watch until nobody has looked for the idle time.
    async fn keep(&self) {
        tokio::select! {
            () = self.follow() => {}
            () = self.idled() => tracing::debug!(service = %self.shared.service, "view idle, watch ended"),
        }
    }

    async fn follow(&self) {
        let mut backoff = BackoffPolicy::default().start();
        loop {
            let mut watcher = match self.resolver.watch(&self.shared.service).await {
                Ok(watcher) => watcher,
                Err(error) => {
                    self.shared.trouble(error);
                    tokio::time::sleep(backoff.next_delay()).await;
                    continue;
                }
            };
            self.drain(&mut *watcher, &mut backoff).await;
        }
    }

    /// Publishes what the watcher says until it ends.
    async fn drain(&self, watcher: &mut dyn Watcher, backoff: &mut crate::Backoff) {
        loop {
            match watcher.next().await {
                Ok(change) => {
                    backoff.reset();
                    self.shared.publish(change);
                }
                Err(error) => {
                    let ended = matches!(error, Error::Closed);
                    self.shared.trouble(error);
                    tokio::time::sleep(backoff.next_delay()).await;
                    if ended {
                        return;
                    }
                }
            }
        }
    }

    /// Returns once there was no view for the idle time, and the next one will start a new watch.
    async fn idled(&self) {
        let mut users = self.shared.users.subscribe();
        loop {
            // The sender lives in `self.shared`, so neither wait can fail.
            let _ = users.wait_for(|users| *users == 0).await;
            let used_again = users.wait_for(|users| *users > 0);
            if tokio::time::timeout(self.idle, used_again).await.is_err() && self.forget() {
                return;
            }
        }
    }

    fn forget(&self) -> bool {
        let Some(directory) = self.directory.upgrade() else {
            return true;
        };
        let mut views = directory.views.lock().unwrap_or_else(PoisonError::into_inner);
        // `view` counts users up under the same lock, so nobody can come in between.
        let idle = *self.shared.users.borrow() == 0;
        if idle {
            views.remove(&self.shared.service);
        }
        idle
    }
}

impl Shared {
    fn publish(&self, change: Change) {
        let Change { snapshot, events: _, freshness } = change;
        self.snapshot.store(Some(Arc::new(snapshot)));
        self.status.send_modify(|status| {
            status.generation += 1;
            status.freshness = Some(freshness);
            status.refused = None;
        });
    }

    fn trouble(&self, error: Error) {
        self.status.send_modify(|status| {
            if let Some(freshness) = &status.freshness {
                status.freshness = Some(Freshness::Stale { proven: freshness.proven(), cause: error });
                status.generation += 1;
            } else if !error.is_retryable() {
                status.refused = Some(error);
                status.generation += 1;
            }
        });
    }
}

/// A view of one service: the latest snapshot, and what to pick from. It keeps its directory alive.
pub struct ServiceView {
    directory: Arc<Inner>,
    shared: Arc<Shared>,
    status: watch::Receiver<Status>,
}

impl ServiceView {
    /// A view that has been counted already.
    fn new(directory: &Arc<Inner>, shared: Arc<Shared>) -> Self {
        let status = shared.status.subscribe();
        Self { directory: Arc::clone(directory), shared, status }
    }

    /// The service.
    pub fn service(&self) -> &ServiceRef {
        &self.shared.service
    }

    /// Waits until the service is known, be it known to be empty.
    ///
    /// # Errors
    ///
    /// Trouble that will not pass by itself, such as [`Error::PermissionDenied`]; the view goes on trying, so the call
    /// may be repeated. [`Error::Closed`] once the directory is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn ready(&self) -> Result<Snapshot, Error> {
        let mut status = self.shared.status.subscribe();
        let known = |status: &Status| status.freshness.is_some() || status.refused.is_some() || status.closed;
        let refused = status.wait_for(known).await.map_err(|_| Error::Closed)?.refused.clone();
        match (self.snapshot(), refused) {
            (Some(snapshot), _) => Ok(snapshot),
            (None, Some(error)) => Err(error),
            (None, None) => Err(Error::Closed),
        }
    }

    /// The latest snapshot; `None` while nothing is known. Takes no lock.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.shared.snapshot.load().as_deref().cloned()
    }

    /// How fresh the snapshot is; `None` while nothing is known.
    pub fn freshness(&self) -> Option<Freshness> {
        self.status.borrow().freshness.clone()
    }

    /// Waits for a snapshot or a freshness that this view has not waited for before.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] once the directory is closed.
    ///
    /// # Cancel safety
    ///
    /// What was not returned is returned by the next call.
    pub async fn changed(&mut self) -> Result<(), Error> {
        self.status.changed().await.map_err(|_| Error::Closed)?;
        if self.status.borrow_and_update().closed {
            self.status.mark_changed();
            return Err(Error::Closed);
        }
        Ok(())
    }

    /// A picker of its own for one task.
    pub fn picker(&self, policy: Policy) -> Picker {
        self.picker_of(policy, Filter::new())
    }

    /// A picker that sees only what `filter` lets through.
    pub fn picker_of(&self, policy: Policy, filter: Filter) -> Picker {
        Picker::new(Arc::clone(&self.shared.snapshot), policy, filter)
    }
}

impl Clone for ServiceView {
    fn clone(&self) -> Self {
        self.shared.users.send_modify(|users| *users += 1);
        Self { directory: Arc::clone(&self.directory), shared: Arc::clone(&self.shared), status: self.status.clone() }
    }
}

impl Drop for ServiceView {
    fn drop(&mut self) {
        self.shared.users.send_modify(|users| *users -= 1);
    }
}

impl fmt::Debug for ServiceView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceView").field("snapshot", &self.snapshot()).finish_non_exhaustive()
    }
}
