//! Locks and elections: a line of places in the store, judged by [`enlist::backend::queue_position`].
//!
//! The protocol runs in a task of the session. The caller's future only holds a receiver, so dropping it at any point
//! makes the task clean up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use enlist::{
    BackoffPolicy, Election, Error, FencingToken, Leader, LeaderWatcher, Leadership, Lock, LockGuard, LockMode,
    LockName, LockOptions, Loss, Moment, Released, Revision,
    backend::{
        GuardDriver, LastTrouble, LeasePurpose, LeaseState, LockValidity, Proclamation, QueueEntry, QueuePosition,
        lease_changed, lock_guard, queue_position,
    },
};
use futures::{
    FutureExt,
    future::{Fuse, FusedFuture},
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    client::{Inner, MemoryClient},
    defect::Defect,
    discovery::watcher::WatchedState,
    session::lease::Lease,
    store::{Group, Key, KeyChange, Kind, Record, Refusal, Store, Value},
    watch::hub::{Changes, up},
};

mod lock_delay;

/// Time for which `release` waits for the store before it returns and goes on in the background.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whoever stood in line for so long before the place was lost gets in line again without the delays of earlier losses.
const STOOD_LONG: Duration = Duration::from_secs(10);

/// Makes the key of each place unique within the process; the lease makes it so between clients.
static NEXT_PLACE: AtomicU64 = AtomicU64::new(1);

#[async_trait]
impl Lock for MemoryClient {
    async fn acquire(&self, name: &LockName, options: LockOptions) -> Result<LockGuard, Error> {
        let want = Want::Lock { wait: true };
        self.stand(name, want, options).await?.into_guard()?.ok_or(Error::Closed)
    }

    async fn try_acquire(&self, name: &LockName, options: LockOptions) -> Result<Option<LockGuard>, Error> {
        let want = Want::Lock { wait: false };
        self.stand(name, want, options).await?.into_guard()
    }
}

#[async_trait]
impl Election for MemoryClient {
    async fn campaign(&self, name: &LockName, value: &str, options: LockOptions) -> Result<Leadership, Error> {
        if options.mode == LockMode::Shared {
            return Err(Error::invalid_config("mode", "there is one leader: an election has no shared mode"));
        }
        match self.stand(name, Want::Leadership { value: value.to_owned() }, options).await? {
            Won::Leadership(leadership) => Ok(leadership),
            _ => Err(Error::Closed),
        }
    }

    async fn leader(&self, name: &LockName) -> Result<Option<Leader>, Error> {
        self.inner.check_open()?;
        let group = Group::line(Kind::Election, name);
        self.inner.link.ask(|store, _| leader(store, &group)).await
    }

    async fn observe(&self, name: &LockName) -> Result<LeaderWatcher, Error> {
        let state = LeaderState { group: Group::line(Kind::Election, name) };
        Ok(LeaderWatcher::new(self.follow(state)?))
    }
}

fn leader(store: &Store, group: &Group) -> Option<Leader> {
    let (_, record) = store.range(group).min_by_key(|(_, record)| record.created)?;
    let Value::QueueEntry { text, .. } = &record.value else {
        return None;
    };
    Some(Leader { value: text.clone(), token: token(record), modified: record.modified })
}

fn token(record: &Record) -> FencingToken {
    FencingToken::new(record.created.get())
}

struct LeaderState {
    group: Group,
}

impl WatchedState for LeaderState {
    type Value = Option<Leader>;

    fn relist(&mut self, store: &Store, _: enlist::Epoch) -> Self::Value {
        leader(store, &self.group)
    }

    fn apply(&mut self, store: &Store, _: &mut dyn Iterator<Item = &KeyChange>) -> Self::Value {
        leader(store, &self.group)
    }
}

/// Lock or election that a caller stands in line for.
enum Want {
    Lock { wait: bool },
    Leadership { value: String },
}

enum Won {
    Lock(LockGuard),
    Leadership(Leadership),
    Nothing,
}

impl Won {
    fn into_guard(self) -> Result<Option<LockGuard>, Error> {
        match self {
            Self::Lock(guard) => Ok(Some(guard)),
            Self::Nothing => Ok(None),
            Self::Leadership(_) => Err(Error::Closed),
        }
    }
}

impl MemoryClient {
    async fn stand(&self, name: &LockName, want: Want, options: LockOptions) -> Result<Won, Error> {
        options.check()?;
        self.inner.check_open()?;
        let (answer, won) = oneshot::channel();
        let (deadline, trouble) = (options.deadline, LastTrouble::default());
        let stander = Contender {
            client: Arc::clone(&self.inner),
            changes: self.inner.link.hub().changes(),
            name: name.clone(),
            want,
            options,
            trouble: trouble.clone(),
        };
        self.inner.tasks.spawn_until_stopped("lock", stander.run(answer))?;
        // Dropping the receiver tells the task.
        trouble.within("acquire", deadline, async { won.await.map_err(|_| Error::Closed)? }).await
    }
}

/// Channel to the caller, which waits for the outcome of its acquisition.
type Answer = oneshot::Sender<Result<Won, Error>>;

/// The task behind one place in a line.
struct Contender {
    client: Arc<Inner>,
    changes: Changes,
    name: LockName,
    want: Want,
    options: LockOptions,
    /// The last error that kept it from getting in line, or from leaving, for the caller to name at its deadline.
    trouble: LastTrouble,
}

/// A place that this task has put into the store.
struct Queued {
    key: Key,
    token: FencingToken,
    lease: Arc<Lease>,
}

impl Contender {
    /// Gets in line, waits, holds and leaves; gets in line again, at its end, if the place is lost before it is its turn.
    async fn run(mut self, mut answer: Answer) {
        let mut backoff = BackoffPolicy::default().start();
        loop {
            let entered = tokio::select! {
                entered = self.enter() => entered,
                () = answer.closed() => return,
            };
            let held = match entered {
                Ok(held) => held,
                Err(error) => return drop(answer.send(Err(error))),
            };
            let begun = Moment::now();
            let Some(unanswered) = self.stand(held, answer).await else {
                return;
            };
            answer = unanswered;
            if begun.elapsed() >= STOOD_LONG {
                backoff.reset();
            }
            tokio::select! {
                () = answer.closed() => return,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    /// Waits, holds and leaves. A place that is lost before it is its turn leaves the caller without an answer, unless it wants to
    /// hear of that; then its answer is returned.
    async fn stand(&mut self, held: Queued, mut answer: Answer) -> Option<Answer> {
        let waited = tokio::select! {
            waited = self.wait(&held) => Some(waited),
            () = answer.closed() => None,
        };
        let again = self.waits() && !self.options.fail_on_lost_entry;
        match (waited, held.lease.renewed()) {
            (Some(Ok(true)), Some(sent)) => self.hold(held, sent, answer).await,
            (Some(Ok(true)), None) | (Some(Err(Error::LeaseLost)), _) if again => {
                self.leave(&held).await;
                return Some(answer);
            }
            (Some(Ok(true)), None) => {
                let _ = answer.send(Err(Error::LeaseLost));
                self.leave(&held).await;
            }
            (Some(Ok(false)), _) => {
                self.leave(&held).await;
                let _ = answer.send(Ok(Won::Nothing));
            }
            (Some(Err(error)), _) => {
                let _ = answer.send(Err(error));
                self.leave(&held).await;
            }
            (None, _) if self.client.link.hub().has(Defect::LeavesWaiters) => std::future::pending().await,
            (None, _) => {
                self.leave(&held).await;
            }
        }
        None
    }

    fn group(&self) -> Group {
        let kind = match self.want {
            Want::Lock { .. } => Kind::Lock,
            Want::Leadership { .. } => Kind::Election,
        };
        Group::line(kind, &self.name)
    }

    fn text(&self) -> String {
        match &self.want {
            Want::Lock { .. } => String::new(),
            Want::Leadership { value } => value.clone(),
        }
    }

    /// Puts a place into the line. Without a deadline of the caller it tries until the store answers.
    async fn enter(&mut self) -> Result<Queued, Error> {
        let mut backoff = BackoffPolicy::default().start();
        loop {
            match self.try_enter().await {
                Err(error) if error.is_retryable() && self.waits() => {
                    self.trouble.note(error);
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                outcome => {
                    self.trouble.clear();
                    return outcome;
                }
            }
        }
    }

    fn waits(&self) -> bool {
        !matches!(self.want, Want::Lock { wait: false })
    }

    async fn try_enter(&mut self) -> Result<Queued, Error> {
        let Inner { link, tasks, leases, .. } = &*self.client;
        let lease = if self.options.own_lease {
            leases.own(link, tasks, self.options.lease_terms()).await?
        } else {
            leases.shared(link, tasks, LeasePurpose::Lock, self.options.lease_terms()).await?
        };
        let member = format!("{}-{}", lease.id(), NEXT_PLACE.fetch_add(1, Ordering::Relaxed));
        let key = Key { group: self.group(), member: member.into() };
        let value = Value::QueueEntry { mode: self.options.mode, text: self.text() };
        let created = link.ask(|store, _| store.put(&key, None, value, Some(lease.id()))).await?;
        // The key is new, so only the lease can be at fault.
        let created = created.map_err(|_| {
            lease.condemn();
            Error::LeaseLost
        })?;
        Ok(Queued { key, token: FencingToken::new(created.get()), lease })
    }

    /// Waits for the turn of `held`. `false`: it is not its turn and the caller does not want to wait.
    async fn wait(&mut self, held: &Queued) -> Result<bool, Error> {
        let mut lease = held.lease.state();
        let mut link = self.client.link.watch();
        let mut before: Option<Key> = None;
        loop {
            if let Ok(now) = self.look(held, before.as_ref()).await {
                match now {
                    Look::Holder => return Ok(true),
                    Look::Gone => return Err(Error::LeaseLost),
                    Look::Behind(_) | Look::Delayed(_) if !self.waits() => return Ok(false),
                    Look::Behind(key) => before = Some(key),
                    Look::Delayed(left) => return self.wait_out(held, &left).await,
                }
            }
            tokio::select! {
                () = self.changes.next() => {}
                state = lease_changed(&mut lease) => if matches!(state, LeaseState::Lost) {
                    return Err(Error::LeaseLost);
                },
                () = up(&mut link), if self.client.link.check().is_err() => {}
            }
        }
    }

    /// Looks where `held` stands, and takes the lock if it is its turn and nothing was left behind.
    async fn look(&self, held: &Queued, before: Option<&Key>) -> Result<Look, Error> {
        let anyone = self.client.link.hub().has(Defect::GrantsToAnyone);
        let ignored = self.client.link.hub().has(Defect::IgnoresLockDelay);
        let look = |store: &mut Store, now| {
            if store.get(&held.key).is_none() {
                return Look::Gone;
            }
            if let Some(before) = before.filter(|before| store.get(before).is_some()) {
                return Look::Behind(before.clone());
            }
            let line = store.range(&held.key.group).filter_map(|(_, record)| match record.value {
                Value::QueueEntry { mode, .. } => Some(QueueEntry { token: token(record), mode }),
                Value::Instance { .. } | Value::Raw(_) => None,
            });
            // A predecessor whose lease is gone did not release.
            let fell = before.is_some_and(|key| !store.leases().any(|id| key.member.starts_with(&format!("{id}-"))));
            match queue_position(line, held.token) {
                QueuePosition::Behind(other) if !anyone => {
                    let key = store.range(&held.key.group).find(|(_, record)| token(record) == other);
                    let key = key.map_or_else(|| held.key.clone(), |(key, _)| key.clone());
                    Look::Behind(key)
                }
                QueuePosition::Absent => Look::Gone,
                _ => {
                    let left = self.left_behind(store, now, held);
                    if !ignored && (!left.is_empty() || fell && !self.options.lock_delay.is_zero()) {
                        return Look::Delayed(left);
                    }
                    self.put_mark(store, held, &[]);
                    Look::Holder
                }
            }
        };
        self.client.link.ask(look).await
    }

    /// Hands the guard over and watches over it until it is released or lost. `sent` is when the last renewal was sent.
    async fn hold(&mut self, held: Queued, sent: Moment, answer: Answer) {
        let validity = Arc::new(LockValidity::new(sent, held.lease.ttl()));
        let constant = self.client.link.hub().has(Defect::ConstantTokens);
        let token = if constant { FencingToken::new(1) } else { held.token };
        let source = Arc::clone(&self.client) as enlist::backend::OwnerHandle;
        let (guard, driver) = lock_guard(self.name.clone(), token, validity, source);
        let (won, mut proclaimed) = match &self.want {
            Want::Lock { .. } => (Won::Lock(guard), None),
            Want::Leadership { .. } => {
                let (leadership, proclaimed) = Leadership::new(guard);
                (Won::Leadership(leadership), Some(proclaimed))
            }
        };
        // A caller that is gone drops the guard right here, which asks for the release.
        drop(answer.send(Ok(won)));
        self.watch_over(&held, &driver, &mut proclaimed).await;
        // The mark of a lock that was lost stays: the caller may not have noticed yet.
        let released = matches!(driver.validity().loss(), None | Some(Loss::Released));
        let mut leaving = std::pin::pin!(self.remove(&held, released));
        let outcome = self.trouble.within("release", Some(PATIENCE), async { Ok(leaving.as_mut().await) }).await;
        let goes_on = outcome.is_err();
        driver.report(outcome);
        if goes_on {
            leaving.await;
        }
    }

    /// Returns once the lock is to be released, or is lost.
    async fn watch_over(
        &mut self,
        held: &Queued,
        driver: &GuardDriver,
        proclaimed: &mut Option<mpsc::Receiver<Proclamation>>,
    ) {
        let Self { client, changes, .. } = self;
        let mut lease = held.lease.state();
        let mut link: watch::Receiver<_> = client.link.watch();
        let blind = client.link.hub().has(Defect::BlindToLoss);
        // Beside all else: a slow one must not keep a renewal from counting.
        let mut proclaiming = std::pin::pin!(Fuse::terminated());
        loop {
            let cut = client.link.check().is_err();
            if !blind && !cut && client.link.hub().with(|store, _| store.get(&held.key).is_none()) {
                if client.link.hub().has(Defect::NoticesLossLate) {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
                driver.validity().lose(Loss::KeyGone);
            }
            tokio::select! {
                () = driver.release_wanted() => return,
                // What is lost is given up: a key that a healed session kept alive would block everybody.
                _ = driver.validity().lost(), if !blind => return,
                state = lease_changed(&mut lease) => match state {
                    LeaseState::Alive { sent } => driver.validity().renewed(sent, held.lease.ttl()),
                    LeaseState::Lost => driver.validity().lose(Loss::LeaseGone),
                    LeaseState::Suspect { .. } | LeaseState::Retired => {}
                },
                () = changes.next() => {}
                () = up(&mut link), if cut => {}
                proclamation = next(proclaimed), if proclaiming.is_terminated() => {
                    proclaiming.set(proclaim(client, held, proclamation).fuse());
                }
                () = &mut proclaiming => {}
            }
        }
    }

    /// Leaves the line without having held the lock.
    async fn leave(&self, held: &Queued) -> Released {
        self.remove(held, true).await
    }

    /// Removes the place, and its mark if it is left in order, until the store has confirmed it, or its lease cannot be alive any more.
    async fn remove(&self, held: &Queued, in_order: bool) -> Released {
        let begun = Moment::now();
        let mut backoff = BackoffPolicy::default().start();
        let mut link = self.client.link.watch();
        loop {
            let delete = |store: &mut Store, _| {
                let removed = store.delete(&held.key, |record| token(record) == held.token);
                if removed.is_ok() && in_order {
                    // Without a `lock_delay` there is none.
                    let _ = store.delete(&self.mark(held), |_| true);
                }
                removed
            };
            match self.client.link.ask(delete).await {
                Ok(Ok(_)) => return Released::Released,
                Ok(Err(_)) => return Released::AlreadyLost,
                Err(_) if held.lease.is_lost() || begun.elapsed() > held.lease.ttl() * 2 => {
                    return Released::AlreadyLost;
                }
                Err(error) => self.trouble.note(error),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = up(&mut link), if self.client.link.check().is_err() => {}
            }
        }
    }
}

enum Look {
    Holder,
    /// It is its turn, once what these keys stand for has been waited for.
    Delayed(Vec<Key>),
    Behind(Key),
    Gone,
}

async fn proclaim(client: &Inner, held: &Queued, Proclamation { value, reply, .. }: Proclamation) {
    let place = Value::QueueEntry { mode: LockMode::Exclusive, text: value };
    let outcome = client.link.ask(|store, _| {
        let guard = store.get(&held.key).map(|record| record.modified);
        match guard {
            None => Err(Refusal::Guard(None)),
            Some(modified) => store.put(&held.key, Some(modified), place, Some(held.lease.id())),
        }
    });
    let outcome: Result<Revision, Error> = match outcome.await {
        Ok(stored) => stored.map_err(|_| Error::LeaseLost),
        Err(error) => Err(error),
    };
    // A leader that no longer waits for the answer needs none.
    let _ = reply.send(outcome);
}

/// The next proclamation, where there can be one and the leader still lives.
async fn next(proclaimed: &mut Option<mpsc::Receiver<Proclamation>>) -> Proclamation {
    let received = match proclaimed {
        Some(receiver) => receiver.recv().await,
        None => None,
    };
    match received {
        Some(proclamation) => proclamation,
        None => std::future::pending().await,
    }
}
