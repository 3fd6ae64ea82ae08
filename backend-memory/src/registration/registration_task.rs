//! Task of one registration: compares the desired state with the store's, without end.
//!
//! The flow is that of [`enlist::backend::registration_flow`], and [`enlist::backend::reconcile`] decides. This file
//! contains the requests and the waits. `enlist-etcd` has more of them: there a failed request may be applied later.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use enlist::{
    Backoff, Deregistered, Error, InstanceId, LeaseChoice, LeaseId, RegisterOptions, RegistrationState, Revision,
    backend::{
        Claim, Desired, Goal, KeyClaims, LeasePurpose, LeaseState, LeaseTerms, Observations, PERMANENT_ERROR_RETRY,
        RawCell, RegistrationDriver, audit_due, gives_up_after, lease_changed,
        reconcile::{self, Entitlement, Found, Mine, Step},
        registration_flow::{RegistrationSteps, RemovalSteps, StepOutcome, Waited, observe, remove_until_confirmed},
    },
};

use crate::{
    client::Inner,
    deliberate_defects::DeliberateDefect,
    session::lease::{self, Lease},
    store::{Departure, Key, Record, Refusal, Store, Value},
    watch::shared_store::{Changes, up},
};

/// Task of one registration.
pub(super) struct RegistrationTask {
    client: Arc<Inner>,
    id: InstanceId,
    key: Key,
    /// Raw value to write in place of the instance.
    raw: Option<RawCell>,
    driver: RegistrationDriver,
    options: RegisterOptions,
    changes: Changes,
    backoff: Backoff,
    lease: Option<Arc<Lease>>,
    mine: Option<Mine>,
    entitlement: Entitlement,
    /// Value of the last write.
    stored: Option<Value>,
    /// Revision of that write.
    written: Revision,
    /// Another registration of this client has held the key since. A flag, because it outlasts the claims and the
    /// states of the flow, up to the next comparison.
    gave_way: bool,
}

impl Drop for RegistrationTask {
    fn drop(&mut self) {
        if self.driver.goal() == Goal::Abandoned && self.client.tasks.stop_signal().is_cancelled() {
            // The session ended before this task was stopped.
            self.leave_lease();
        }
    }
}

impl RegistrationTask {
    pub(super) fn new(
        client: &Arc<Inner>,
        id: InstanceId,
        key: Key,
        raw: Option<RawCell>,
        driver: RegistrationDriver,
        options: RegisterOptions,
    ) -> Self {
        Self {
            changes: client.link.store().changes(),
            backoff: options.backoff.start(),
            lease: None,
            mine: None,
            entitlement: Entitlement::default(),
            stored: None,
            written: Revision::default(),
            gave_way: false,
            client: Arc::clone(client),
            id,
            key,
            raw,
            driver,
            options,
        }
    }

    fn found(&self, record: &Record) -> Found {
        let (owner, term) = match &record.value {
            Value::Instance { owner, term, .. } => (owner.clone(), Some(*term)),
            _ => (None, None),
        };
        let Record { created, modified, lease, .. } = *record;
        Found { created, modified, lease, owner, term, own: self.is_own(record) }
    }

    /// Drops the stored write: it was replaced, so its absence is no eviction.
    fn disown(&mut self) {
        (self.mine, self.stored) = (None, None);
    }

    /// Returns `true` if this registration wrote exactly this record.
    fn is_own(&self, record: &Record) -> bool {
        let stored = self.stored.as_ref().is_some_and(|stored| stored.is_same(&record.value));
        stored && self.mine.is_some_and(|mine| record.lease == Some(mine.lease))
    }

    async fn lease(&mut self) -> Result<Arc<Lease>, Error> {
        if let Some(lease) = self.lease.as_ref().filter(|lease| !lease.is_lost()) {
            return Ok(Arc::clone(lease));
        }
        let Inner { link, tasks, leases, .. } = &*self.client;
        let lease = match self.options.lease {
            LeaseChoice::Given(_) if self.lease.is_some() => return Err(Error::LeaseLost),
            LeaseChoice::Given(id) => lease::given(id, self.options.ttl),
            LeaseChoice::Own => leases.own(link, tasks, LeaseTerms::from(&self.options)).await?,
            _ => leases.shared(link, tasks, LeasePurpose::Registration, LeaseTerms::from(&self.options)).await?,
        };
        self.lease = Some(Arc::clone(&lease));
        Ok(lease)
    }

    async fn write(
        &mut self,
        found: Option<&Found>,
        desired: &Desired,
        lease: &Lease,
    ) -> Result<StepOutcome<Found>, Error> {
        let Desired { instance, generation, .. } = desired;
        let term = self.entitlement.claim(found.and_then(|found| found.term), SystemTime::now());
        let value = match &self.raw {
            Some(raw) => Value::Raw(raw.get()),
            None => Value::Instance { instance: Arc::clone(instance), owner: self.options.owner.clone(), term },
        };
        let written = value.clone();
        let under = (!(self.defect(DeliberateDefect::UpdateLosesTheLease) && *generation > 1)).then_some(lease.id());
        let outcome = self.client.link.ask(|store, _| {
            let revision = store.put(&self.key, found.map(|found| found.modified), value, under)?;
            let created = store.get(&self.key).map(|record| record.created);
            Ok((revision, created.unwrap_or(revision)))
        });
        match outcome.await? {
            Ok((revision, created)) => {
                self.mine = Some(Mine { created, lease: lease.id(), generation: *generation });
                (self.stored, self.written) = (Some(written), revision);
                self.entitlement.stored();
                self.driver.report_lease(lease.id());
                self.driver.report_stored(*generation, revision);
                Ok(StepOutcome::Settled)
            }
            Err(Refusal::Guard(_)) => {
                self.entitlement.refused();
                Ok(StepOutcome::Repeat)
            }
            Err(Refusal::NoLease) => Err(self.lease_lost(lease)),
        }
    }

    /// Records that the store does not know the lease. A given lease is never replaced.
    fn lease_lost(&mut self, lease: &Lease) -> Error {
        if !matches!(self.options.lease, LeaseChoice::Given(_)) {
            lease.mark_gone();
            self.lease = None;
        }
        Error::LeaseLost
    }

    /// Determines the cause of the key's absence. An operator deleted it if its lease still exists and no other
    /// registration had the key in between or removed it.
    async fn confirm_eviction(&mut self, lease: &Lease) -> Result<StepOutcome<Found>, Error> {
        let (key, written) = (&self.key, self.written);
        let look = |store: &mut Store, now| {
            let next = store.changes_after(written).and_then(|mut changes| changes.find(|change| change.key == *key));
            // A compacted history counts as empty.
            let replaced = next.is_some_and(|next| next.record.is_some() || next.departure == Some(Departure::InOrder));
            (replaced, store.time_to_live(lease.id(), now).is_some())
        };
        match self.client.link.ask(look).await? {
            (true, _) => {
                self.disown();
                Ok(StepOutcome::Repeat)
            }
            (false, true) => Ok(StepOutcome::Evicted),
            (false, false) => Err(self.lease_lost(lease)),
        }
    }

    /// Returns `true` if the key is as this registration wrote it, as far as can be seen. If so, reports it as
    /// registered.
    fn is_intact(&self) -> bool {
        if self.defect(DeliberateDefect::NeverReregisters) || self.client.link.check().is_err() {
            return true;
        }
        let record = self.client.link.store().with(|store, _| store.get(&self.key).cloned());
        let intact = record.as_ref().filter(|record| self.is_own(record));
        if let Some(record) = intact {
            self.driver.report(RegistrationState::Registered { revision: record.modified });
        }
        intact.is_some()
    }

    /// Leaves the lease to run out, if it keeps no other instance alive.
    fn leave_lease(&self) {
        if let (Some(lease), LeaseChoice::Own) = (&self.lease, self.options.lease) {
            lease.abandon();
        }
    }

    /// Returns `true` if the registration was about to take over the key of a predecessor with an equal owner when it
    /// was stopped.
    fn may_have_a_leftover(&self) -> bool {
        self.driver.goal() == Goal::Absent && !self.entitlement.is_stored()
    }

    fn defect(&self, defect: DeliberateDefect) -> bool {
        self.client.link.store().has(defect)
    }
}

impl RegistrationSteps for RegistrationTask {
    type Key = Key;
    type Rival = Found;

    /// The remaining time is exact, but the two clocks of a [`Moment`](enlist::Moment) need not agree to the
    /// nanosecond.
    const LEASE_RESOLUTION: Duration = Duration::from_millis(1);

    fn driver(&self) -> &RegistrationDriver {
        &self.driver
    }

    fn id(&self) -> &InstanceId {
        &self.id
    }

    fn options(&self) -> &RegisterOptions {
        &self.options
    }

    fn key(&self) -> &Key {
        &self.key
    }

    fn backoff(&mut self) -> &mut Backoff {
        &mut self.backoff
    }

    fn claims(&self) -> &KeyClaims<Key> {
        &self.client.key_claims
    }

    fn observations(&self) -> &Observations<Key> {
        &self.client.observations
    }

    async fn wait_unwanted(&mut self) {
        self.driver.unwanted().await;
    }

    async fn reconcile(&mut self) -> Result<StepOutcome<Found>, Error> {
        let lease = self.lease().await?;
        let desired = self.driver.desired();
        let record = self.client.link.ask(|store, _| store.get(&self.key).cloned()).await?;
        let found = record.as_ref().map(|record| self.found(record));
        if std::mem::take(&mut self.gave_way) && !found.as_ref().is_some_and(|found| found.own) {
            self.disown();
        }
        let (mine, entitlement) = (self.mine, self.entitlement);
        let mut step =
            reconcile::step(found.as_ref(), mine, entitlement, lease.id(), desired.generation, &self.options);
        if self.defect(DeliberateDefect::OverwritesForeignKeys) {
            step = found.as_ref().map_or(Step::Create, |found| Step::Replace { modified: found.modified });
        }
        if let (Step::Observe { lease }, Some(found)) = (&step, &found) {
            let Some(observation) = observe(self, *lease).await? else {
                return Ok(StepOutcome::Repeat);
            };
            step = reconcile::after_observation(found, observation);
        }
        match step {
            Step::Create => self.write(None, &desired, &lease).await,
            Step::Replace { .. } => self.write(found.as_ref(), &desired, &lease).await,
            Step::Keep => {
                let revision = found.map(|found| found.modified).unwrap_or_default();
                self.driver.report_lease(lease.id());
                self.driver.report_stored(desired.generation, revision);
                Ok(StepOutcome::Settled)
            }
            Step::Observe { .. } | Step::Conflict => {
                let revision = found.as_ref().map(|found| found.modified);
                Err(self.conflict(found.as_ref().and_then(|found| found.owner.as_deref()), revision))
            }
            Step::Superseded => {
                self.disown();
                Ok(found.map_or(StepOutcome::Repeat, StepOutcome::Superseded))
            }
            Step::Evicted => self.confirm_eviction(&lease).await,
        }
    }

    async fn wait_settled(&mut self, claim: &Claim<Key>) -> Waited {
        let Some(lease) = self.lease.clone() else {
            return Waited::Due;
        };
        let mut state = lease.state();
        let mut link = self.client.link.watch();
        let options = self.options.clone();
        let mut audit = std::pin::pin!(audit_due(&options));
        loop {
            tokio::select! {
                () = &mut audit => return Waited::Due,
                () = claim.superseded() => return Waited::Superseded,
                () = self.driver.changed() => return Waited::Due,
                changed = lease_changed(&mut state) => match changed {
                    LeaseState::Lost if self.defect(DeliberateDefect::NeverReregisters) => {}
                    LeaseState::Lost | LeaseState::Retired => {
                        self.driver.report(RegistrationState::Reregistering { cause: Error::LeaseLost });
                        return Waited::Due;
                    }
                    LeaseState::Suspect { cause, .. } => self.driver.report(RegistrationState::Suspect { cause }),
                    LeaseState::Alive { .. } => if !self.is_intact() { return Waited::Due },
                },
                () = self.changes.next() => if !self.is_intact() { return Waited::Due },
                // After the link was restored: changes during the interruption were not seen.
                _ = link.changed() => if !self.is_intact() { return Waited::Due },
            }
        }
    }

    async fn wait_superseded(&mut self, claim: &Claim<Key>, found: Found) -> Waited {
        self.report_superseded(found.owner.as_deref(), found.lease.unwrap_or_default());
        let mut retry = std::pin::pin!(tokio::time::sleep(PERMANENT_ERROR_RETRY));
        loop {
            tokio::select! {
                () = &mut retry => return Waited::Due,
                () = claim.superseded() => return Waited::Superseded,
                () = self.driver.unwanted() => return Waited::Due,
                () = self.changes.next() => {
                    let taken = self.client.link.store().with(|store, _| store.get(&self.key).is_some());
                    if !taken {
                        return Waited::Due;
                    }
                }
            }
        }
    }

    async fn wait_withdrawn(&mut self, _claim: &Claim<Key>, _at: Revision) -> Waited {
        // Every value of this backend has a health, so no instance is withdrawn.
        Waited::Due
    }

    async fn wait_failed(&mut self, claim: &Claim<Key>, error: Error) -> Waited {
        let waits = self.waits_out(&error);
        let next = self.backoff.next_delay();
        let delay = if error.is_retryable() { next } else { PERMANENT_ERROR_RETRY };
        let away = self.client.link.check().is_err();
        let may_be_there = self.mine.is_some() && self.lease.as_ref().is_some_and(|lease| !lease.is_lost());
        if waits {
            self.driver.report(RegistrationState::Registering { last: Some(error) });
        } else if away && may_be_there {
            self.driver.report(RegistrationState::Suspect { cause: error });
        } else {
            self.driver.report_failure(error);
        }
        let mut link = self.client.link.watch();
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.driver.changed() => {}
            () = claim.superseded() => return Waited::Superseded,
            () = self.changes.next(), if waits => {}
            // A restored link is a reason for another attempt at once.
            () = up(&mut link), if away => {}
        }
        Waited::Due
    }

    fn gives_up(&mut self, _error: &Error) -> bool {
        gives_up_after(&self.options, self.backoff.failures().saturating_add(1))
    }

    async fn remove(&mut self, gave_up: Option<Error>, claim: Option<Claim<Key>>) {
        if let Some(claim) = &claim {
            claim.leave();
        }
        remove_until_confirmed(self, gave_up).await;
    }

    async fn evicted(&mut self, _claim: Claim<Key>) {
        self.driver.report_end(Ok(Deregistered::AlreadyGone));
    }

    fn abandon(&mut self) {
        self.leave_lease();
        self.driver.report_end(Ok(Deregistered::LeftBehind));
    }

    fn gave_way(&mut self) {
        self.gave_way = true;
    }

    async fn time_to_live(&self, lease: LeaseId) -> Result<Option<(Duration, Duration)>, Error> {
        self.client.link.ask(|store, now| store.time_to_live(lease, now)).await
    }

    async fn observation_unneeded(&self) {
        self.driver.unwanted().await;
    }
}

impl RemovalSteps for RegistrationTask {
    async fn try_remove(&mut self) -> Result<Deregistered, Error> {
        let unguarded = self.defect(DeliberateDefect::DeletesUnguarded);
        let owner = self.options.owner.as_deref().filter(|_| self.may_have_a_leftover());
        let is_leftover = |record: &Record| {
            // A newer value was written after the claim of this registration.
            let is_older = self.entitlement.exceeds(self.found(record).term);
            owner.is_some() && is_older && record.lease.is_some() && record.owner() == owner
        };
        let guard = |record: &Record| unguarded || self.is_own(record) || is_leftover(record);
        let nothing = self.mine.is_none() && owner.is_none();
        if nothing && !unguarded || self.defect(DeliberateDefect::DropLeavesTheInstance) {
            return Ok(Deregistered::AlreadyGone);
        }
        let removed = self.client.link.ask(|store, _| store.leave(&self.key, guard)).await?;
        Ok(if removed.is_ok() { Deregistered::Removed } else { Deregistered::AlreadyGone })
    }

    async fn reconnected(&mut self) {
        up(&mut self.client.link.watch()).await;
    }
}
