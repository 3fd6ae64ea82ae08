//! The task behind one acquisition of a lock or a leadership: joins the queue, waits, holds and leaves.
//!
//! A backend implements [`QueueProtocol`] and calls [`acquire`]. The order of the steps, the answers to the caller, the
//! loop of a holder and the deadline of a release are decided here, once for all backends.
//!
//! ```text
//! Joining ─entry created─► Waiting ─its turn─► Holding ─released or lost─► end
//!    ▲                        │
//!    └── entry lost ── Leaving ◄── not its turn, error, or the caller is gone ─► end
//! ```
//!
//! The caller's future only holds a receiver, so dropping it at any point makes the task remove the entry.

use std::{future::Future, sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, Fuse, FusedFuture},
};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use crate::{
    backend::publisher::OwnerHandle,
    error::Error,
    lock::{
        GuardDriver, LockGuard, LockOptions, Loss, Released,
        election::{Leadership, Proclamation},
        lock_guard,
        lock_validity::LockValidity,
    },
    model::{
        name::LockName,
        revision::{FencingToken, Revision},
    },
    runtime::{
        backoff::{Backoff, BackoffPolicy},
        clock::Moment,
        deadline::LastTrouble,
        task::TaskOwner,
    },
    telemetry::{Timer, measured},
};

mod state;

use state::{Leaving, OnLostEntry, State, after_wait};

/// Maximum time for which `release` waits for the store. The removal continues in the background after it.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// Age of an entry from which its loss does not count as a repetition: joining again starts with the shortest delay.
const STABLE_ENTRY_AGE: Duration = Duration::from_secs(10);

/// Object of an acquisition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a backend has to handle each of them")]
pub enum Wanted {
    /// A lock, as soon as it is this contender's turn.
    Lock,
    /// A lock that is held by no other contender now.
    FreeLock,
    /// The leadership of an election, with this first value.
    Leadership(String),
}

impl Wanted {
    /// Returns `true` if the contender waits for its turn.
    pub fn waits(&self) -> bool {
        !matches!(self, Self::FreeLock)
    }

    /// Returns the value of a leader; it is empty for a lock.
    pub fn text(&self) -> &str {
        match self {
            Self::Lock | Self::FreeLock => "",
            Self::Leadership(value) => value,
        }
    }
}

/// Result of an acquisition.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "the results of the three variants of `Wanted`")]
pub enum Acquired {
    /// The lock is held.
    Lock(LockGuard),
    /// The election is won.
    Leadership(Leadership),
    /// Another contender holds the lock, and the caller does not wait.
    Nothing,
}

impl Acquired {
    /// Returns the guard; `None` for [`Nothing`](Self::Nothing).
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] for a leadership.
    pub fn into_guard(self) -> Result<Option<LockGuard>, Error> {
        match self {
            Self::Lock(guard) => Ok(Some(guard)),
            Self::Nothing => Ok(None),
            Self::Leadership(_) => Err(Error::Closed),
        }
    }

    /// Returns the leadership.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] for anything else.
    pub fn into_leadership(self) -> Result<Leadership, Error> {
        match self {
            Self::Leadership(leadership) => Ok(leadership),
            Self::Lock(_) | Self::Nothing => Err(Error::Closed),
        }
    }
}

/// Position of an entry after the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is no third case")]
pub enum Turn {
    /// It is the contender's turn.
    Granted,
    /// It is not, and the caller does not wait.
    NotGranted,
}

/// Reason for which an entry is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a backend has to handle each of them")]
pub enum LeaveReason {
    /// The holder released the lock.
    Released,
    /// The holder lost the lock. It may not have noticed yet, so a mark of a `lock_delay` stays.
    LockLost,
    /// The entry was lost before its turn. The contender joins the queue again.
    EntryLost,
    /// The wait failed with an error.
    Failed,
    /// It is not the contender's turn, and the caller does not wait.
    NotGranted,
    /// The caller no longer waits for an outcome.
    CallerGone,
}

/// Terms under which a contender becomes the holder.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "built by each backend")]
pub struct Grant {
    /// Time at which the last acknowledged renewal of the lease was sent.
    pub sent: Moment,
    /// Granted TTL of the lease.
    pub ttl: Duration,
    /// Creation of the entry.
    pub token: FencingToken,
    /// The part of the backend that the guard keeps alive.
    pub source: OwnerHandle,
}

/// Event that concerns a held lock.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a holder is renewed or it is not")]
pub enum HolderEvent {
    /// The lease was renewed by a request that was sent at this time.
    Renewed(Moment),
    /// The lease or the key is gone.
    Lost(Loss),
}

/// Failure to join the queue.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "built by each backend")]
pub struct JoinFailure<E> {
    /// Answer to the caller.
    pub outcome: Result<Acquired, Error>,
    /// Entry that may be in the store all the same.
    pub entry: Option<E>,
}

impl<E> From<Error> for JoinFailure<E> {
    fn from(error: Error) -> Self {
        Self { outcome: Err(error), entry: None }
    }
}

/// The caller of an acquisition, which waits for its outcome.
#[derive(Debug)]
pub struct Caller(oneshot::Sender<Result<Acquired, Error>>);

impl Caller {
    /// Waits until the caller no longer waits for an outcome.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn gone(&mut self) {
        self.0.closed().await;
    }

    fn answer(self, outcome: Result<Acquired, Error>) {
        // For a caller that is gone the guard is dropped here, which requests the release.
        drop(self.0.send(outcome));
    }
}

/// The queue of a store, as one contender uses it.
pub trait QueueProtocol: Send + 'static {
    /// A queue entry that is, or may be, in the store.
    type Entry: Send;

    /// Creates the entry. If the caller waits, repeats this until the store answers or the caller is gone.
    fn join(
        &mut self,
        caller: &mut Caller,
    ) -> impl Future<Output = Result<Self::Entry, JoinFailure<Self::Entry>>> + Send;

    /// Removes what a failed [`join`](Self::join) may have left. It has no time limit: the caller was answered.
    fn clean_up(&mut self, entry: Self::Entry) -> impl Future<Output = ()> + Send;

    /// Waits for the turn of the entry. [`Error::LeaseLost`] means that the entry is lost.
    ///
    /// Dropping the future loses nothing.
    fn wait(&mut self, entry: &mut Self::Entry) -> impl Future<Output = Result<Turn, Error>> + Send;

    /// Returns the terms for the holder; `None` if the lease is not alive any more.
    fn grant(&mut self, entry: &mut Self::Entry) -> Option<Grant>;

    /// Waits for the next event of the held lock.
    ///
    /// Dropping the future loses nothing.
    fn holder_event(&mut self, entry: &mut Self::Entry) -> impl Future<Output = HolderEvent> + Send;

    /// Writes a new value of the leader and answers it. Returns the revision of the last known change of the entry, for
    /// [`proclaimed`](Self::proclaimed).
    fn proclaim(&mut self, entry: &Self::Entry, proclamation: Proclamation) -> BoxFuture<'static, Option<Revision>>;

    /// Notes the revision of the last known change of the entry.
    fn proclaimed(&mut self, entry: &mut Self::Entry, modified: Option<Revision>);

    /// Removes the entry until the store confirms it or the lease is gone.
    fn leave(&mut self, entry: &mut Self::Entry, reason: LeaveReason) -> impl Future<Output = Released> + Send;

    /// Notes that the entry is gone, after [`leave`](Self::leave).
    fn left(&mut self, entry: Self::Entry);

    /// Returns the time since the entry was chosen.
    fn age(&self, entry: &Self::Entry) -> Duration;

    /// Notes that a held lock was lost.
    fn lock_lost(&mut self) {}

    /// Returns `false` if a lost lock is kept until it is released: a deliberate defect, for tests of tests.
    fn gives_up_lost_lock(&self) -> bool {
        true
    }
}

/// One acquisition, apart from the store.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "built by each backend")]
pub struct Acquisition {
    /// Lock or election.
    pub name: LockName,
    /// Object of the acquisition.
    pub wanted: Wanted,
    /// Options of the caller.
    pub options: LockOptions,
    /// Last error that delayed joining or leaving. The caller's timeout names it.
    pub trouble: LastTrouble,
}

impl Acquisition {
    /// Makes the acquisition of a caller.
    pub fn new(name: LockName, wanted: Wanted, options: LockOptions) -> Self {
        Self { name, wanted, options, trouble: LastTrouble::default() }
    }
}

/// Starts the task of a contender in `tasks` and waits for its outcome.
///
/// # Errors
///
/// [`Error::Closed`] after the end of the session, [`Error::Timeout`] at the deadline of the options,
/// [`Error::LeaseLost`] if the entry was lost and the contender does not join again, and those of the protocol.
///
/// # Cancel safety
///
/// Dropping the future makes the task remove the entry.
pub async fn acquire(
    tasks: &TaskOwner,
    acquisition: Acquisition,
    protocol: impl QueueProtocol,
) -> Result<Acquired, Error> {
    let (caller, outcome) = oneshot::channel();
    let (trouble, deadline) = (acquisition.trouble.clone(), acquisition.options.deadline);
    let span = tracing::info_span!("lock", lock = %acquisition.name);
    let contender =
        Contender { acquisition, protocol, begun: Moment::now(), backoff: BackoffPolicy::default().start() };
    tasks.spawn_until_stopped("lock", contender.run(Caller(caller)).instrument(span))?;
    trouble.within("acquire", deadline, async { outcome.await.map_err(|_| Error::Closed)? }).await
}

/// The task of one contender.
struct Contender<P> {
    acquisition: Acquisition,
    protocol: P,
    begun: Moment,
    backoff: Backoff,
}

impl<P: QueueProtocol> Contender<P> {
    async fn run(mut self, caller: Caller) {
        let mut state = State::Joining { caller };
        loop {
            let next = match state {
                State::Joining { caller } => self.join(caller).await,
                State::Waiting { entry, caller } => self.wait(entry, caller).await,
                State::Leaving { entry, leaving } => self.leave(entry, leaving).await,
                State::Holding { entry, caller, grant } => {
                    self.hold(entry, caller, grant).await;
                    None
                }
            };
            match next {
                Some(next) => state = next,
                None => return,
            }
        }
    }

    async fn join(&mut self, mut caller: Caller) -> Option<State<P::Entry>> {
        match self.protocol.join(&mut caller).await {
            Ok(entry) => Some(State::Waiting { entry, caller }),
            Err(JoinFailure { outcome, entry }) => {
                caller.answer(outcome);
                if let Some(entry) = entry {
                    self.protocol.clean_up(entry).await;
                }
                None
            }
        }
    }

    async fn wait(&mut self, mut entry: P::Entry, mut caller: Caller) -> Option<State<P::Entry>> {
        let waited = tokio::select! {
            turn = self.protocol.wait(&mut entry) => Some(turn),
            () = caller.gone() => None,
        };
        let grant = self.protocol.grant(&mut entry);
        let Acquisition { wanted, options, .. } = &self.acquisition;
        let joins_again = wanted.waits() && !options.fail_on_lost_entry;
        let on_lost_entry = if joins_again { OnLostEntry::JoinAgain } else { OnLostEntry::Fail };
        Some(after_wait(entry, caller, waited, grant, on_lost_entry))
    }

    async fn leave(&mut self, mut entry: P::Entry, leaving: Leaving) -> Option<State<P::Entry>> {
        let reason = leaving.reason();
        let caller = match leaving {
            Leaving::Failed { caller, error } => {
                caller.answer(Err(error));
                None
            }
            Leaving::EntryLost { caller } | Leaving::NotGranted { caller } => Some(caller),
            Leaving::CallerGone => None,
        };
        self.protocol.leave(&mut entry, reason).await;
        match (caller, reason) {
            (Some(caller), LeaveReason::EntryLost) => self.join_again(entry, caller).await,
            (caller, _) => {
                if let Some(caller) = caller {
                    caller.answer(Ok(Acquired::Nothing));
                }
                self.protocol.left(entry);
                None
            }
        }
    }

    /// Waits before the queue is joined again; returns `None` if the caller is gone meanwhile.
    async fn join_again(&mut self, entry: P::Entry, mut caller: Caller) -> Option<State<P::Entry>> {
        if self.protocol.age(&entry) >= STABLE_ENTRY_AGE {
            self.backoff.reset();
        }
        self.protocol.left(entry);
        tracing::warn!("queue entry lost, joining the queue again");
        tokio::select! {
            () = caller.gone() => None,
            () = tokio::time::sleep(self.backoff.next_delay()) => Some(State::Joining { caller }),
        }
    }

    /// Hands the guard over and keeps its validity current until it is released or lost, then leaves.
    async fn hold(&mut self, mut entry: P::Entry, caller: Caller, grant: Grant) {
        let Grant { sent, ttl, token, source } = grant;
        let validity = Arc::new(LockValidity::new(sent, ttl));
        let (guard, driver) = lock_guard(self.acquisition.name.clone(), token, validity, source);
        let (acquired, mut proclamations) = match self.acquisition.wanted {
            Wanted::Lock | Wanted::FreeLock => (Acquired::Lock(guard), None),
            Wanted::Leadership(_) => {
                let (leadership, proclamations) = Leadership::new(guard);
                (Acquired::Leadership(leadership), Some(proclamations))
            }
        };
        caller.answer(Ok(acquired));
        measured(Timer::LockWait, self.begun.elapsed());
        tracing::info!(token = token.get(), "lock acquired");
        self.keep_current(&mut entry, ttl, &driver, &mut proclamations).await;
        match driver.validity().loss() {
            None | Some(Loss::Released | Loss::SessionClosed) => tracing::info!("lock released"),
            Some(loss) => {
                self.protocol.lock_lost();
                tracing::warn!(token = token.get(), cause = ?loss, "lock lost");
            }
        }
        self.release(&mut entry, &driver).await;
        self.protocol.left(entry);
    }

    /// Returns once the lock is to be released, or is lost.
    async fn keep_current(
        &mut self,
        entry: &mut P::Entry,
        ttl: Duration,
        driver: &GuardDriver,
        proclamations: &mut Option<mpsc::Receiver<Proclamation>>,
    ) {
        let protocol = &mut self.protocol;
        // Concurrent with everything else: a proclamation without an answer must not delay the effect of a renewal.
        let mut proclaiming = std::pin::pin!(Fuse::<BoxFuture<'static, Option<Revision>>>::terminated());
        let gives_up = protocol.gives_up_lost_lock();
        loop {
            tokio::select! {
                () = driver.release_wanted() => return,
                // A lost lock is given up: an entry that a recovered session kept alive would block all others.
                _ = driver.validity().lost(), if gives_up => return,
                event = protocol.holder_event(entry) => match event {
                    HolderEvent::Renewed(sent) => driver.validity().renewed(sent, ttl),
                    HolderEvent::Lost(loss) => driver.validity().lose(loss),
                },
                proclamation = next(proclamations), if proclaiming.is_terminated() => {
                    proclaiming.set(protocol.proclaim(entry, proclamation).fuse());
                }
                modified = &mut proclaiming => protocol.proclaimed(entry, modified),
            }
        }
    }

    /// Removes the entry. The caller of `release` gets its answer at the latest after [`RELEASE_TIMEOUT`].
    async fn release(&mut self, entry: &mut P::Entry, driver: &GuardDriver) {
        let reason = match driver.validity().loss() {
            None | Some(Loss::Released) => LeaveReason::Released,
            Some(_) => LeaveReason::LockLost,
        };
        let trouble = &self.acquisition.trouble;
        let mut leaving = std::pin::pin!(self.protocol.leave(entry, reason));
        let outcome = trouble.within("release", Some(RELEASE_TIMEOUT), async { Ok(leaving.as_mut().await) }).await;
        let unfinished = outcome.is_err();
        driver.report(outcome);
        if unfinished {
            leaving.await;
        }
    }
}

/// Waits for the next proclamation; forever for a lock, or once the leader dropped its handle.
async fn next(proclamations: &mut Option<mpsc::Receiver<Proclamation>>) -> Proclamation {
    let received = match proclamations {
        Some(receiver) => receiver.recv().await,
        None => None,
    };
    match received {
        Some(proclamation) => proclamation,
        None => std::future::pending().await,
    }
}
