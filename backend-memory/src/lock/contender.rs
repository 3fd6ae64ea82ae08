//! One contender in the queue of the store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use enlist::{
    BackoffPolicy, Error, FencingToken, LockMode, Loss, Moment, Released, Revision, SemaphoreOptions,
    backend::{
        LeasePurpose, LeaseState, OwnerHandle, PermitState, Proclamation, QueueEntry, QueuePosition,
        contender::{Acquisition, Caller, Grant, HolderEvent, JoinFailure, LeaveReason, QueueProtocol, Turn, Wanted},
        lease_changed, queue_position,
    },
};
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::watch;

use crate::{
    client::Inner,
    deliberate_defects::DeliberateDefect,
    session::lease::Lease,
    store::{Group, Key, Kind, Record, Refusal, Store, Value},
    watch::shared_store::{Changes, up},
};

/// Distinguishes the keys of the entries of this process; the lease distinguishes those of different clients.
static NEXT_ENTRY: AtomicU64 = AtomicU64::new(1);

/// One contender of a client.
pub(super) struct Contender {
    pub(super) client: Arc<Inner>,
    pub(super) acquisition: Acquisition,
    /// Options of an acquisition of permits; `None` for a lock or an election.
    semaphore: Option<SemaphoreOptions>,
    changes: Changes,
}

/// Queue entry that this task has created in the store.
pub(super) struct Queued {
    pub(super) key: Key,
    token: FencingToken,
    lease: Arc<Lease>,
    joined: Moment,
    /// States of the lease from the grant on.
    holding: Option<watch::Receiver<LeaseState>>,
}

impl Queued {
    pub(super) fn token(&self) -> FencingToken {
        self.token
    }

    pub(super) fn lease_states(&self) -> watch::Receiver<LeaseState> {
        self.lease.state()
    }
}

pub(super) fn token(record: &Record) -> FencingToken {
    FencingToken::new(record.created.get())
}

/// Position of an entry in the store.
pub(super) enum Position {
    Holder,
    /// The entry has its turn, but the delay for the holders that left these marks is running.
    Delayed(Vec<Key>),
    Behind(Key),
    /// The entry waits for permits of a semaphore.
    Waiting,
    Absent,
}

impl QueueProtocol for Contender {
    type Entry = Queued;

    async fn join(&mut self, caller: &mut Caller) -> Result<Queued, JoinFailure<Queued>> {
        tokio::select! {
            joined = self.join_once_reachable() => Ok(joined?),
            () = caller.gone() => Err(Error::Closed.into()),
        }
    }

    async fn clean_up(&mut self, entry: Queued) {
        self.remove(&entry, LeaveReason::Failed).await;
    }

    async fn wait(&mut self, entry: &mut Queued) -> Result<Turn, Error> {
        let mut lease = entry.lease.state();
        let mut link = self.client.link.watch();
        let mut before: Option<Key> = None;
        loop {
            let position = match &self.semaphore {
                None => self.position(entry, before.as_ref()).await,
                Some(options) => self.take_permits(entry, options).await,
            };
            if position.is_ok() {
                self.acquisition.trouble.clear();
            }
            match position {
                Ok(Position::Holder) => return Ok(Turn::Granted),
                Ok(Position::Absent) => return Err(Error::LeaseLost),
                Ok(Position::Behind(_) | Position::Waiting | Position::Delayed(_))
                    if !self.acquisition.wanted.waits() =>
                {
                    return Ok(Turn::NotGranted);
                }
                Ok(Position::Waiting) => {}
                Ok(Position::Behind(key)) => before = Some(key),
                Ok(Position::Delayed(marks)) => return self.wait_out(entry, &marks).await,
                Err(error) if !self.acquisition.wanted.waits() => return Err(error),
                Err(error) => self.acquisition.trouble.note(error),
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

    fn grant(&mut self, entry: &mut Queued) -> Option<Grant> {
        let sent = entry.lease.renewed()?;
        entry.holding = Some(entry.lease.state());
        let constant = self.client.link.store().has(DeliberateDefect::ConstantTokens);
        let token = if constant { FencingToken::new(1) } else { entry.token };
        Some(Grant { sent, ttl: entry.lease.ttl(), token, source: Arc::clone(&self.client) as OwnerHandle })
    }

    async fn holder_event(&mut self, entry: &mut Queued) -> HolderEvent {
        let Self { client, changes, .. } = self;
        let Queued { key, lease, holding, .. } = entry;
        let lease = holding.get_or_insert_with(|| lease.state());
        let mut link: watch::Receiver<_> = client.link.watch();
        loop {
            let cut = client.link.check().is_err();
            if !client.link.store().has(DeliberateDefect::BlindToLoss)
                && !cut
                && client.link.store().with(|store, _| store.get(key).is_none())
            {
                if client.link.store().has(DeliberateDefect::NoticesLossLate) {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
                return HolderEvent::Lost(Loss::KeyGone);
            }
            tokio::select! {
                state = lease_changed(lease) => match state {
                    LeaseState::Alive { sent } => return HolderEvent::Renewed(sent),
                    LeaseState::Lost => return HolderEvent::Lost(Loss::LeaseGone),
                    LeaseState::Suspect { .. } | LeaseState::Retired => {}
                },
                () = changes.next() => {}
                () = up(&mut link), if cut => {}
            }
        }
    }

    fn proclaim(&mut self, entry: &Queued, proclamation: Proclamation) -> BoxFuture<'static, Option<Revision>> {
        let (client, key, lease) = (Arc::clone(&self.client), entry.key.clone(), Arc::clone(&entry.lease));
        async move {
            proclaim(&client, &key, &lease, proclamation).await;
            None
        }
        .boxed()
    }

    fn proclaimed(&mut self, _: &mut Queued, _: Option<Revision>) {}

    async fn leave(&mut self, entry: &mut Queued, reason: LeaveReason) -> Released {
        if reason == LeaveReason::CallerGone && self.client.link.store().has(DeliberateDefect::LeavesWaiters) {
            return std::future::pending().await;
        }
        self.remove(entry, reason).await
    }

    fn entry_removed(&mut self, _: Queued) {}

    fn age(&self, entry: &Queued) -> Duration {
        entry.joined.elapsed()
    }

    fn gives_up_lost_lock(&self) -> bool {
        !self.client.link.store().has(DeliberateDefect::BlindToLoss)
    }
}

impl Contender {
    pub(super) fn new(client: &Arc<Inner>, acquisition: Acquisition) -> Self {
        Self { client: Arc::clone(client), changes: client.link.store().changes(), acquisition, semaphore: None }
    }

    pub(super) fn of_semaphore(client: &Arc<Inner>, acquisition: Acquisition, options: SemaphoreOptions) -> Self {
        Self { semaphore: Some(options), ..Self::new(client, acquisition) }
    }

    fn group(&self) -> Group {
        let kind = match self.acquisition.wanted {
            _ if self.semaphore.is_some() => Kind::Semaphore,
            Wanted::Lock | Wanted::FreeLock => Kind::Lock,
            Wanted::Leadership(_) => Kind::Election,
        };
        Group::queue(kind, &self.acquisition.name)
    }

    /// Returns the value of the entry, and of its mark.
    pub(super) fn value(&self) -> Value {
        if let Some(options) = &self.semaphore {
            return Value::PermitEntry { permits: options.permits, state: PermitState::Waiting };
        }
        let Acquisition { wanted, options, .. } = &self.acquisition;
        let text = match wanted {
            Wanted::Leadership(value) => value.clone(),
            Wanted::Lock | Wanted::FreeLock => self.client.process.clone(),
        };
        Value::QueueEntry { mode: options.mode, text }
    }

    /// Creates an entry. While the caller waits, repeats this until the store answers.
    async fn join_once_reachable(&mut self) -> Result<Queued, Error> {
        let mut backoff = BackoffPolicy::default().start();
        loop {
            match self.try_join().await {
                Err(error) if error.is_retryable() && self.acquisition.wanted.waits() => {
                    self.acquisition.trouble.note(error);
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                outcome => {
                    self.acquisition.trouble.clear();
                    return outcome;
                }
            }
        }
    }

    async fn try_join(&mut self) -> Result<Queued, Error> {
        let Inner { link, tasks, leases, .. } = &*self.client;
        let terms = self.acquisition.lease_terms();
        let lease = if self.acquisition.options.own_lease {
            leases.own(link, tasks, terms).await?
        } else {
            leases.shared(link, tasks, LeasePurpose::Lock, terms).await?
        };
        let member = format!("{}-{}", lease.id(), NEXT_ENTRY.fetch_add(1, Ordering::Relaxed));
        let key = Key { group: self.group(), member: member.into() };
        let created = link.ask(|store, _| store.put(&key, None, self.value(), Some(lease.id()))).await?;
        // The key is new, so the lease is gone.
        let created = created.map_err(|_| {
            lease.mark_gone();
            Error::LeaseLost
        })?;
        Ok(Queued { key, token: FencingToken::new(created.get()), lease, joined: Moment::now(), holding: None })
    }

    /// Reads the position of the entry, and takes the lock if it is the first and no delay is running.
    async fn position(&self, entry: &Queued, before: Option<&Key>) -> Result<Position, Error> {
        let grants_to_anyone = self.client.link.store().has(DeliberateDefect::GrantsToAnyone);
        let ignores_delay = self.client.link.store().has(DeliberateDefect::IgnoresLockDelay);
        let read = |store: &mut Store, now| {
            if store.get(&entry.key).is_none() {
                return Position::Absent;
            }
            if let Some(before) = before.filter(|before| store.get(before).is_some()) {
                return Position::Behind(before.clone());
            }
            let queue = store.range(&entry.key.group).filter_map(|(_, record)| match record.value {
                Value::QueueEntry { mode, .. } => Some(QueueEntry { token: token(record), mode }),
                _ => None,
            });
            match queue_position(queue, entry.token) {
                QueuePosition::Behind(other) if !grants_to_anyone => {
                    let key = store.range(&entry.key.group).find(|(_, record)| token(record) == other);
                    Position::Behind(key.map_or_else(|| entry.key.clone(), |(key, _)| key.clone()))
                }
                QueuePosition::Absent => Position::Absent,
                _ => {
                    let marks = self.delaying_marks(store, now, entry);
                    let delayed = !marks.is_empty()
                        || before.is_some_and(|key| lease_expired(store, key))
                            && !self.acquisition.options.lock_delay.is_zero();
                    if delayed && !ignores_delay {
                        return Position::Delayed(marks);
                    }
                    self.put_mark(store, entry, &[]);
                    Position::Holder
                }
            }
        };
        self.client.link.ask(read).await
    }

    /// Removes the entry, and its mark unless the lock was lost, until the store confirms the removal or the lease must
    /// have expired.
    async fn remove(&self, entry: &Queued, reason: LeaveReason) -> Released {
        let begun = Moment::now();
        let mut backoff = BackoffPolicy::default().start();
        let mut link = self.client.link.watch();
        loop {
            let delete = |store: &mut Store, _| {
                let removed = store.delete(&entry.key, |record| token(record) == entry.token);
                // The mark of a lost lock stays: the caller may not have noticed the loss yet.
                if removed.is_ok() && reason != LeaveReason::LockLost {
                    // Without a `lock_delay` there is no mark.
                    let _ = store.delete(&self.mark(entry), |_| true);
                }
                removed
            };
            match self.client.link.ask(delete).await {
                Ok(Ok(_)) => return Released::Released,
                Ok(Err(_)) => return Released::AlreadyLost,
                Err(_) if entry.lease.is_lost() || begun.elapsed() > entry.lease.ttl() * 2 => {
                    return Released::AlreadyLost;
                }
                Err(error) => self.acquisition.trouble.note(error),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = up(&mut link), if self.client.link.check().is_err() => {}
            }
        }
    }
}

/// Returns `true` if the lease of the entry at `key` is gone: its holder did not release.
fn lease_expired(store: &Store, key: &Key) -> bool {
    !store.leases().any(|id| key.member.starts_with(&format!("{id}-")))
}

async fn proclaim(client: &Inner, key: &Key, lease: &Lease, Proclamation { value, reply, .. }: Proclamation) {
    let value = Value::QueueEntry { mode: LockMode::Exclusive, text: value };
    let outcome = client.link.ask(|store, _| {
        let guard = store.get(key).map(|record| record.modified);
        match guard {
            None => Err(Refusal::Guard(None)),
            Some(modified) => store.put(key, Some(modified), value, Some(lease.id())),
        }
    });
    let outcome: Result<Revision, Error> = match outcome.await {
        Ok(stored) => stored.map_err(|_| Error::LeaseLost),
        Err(error) => Err(error),
    };
    // The leader may have dropped its request.
    let _ = reply.send(outcome);
}
