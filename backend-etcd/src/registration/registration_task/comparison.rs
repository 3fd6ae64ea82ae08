//! One comparison of the desired state with etcd. [`enlist::backend::reconcile`] decides on the next step, and this
//! file executes it.

use std::{sync::Arc, time::SystemTime};

use enlist::{
    Counter, Error, LeaseChoice, LeaseId, RegistrationState, Revision,
    backend::{
        Desired, Goal, LeasePurpose, LeaseTerms, RegistrationDriver, Shown, count,
        reconcile::{self, Found, Mine, Step},
        registration_flow::{DEREGISTER_TIMEOUT, RegistrationSteps, StepOutcome, observe},
    },
};

use super::{
    Known, LEASE_VERDICT_TIMEOUT, RegistrationTask,
    eviction::{self, Loss},
    own_writes::Effect,
    reads,
};
use crate::{
    client::requests::{guarded_write::Guard, kv::WriteOutcome},
    deliberate_defects::DeliberateDefect,
    error::Failure,
    layout::{LeaseScope, Writing},
    session::lease,
    watch::record::Record,
};

/// Content of the key, compared with the writes of this registration.
struct Comparison {
    found: Option<Found>,
    /// Revision of the read, if one was necessary.
    at: Option<Revision>,
    /// This registration wrote it.
    own: bool,
    /// It is an earlier write of this registration: the store was restored to it.
    former: bool,
}

impl RegistrationTask {
    /// Compares etcd with the desired state, and executes one step towards it.
    pub(super) async fn compare(&mut self) -> Result<StepOutcome<Record>, Error> {
        self.recoveries = self.context.client.control.recoveries();
        let Some(lease) = self.lease().await? else {
            return Ok(StepOutcome::Repeat);
        };
        let key = self.key_under(lease)?;
        let desired = self.driver.desired();
        self.wanted = desired.generation;
        let rollbacks = self.context.leases.rollbacks();
        let Some((record, at)) = self.look(&key).await? else {
            return Ok(StepOutcome::Repeat);
        };
        self.settle(record.as_ref());
        if self.lease.as_ref().is_some_and(|lease| lease.is_retired()) {
            // The next comparison is for another lease, and needs no request.
            self.known = record.into();
            return Ok(StepOutcome::Repeat);
        }
        let comparison = self.note(record.as_ref(), at);
        if comparison.at.is_some() && comparison.own && !comparison.former {
            self.rollbacks = rollbacks;
        }
        if desired.shown == Shown::Withdrawn {
            return self.withdraw(record.filter(|_| comparison.own), at).await;
        }
        let Some(step) = self.decide(&comparison, &desired, lease).await? else {
            return Ok(StepOutcome::Repeat);
        };
        self.apply(step, &key, record, &comparison, &desired, lease).await
    }

    /// Returns the content of the key, and the revision of the read, if one was necessary. `None`: the registration is
    /// no longer wanted.
    async fn look(&mut self, key: &[u8]) -> Result<Option<(Option<Record>, Option<Revision>)>, Error> {
        let context = Arc::clone(&self.context);
        Ok(Some(match std::mem::take(&mut self.known) {
            Known::Unknown => {
                let _permit = tokio::select! {
                    permit = context.reads.acquire() => permit,
                    () = self.driver.unwanted() => return Ok(None),
                };
                let read = reads::current(&context.client, key).await;
                let (record, at) = read.map_err(|failure| self.failed(failure))?;
                (record, Some(at))
            }
            Known::Absent => (None, None),
            Known::AsStored => (self.writes.stored().cloned(), None),
            Known::Is(record) => (Some(record), None),
        }))
    }

    /// Records the content of the key, and compares it with the writes of this registration.
    fn note(&mut self, record: Option<&Record>, at: Option<Revision>) -> Comparison {
        let found = record.map(|record| self.found(record));
        let own = found.as_ref().is_some_and(|found| found.own);
        if !own {
            // No key has to be moved off the former lease.
            self.former = None;
        }
        self.writes.note_key(record);
        if record.is_none() && std::mem::take(&mut self.writes.withdrawing) {
            self.disown();
        }
        // A read may be stale, so it does not replace what was acknowledged.
        let former = record.is_some_and(|record| self.is_former(record));
        if let (true, Some(record)) = (own && !former, record) {
            // Includes a write without an answer.
            self.writes.entitlement.stored();
            self.writes.renew(record);
        } else if std::mem::take(&mut self.gave_way) {
            self.disown();
        }
        Comparison { found, at, own, former }
    }

    /// Decides on the next step, after an observation of another owner's lease if necessary. `None`: the registration
    /// is no longer wanted, or needs another lease.
    async fn decide(&self, comparison: &Comparison, desired: &Desired, lease: LeaseId) -> Result<Option<Step>, Error> {
        let Comparison { found, former, .. } = comparison;
        let mine = self.writes.mine().map(|mine| if *former { Mine { generation: 0, ..mine } } else { mine });
        let entitlement = self.writes.entitlement;
        let step = reconcile::step(found.as_ref(), mine, entitlement, lease, desired.generation, &self.options);
        let (Step::Observe { lease }, Some(found)) = (&step, found) else {
            return Ok(Some(step));
        };
        let observation = observe(self, *lease).await?;
        Ok(observation.map(|observation| reconcile::after_observation(found, observation)))
    }

    /// Executes the step.
    async fn apply(
        &mut self,
        step: Step,
        key: &Arc<[u8]>,
        record: Option<Record>,
        comparison: &Comparison,
        desired: &Desired,
        lease: LeaseId,
    ) -> Result<StepOutcome<Record>, Error> {
        match step {
            Step::Create => self.write(key, None, Guard::Absent, desired, lease).await,
            Step::Replace { modified } => {
                if DeliberateDefect::ignores_updates(comparison.own) {
                    self.driver.report_stored(desired.generation, modified);
                    return Ok(StepOutcome::Settled);
                }
                let noted = self.rollbacks;
                let written = self.write(key, record.as_ref(), Guard::Modified(modified), desired, lease).await;
                if comparison.former && matches!(written, Ok(StepOutcome::Settled)) {
                    // The guard proves that the read was current.
                    let now = self.writes.stored().map(|stored| stored.modified).unwrap_or_default();
                    self.context.leases.store_went_back(noted, now);
                }
                written
            }
            Step::Keep => {
                let Some(record) = record else { return Ok(StepOutcome::Repeat) };
                self.driver.report_lease(record.lease.unwrap_or(lease));
                self.driver.report_stored(desired.generation, record.modified);
                self.writes.acknowledge(record, desired.generation);
                Ok(StepOutcome::Settled)
            }
            Step::Observe { .. } | Step::Conflict => {
                let found = comparison.found.as_ref();
                let revision = found.map(|found| found.modified);
                Err(self.conflict(found.and_then(|found| found.owner.as_deref()), revision))
            }
            Step::Superseded => {
                self.disown();
                Ok(record.map_or(StepOutcome::Repeat, StepOutcome::Superseded))
            }
            Step::Evicted => self.confirm_eviction(key, lease, comparison.at).await,
        }
    }

    /// Returns the id of the lease, after a grant if necessary. `None`: the registration is no longer wanted.
    async fn lease(&mut self) -> Result<Option<LeaseId>, Error> {
        if let Some(lease) = self.lease.as_ref().filter(|lease| !lease.is_lost() && !lease.is_retired()) {
            return Ok(Some(lease.id()));
        }
        // A key under it stays there until it is written under another lease.
        let retired = self.lease.take_if(|lease| lease.is_retired());
        if let Some(retired) = retired.filter(|lease| self.writes.may_be_under(lease.id())) {
            self.former = Some(retired);
        }
        // A wait after a failed grant would end at once with it. A given lease is never replaced.
        let given = matches!(self.options.lease, LeaseChoice::Given(_));
        drop(self.lease.take_if(|lease| lease.is_lost() && !given));
        let leases = &self.context.leases;
        let own = self.layout.lease_scope() == LeaseScope::PerKey;
        let granting = async {
            match self.options.lease {
                LeaseChoice::Given(_) if self.lease.is_some() => Err(Failure::Final(Error::LeaseLost)),
                LeaseChoice::Given(id) => Ok(lease::given(id, self.options.ttl)),
                LeaseChoice::Own => leases.own(LeaseTerms::from(&self.options)).await,
                _ if own => leases.own(LeaseTerms::from(&self.options)).await,
                _ => leases.shared(LeasePurpose::Registration, LeaseTerms::from(&self.options)).await,
            }
        };
        let granted = tokio::select! {
            granted = granting => granted,
            () = self.driver.unwanted() => return Ok(None),
        };
        let lease = granted.map_err(|failure| self.failed(failure))?;
        Ok(Some(self.lease.insert(lease).id()))
    }

    /// Writes the instance under a guard. `previous` is the replaced record.
    async fn write(
        &mut self,
        key: &Arc<[u8]>,
        previous: Option<&Record>,
        guard: Guard,
        desired: &Desired,
        lease: LeaseId,
    ) -> Result<StepOutcome<Record>, Error> {
        self.report_early(previous, desired.generation);
        let (context, layout) = (Arc::clone(&self.context), Arc::clone(&self.layout));
        let term = previous.and_then(|record| layout.term(&record.value));
        let writing = Writing {
            owner: self.options.owner.as_deref(),
            previous: previous.map(|record| &*record.value),
            lease: Some(lease),
            term: self.writes.entitlement.claim(term, SystemTime::now()),
        };
        let value = layout.encode(self.driver.service(), &desired.instance, &writing)?;
        let claims = previous.is_none_or(|record| !self.writes.is_own(record));
        // The request may wait behind others, or etcd may be silent. An unsent request of an unwanted registration is
        // dropped.
        let given_up = unwanted_for(&self.driver, DEREGISTER_TIMEOUT);
        match context.client.put_unless(key, guard, &value, Some(lease), given_up).await {
            Ok(WriteOutcome::Done(revision)) => {
                if matches!(guard, Guard::Absent) {
                    let again = self.driver.was_stored();
                    count(&context.counters, if again { Counter::Reregistrations } else { Counter::Registrations });
                }
                let created = previous.map_or(revision, |record| record.created);
                let record = Record { key: Arc::clone(key), value, created, modified: revision, lease: Some(lease) };
                self.acknowledged(record, lease, desired.generation);
                Ok(StepOutcome::Settled)
            }
            Ok(WriteOutcome::Refused(record)) => {
                self.writes.refused();
                self.known = record.into();
                Ok(StepOutcome::Repeat)
            }
            Err(Failure::LeaseNotFound) => Err(self.lease_lost()),
            Err(failure) => {
                if failure.is_ambiguous() {
                    let claimed = self.lease.as_ref().filter(|_| claims);
                    let effect = claimed.map_or(Effect::Change, |lease| Effect::Claim(Arc::clone(lease)));
                    self.writes.remember(value, Some(lease), effect);
                }
                if self.driver.goal() == Goal::Present { Err(self.failed(failure)) } else { Ok(StepOutcome::Repeat) }
            }
        }
    }

    /// Reports a write before etcd acknowledges it, if that deliberate defect is turned on.
    fn report_early(&self, previous: Option<&Record>, generation: u64) {
        let early = match previous {
            None => DeliberateDefect::CreationsReportedEarly,
            Some(_) => DeliberateDefect::UpdatesReportedEarly,
        };
        if early.is_on() {
            self.driver.report_stored(generation, previous.map(|record| record.modified).unwrap_or_default());
        }
    }

    /// Notes an acknowledged write.
    fn acknowledged(&mut self, record: Record, lease: LeaseId, generation: u64) {
        self.writes.withdrawing = false;
        self.driver.report_lease(lease);
        self.driver.report_stored(generation, record.modified);
        if DeliberateDefect::SuspectAfterWrites.is_on() {
            self.driver.report(RegistrationState::Suspect { cause: Error::LeaseLost });
        }
        self.rollbacks = self.context.leases.rollbacks();
        self.writes.acknowledge(record, generation);
        self.writes.forget_changes();
        self.former = None;
    }

    /// Records that etcd does not know the lease. A given lease is never replaced.
    fn lease_lost(&mut self) -> Error {
        // Its keys were deleted with it.
        self.writes.note_key(None);
        let given = matches!(self.options.lease, LeaseChoice::Given(_));
        if let Some(lost) = self.lease.take_if(|_| !given) {
            lost.mark_gone();
        }
        Error::LeaseLost
    }

    /// Determines the cause of the key's absence. An eviction is proved only if the lease still exists, no other
    /// registration had the key in between, and the history of the store contains the deletion. Renewals may have been
    /// unanswered for a while. `at`: the revision of the read; `None` without one.
    async fn confirm_eviction(
        &mut self,
        key: &[u8],
        lease: LeaseId,
        at: Option<Revision>,
    ) -> Result<StepOutcome<Record>, Error> {
        // Its absence is only assumed. The next comparison reads the key.
        if at.is_none() {
            return Ok(StepOutcome::Repeat);
        }
        let context = Arc::clone(&self.context);
        // A read can be stale (etcd-io/etcd#20418), a write cannot. This one is later than the deletion, so the history
        // up to its revision contains the deletion.
        let read = tokio::select! {
            read = reads::current_by_a_write(&context.client, key) => read.map_err(|failure| self.failed(failure))?,
            () = self.driver.unwanted() => return Ok(StepOutcome::Repeat),
        };
        let (None, absent_at) = read else {
            self.known = read.0.into();
            return Ok(StepOutcome::Repeat);
        };
        let written = self.writes.stored().map(|stored| stored.modified).unwrap_or_default();
        let is_own = |record: &Record| self.writes.is_own(record);
        let loss = tokio::select! {
            loss = eviction::loss(&context.client, key, written, absent_at, is_own) => {
                loss.map_err(|failure| self.failed(failure))?
            }
            () = self.driver.unwanted() => return Ok(StepOutcome::Repeat),
        };
        let loss = if context.leases.rollbacks() == self.rollbacks { loss } else { Loss::Unwritten };
        match loss {
            Loss::Replaced => tracing::info!("the key was another registration's, which has left"),
            Loss::Unwritten => tracing::warn!("the key is not in a store that was restored"),
            Loss::Deleted => {}
        }
        if loss != Loss::Deleted {
            self.disown();
            return Ok(StepOutcome::Repeat);
        }
        self.confirm_lease(lease).await?;
        Ok(StepOutcome::Evicted)
    }

    /// Fails if the lease is lost. One member can report a revocation before another one has applied it, so the lease
    /// is read twice.
    async fn confirm_lease(&mut self, lease: LeaseId) -> Result<(), Error> {
        let client = Arc::clone(&self.context.client);
        for again in [false, true] {
            if again {
                self.sleep_while_wanted(LEASE_VERDICT_TIMEOUT).await;
            }
            let remaining = client.time_to_live(lease).await.map_err(|failure| self.failed(failure))?;
            if remaining.is_none() {
                return Err(self.lease_lost());
            }
        }
        Ok(())
    }
}

/// Waits until the registration is no longer wanted, and then for another `limit`.
pub(super) async fn unwanted_for(driver: &RegistrationDriver, limit: std::time::Duration) {
    driver.unwanted().await;
    tokio::time::sleep(limit).await;
}
