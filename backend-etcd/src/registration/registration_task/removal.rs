//! End of a registration: removes its key under a guard, until etcd has confirmed the removal and no write of unknown
//! outcome can create the key again.

use std::{sync::Arc, time::Duration};

use enlist::{
    Deregistered, Error, Health, LeaseId, Moment, Revision, ServiceRef,
    backend::{Claim, Goal, permanent_error_delay, registration_flow::DEREGISTER_TIMEOUT},
};

use super::{
    RegistrationTask,
    own_writes::{Author, Effect},
    reads,
};
use crate::{
    client::{
        requests::{guarded_write::Guard, kv::WriteOutcome},
        store_client::StoreClient,
    },
    deliberate_defects::DeliberateDefect,
    error::Failure,
    layout::{Decoded, Layout, LeaseScope, Part, Writing},
    session::sweep::{Impossible, shows},
    watch::record::Record,
};

impl RegistrationTask {
    /// Removes the instance until etcd has confirmed the removal. A registration that gave up reports that at once, and
    /// removes the possible effects of its last attempt: its lease stays alive and would keep them without end.
    ///
    /// `claim`: excludes other registrations of this session from the key until the removal is confirmed. Afterwards
    /// the id is free, and late effects are removed as soon as they appear.
    pub(super) async fn remove_for_good(&mut self, gave_up: Option<Error>, mut claim: Option<Claim<Arc<[u8]>>>) {
        let outcome = |found: Deregistered| gave_up.clone().map_or(Ok(found), Err);
        if let Some(claim) = &claim {
            claim.leave();
        }
        if gave_up.is_some() {
            self.driver.report_end(outcome(Deregistered::LeftBehind));
        }
        let Some(key) = self.removable() else {
            return self.driver.report_end(outcome(Deregistered::AlreadyGone));
        };
        let begun = Moment::now();
        let mut result = Deregistered::AlreadyGone;
        loop {
            let attempt = self.try_remove(&key, claim.as_ref());
            // An attempt that is not answered in time is abandoned and repeated: each of its writes has a guard.
            let attempted = match begun.remaining(DEREGISTER_TIMEOUT) {
                Duration::ZERO => attempt.await,
                remaining => tokio::time::timeout(remaining, attempt).await.unwrap_or(Ok(None)),
            };
            if DeliberateDefect::RemovalUnconfirmed.is_on() {
                return self.driver.report_end(outcome(Deregistered::Removed));
            }
            let (looked, attempt) = match attempted {
                Ok(Some(looked)) => (Some(looked), Attempt::Answered),
                Err(failure) if !self.failed(failure.clone()).is_retryable() => (None, Attempt::Refused),
                Ok(None) | Err(_) => (None, Attempt::Unanswered),
            };
            if let Some(KeyAfterAttempt { removed, .. }) = &looked {
                if *removed {
                    result = Deregistered::Removed;
                }
                if !self.writes.may_claim() {
                    return self.driver.report_end(outcome(result));
                }
                // The leases of writes of unknown outcome are dropped. Late effects of these writes are removed as soon
                // as they appear.
                (self.lease, self.former, claim) = (None, None, None);
            }
            if attempt == Attempt::Refused || begun.elapsed() >= DEREGISTER_TIMEOUT {
                self.driver.report_end(outcome(Deregistered::LeftBehind));
            }
            let delay = self.removal_delay(begun, attempt);
            self.wait_for_late_write(&key, looked, delay).await;
        }
    }

    /// Returns the delay before the next attempt to remove the key, by the result of the last one.
    fn removal_delay(&mut self, begun: Moment, attempt: Attempt) -> Duration {
        let late = begun.elapsed() >= DEREGISTER_TIMEOUT;
        let soon = self.backoff.next_delay().min(DEREGISTER_TIMEOUT / 3);
        match attempt {
            // The key is watched, so the delay is for the proof only.
            Attempt::Answered if late => permanent_error_delay(),
            Attempt::Refused => permanent_error_delay(),
            Attempt::Answered | Attempt::Unanswered if late => soon,
            Attempt::Answered | Attempt::Unanswered => soon.min(begun.remaining(DEREGISTER_TIMEOUT)),
        }
    }

    /// Waits until a write of unknown outcome is proved impossible or appears under the key, or until `delay` has
    /// passed.
    async fn wait_for_late_write(&mut self, key: &[u8], looked: Option<KeyAfterAttempt>, delay: Duration) {
        let context = Arc::clone(&self.context);
        let mut proof = self.writes.late_claim().cloned();
        let found = looked.map(|looked| (looked.remaining, looked.at));
        // A known record of another registration is no late effect.
        let known = found.as_ref().and_then(|(remaining, _)| remaining.as_ref()).map(|record| record.modified);
        let is_late = |record: &Record| Some(record.modified) != known && self.writes.is_own(record);
        tokio::select! {
            () = proved(&context.client, proof.as_mut()) => self.writes.impossible(),
            () = shows(&context.range_watches, key, found, is_late) => {}
            () = tokio::time::sleep(delay) => {}
        }
    }

    /// Returns the key, if there may be a value to remove under it.
    fn removable(&self) -> Option<Arc<[u8]>> {
        if let Some(stored) = self.writes.stored() {
            return Some(Arc::clone(&stored.key));
        }
        match self.writes.last_unknown() {
            Some(lease) => self.key_under(lease).ok(),
            None => self.leftover_owner().and_then(|_| self.key_under(LeaseId::default()).ok()),
        }
    }

    /// Returns the owner token with which the key of a crashed predecessor is removed as well: the registration was
    /// about to take the key over when it was stopped.
    fn leftover_owner(&self) -> Option<&str> {
        let never_wrote = !self.writes.entitlement.is_stored() && self.layout.lease_scope() == LeaseScope::Shared;
        self.options.owner.as_deref().filter(|_| never_wrote && self.driver.goal() == Goal::Absent)
    }

    /// Removes the key if it belongs to this registration, and returns its remaining state. `None`: the key changed
    /// meanwhile, or its author is not known yet; repeat the attempt.
    async fn try_remove(
        &mut self,
        key: &[u8],
        claim: Option<&Claim<Arc<[u8]>>>,
    ) -> Result<Option<KeyAfterAttempt>, Failure> {
        let context = Arc::clone(&self.context);
        let (record, at) = reads::current(&context.client, key).await?;
        self.settle(record.as_ref());
        let Some(record) = record else {
            return Ok(Some(KeyAfterAttempt { removed: false, remaining: None, at }));
        };
        let term = self.layout.term(&record.value);
        let is_leftover = |owner: &str| {
            // A newer value was written after the claim of this registration.
            let is_older = self.writes.entitlement.exceeds(term);
            is_older && record.lease.is_some() && self.owner_of(&record).as_deref() == Some(owner)
        };
        let claimant = if claim.is_some() { None } else { context.key_claims.claimant(&self.slot) };
        // While other registrations may have the key, an earlier write cannot be distinguished from theirs.
        let former = claim.is_some() && self.is_former(&record);
        match self.writes.author(&record, term, claimant.into()) {
            Author::This => {}
            Author::Another if former => {}
            Author::Another if self.leftover_owner().is_some_and(is_leftover) => {}
            Author::Another => return Ok(Some(KeyAfterAttempt { removed: false, remaining: Some(record), at })),
            Author::Unclear => return Ok(None),
        }
        let mut modified = record.modified;
        if let Some(value) = marked_leaving(&*self.layout, self.driver.service(), &record) {
            // The answer may be lost.
            self.writes.remember(value.clone(), record.lease, Effect::Change);
            match context.client.put(&record.key, Guard::Modified(modified), &value, record.lease).await {
                Ok(WriteOutcome::Done(revision)) => modified = revision,
                Ok(WriteOutcome::Refused(_)) => return Ok(None),
                // A failure does not prevent the removal.
                Err(failure) => tracing::debug!(cause = %failure, "instance not marked as leaving"),
            }
        }
        Ok(match context.client.delete(key, Guard::Modified(modified)).await? {
            WriteOutcome::Done(at) => {
                if former {
                    // The guard proves that the read was current.
                    context.leases.store_went_back(self.rollbacks, at);
                }
                context.note_departure();
                Some(KeyAfterAttempt { removed: true, remaining: None, at })
            }
            WriteOutcome::Refused(_) => None,
        })
    }
}

/// Kind of the result of an attempt to remove a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// The state of the key is known.
    Answered,
    /// The removal was refused permanently.
    Refused,
    /// The removal was not answered, or the key changed meanwhile.
    Unanswered,
}

/// State of the key after an attempt to remove it.
struct KeyAfterAttempt {
    /// The attempt has deleted the key.
    removed: bool,
    /// The remaining record, which belongs to another registration.
    remaining: Option<Record>,
    /// Revision of that state.
    at: Revision,
}

/// Waits for the proof that a late claim is impossible. Never returns without one.
pub(super) async fn proved(client: &StoreClient, impossible: Option<&mut Impossible>) {
    match impossible {
        Some(impossible) => impossible.proved(client).await,
        None => std::future::pending().await,
    }
}

/// Returns the value of `record` with the mark that the instance is about to leave, by which watchers tell a departure
/// from a crash. `None` if the layout has no such mark, or the value has it already.
pub(crate) fn marked_leaving(layout: &dyn Layout, service: &ServiceRef, record: &Record) -> Option<Vec<u8>> {
    let Decoded { instance, owner, .. } = layout.decode(service, &record.key, &record.value).ok()?;
    if instance.health() == Health::Draining || !layout.carries().contains(&Part::Health) {
        return None;
    }
    let writing = Writing {
        owner: owner.as_deref(),
        previous: Some(&record.value),
        lease: record.lease,
        term: layout.term(&record.value).unwrap_or_default(),
    };
    layout.encode(service, &instance.with_health(Health::Draining), &writing).ok()
}
