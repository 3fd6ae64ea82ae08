//! One client per instance, for protocols that are not gRPC.
//!
//! A [`Pool`] creates a client at the first pick of an instance and keeps it while the instance is listed. When the
//! instance is gone, calls under way finish, then the client is dropped. [`PoolOptions`] select the instances. Zones,
//! keys and ejection work as in the gRPC channel, see [`crate::balancing::balance`] and [`crate::balancing::ejection`].
//!
//! ```
//! # use enlist::{Directory, Endpoint, Error, Instance, InstanceId, PickPolicy, Pool, PoolOptions, RegisterOptions};
//! # use enlist::{Registry, Retry, ServiceRef};
//! # use std::sync::Arc;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let store = enlist_memory::MemoryStore::new();
//! # let service = ServiceRef::parse("cache")?;
//! # let instance = Instance::new(InstanceId::parse("a")?, [Endpoint::parse("10.0.0.1:80")?])?;
//! # let _registration = store.client().register(&service, instance, RegisterOptions::new()).await?;
//! let view = Directory::new(Arc::new(store.client())).view(&service);
//! view.ready().await?;
//! let options = PoolOptions::new().prefer_zone("eu-1a");
//! let pool = Pool::with_options(view, options, |entry| Ok(format!("client of {}", entry.instance().endpoints()[0])))?;
//! let retry = Retry::new(|_: &std::io::Error| true).attempts(3);
//! let answer = pool.call(PickPolicy::Weighted, &retry, |client| async move { Ok(client.len()) }).await?;
//! # assert_eq!(answer, 21);
//! let answer = pool.call_for(b"user-7", &retry, |client| async move { Ok(client.len()) }).await?;
//! # assert_eq!(answer, 21);
//! # Ok(())
//! # }
//! ```

mod call;
pub(crate) mod error;
mod members;
pub(crate) mod options;
pub(crate) mod retry;

use std::{
    fmt,
    future::Future,
    sync::{Arc, atomic::AtomicUsize},
};

use self::{
    call::{CallProgress, Readiness},
    error::{FailedAttempt, PoolError, was_tried},
    members::{KeyUse, Listed, Members},
    options::PoolOptions,
    retry::{Blame, Judgement, NoInstance, Repeat, Retry},
};
use crate::{
    balancing::{
        balance::{PickArgs, SelectionPolicy},
        candidate_table::PickError,
        policy::PickPolicy,
    },
    discovery::{
        service_view::{FRESHNESS_RECHECK, ServiceView},
        snapshot::Snapshot,
        view_changes::ViewChanges,
    },
    error::Error,
    model::instance::Entry,
    runtime::task::TaskOwner,
};

type Factory<T> = Box<dyn Fn(&Entry) -> Result<T, Error> + Send + Sync>;

/// The next snapshot; `None` once the directory is closed.
async fn next(changes: &mut ViewChanges) -> Option<Snapshot> {
    loop {
        match changes.next().await {
            Ok(change) => return Some(change.snapshot),
            Err(Error::Closed) => return None,
            // The view goes on trying.
            Err(_) => {}
        }
    }
}

/// One client per instance of a service. Dropping it ends its task and drops its clients, once their calls are done.
pub struct Pool<T> {
    view: ServiceView,
    factory: Factory<T>,
    members: Arc<Members<T>>,
    /// Position counter of [`SelectionPolicy::RoundRobin`].
    turn: AtomicUsize,
    tasks: TaskOwner,
}

impl<T: Send + Sync + 'static> Pool<T> {
    /// A pool with the default options, whose clients `factory` creates. `factory` must not block; a client that has to
    /// connect does so at its first call. Concurrent calls that need the same client may each create one: the first is
    /// kept and the others are dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] outside a runtime.
    pub fn new(
        view: ServiceView,
        factory: impl Fn(&Entry) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        Self::with_options(view, PoolOptions::default(), factory)
    }

    /// A pool with options, see [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] outside a runtime.
    pub fn with_options(
        view: ServiceView,
        options: PoolOptions,
        factory: impl Fn(&Entry) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let (members, tasks) = (Arc::new(Members::new(&view, options)), TaskOwner::new());
        let (mut changes, kept) = (view.changes(), Arc::clone(&members));
        let tidy = async move {
            while let Some(snapshot) = next(&mut changes).await {
                kept.keep_only(&snapshot);
            }
        };
        tasks.spawn_until_stopped("pool", tidy)?;
        let turn = AtomicUsize::new(fastrand::usize(..));
        Ok(Self { view, factory: Box::new(factory), members, turn, tasks })
    }

    /// Calls an instance, and another one if `retry` allows it.
    ///
    /// # Errors
    ///
    /// [`PoolError`] states whether there was no instance, no client, or a failed attempt, and lists the attempts
    /// before.
    ///
    /// # Cancel safety
    ///
    /// The attempt under way is dropped; it may or may not have been executed.
    pub async fn call<R, E, F, C>(&self, policy: PickPolicy, retry: &Retry<E>, call: F) -> Result<R, PoolError<E>>
    where
        F: Fn(Arc<T>) -> C,
        C: Future<Output = Result<R, E>>,
    {
        let selection = match policy {
            PickPolicy::Random => SelectionPolicy::Random,
            PickPolicy::RoundRobin => SelectionPolicy::RoundRobin,
            PickPolicy::Weighted | PickPolicy::ConsistentHash => SelectionPolicy::Weighted,
        };
        self.attempts(selection, None, retry, call).await
    }

    /// Calls the instance that owns `key`, and another one if `retry` allows it. When the set changes, few keys change
    /// their instance. While an instance is ejected, its keys belong to others.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    ///
    /// # Cancel safety
    ///
    /// As [`call`](Self::call).
    pub async fn call_for<R, E, F, C>(&self, key: &[u8], retry: &Retry<E>, call: F) -> Result<R, PoolError<E>>
    where
        F: Fn(Arc<T>) -> C,
        C: Future<Output = Result<R, E>>,
    {
        self.attempts(SelectionPolicy::Weighted, Some(key), retry, call).await
    }

    async fn attempts<R, E, F, C>(
        &self,
        selection: SelectionPolicy,
        key: Option<&[u8]>,
        retry: &Retry<E>,
        call: F,
    ) -> Result<R, PoolError<E>>
    where
        F: Fn(Arc<T>) -> C,
        C: Future<Output = Result<R, E>>,
    {
        let args = PickArgs { selection, key, turn: &self.turn };
        let mut progress = CallProgress::new(retry);
        loop {
            let one = match self.pick_in_time(&args, &mut progress).await {
                Ok(one) => one,
                Err(cause) => return Err(PoolError::PickError { cause, previous: progress.previous }),
            };
            let id = one.id().clone();
            let client = match one.client(&self.factory) {
                Ok(client) => client,
                Err(cause) => return Err(PoolError::NoClient { id, cause, previous: progress.previous }),
            };
            let remaining = progress.remaining();
            if remaining.is_zero() {
                return Err(progress.ended_before_attempt(id));
            }
            let Ok(outcome) = tokio::time::timeout(remaining, call(client)).await else {
                // A timeout within the rest of the deadline after a wait for an instance does not count against this
                // one.
                if progress.readiness == Readiness::Immediate {
                    self.members.failed(&one, &self.tasks);
                }
                return Err(progress.ended_during_attempt(id));
            };
            let cause = match outcome {
                Ok(answer) => {
                    Members::succeeded(&one);
                    return Ok(answer);
                }
                Err(cause) => cause,
            };
            let repeat = self.judge(&one, retry, &cause);
            let delay;
            (progress, delay) = progress.after_failure(id, cause, repeat)?;
            tokio::time::sleep(delay).await;
        }
    }

    /// Records the failure of an attempt at `one`, if `retry` blames the instance. Returns the verdict on a repeat.
    fn judge<E>(&self, one: &Arc<Listed<T>>, retry: &Retry<E>, cause: &E) -> Repeat {
        let Judgement { repeat, blame } = retry.judge(cause);
        match blame {
            Blame::Instance => self.members.failed(one, &self.tasks),
            Blame::Call => Members::succeeded(one),
        }
        repeat
    }

    /// Picks an instance, and waits for one if the call allows it.
    async fn pick_in_time<E>(
        &self,
        args: &PickArgs<'_>,
        progress: &mut CallProgress<'_, E>,
    ) -> Result<Arc<Listed<T>>, PickError> {
        let mut picked = self.pick(args, &progress.previous);
        if picked.is_ok() || progress.retry.no_instance == NoInstance::Fail {
            return picked;
        }
        progress.readiness = Readiness::Waited;
        let mut changes = self.view.changes();
        while picked.is_err() {
            let remaining = progress.remaining();
            // A new proof of freshness is not signalled as a change.
            let change = tokio::time::timeout(remaining.min(FRESHNESS_RECHECK), next(&mut changes));
            if remaining.is_zero() || matches!(change.await, Ok(None)) {
                break;
            }
            // An instance that appears at the deadline is ignored, because no time is left to call it.
            if progress.remaining().is_zero() {
                break;
            }
            picked = self.pick(args, &progress.previous);
        }
        picked
    }

    /// Picks an instance that was not tried yet, if one that is not ejected is left.
    fn pick<E>(&self, args: &PickArgs<'_>, previous: &[FailedAttempt<E>]) -> Result<Arc<Listed<T>>, PickError> {
        let key_use = if args.key.is_some() { KeyUse::ByKey } else { KeyUse::Without };
        let set = self.members.set(key_use)?;
        // A set is never empty.
        set.pick(args, |id| was_tried(previous, id)).cloned().ok_or(PickError::Unknown)
    }

    /// Number of clients.
    pub fn len(&self) -> usize {
        self.members.clients()
    }

    /// Returns `true` if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The view that it picks from.
    pub fn view(&self) -> &ServiceView {
        &self.view
    }
}

impl<T> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("view", &self.view).field("members", &self.members).finish_non_exhaustive()
    }
}
