//! One client per instance, for protocols that are not gRPC.
//!
//! A [`Pool`] makes a client when an instance is first picked, keeps it while the instance is there, and lets go of it
//! when the instance is gone: calls that are under way finish, then the client is dropped. [`PoolOptions`] say which
//! instances are called; zones, keys and ejection are those of the gRPC channel, see [`crate::balancing::balance`] and
//! [`crate::balancing::ejection`].
//!
//! ```
//! # use enlist::{Directory, Endpoint, Error, Instance, InstanceId, Policy, Pool, PoolOptions, RegisterOptions, Registry, Retry, ServiceRef};
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
//! let answer = pool.call(Policy::Weighted, &retry, |client| async move { Ok(client.len()) }).await?;
//! # assert_eq!(answer, 21);
//! let answer = pool.call_for(b"user-7", &retry, |client| async move { Ok(client.len()) }).await?;
//! # assert_eq!(answer, 21);
//! # Ok(())
//! # }
//! ```

mod members;

use std::{
    fmt,
    future::Future,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use self::members::{Kind, Listed, Members};
use crate::{
    balancing::{
        balance::{Choice, Selection},
        candidate_table::PickError,
        ejection::Ejection,
        filter::Filter,
        policy::Policy,
    },
    discovery::{
        service_view::{LOOK_AGAIN, ServiceView},
        snapshot::Snapshot,
        view_changes::ViewChanges,
    },
    error::Error,
    model::{instance::Entry, name::InstanceId},
    runtime::{backoff::BackoffPolicy, clock::Moment, task::TaskOwner},
};

/// The instances that a pool calls. The defaults are those of the gRPC channel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PoolOptions {
    /// The instances that are called, and with [`Filter::subset`] how many. Default: all. Instances that drain, do not
    /// serve or have weight 0 are never called.
    pub filter: Filter,
    /// The zone whose instances are preferred. As long as more than 71 % of its weight does not rest, all calls stay
    /// there; below, they spill over to the others in proportion. Default: none.
    pub zone: Option<String>,
    /// Rule by which an instance rests that fails one call after the other; `None` for never. Default:
    /// [`Ejection::new`].
    pub ejection: Option<Ejection>,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { filter: Filter::new(), zone: None, ejection: Some(Ejection::new()) }
    }
}

impl PoolOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets which instances are called.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Sets the zone whose instances are preferred.
    #[must_use]
    pub fn prefer_zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets when an instance rests that fails one call after the other.
    #[must_use]
    pub fn ejection(mut self, ejection: Option<Ejection>) -> Self {
        self.ejection = ejection;
        self
    }
}

/// Rule by which a call is tried again, and its limits. The decision is the caller's: only it knows whether a call that
/// failed may have been done.
pub struct Retry<E> {
    accepts: Judge<E>,
    /// The errors that speak against the instance, if not those that are tried again.
    against: Option<Judge<E>>,
    attempts: u32,
    deadline: Duration,
    backoff: BackoffPolicy,
    wait_for_ready: bool,
}

/// Judgement of the user about an error.
type Judge<E> = Box<dyn Fn(&E) -> bool + Send + Sync>;

impl<E> Retry<E> {
    /// Tries again, on another instance where there is one, after errors that `retry_if` accepts: at most 3 attempts
    /// within 10 s, with delays of 200 ms growing to 10 s.
    pub fn new(retry_if: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        Self {
            accepts: Box::new(retry_if),
            against: None,
            attempts: 3,
            deadline: Duration::from_secs(10),
            backoff: BackoffPolicy::default(),
            wait_for_ready: false,
        }
    }

    /// Never tries again.
    pub fn never() -> Self {
        Self::new(|_| false)
    }

    /// Sets which errors speak against the instance that answered with them, see [`PoolOptions::ejection`]. An attempt
    /// that the deadline cut short always does, unless the call had waited for an instance, see
    /// [`wait_for_ready`](Self::wait_for_ready). Default: those that are tried again.
    #[must_use]
    pub fn against(mut self, against: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        self.against = Some(Box::new(against));
        self
    }

    /// Sets how many attempts there are in all. Zero counts as one.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Sets how long all attempts may take together.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the delays between attempts. An instance that was not tried yet is tried without one.
    #[must_use]
    pub fn backoff(mut self, backoff: BackoffPolicy) -> Self {
        self.backoff = backoff;
        self
    }

    /// Lets a call wait within its deadline while no instance can be picked: the service is not known yet, empty, or
    /// known from too long ago. The wait is no attempt. It ends early once the directory is closed. Default: such a
    /// call fails at once.
    #[must_use]
    pub fn wait_for_ready(mut self, wait_for_ready: bool) -> Self {
        self.wait_for_ready = wait_for_ready;
        self
    }
}

impl<E> fmt::Debug for Retry<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepts: _, against: _, attempts, deadline, backoff, wait_for_ready } = self;
        let mut shown = f.debug_struct("Retry");
        shown.field("attempts", attempts).field("deadline", deadline).field("backoff", backoff);
        shown.field("wait_for_ready", wait_for_ready).finish_non_exhaustive()
    }
}

/// An attempt of a call that failed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FailedAttempt<E> {
    /// The instance that was called.
    pub id: InstanceId,
    /// The error of the call.
    pub cause: E,
}

/// Reason for which a call failed. Each variant lists the attempts that failed before, in order.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError<E> {
    /// There was nobody to call.
    #[error("nobody to call")]
    PickError {
        /// The reason.
        #[source]
        cause: PickError,
        /// The attempts before.
        previous: Vec<FailedAttempt<E>>,
    },
    /// No client could be made for the instance.
    #[error("no client for {id}")]
    NoClient {
        /// The instance.
        id: InstanceId,
        /// The reason.
        #[source]
        cause: Error,
        /// The attempts before.
        previous: Vec<FailedAttempt<E>>,
    },
    /// The last attempt failed.
    #[error("the call failed after {attempts} attempts, the last one at {id}")]
    Failed {
        /// Number of attempts.
        attempts: u32,
        /// The instance of the last one.
        id: InstanceId,
        /// Error of the last one.
        #[source]
        cause: E,
        /// The attempts before the last one.
        previous: Vec<FailedAttempt<E>>,
    },
    /// The deadline passed during an attempt, which was dropped; it may have been done. With 0 attempts it had passed
    /// before the first one, which was not made.
    #[error("the deadline passed during attempt {attempts}, at {id}")]
    Deadline {
        /// Number of attempts.
        attempts: u32,
        /// The instance of the last one, or of the one that was not made.
        id: InstanceId,
        /// The attempts before the last one.
        previous: Vec<FailedAttempt<E>>,
    },
}

impl<E> PoolError<E> {
    /// The attempts that failed before the end of the call, in order. The last attempt is the error itself.
    pub fn previous(&self) -> &[FailedAttempt<E>] {
        match self {
            Self::PickError { previous, .. }
            | Self::NoClient { previous, .. }
            | Self::Failed { previous, .. }
            | Self::Deadline { previous, .. } => previous,
        }
    }
}

fn was_tried<E>(previous: &[FailedAttempt<E>], id: &InstanceId) -> bool {
    previous.iter().any(|attempt| attempt.id == *id)
}

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
    /// Whose turn it is.
    turn: AtomicUsize,
    tasks: TaskOwner,
}

impl<T: Send + Sync + 'static> Pool<T> {
    /// A pool with the default options whose clients `factory` makes. It must not block; a client that has to connect
    /// does so at its first call. Calls that need the same one at the same time may each make one; the first is kept
    /// and the others are dropped.
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

    /// Calls an instance, and another one where `retry` says so.
    ///
    /// # Errors
    ///
    /// [`PoolError`] says whether there was nobody, no client, or what the last attempt said, and lists the attempts
    /// before.
    ///
    /// # Cancel safety
    ///
    /// The attempt that is under way is dropped; whether it was done is for its protocol to say.
    pub async fn call<R, E, F, C>(&self, policy: Policy, retry: &Retry<E>, call: F) -> Result<R, PoolError<E>>
    where
        F: Fn(Arc<T>) -> C,
        C: Future<Output = Result<R, E>>,
    {
        let selection = match policy {
            Policy::Random => Selection::Random,
            Policy::RoundRobin => Selection::RoundRobin,
            Policy::Weighted | Policy::ConsistentHash => Selection::Weighted,
        };
        self.attempts(selection, None, retry, call).await
    }

    /// Calls the instance that `key` belongs to, and another one where `retry` says so. When the set changes, few keys
    /// change their instance; while an instance rests, its keys belong to others.
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
        self.attempts(Selection::Weighted, Some(key), retry, call).await
    }

    async fn attempts<R, E, F, C>(
        &self,
        selection: Selection,
        key: Option<&[u8]>,
        retry: &Retry<E>,
        call: F,
    ) -> Result<R, PoolError<E>>
    where
        F: Fn(Arc<T>) -> C,
        C: Future<Output = Result<R, E>>,
    {
        let choice = Choice { selection, key, turn: &self.turn };
        let begun = Moment::now();
        let mut backoff = retry.backoff.start();
        let mut previous: Vec<FailedAttempt<E>> = Vec::new();
        let mut waited = false;
        for attempts in 1.. {
            let one = match self.pick_in_time(&choice, &previous, retry, begun).await {
                Ok((one, wait)) => {
                    waited |= wait;
                    one
                }
                Err(cause) => return Err(PoolError::PickError { cause, previous }),
            };
            let id = one.id().clone();
            let client = match one.client(&self.factory) {
                Ok(client) => client,
                Err(cause) => return Err(PoolError::NoClient { id, cause, previous }),
            };
            let left = begun.remaining(retry.deadline);
            if left.is_zero() {
                return Err(match previous.pop() {
                    Some(FailedAttempt { id, cause }) => {
                        PoolError::Failed { attempts: attempts - 1, id, cause, previous }
                    }
                    None => PoolError::Deadline { attempts: 0, id, previous },
                });
            }
            let Ok(outcome) = tokio::time::timeout(left, call(client)).await else {
                // What the wait for an instance left of the time says nothing about this one.
                if !waited {
                    self.members.failed(&one, &self.tasks);
                }
                return Err(PoolError::Deadline { attempts, id, previous });
            };
            let cause = match outcome {
                Ok(answer) => {
                    Members::succeeded(&one);
                    return Ok(answer);
                }
                Err(cause) => cause,
            };
            let accepted = (retry.accepts)(&cause);
            if retry.against.as_ref().map_or(accepted, |against| against(&cause)) {
                self.members.failed(&one, &self.tasks);
            } else {
                Members::succeeded(&one);
            }
            // A second failure of the same instance is the time to slow down.
            let delay = if was_tried(&previous, &id) { backoff.next_delay() } else { Duration::ZERO };
            let again = accepted && attempts < retry.attempts;
            if !again || begun.remaining(retry.deadline) <= delay {
                return Err(PoolError::Failed { attempts, id, cause, previous });
            }
            previous.push(FailedAttempt { id, cause });
            tokio::time::sleep(delay).await;
        }
        unreachable!("the loop above has no other end")
    }

    /// Picks an instance, and waits for one where `retry` says so; whether it did comes with it.
    async fn pick_in_time<E>(
        &self,
        choice: &Choice<'_>,
        previous: &[FailedAttempt<E>],
        retry: &Retry<E>,
        begun: Moment,
    ) -> Result<(Arc<Listed<T>>, bool), PickError> {
        let mut picked = self.pick(choice, previous);
        if picked.is_ok() || !retry.wait_for_ready {
            return picked.map(|one| (one, false));
        }
        let mut changes = self.view.changes();
        while picked.is_err() {
            let left = begun.remaining(retry.deadline);
            // A proof of freshness comes without a change.
            let change = tokio::time::timeout(left.min(LOOK_AGAIN), next(&mut changes));
            if left.is_zero() || matches!(change.await, Ok(None)) {
                break;
            }
            // An instance that comes when no time is left to call it comes too late.
            if begun.remaining(retry.deadline).is_zero() {
                break;
            }
            picked = self.pick(choice, previous);
        }
        picked.map(|one| (one, true))
    }

    /// An instance that was not tried yet, if there is one that does not rest.
    fn pick<E>(&self, choice: &Choice<'_>, previous: &[FailedAttempt<E>]) -> Result<Arc<Listed<T>>, PickError> {
        let kind = if choice.key.is_some() { Kind::ByKey } else { Kind::Plain };
        let set = self.members.set(kind)?;
        // A set is never empty.
        set.pick(choice, |id| was_tried(previous, id)).cloned().ok_or(PickError::Unknown)
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
