//! Registration: one task per instance that compares what is desired with what the store holds, for ever.
//!
//! What to do next is decided by [`enlist::backend::reconcile`]; this file only does it. Compare `enlist-etcd`'s file of the same
//! name.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use enlist::{
    Backoff, Deregistered, Entry, Error, Evicted, Instance, InstanceId, LeaseChoice, LeaseId, Moment, Owner,
    RegisterOptions, Registration, RegistrationState, Registry, Revision, ServiceRef,
    backend::{
        Approach, Claim, Desired, Goal, LeaseTerms, Look, RawCell, RegistrationDriver, check_ttl,
        reconcile::{self, Entitlement, Found, Mine, Observation, Step},
        registration,
    },
};

use crate::{
    client::{Inner, MemoryClient},
    defect::Defect,
    session::{
        granted_lease::GrantedLease,
        lease::{self, Lease, LeaseState, Purpose, lease_changed},
    },
    store::{Departure, Key, Record, Refusal, Store, Value},
    watch::hub::{Changes, up},
};

/// Time for which `deregister` waits for the store before it says `LeftBehind`.
const PATIENCE: Duration = Duration::from_secs(3);

/// The pace at which a conflict, or trouble that somebody has to mend, is looked at again.
const SLOW: Duration = Duration::from_secs(10);

/// Interval between two looks at a foreign lease.
const LOOK: Duration = Duration::from_millis(250);

/// Resolution of a lease's remaining time. That is exact, but the two clocks of a [`Moment`] need not agree to the nanosecond.
const UNIT: Duration = Duration::from_millis(1);

#[async_trait]
impl Registry for MemoryClient {
    async fn register(
        &self,
        service: &ServiceRef,
        instance: Instance,
        options: RegisterOptions,
    ) -> Result<Registration, Error> {
        options.check()?;
        instance.check()?;
        let key = Key::instance(service, instance.id());
        let registration = self.begin(service, instance, key, None, &options)?;
        registration.started(&options).await
    }

    async fn publish(&self, service: &ServiceRef, instance: Instance) -> Result<Revision, Error> {
        instance.check()?;
        self.inner.check_open()?;
        let key = Key::instance(service, instance.id());
        let value = Value::Instance { instance: Arc::new(instance), owner: None, term: 0 };
        let outcome = self.inner.link.ask(|store, _| {
            let present = store.get(&key);
            match present.and_then(|record| record.lease) {
                Some(_) => Err(Refusal::Guard(present.cloned())),
                None => store.put(&key, present.map(|record| record.modified), value, None),
            }
        });
        outcome.await?.map_err(|refusal| refused(service, &key, refusal))
    }

    async fn remove(&self, service: &ServiceRef, id: &InstanceId) -> Result<Entry, Error> {
        self.inner.check_open()?;
        let key = Key::instance(service, id);
        let outcome = self.inner.link.ask(|store, _| store.leave(&key, |record| record.lease.is_none())).await?;
        let record = outcome.map_err(|refusal| refused(service, &key, refusal))?;
        record.entry().ok_or_else(|| not_registered(service, &key))
    }

    async fn evict(&self, service: &ServiceRef, id: &InstanceId, modified: Option<Revision>) -> Result<Evicted, Error> {
        self.inner.check_open()?;
        let key = Key::instance(service, id);
        let guard = |record: &Record| modified.is_none_or(|modified| modified == record.modified);
        let evict = |store: &mut Store, _| store.delete(&key, guard).map(|record| (record, store.revision()));
        match self.inner.link.ask(evict).await? {
            Ok((record, removed)) => Ok(Evicted::new(record.entry(), record.lease, removed)),
            Err(Refusal::Guard(Some(record))) => {
                Err(Error::Conflict { what: format!("{service}/{id}"), revision: record.modified })
            }
            Err(_) => Err(not_registered(service, &key)),
        }
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<enlist::Lease, Error> {
        check_ttl(ttl)?;
        self.inner.check_open()?;
        let Inner { link, tasks, leases, .. } = &*self.inner;
        let lease = leases.own(link, tasks, LeaseTerms::new(ttl, None)).await?;
        Ok(enlist::Lease::new(GrantedLease::new(lease, &self.inner)))
    }
}

impl MemoryClient {
    /// Starts the task behind a registration of an instance, or of what `raw` holds.
    pub(crate) fn begin(
        &self,
        service: &ServiceRef,
        instance: Instance,
        key: Key,
        raw: Option<RawCell>,
        options: &RegisterOptions,
    ) -> Result<Registration, Error> {
        self.inner.check_open()?;
        let (registration, driver) = registration(service.clone(), instance, self.keep_alive());
        let client = Arc::clone(&self.inner);
        let registrar = RegistrationTask {
            changes: client.link.hub().changes(),
            backoff: options.backoff.start(),
            lease: None,
            mine: None,
            entitlement: Entitlement::default(),
            stored: None,
            written: Revision::default(),
            gave_way: false,
            client: Arc::clone(&client),
            id: registration.instance().id().clone(),
            key,
            raw,
            driver,
            options: options.clone(),
        };
        match options.lease {
            LeaseChoice::Given(_) => {
                let withdrawal = registrar.driver.withdrawal();
                client
                    .tasks
                    .spawn_until_stopped("registration", client.departures.accompany(withdrawal, registrar.run()))?;
            }
            _ => client.tasks.spawn_until_stopped("registration", registrar.run())?,
        }
        Ok(registration)
    }
}

fn not_registered(service: &ServiceRef, key: &Key) -> Error {
    Error::NotRegistered { service: service.clone(), id: key.id() }
}

fn refused(service: &ServiceRef, key: &Key, refusal: Refusal) -> Error {
    let Refusal::Guard(Some(record)) = refusal else {
        return not_registered(service, key);
    };
    match record.lease {
        Some(lease) => Error::NotOwner { service: service.clone(), id: key.id(), owner: enlist::Owner::Other, lease },
        None => Error::Conflict { what: format!("{service}/{}", key.member), revision: record.modified },
    }
}

/// The task behind one registration.
struct RegistrationTask {
    client: Arc<Inner>,
    id: InstanceId,
    key: Key,
    /// The value to write in place of the instance, if it is one of the user's own.
    raw: Option<RawCell>,
    driver: RegistrationDriver,
    options: RegisterOptions,
    changes: Changes,
    backoff: Backoff,
    lease: Option<Arc<Lease>>,
    mine: Option<Mine>,
    entitlement: Entitlement,
    /// What was written last.
    stored: Option<Value>,
    /// The revision of that write.
    written: Revision,
    /// Another registration of this session had the key since.
    gave_way: bool,
}

/// Reason for which a registration has nothing to do for now.
enum StepOutcome {
    /// All is as it should be.
    Settled,
    /// Something changed meanwhile; look again at once.
    None,
    /// It is over.
    Evicted,
    /// Another registration has the key.
    Superseded(Found),
}

impl RegistrationTask {
    async fn run(mut self) {
        let mut approach = Approach::New;
        while let Some(claim) = self.claim(approach).await {
            // Where it has to give way, it waits for the key behind its successor.
            let Some(superseded) = self.keep(claim).await else {
                return;
            };
            self = superseded;
            self.gave_way = true;
            approach = Approach::Again;
        }
    }

    /// Keeps the instance present until the end, or until another registration of this session wants the key.
    async fn keep(mut self, claim: Claim<Key>) -> Option<Self> {
        loop {
            match self.driver.goal() {
                Goal::Present => {}
                Goal::Absent | Goal::Dropped => {
                    claim.leave();
                    self.remove(None).await;
                    return None;
                }
                _ => {
                    self.abandon();
                    return None;
                }
            }
            match self.reconcile().await {
                Ok(StepOutcome::None) => {}
                Ok(StepOutcome::Settled) => {
                    self.backoff.reset();
                    if self.disturbed(&claim).await.is_superseded() {
                        self.give_way();
                        return Some(self);
                    }
                }
                Ok(StepOutcome::Superseded(found)) => {
                    self.superseded(found.owner.as_deref(), found.lease.unwrap_or_default());
                    if self.wait_until_free(&claim).await.is_superseded() {
                        return Some(self);
                    }
                }
                Ok(StepOutcome::Evicted) => {
                    self.driver.report_end(Ok(Deregistered::AlreadyGone));
                    return None;
                }
                Err(error) => {
                    if self.options.gives_up_after(self.backoff.failures().saturating_add(1)) {
                        claim.leave();
                        self.remove(Some(error)).await;
                        return None;
                    }
                    if self.fail(&claim, error).await.is_superseded() {
                        self.give_way();
                        return Some(self);
                    }
                }
            }
        }
    }

    /// Waits for the key to be free of other registrations of this session.
    async fn claim(&mut self, approach: Approach) -> Option<Claim<Key>> {
        let withdrawal = self.driver.withdrawal();
        let claimed = tokio::select! {
            // A key that is free is claimed even for a registration that is to leave: it may have to remove a leftover.
            biased;
            claim = self.client.key_claims.claim(&self.key, &self.options, &withdrawal, approach) => claim,
            () = self.driver.unwanted() => {
                if approach == Approach::New {
                    self.driver.report_end(Ok(Deregistered::AlreadyGone));
                } else {
                    // The successor may have given up before it wrote anything.
                    self.remove(None).await;
                }
                return None;
            }
        };
        claimed
            .map_err(|revision| {
                let error = self.conflict(None, revision);
                self.driver.report(RegistrationState::Refused { cause: error.clone() });
                self.driver.report_end(Err(error));
            })
            .ok()
    }

    fn conflict(&self, owner: Option<&str>, revision: Option<Revision>) -> Error {
        let owner = Owner::of(owner, self.options.owner.as_deref());
        Error::AlreadyRegistered { service: self.driver.service().clone(), id: self.id.clone(), owner, revision }
    }

    fn superseded(&self, owner: Option<&str>, lease: LeaseId) {
        self.driver.report_superseded(Owner::of(owner, self.options.owner.as_deref()), lease);
    }

    fn found(&self, record: &Record) -> Found {
        let (owner, term) = match &record.value {
            Value::Instance { owner, term, .. } => (owner.clone(), Some(*term)),
            Value::QueueEntry { .. } | Value::Raw(_) => (None, None),
        };
        let Record { created, modified, lease, .. } = *record;
        Found { created, modified, lease, owner, term, own: self.is_own(record) }
    }

    /// Forgets what was written: it was replaced, so its absence is no eviction.
    fn disown(&mut self) {
        (self.mine, self.stored) = (None, None);
    }

    /// Returns `true` if this registration wrote exactly this.
    fn is_own(&self, record: &Record) -> bool {
        let stored = self.stored.as_ref().is_some_and(|stored| stored.is_same(&record.value));
        stored && self.mine.is_some_and(|mine| record.lease == Some(mine.lease))
    }

    /// Brings the store one step closer to what is desired.
    async fn reconcile(&mut self) -> Result<StepOutcome, Error> {
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
        if self.defect(Defect::OverwritesForeignKeys) {
            step = found.as_ref().map_or(Step::Create, |found| Step::Replace { modified: found.modified });
        }
        if let (Step::Observe { lease }, Some(found)) = (&step, &found) {
            let Some(observation) = self.observe(*lease).await? else {
                return Ok(StepOutcome::None);
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
                Ok(found.map_or(StepOutcome::None, StepOutcome::Superseded))
            }
            Step::Evicted => self.evicted(&lease).await,
        }
    }

    async fn lease(&mut self) -> Result<Arc<Lease>, Error> {
        if let Some(lease) = self.lease.as_ref().filter(|lease| !lease.is_lost()) {
            return Ok(Arc::clone(lease));
        }
        let Inner { link, tasks, leases, .. } = &*self.client;
        let lease = match self.options.lease {
            LeaseChoice::Given(_) if self.lease.is_some() => return Err(Error::LeaseLost),
            LeaseChoice::Given(id) => lease::given(id, self.options.ttl),
            LeaseChoice::Own => leases.own(link, tasks, self.options.lease_terms()).await?,
            _ => leases.shared(link, tasks, Purpose::Registration, self.options.lease_terms()).await?,
        };
        self.lease = Some(Arc::clone(&lease));
        Ok(lease)
    }

    async fn write(&mut self, found: Option<&Found>, desired: &Desired, lease: &Lease) -> Result<StepOutcome, Error> {
        let Desired { instance, generation, .. } = desired;
        let term = self.entitlement.claim(found.and_then(|found| found.term), SystemTime::now());
        let value = match &self.raw {
            Some(raw) => Value::Raw(raw.get()),
            None => Value::Instance { instance: Arc::clone(instance), owner: self.options.owner.clone(), term },
        };
        let written = value.clone();
        let under = (!(self.defect(Defect::UpdateLosesTheLease) && *generation > 1)).then_some(lease.id());
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
                Ok(StepOutcome::None)
            }
            Err(Refusal::NoLease) => Err(self.lease_lost(lease)),
        }
    }

    /// Notes that the store does not know the lease. A given one is never replaced.
    fn lease_lost(&mut self, lease: &Lease) -> Error {
        if !matches!(self.options.lease, LeaseChoice::Given(_)) {
            lease.condemn();
            self.lease = None;
        }
        Error::LeaseLost
    }

    /// The key is gone: by hand, if its lease is still there and no other registration had the key in between, or removed it.
    async fn evicted(&mut self, lease: &Lease) -> Result<StepOutcome, Error> {
        let (key, written) = (&self.key, self.written);
        let look = |store: &mut Store, now| {
            let next = store.changes_after(written).and_then(|mut changes| changes.find(|change| change.key == *key));
            // What was compacted away counts as never done.
            let replaced = next.is_some_and(|next| next.record.is_some() || next.departure == Some(Departure::InOrder));
            (replaced, store.time_to_live(lease.id(), now).is_some())
        };
        match self.client.link.ask(look).await? {
            (true, _) => {
                self.disown();
                Ok(StepOutcome::None)
            }
            (false, true) => Ok(StepOutcome::Evicted),
            (false, false) => Err(self.lease_lost(lease)),
        }
    }

    /// Watches a foreign lease for one renewal period and a bit. `None` if the registration is no longer wanted; a later one
    /// goes on with what was seen.
    async fn observe(&mut self, lease: LeaseId) -> Result<Option<Observation>, Error> {
        let Inner { link, observations, .. } = &*self.client;
        loop {
            let asked = Moment::now();
            let Some((left, granted)) = link.ask(|store, now| store.time_to_live(lease, now)).await? else {
                observations.forget(&self.key);
                return Ok(Some(Observation::Gone));
            };
            let left = match observations.look(&self.key, Look { lease, left, granted, asked, unit: UNIT }) {
                Ok(observation) => return Ok(Some(observation)),
                Err(left) => left,
            };
            let (service, id) = (self.driver.service().clone(), self.id.clone());
            self.driver.report_trouble(Error::Observing { service, id, left });
            tokio::select! {
                () = tokio::time::sleep(LOOK.min(left)) => {}
                () = self.driver.unwanted() => return Ok(None),
            }
        }
    }

    /// Reports a failure and waits until it is worth another try.
    async fn fail(&mut self, claim: &Claim<Key>, error: Error) -> WakeReason {
        let waits = matches!(error, Error::AlreadyRegistered { .. })
            && self.options.on_conflict == enlist::OnConflict::Wait
            && !self.driver.was_stored();
        let next = self.backoff.next_delay();
        let delay = if error.is_retryable() { next } else { SLOW };
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
            () = claim.superseded() => return WakeReason::Superseded,
            () = self.changes.next(), if waits => {}
            // A healed link is worth another try at once.
            () = up(&mut link), if away => {}
        }
        WakeReason::Look
    }

    /// Reports that another registration of this client gets the key.
    fn give_way(&self) {
        if self.driver.was_stored() {
            self.superseded(self.options.owner.as_deref(), LeaseId::default());
        } else {
            self.driver.report_failure(self.conflict(self.options.owner.as_deref(), None));
        }
    }

    /// Waits until the key that another registration has is free, or the registration is no longer wanted.
    async fn wait_until_free(&mut self, claim: &Claim<Key>) -> WakeReason {
        let mut slow = std::pin::pin!(tokio::time::sleep(SLOW));
        loop {
            tokio::select! {
                () = &mut slow => return WakeReason::Look,
                () = claim.superseded() => return WakeReason::Superseded,
                () = self.driver.unwanted() => return WakeReason::Look,
                () = self.changes.next() => {
                    let taken = self.client.link.hub().with(|store, _| store.get(&self.key).is_some());
                    if !taken {
                        return WakeReason::Look;
                    }
                }
            }
        }
    }

    /// Waits until something is no longer as it should be.
    async fn disturbed(&mut self, claim: &Claim<Key>) -> WakeReason {
        let Some(lease) = self.lease.clone() else {
            return WakeReason::Look;
        };
        let mut state = lease.state();
        let mut link = self.client.link.watch();
        let options = self.options.clone();
        let mut audit = std::pin::pin!(options.audit_due());
        loop {
            tokio::select! {
                () = &mut audit => return WakeReason::Look,
                () = claim.superseded() => return WakeReason::Superseded,
                () = self.driver.changed() => return WakeReason::Look,
                changed = lease_changed(&mut state) => match changed {
                    LeaseState::Lost if self.defect(Defect::NeverReregisters) => {}
                    LeaseState::Lost => {
                        self.driver.report(RegistrationState::Reregistering { cause: Error::LeaseLost });
                        return WakeReason::Look;
                    }
                    LeaseState::Suspect { cause, .. } => self.driver.report(RegistrationState::Suspect { cause }),
                    LeaseState::Alive { .. } => if !self.is_intact() { return WakeReason::Look },
                },
                () = self.changes.next() => if !self.is_intact() { return WakeReason::Look },
                // A healed link: what happened meanwhile was not seen.
                _ = link.changed() => if !self.is_intact() { return WakeReason::Look },
            }
        }
    }

    /// Returns `true` if the key is still as this registration wrote it, as far as can be seen; if so, it is registered.
    fn is_intact(&self) -> bool {
        if self.defect(Defect::NeverReregisters) || self.client.link.check().is_err() {
            return true;
        }
        let record = self.client.link.hub().with(|store, _| store.get(&self.key).cloned());
        let intact = record.as_ref().filter(|record| self.is_own(record));
        if let Some(record) = intact {
            self.driver.report(RegistrationState::Registered { revision: record.modified });
        }
        intact.is_some()
    }

    /// Removes the instance until the store has confirmed it. A registration that gave up says so at once and removes what
    /// it had: the lease lives on, and would keep it for ever.
    async fn remove(&mut self, gave_up: Option<Error>) {
        if let Some(error) = &gave_up {
            self.driver.report_end(Err(error.clone()));
        }
        let outcome = |found: Deregistered| gave_up.clone().map_or(Ok(found), Err);
        let unguarded = self.defect(Defect::DeletesUnguarded);
        let owner = self.options.owner.as_deref().filter(|_| self.may_have_a_leftover());
        let is_leftover = |record: &Record| {
            // What is newer was written after this registration's claim.
            let is_older = self.entitlement.exceeds(self.found(record).term);
            owner.is_some() && is_older && record.lease.is_some() && record.owner() == owner
        };
        let guard = |record: &Record| unguarded || self.is_own(record) || is_leftover(record);
        let nothing = self.mine.is_none() && owner.is_none();
        if nothing && !unguarded || self.defect(Defect::DropLeavesTheInstance) {
            return self.driver.report_end(outcome(Deregistered::AlreadyGone));
        }
        let begun = Moment::now();
        let mut link = self.client.link.watch();
        let mut backoff = self.options.backoff.start();
        loop {
            match self.client.link.ask(|store, _| store.leave(&self.key, guard)).await {
                Ok(Ok(_)) => return self.driver.report_end(outcome(Deregistered::Removed)),
                Ok(Err(_)) => return self.driver.report_end(outcome(Deregistered::AlreadyGone)),
                Err(_) if begun.elapsed() >= PATIENCE => self.driver.report_end(outcome(Deregistered::LeftBehind)),
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay().min(PATIENCE / 3)) => {}
                _ = link.changed() => {}
            }
        }
    }

    /// Returns `true` if what a predecessor with an equal owner left would have been taken over, had there been time.
    fn may_have_a_leftover(&self) -> bool {
        self.driver.goal() == Goal::Absent && !self.entitlement.is_stored()
    }

    fn abandon(self) {
        if let (Some(lease), LeaseChoice::Own) = (&self.lease, self.options.lease) {
            lease.abandon();
        }
        self.driver.report_end(Ok(Deregistered::LeftBehind));
    }

    fn defect(&self, defect: Defect) -> bool {
        self.client.link.hub().has(defect)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WakeReason {
    Look,
    Superseded,
}

impl WakeReason {
    fn is_superseded(self) -> bool {
        self == Self::Superseded
    }
}
