//! One contender in a queue of etcd.
//!
//! A waiting contender watches one key. A *write* confirms its turn, its own or that of its predecessor, because a read
//! can be stale. The token is the creation revision of its own key.
//!
//! | file | step |
//! |---|---|
//! | `join.rs` | creates the entry |
//! | `position.rs` | confirms the entry and reads its position, or reads that it was handed over to |
//! | `wait.rs`, `lock_delay.rs`, `first_to_create.rs` | waits for the turn |
//! | `permits.rs`, `first_waiting.rs` | the same in the queue of a semaphore |
//! | `proclaim.rs` | writes the value of a leader |
//! | `removal.rs` | hands the lock over, or removes the entry |

use std::{sync::Arc, time::Duration};

use enlist::{
    Counter, Error, FencingToken, Loss, Released, Revision,
    backend::{
        LeaseState, Proclamation,
        contender::{Acquisition, Caller, Grant, HolderEvent, JoinFailure, LeaveReason, QueueProtocol, Turn},
        count, lease_changed,
    },
};
use futures::{FutureExt, future::BoxFuture};

use crate::{
    client::requests::{guarded_write::Guard, queue_requests::OwnEntry},
    deliberate_defects::DeliberateDefect,
    error::Failure,
    layout::{LeaseScope, LockLayout, QueueKind},
    lock::{
        contender::{
            proclaim::{Target, proclaim},
            queued::{Attempts, MarkState, PermitRequest, Queued},
        },
        context::LockContext,
    },
    watch::record::{KeyRange, Record},
};

mod first_to_create;
mod first_waiting;
mod join;
mod lock_delay;
mod permits;
mod position;
mod proclaim;
pub(super) mod queued;
mod removal;
mod wait;

/// Age from which a queue entry is watched. A briefly held lock needs no watch, and the deletion of an older entry is
/// still noticed within a second.
const WATCH_FROM_AGE: Duration = Duration::from_millis(200);

/// References that a guard of this backend holds.
pub(super) struct GuardSource {
    pub(super) key: Vec<u8>,
    /// Holds for the key while it is the holder's.
    pub(super) guard: Guard,
    _context: Arc<LockContext>,
}

/// One contender of a session.
pub(super) struct Contender {
    pub(super) context: Arc<LockContext>,
    pub(super) kind: QueueKind,
    /// Range of the queue entries.
    pub(super) queue: KeyRange,
    /// Keys next to the queue that are read with it: the marks of a `lock_delay`, or the number of permits.
    pub(super) marks: Option<KeyRange>,
    /// Value of the entry.
    pub(super) value: Vec<u8>,
    /// Requested permits; `None` for a lock or an election.
    pub(super) semaphore: Option<PermitRequest>,
    pub(super) acquisition: Acquisition,
}

impl QueueProtocol for Contender {
    type Entry = Queued;

    async fn join(&mut self, caller: &mut Caller) -> Result<Queued, JoinFailure<Queued>> {
        self.join_queue(caller).await
    }

    async fn clean_up(&mut self, entry: Queued) {
        if entry.unknown {
            return self.remove_unknown(entry).await;
        }
        if entry.token.is_some() {
            self.remove(&entry, Attempts::First).await;
        }
        self.entry_removed(entry);
    }

    async fn wait(&mut self, entry: &mut Queued) -> Result<Turn, Error> {
        match &self.semaphore {
            None => self.wait_for_turn(entry).await,
            Some(request) => self.wait_for_permits(entry, request).await,
        }
    }

    fn grant(&mut self, entry: &mut Queued) -> Option<Grant> {
        let (sent, token) = (entry.lease.renewed()?, entry.token?);
        entry.holding = Some(entry.lease.state());
        let ttl = match entry.lease.ttl() {
            ttl if DeliberateDefect::ValidTwiceAsLong.is_on() => ttl * 2,
            ttl if DeliberateDefect::ValidTooBriefly.is_on() => ttl / 4,
            ttl => ttl,
        };
        let (key, guard) = (entry.key.clone(), self.entry_guard(entry, token));
        let source = Arc::new(GuardSource { key, guard, _context: Arc::clone(&self.context) });
        Some(Grant { sent, ttl, token: FencingToken::new(token.get()), source })
    }

    async fn holder_event(&mut self, entry: &mut Queued) -> HolderEvent {
        // A copy, which replaces the original only with an event: dropping this future loses none.
        let mut lease = entry.holding.clone().unwrap_or_else(|| entry.lease.state());
        loop {
            tokio::select! {
                state = lease_changed(&mut lease) => {
                    entry.holding = Some(lease.clone());
                    match state {
                        LeaseState::Alive { sent } => return HolderEvent::Renewed(sent),
                        LeaseState::Lost => return HolderEvent::Lost(Loss::LeaseGone),
                        // A retired lease is kept until the lock is released.
                        LeaseState::Suspect { .. } | LeaseState::Retired => {}
                    }
                }
                () = self.key_deleted(entry), if !DeliberateDefect::HolderDeaf.is_on() => {
                    return HolderEvent::Lost(Loss::KeyGone);
                }
            }
        }
    }

    fn proclaim(&mut self, entry: &Queued, proclamation: Proclamation) -> BoxFuture<'static, Option<Revision>> {
        let (context, name) = (Arc::clone(&self.context), self.acquisition.name.clone());
        let target = Target { kind: self.kind, name, entry: self.own_entry(entry), modified: entry.modified };
        proclaim(context, target, proclamation).map(Some).boxed()
    }

    fn proclaimed(&mut self, entry: &mut Queued, modified: Option<Revision>) {
        entry.modified = modified.unwrap_or(entry.modified);
    }

    async fn leave(&mut self, entry: &mut Queued, reason: LeaveReason) -> Released {
        match reason {
            // A waiting contender of this session may get the lock before this one notices the loss of its entry. The
            // mark stays: the caller may not have noticed the loss yet.
            LeaveReason::LockLost => {
                entry.membership = None;
                if entry.mark_state == MarkState::Written {
                    entry.mark_state = MarkState::Remains;
                }
            }
            LeaveReason::EntryLost => {
                entry.membership = None;
                entry.lease.renew_now();
            }
            LeaveReason::Failed => entry.membership = None,
            LeaveReason::CallerGone if DeliberateDefect::CallerGoneStays.is_on() => return Released::AlreadyLost,
            // A confirmation may be in flight. It only writes an existing key, so it cannot recreate the entry.
            LeaveReason::Released | LeaveReason::CallerGone | LeaveReason::NotGranted => {}
        }
        let released = match reason {
            LeaveReason::Released => self.hand_over_or_remove(entry).await,
            _ => self.remove(entry, Attempts::First).await,
        };
        // A mark is removed only together with its entry.
        if entry.mark_state == MarkState::Written && released == Released::AlreadyLost {
            entry.mark_state = MarkState::Remains;
        }
        released
    }

    fn entry_removed(&mut self, mut entry: Queued) {
        // Before the suffix is reused, because the membership is found by the key.
        entry.membership = None;
        // By now its key is gone, or the lease of the key.
        if entry.mark_state == MarkState::Remains {
            self.context.key_suffixes.retire(&self.queue.start);
        } else {
            self.context.key_suffixes.give_back(&self.queue.start, entry.suffix);
        }
        // A caller that took a lock is likely to take it again.
        if let Some(range) = self.entries_of_lease(&entry) {
            self.context.range_watches.linger(&range);
        }
    }

    fn age(&self, entry: &Queued) -> Duration {
        entry.begun.elapsed()
    }

    fn lock_lost(&mut self) {
        count(&self.context.counters, Counter::LockLosses);
    }
}

impl Contender {
    pub(super) fn failed(&self, failure: Failure) -> Error {
        let kind = if self.semaphore.is_some() { "semaphore" } else { "lock" };
        failure.into_error(&format!("the {kind} {}", self.acquisition.name))
    }

    /// Returns the range of the entries in this queue under the lease of this entry.
    fn entries_of_lease(&self, entry: &Queued) -> Option<KeyRange> {
        let layout = &self.context.lock_layout;
        let shares = layout.lease_scope() == LeaseScope::Shared && !self.acquisition.options.own_lease;
        layout.entries_of_lease(self.kind, &self.acquisition.name, entry.lease.id()).filter(|_| shares)
    }

    /// Returns the entry in the form of requests. Its token is 0 before its creation.
    fn own_entry(&self, entry: &Queued) -> OwnEntry {
        OwnEntry {
            key: entry.key.clone(),
            value: self.value.clone(),
            lease: entry.lease.id(),
            token: entry.token.unwrap_or_default(),
        }
    }

    /// Waits until the own key is known to be deleted.
    ///
    /// Dropping the future loses nothing.
    async fn key_deleted(&self, entry: &mut Queued) {
        let token = entry.token.unwrap_or_default();
        let shared = self.entries_of_lease(entry);
        let monitor = match &mut entry.monitor {
            Some(monitor) => monitor,
            monitor @ None => {
                tokio::time::sleep_until(entry.begun + WATCH_FROM_AGE).await;
                let own = Record {
                    key: (&entry.key[..]).into(),
                    value: (&self.value[..]).into(),
                    created: token,
                    modified: token,
                    lease: Some(entry.lease.id()),
                };
                match self.context.key_monitors.queue_entry(shared.as_ref(), own) {
                    Ok(made) => monitor.insert(made),
                    // The session has ended, and this task with it.
                    Err(_) => return std::future::pending().await,
                }
            }
        };
        monitor.vanished(token, Some(entry.lease.id())).await;
    }
}
