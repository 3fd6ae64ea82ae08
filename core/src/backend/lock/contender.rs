//! The task behind one acquisition of a lock or a leadership: joins the queue, waits, holds and leaves.
//!
//! A backend implements [`QueueProtocol`] (`contender/protocol.rs`) and calls [`acquire`]. The order of the steps, the
//! answers to the caller, the loop of a holder and the deadline of a release are decided here, once for all backends.
//!
//! ```text
//! Joining ─entry created─► Waiting ─its turn─► Holding ─released or lost─► end
//!    ▲                        │
//!    └── entry lost ── Leaving ◄── not its turn, error, or the caller is gone ─► end
//! ```
//!
//! The caller's future only holds a receiver, so dropping it at any point makes the task remove the entry.

use std::time::Duration;

use futures::{
    FutureExt,
    future::{BoxFuture, Fuse, FusedFuture},
};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use crate::{
    backend::{
        counting::{Timer, measured},
        lock::{
            guard_driver::{GuardDriver, lock_guard},
            leadership::leadership,
            proclamation::Proclamation,
        },
    },
    error::Error,
    lock::loss::Loss,
    model::{escape::escaped, revision::Revision},
    runtime::{
        backoff::{Backoff, BackoffPolicy},
        clock::Moment,
        task::TaskOwner,
    },
};

mod acquisition;
pub(super) mod protocol;
mod state;

pub use acquisition::{Acquired, Acquisition, Wanted};
pub use protocol::{Caller, Grant, HolderEvent, JoinFailure, LeaveReason, QueueProtocol, Turn};
use state::{Leaving, OnLostEntry, State, after_wait};

/// Maximum time for which `release` waits for the store. The removal continues in the background after it.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// Age of an entry from which its loss does not count as a repetition: joining again starts with the shortest delay.
const STABLE_ENTRY_AGE: Duration = Duration::from_secs(10);

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
    let span = tracing::info_span!("lock", lock = %escaped(&acquisition.name));
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
            // Before the answer, as in `release`.
            Err(JoinFailure { outcome: Ok(acquired), entry }) => {
                self.clean_up(entry).await;
                caller.answer(Ok(acquired));
                None
            }
            // After it, because the removal may take as long as an outage of the store.
            Err(JoinFailure { outcome: Err(error), entry }) => {
                caller.answer(Err(error));
                self.clean_up(entry).await;
                None
            }
        }
    }

    async fn clean_up(&mut self, entry: Option<P::Entry>) {
        if let Some(entry) = entry {
            self.protocol.clean_up(entry).await;
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
                // Before the answer, as in `release`.
                self.protocol.entry_removed(entry);
                if let Some(caller) = caller {
                    caller.answer(Ok(Acquired::Nothing));
                }
                None
            }
        }
    }

    /// Waits before the queue is joined again; returns `None` if the caller is gone meanwhile.
    async fn join_again(&mut self, entry: P::Entry, mut caller: Caller) -> Option<State<P::Entry>> {
        if self.protocol.age(&entry) >= STABLE_ENTRY_AGE {
            self.backoff.reset();
        }
        self.protocol.entry_removed(entry);
        tracing::warn!("queue entry lost, joining the queue again");
        tokio::select! {
            () = caller.gone() => None,
            () = tokio::time::sleep(self.backoff.next_delay()) => Some(State::Joining { caller }),
        }
    }

    /// Passes on the guard and keeps its validity current until it is released or lost, then leaves.
    async fn hold(&mut self, mut entry: P::Entry, caller: Caller, grant: Grant) {
        let (ttl, token) = (grant.ttl, grant.token);
        let (guard, driver) = lock_guard(self.acquisition.name.clone(), grant);
        let (acquired, proclamations) = match self.acquisition.wanted {
            Wanted::Lock | Wanted::FreeLock => (Acquired::Lock(guard), None),
            Wanted::Leadership(_) => {
                let (leadership, proclamations) = leadership(guard);
                (Acquired::Leadership(leadership), Some(proclamations))
            }
        };
        caller.answer(Ok(acquired));
        measured(Timer::LockWait, self.begun.elapsed());
        tracing::info!(token = token.get(), "lock acquired");
        self.keep_current(&mut entry, ttl, &driver, proclamations).await;
        match driver.validity().loss() {
            None | Some(Loss::Released | Loss::SessionClosed) => tracing::info!("lock released"),
            Some(loss) => {
                self.protocol.lock_lost();
                tracing::warn!(token = token.get(), cause = ?loss, "lock lost");
            }
        }
        self.release(entry, &driver).await;
    }

    /// Returns once the lock is to be released, or is lost. The proclamations without an answer end with it, because
    /// the removal of the entry may take as long as an outage of the store.
    async fn keep_current(
        &mut self,
        entry: &mut P::Entry,
        ttl: Duration,
        driver: &GuardDriver,
        mut proclamations: Option<mpsc::Receiver<Proclamation>>,
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
                proclamation = next(&mut proclamations), if proclaiming.is_terminated() => {
                    proclaiming.set(protocol.proclaim(entry, proclamation).fuse());
                }
                modified = &mut proclaiming => protocol.proclaimed(entry, modified),
            }
        }
    }

    /// Removes the entry, and then answers the caller of `release`, so that its next acquisition is not behind this
    /// entry. A removal that takes longer than [`RELEASE_TIMEOUT`] continues after the answer.
    async fn release(&mut self, mut entry: P::Entry, driver: &GuardDriver) {
        let reason = match driver.validity().loss() {
            None | Some(Loss::Released) => LeaveReason::Released,
            Some(_) => LeaveReason::LockLost,
        };
        let trouble = &self.acquisition.trouble;
        let answer = {
            let mut leaving = std::pin::pin!(self.protocol.leave(&mut entry, reason));
            let outcome = trouble.within("release", Some(RELEASE_TIMEOUT), async { Ok(leaving.as_mut().await) }).await;
            if outcome.is_ok() {
                Some(outcome)
            } else {
                driver.report(outcome);
                leaving.await;
                None
            }
        };
        self.protocol.entry_removed(entry);
        if let Some(outcome) = answer {
            driver.report(outcome);
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

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{
            Arc, Mutex,
            atomic::{AtomicU32, Ordering},
        },
    };

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        lock::{election::Leadership, loss::Released, options::LockOptions},
        model::{name::LockName, revision::FencingToken},
        runtime::sync::MutexExt as _,
    };

    const TTL: Duration = Duration::from_secs(15);

    /// State of the lock when the contender joins.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    enum LockState {
        #[default]
        Free,
        /// The entry is behind that of the holder.
        Held,
        /// The holder has the only key, as in the layout of gobase.
        Occupied,
    }

    /// A store that answers at once when an entry joins the queue, and when it is removed after a release or a refusal.
    /// Proclamations and other removals get no answer.
    #[derive(Clone, Default)]
    struct TestStore {
        lock: LockState,
        key_deleted: CancellationToken,
        proclamations: Arc<AtomicU32>,
        /// A caller, and whether it had its answer when its entry was gone.
        caller: Arc<Mutex<Option<BoxFuture<'static, ()>>>>,
        answered: Arc<Mutex<Vec<bool>>>,
    }

    impl QueueProtocol for TestStore {
        type Entry = ();

        async fn join(&mut self, _: &mut Caller) -> Result<(), JoinFailure<()>> {
            match self.lock {
                LockState::Free | LockState::Held => Ok(()),
                LockState::Occupied => Err(JoinFailure { outcome: Ok(Acquired::Nothing), entry: Some(()) }),
            }
        }

        async fn clean_up(&mut self, (): ()) {
            self.entry_removed(());
        }

        async fn wait(&mut self, (): &mut ()) -> Result<Turn, Error> {
            Ok(if self.lock == LockState::Free { Turn::Granted } else { Turn::NotGranted })
        }

        fn grant(&mut self, (): &mut ()) -> Option<Grant> {
            Some(Grant { sent: Moment::now(), ttl: TTL, token: FencingToken::new(1), source: Arc::new(()) })
        }

        async fn holder_event(&mut self, (): &mut ()) -> HolderEvent {
            self.key_deleted.cancelled().await;
            HolderEvent::Lost(Loss::KeyGone)
        }

        fn proclaim(&mut self, (): &(), proclamation: Proclamation) -> BoxFuture<'static, Option<Revision>> {
            self.proclamations.fetch_add(1, Ordering::Relaxed);
            async move {
                let _unanswered = proclamation;
                pending().await
            }
            .boxed()
        }

        fn proclaimed(&mut self, (): &mut (), _: Option<Revision>) {}

        async fn leave(&mut self, (): &mut (), reason: LeaveReason) -> Released {
            match reason {
                LeaveReason::Released | LeaveReason::NotGranted => Released::Released,
                _ => pending().await,
            }
        }

        fn entry_removed(&mut self, (): ()) {
            if let Some(caller) = &mut *self.caller.locked() {
                self.answered.locked().push(caller.now_or_never().is_some());
            }
        }

        fn age(&self, (): &()) -> Duration {
            Duration::ZERO
        }
    }

    /// Otherwise its next acquisition would count the former entry, and wait for others to write with it.
    #[tokio::test]
    async fn a_caller_is_answered_after_its_entry() {
        for lock in [LockState::Free, LockState::Held, LockState::Occupied] {
            let wanted = if lock == LockState::Free { Wanted::Lock } else { Wanted::FreeLock };
            let (tasks, store) = (Arc::new(TaskOwner::new()), TestStore { lock, ..TestStore::default() });
            let acquisition = Acquisition::new(LockName::parse("l").unwrap(), wanted, LockOptions::new()).unwrap();
            let (owner, protocol) = (Arc::clone(&tasks), store.clone());
            let acquire = async move { acquire(&owner, acquisition, protocol).await.unwrap().into_guard().unwrap() };
            let mut caller = if lock == LockState::Free {
                let guard = acquire.await.unwrap();
                async move { assert_eq!(guard.release().await.unwrap(), Released::Released) }.boxed()
            } else {
                acquire.map(|guard| assert!(guard.is_none())).boxed()
            };
            assert!((&mut caller).now_or_never().is_none(), "the task has not run");
            *store.caller.locked() = Some(caller);
            assert!(tasks.drain(TTL).await);
            assert_eq!(*store.answered.locked(), [false], "{lock:?}");
            let caller = store.caller.locked().take().unwrap();
            caller.await;
        }
    }

    async fn leadership(tasks: &TaskOwner, store: TestStore) -> Leadership {
        let wanted = Wanted::Leadership("first".to_owned());
        let acquisition = Acquisition::new(LockName::parse("e").unwrap(), wanted, LockOptions::new()).unwrap();
        acquire(tasks, acquisition, store).await.unwrap().into_leadership().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_loss_ends_every_proclamation_before_the_entry_is_removed() {
        let (tasks, store) = (TaskOwner::new(), TestStore::default());
        let leadership = leadership(&tasks, store.clone()).await;
        // One is on its way to the store, the others fill the queue, and the last one waits for room in it.
        let proclamations = (0..10).map(|value| leadership.proclaim(value.to_string()));
        let lose = async {
            while store.proclamations.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
            store.key_deleted.cancel();
        };
        let ended = async { tokio::join!(futures::future::join_all(proclamations), lose).0 };
        let outcomes = tokio::time::timeout(TTL * 2, ended).await.expect("each proclamation ends with the leadership");
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Error::LeaseLost))), "{outcomes:?}");
        assert_eq!(store.proclamations.load(Ordering::Relaxed), 1);
    }
}
