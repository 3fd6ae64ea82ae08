//! Joining the queue: one transaction creates the entry and reads the end of the queue.

use enlist::{
    Backoff, BackoffPolicy, Error, LockMode, Revision,
    backend::{
        LeasePurpose,
        contender::{Acquired, Caller, JoinFailure},
    },
};

use super::{
    Contender,
    queued::{KnownPosition, Queued},
};
use crate::{
    client::requests::{
        guarded_write::Batching,
        queue_requests::{QueueFound, QueueWrite},
    },
    error::{Failure, text_cause},
    layout::{LeaseScope, LockLayout},
    lock::context::LockContext,
    watch::record::Record,
};

/// Maximum number of consecutive leases that are replaced at once because they are gone; further ones count as
/// failures.
const LEASE_REPLACEMENTS: usize = 2;

/// Outcome of one attempt to join.
enum Attempt {
    Joined(KnownPosition),
    /// Another contender holds the only key.
    Occupied(Record),
}

impl Contender {
    /// Joins the queue. While the caller waits, repeats this until etcd answers. Repetitions are safe: no other
    /// acquisition uses the key meanwhile, or not under the same lease, and it is only created if it is absent. Once
    /// the caller is gone, no further request is sent.
    pub(super) async fn join_queue(&mut self, caller: &mut Caller) -> Result<Queued, JoinFailure<Queued>> {
        let mut backoff = BackoffPolicy::default().start();
        let mut entry: Option<Queued> = None;
        let mut replaced = 0;
        loop {
            let failure = match self.try_join(&mut entry, caller).await {
                Ok(Attempt::Joined(known)) => return Ok(self.joined(entry, known)?),
                Ok(Attempt::Occupied(_)) if !self.acquisition.wanted.waits() => {
                    return Err(JoinFailure { outcome: Ok(Acquired::Nothing), entry });
                }
                Ok(Attempt::Occupied(by)) => {
                    self.acquisition.trouble.clear();
                    (backoff, replaced) = (BackoffPolicy::default().start(), 0);
                    let freed = tokio::select! {
                        freed = self.freed(by) => freed,
                        () = caller.gone() => Err(Error::Closed),
                    };
                    match freed {
                        Ok(()) => continue,
                        Err(error) => return Err(JoinFailure { outcome: Err(error), entry }),
                    }
                }
                Err(failure) => failure,
            };
            if let Some(leaseless) = entry.take_if(|_| matches!(failure, Failure::LeaseNotFound)) {
                leaseless.lease.mark_gone();
                self.context.key_suffixes.give_back(&self.queue.start, leaseless.suffix);
                if replaced < LEASE_REPLACEMENTS {
                    replaced += 1;
                    continue;
                }
            }
            if let Err(error) = self.pause_after(failure, &mut backoff, caller).await {
                return Err(JoinFailure { outcome: Err(error), entry });
            }
        }
    }

    /// Waits before the next attempt. Returns the error if there is no further attempt.
    async fn pause_after(&self, failure: Failure, backoff: &mut Backoff, caller: &mut Caller) -> Result<(), Error> {
        let error = self.failed(failure);
        if !error.is_retryable() || !self.acquisition.wanted.waits() {
            return Err(error);
        }
        self.acquisition.trouble.note(error);
        tokio::select! {
            () = caller.gone() => Err(Error::Closed),
            () = tokio::time::sleep(backoff.next_delay()) => Ok(()),
        }
    }

    fn joined(&self, entry: Option<Queued>, known: KnownPosition) -> Result<Queued, Error> {
        let Some(mut entry) = entry else {
            return Err(Error::Closed);
        };
        self.acquisition.trouble.clear();
        let token = known.token;
        entry.token = Some(token);
        entry.modified = known.modified;
        entry.known_position = Some(known);
        entry.membership = Some(self.context.local_queue.join(&entry.key, token));
        Ok(entry)
    }

    async fn try_join(&self, entry: &mut Option<Queued>, caller: &mut Caller) -> Result<Attempt, Failure> {
        if entry.is_none() {
            *entry = tokio::select! {
                chosen = self.choose_entry() => Some(chosen?),
                () = caller.gone() => None,
            };
        }
        if let Some(unknown) = entry.take_if(|entry| entry.unknown) {
            return self.resolve_unknown(unknown, entry).await;
        }
        let entry = entry.as_mut().ok_or(Failure::Final(Error::Closed))?;
        match entry.token {
            // Its position could not be read. A second creation could be executed after the removal of the entry.
            Some(created) => self.confirm(entry, created).await.map(Attempt::Joined),
            None => self.create(entry, caller).await,
        }
    }

    /// Obtains a lease and chooses a key under it.
    async fn choose_entry(&self) -> Result<Queued, Failure> {
        let LockContext { leases, lock_layout, key_suffixes, .. } = &*self.context;
        let (name, options) = (&self.acquisition.name, &self.acquisition.options);
        let lease = match lock_layout.lease_scope() {
            LeaseScope::Shared if !options.own_lease => {
                leases.shared(LeasePurpose::Lock, self.acquisition.lease_terms()).await?
            }
            LeaseScope::Shared | LeaseScope::PerKey => leases.own(self.acquisition.lease_terms()).await?,
        };
        let suffix = key_suffixes.take(&self.queue.start);
        let keys = || {
            let key = lock_layout.entry(self.kind, name, lease.id(), suffix)?;
            let mark = self.marks.as_ref().map(|_| lock_layout.mark_of(self.kind, name, lease.id(), suffix));
            Ok((key, mark.transpose()?.flatten()))
        };
        let keys = keys().inspect_err(|_| key_suffixes.give_back(&self.queue.start, suffix));
        let (key, mark) = keys.map_err(Failure::Final)?;
        Ok(Queued::new(key, suffix, lease, mark))
    }

    /// Reads an entry with a creation of unknown outcome. If it is absent it may still be created, so another entry is
    /// chosen, under another lease.
    async fn resolve_unknown(&self, unknown: Queued, entry: &mut Option<Queued>) -> Result<Attempt, Failure> {
        match self.context.client.get(&unknown.key).await {
            Ok((Some(own), _)) if self.is_own(&unknown, &own) => {
                let known = entry.insert(Queued { unknown: false, token: Some(own.created), ..unknown });
                self.confirm(known, own.created).await.map(Attempt::Joined)
            }
            Ok(_) => {
                self.sweep(unknown).map_err(Failure::Final)?;
                Err(Failure::Lost(text_cause("the answer to joining the queue was lost")))
            }
            Err(failure) => {
                *entry = Some(unknown);
                Err(failure)
            }
        }
    }

    /// Creates the entry at the end of the queue.
    async fn create(&self, entry: &mut Queued, caller: &mut Caller) -> Result<Attempt, Failure> {
        let own = self.own_entry(entry);
        // Behind other entries of this session it has to wait in any case.
        let behind_others = self.context.key_suffixes.in_use(&self.queue.start) > 1;
        let batching =
            if self.acquisition.wanted.waits() && behind_others { Batching::Deferrable } else { Batching::Immediate };
        let client = &self.context.client;
        let written = client.create_entry(&own, self.read(self.last(3)), batching, caller.gone()).await;
        let found = match written {
            Ok(QueueWrite::Done(found)) => found,
            Ok(QueueWrite::Refused(Some(other))) if !self.is_own(entry, &other) => {
                return Ok(Attempt::Occupied(other));
            }
            // Created by an attempt without an answer.
            Ok(QueueWrite::Refused(Some(own))) => {
                entry.token = Some(own.created);
                return self.confirm(entry, own.created).await.map(Attempt::Joined);
            }
            Ok(QueueWrite::Refused(None)) => return Err(Failure::Lost(text_cause("the queue changed meanwhile"))),
            Err(failure) => {
                if failure.is_ambiguous() {
                    entry.unknown = true;
                    // While etcd is silent, nothing more is sent under this lease.
                    entry.lease.renew_now();
                }
                return Err(failure);
            }
        };
        let token = found.at;
        // Before the position is read: if that fails, the entry is removed without a read, which could be stale.
        entry.token = Some(token);
        self.known_position(entry, token, found).await.map(Attempt::Joined)
    }

    pub(super) async fn known_position(
        &self,
        entry: &Queued,
        token: Revision,
        found: QueueFound,
    ) -> Result<KnownPosition, Failure> {
        let QueueFound { at, entries, marks } = found;
        let behind_waiting = entries.len() > 2 && self.acquisition.options.mode == LockMode::Exclusive;
        let position = self.position(entry, token, at, entries).await?;
        Ok(KnownPosition { token, modified: at, position, behind_waiting, marks })
    }
}
