//! Leaving the queue: hands the lock over to the next entry, or removes the own one.

use std::time::Duration;

use enlist::{BackoffPolicy, Error, LockMode, Released, backend::permanent_error_delay, escape::escaped};

use super::{
    Contender,
    queued::{Attempts, Queued},
};
use crate::{
    client::requests::{kv::WriteOutcome, queue_requests::Removal},
    deliberate_defects::DeliberateDefect,
    error::Failure,
    lock::local_queue::{Membership, Successor},
    watch::record::KeyRange,
};

/// Maximum pause between two removals without an answer of etcd.
const MAX_REMOVAL_PAUSE: Duration = Duration::from_secs(1);

impl Contender {
    /// Ends a held lock: hands it over to the next entry if it is known, else removes the own entry.
    pub(super) async fn hand_over_or_remove(&self, entry: &Queued) -> Released {
        // After an exclusive holder the entry right behind it is the first.
        let alone = self.acquisition.options.mode == LockMode::Exclusive || DeliberateDefect::ReaderHandsOver.is_on();
        let successor = entry.membership.as_ref().filter(|_| alone).and_then(Membership::successor);
        let next = successor.as_ref().map(Successor::entry).or(entry.next.as_ref());
        let mut attempts = Attempts::First;
        if let (Some(next), Some(token)) = (next, entry.token) {
            let own = (&entry.key[..], token);
            match self.context.client.hand_over(own, entry.own_mark(), next, &self.queue).await {
                Ok(Some(confirmed)) => {
                    if let Some(successor) = successor {
                        successor.confirm(confirmed);
                    }
                    return Released::Released;
                }
                Err(failure) if failure.is_ambiguous() => attempts = Attempts::Unanswered,
                // The successor gave up, this entry is gone, or the request was not applied.
                Ok(None) | Err(_) => {}
            }
        }
        self.remove(entry, attempts).await
    }

    /// Removes the entry until etcd confirms the removal or reports that the lease is gone: an entry that outlives an
    /// outage of etcd would stay for as long as its lease is renewed. The removal is guarded, so it concerns this
    /// entry only; a read of the key could be stale.
    pub(super) async fn remove(&self, entry: &Queued, mut attempts: Attempts) -> Released {
        let mut backoff = BackoffPolicy::default().start();
        loop {
            let mut pause = backoff.next_delay().min(MAX_REMOVAL_PAUSE);
            match self.try_remove(entry).await {
                Ok(outcome) => {
                    return if attempts == Attempts::Unanswered { Released::Released } else { outcome };
                }
                Err(failure) => {
                    if DeliberateDefect::ReleaseUnconfirmed.is_on() {
                        return Released::Released;
                    }
                    if failure.is_ambiguous() {
                        attempts = Attempts::Unanswered;
                    }
                    let lock = escaped(&self.acquisition.name);
                    tracing::debug!(%lock, cause = %failure, "queue entry not removed yet");
                    let error = self.failed(failure);
                    if !error.is_retryable() {
                        pause = permanent_error_delay();
                    }
                    self.acquisition.trouble.note(error);
                }
            }
            if entry.lease.is_lost() {
                return Released::AlreadyLost;
            }
            if DeliberateDefect::RemovalRetriedAtOnce.is_on() {
                pause = Duration::from_millis(5);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_remove(&self, entry: &Queued) -> Result<Released, Failure> {
        // An entry without a token was never created.
        let Some(created) = entry.token else { return Ok(Released::AlreadyLost) };
        let guard = self.entry_guard(entry, created);
        Ok(match self.context.client.remove_entry(&entry.key, guard, entry.own_mark()).await? {
            Removal::Done => Released::Released,
            Removal::Absent => Released::AlreadyLost,
        })
    }

    /// Removes an entry of unknown existence, after its caller has gone.
    pub(super) async fn remove_unknown(&self, entry: Queued) {
        if let Ok((Some(own), _)) = self.context.client.get(&entry.key).await
            && self.is_own(&entry, &own)
            && let guard = self.entry_guard(&entry, own.created)
            && let Ok(WriteOutcome::Done(_)) = self.context.client.delete(&entry.key, guard).await
        {
            return self.context.key_suffixes.give_back(&self.queue.start, entry.suffix);
        }
        // The end of the session revokes the lease anyway.
        let _ = self.sweep(entry);
    }

    /// Gives up an absent entry that may still be created. Its lease is retired, and the entry is removed as soon as it
    /// appears, until the lease is revoked.
    pub(super) fn sweep(&self, entry: Queued) -> Result<(), Error> {
        let queue = self.entries_of_lease(&entry).unwrap_or_else(|| KeyRange::key(&entry.key[..]));
        let Queued { key, suffix, lease, .. } = entry;
        if DeliberateDefect::LateEntryForgotten.is_on() {
            self.context.key_suffixes.give_back(&self.queue.start, suffix);
            return Ok(());
        }
        let swept = self.context.sweeps.add(&lease, key.into(), queue);
        // No other entry has its key under this lease, so the suffix is free. The lease is revoked after its last use.
        self.context.key_suffixes.give_back(&self.queue.start, suffix);
        swept
    }
}
