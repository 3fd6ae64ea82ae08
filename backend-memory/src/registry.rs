//! Registration: one task per instance that compares what is desired with what the store holds, for ever.
//!
//! What to do next is decided by [`enlist::reconcile`]; this file only does it. Compare `enlist-etcd`'s file of the same
//! name.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Backoff, Deregistered, Entry, Error, Instance, InstanceId, LeaseChoice, RegisterOptions, Registration,
    RegistrationDriver, RegistrationState, Registry, Revision, ServiceRef,
    reconcile::{self, Found, Mine, Observation, Step},
    registration,
    registration::{Desired, Goal},
    slots::Claim,
};

use crate::{
    client::{Inner, MemoryClient},
    defect::Defect,
    hub::Changes,
    lease::{self, Lease, LeaseState, Purpose, lease_changed},
    store::{Key, Record, Refusal, Value},
};

/// How long `deregister` waits for the store before it says `LeftBehind`.
const PATIENCE: Duration = Duration::from_secs(3);

/// The pace at which a conflict, or trouble that somebody has to mend, is looked at again.
const SLOW: Duration = Duration::from_secs(10);

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
        self.inner.check_open()?;
        let key = Key::instance(service, instance.id());
        let (registration, driver) = registration(service.clone(), instance, self.keep_alive());
        let client = Arc::clone(&self.inner);
        let registrar = Registrar {
            changes: client.link.hub().changes(),
            backoff: options.backoff.start(),
            lease: None,
            mine: None,
            client: Arc::clone(&client),
            key,
            driver,
            options: options.clone(),
        };
        client.tasks.run("registration", registrar.run())?;
        registration.started(&options).await
    }

    async fn publish(&self, service: &ServiceRef, instance: Instance) -> Result<Revision, Error> {
        instance.check()?;
        self.inner.check_open()?;
        let key = Key::instance(service, instance.id());
        let value = Value::Instance { instance: Arc::new(instance), owner: None };
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
}

fn not_registered(service: &ServiceRef, key: &Key) -> Error {
    Error::NotRegistered { service: service.clone(), id: key.id() }
}

fn refused(service: &ServiceRef, key: &Key, refusal: Refusal) -> Error {
    let Refusal::Guard(Some(record)) = refusal else {
        return not_registered(service, key);
    };
    match record.lease {
        Some(lease) => {
            Error::NotOwner { service: service.clone(), id: key.id(), owner: record.owner().map(str::to_owned), lease }
        }
        None => Error::Conflict { what: format!("{service}/{}", key.member), revision: record.modified },
    }
}

fn found(record: &Record) -> Found {
    Found {
        created: record.created,
        modified: record.modified,
        lease: record.lease,
        owner: record.owner().map(str::to_owned),
    }
}

/// The task behind one registration.
struct Registrar {
    client: Arc<Inner>,
    key: Key,
    driver: RegistrationDriver,
    options: RegisterOptions,
    changes: Changes,
    backoff: Backoff,
    lease: Option<Arc<Lease>>,
    mine: Option<Mine>,
}

/// Why a registration has nothing to do for now.
enum Pause {
    /// All is as it should be.
    Settled,
    /// Something changed meanwhile; look again at once.
    None,
    /// It is over.
    Evicted,
}

impl Registrar {
    async fn run(mut self) {
        let Some(claim) = self.claim().await else {
            return;
        };
        loop {
            match self.driver.goal() {
                Goal::Present => {}
                Goal::Absent => {
                    claim.leave();
                    return self.leave(None).await;
                }
                _ => return self.abandon(),
            }
            match self.reconcile().await {
                Ok(Pause::None) => {}
                Ok(Pause::Settled) => {
                    self.backoff.reset();
                    if self.disturbed(&claim).await.is_superseded() {
                        return self.driver.report_end(Ok(Deregistered::AlreadyGone));
                    }
                }
                Ok(Pause::Evicted) => return self.driver.report_end(Ok(Deregistered::AlreadyGone)),
                Err(error) => {
                    if self.options.max_attempts.is_some_and(|limit| self.backoff.failures() + 1 >= limit) {
                        return self.leave(Some(error)).await;
                    }
                    self.fail(error).await;
                }
            }
        }
    }

    /// Waits for the key to be free of other registrations of this session.
    async fn claim(&mut self) -> Option<Claim<Key>> {
        let claimed = tokio::select! {
            claim = self.client.slots.claim(&self.key, &self.options) => claim,
            () = self.driver.unwanted() => {
                self.driver.report_end(Ok(Deregistered::AlreadyGone));
                return None;
            }
        };
        if claimed.is_none() {
            let error = self.conflict(None);
            self.driver.report(RegistrationState::Refused { cause: error.clone() });
            self.driver.report_end(Err(error));
        }
        claimed
    }

    fn conflict(&self, found: Option<&Found>) -> Error {
        Error::AlreadyRegistered {
            service: self.driver.service().clone(),
            id: self.key.id(),
            owner: found.and_then(|found| found.owner.clone()),
            created: found.map(|found| found.created).unwrap_or_default(),
        }
    }

    /// Brings the store one step closer to what is desired.
    async fn reconcile(&mut self) -> Result<Pause, Error> {
        let lease = self.lease().await?;
        let desired = self.driver.desired();
        let record = self.client.link.ask(|store, _| store.get(&self.key).cloned()).await?;
        let found = record.as_ref().map(found);
        let mut step = reconcile::step(found.as_ref(), self.mine, lease.id(), desired.generation, &self.options);
        if self.defect(Defect::OverwritesForeignKeys) {
            step = found.as_ref().map_or(Step::Create, |found| Step::Replace { modified: found.modified });
        }
        if let (Step::Observe { lease }, Some(found)) = (&step, &found) {
            step = reconcile::after_observation(found, self.observe(*lease).await?);
        }
        match step {
            Step::Create => self.write(None, &desired, &lease).await,
            Step::Replace { modified } => self.write(Some(modified), &desired, &lease).await,
            Step::Keep => {
                let revision = found.map(|found| found.modified).unwrap_or_default();
                self.driver.report_stored(desired.generation, revision);
                Ok(Pause::Settled)
            }
            Step::Observe { .. } | Step::Conflict => Err(self.conflict(found.as_ref())),
            Step::Evicted => Ok(Pause::Evicted),
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
            LeaseChoice::Own => leases.own(link, tasks, self.options.ttl).await?,
            _ => leases.shared(link, tasks, Purpose::Registration, self.options.ttl).await?,
        };
        self.lease = Some(Arc::clone(&lease));
        Ok(lease)
    }

    async fn write(&mut self, guard: Option<Revision>, desired: &Desired, lease: &Lease) -> Result<Pause, Error> {
        let Desired { instance, generation, .. } = desired;
        let value = Value::Instance { instance: Arc::clone(instance), owner: self.options.owner.clone() };
        let under = (!(self.defect(Defect::UpdateLosesTheLease) && *generation > 1)).then_some(lease.id());
        let outcome = self.client.link.ask(|store, _| {
            let revision = store.put(&self.key, guard, value, under)?;
            let created = store.get(&self.key).map(|record| record.created);
            Ok((revision, created.unwrap_or(revision)))
        });
        match outcome.await? {
            Ok((revision, created)) => {
                self.mine = Some(Mine { created, lease: lease.id(), generation: *generation });
                self.driver.report_stored(*generation, revision);
                Ok(Pause::Settled)
            }
            Err(Refusal::Guard(_)) => Ok(Pause::None),
            Err(Refusal::NoLease) => {
                if !matches!(self.options.lease, LeaseChoice::Given(_)) {
                    self.lease = None;
                }
                Err(Error::LeaseLost)
            }
        }
    }

    /// Watches a foreign lease for one renewal period and a bit.
    async fn observe(&mut self, lease: enlist::LeaseId) -> Result<Observation, Error> {
        let Some((mut left, ttl)) = self.client.link.ask(|store, now| store.time_to_live(lease, now)).await? else {
            return Ok(Observation::Gone);
        };
        let looks = 4;
        for _ in 0..looks {
            tokio::time::sleep(ttl / 3 / (looks - 1)).await;
            match self.client.link.ask(|store, now| store.time_to_live(lease, now)).await? {
                None => return Ok(Observation::Gone),
                Some((now_left, _)) if now_left > left => return Ok(Observation::Renewed),
                Some((now_left, _)) => left = now_left,
            }
        }
        Ok(Observation::Falling)
    }

    /// Reports a failure and waits until it is worth another try.
    async fn fail(&mut self, error: Error) {
        let waits = matches!(error, Error::AlreadyRegistered { .. })
            && self.options.on_conflict == enlist::OnConflict::Wait
            && !self.driver.was_stored();
        let next = self.backoff.next_delay();
        let delay = if error.is_retryable() { next } else { SLOW };
        if waits {
            self.driver.report(RegistrationState::Registering { last: Some(error) });
        } else {
            self.driver.report_failure(error);
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.driver.changed() => {}
            () = self.changes.next(), if waits => {}
        }
    }

    /// Waits until something is no longer as it should be.
    async fn disturbed(&mut self, claim: &Claim<Key>) -> Disturbance {
        let Some(lease) = self.lease.clone() else {
            return Disturbance::Look;
        };
        let mut state = lease.state();
        let mut link = self.client.link.watch();
        let options = self.options.clone();
        let mut audit = std::pin::pin!(options.audit_due());
        loop {
            tokio::select! {
                () = &mut audit => return Disturbance::Look,
                () = claim.superseded() => return Disturbance::Superseded,
                () = self.driver.changed() => return Disturbance::Look,
                changed = lease_changed(&mut state) => match changed {
                    LeaseState::Lost if self.defect(Defect::NeverReregisters) => {}
                    LeaseState::Lost => {
                        self.driver.report(RegistrationState::Reregistering { cause: Error::LeaseLost });
                        return Disturbance::Look;
                    }
                    LeaseState::Suspect { cause, .. } => self.driver.report(RegistrationState::Suspect { cause }),
                    LeaseState::Alive { .. } => if !self.is_intact(lease.id()) { return Disturbance::Look },
                },
                () = self.changes.next() => if !self.is_intact(lease.id()) { return Disturbance::Look },
                // A healed link: what happened meanwhile was not seen.
                _ = link.changed() => if !self.is_intact(lease.id()) { return Disturbance::Look },
            }
        }
    }

    /// Says whether the key is still as this registration wrote it, as far as can be seen; if so, it is registered.
    fn is_intact(&self, lease: enlist::LeaseId) -> bool {
        if self.defect(Defect::NeverReregisters) || self.client.link.check().is_err() {
            return true;
        }
        let record = self.client.link.hub().with(|store, _| store.get(&self.key).cloned());
        let intact = record.as_ref().filter(|record| record.lease == Some(lease));
        if let Some(record) = intact {
            self.driver.report(RegistrationState::Registered { revision: record.modified });
        }
        intact.is_some()
    }

    /// Removes the instance until the store has confirmed it. A registration that gave up says so at once and removes what
    /// it had: the lease lives on, and would keep it for ever.
    async fn leave(mut self, gave_up: Option<Error>) {
        let outcome = |found: Deregistered| gave_up.clone().map_or(Ok(found), Err);
        if gave_up.is_some() {
            self.driver.report_end(outcome(Deregistered::LeftBehind));
        }
        let (mine, lease) = (self.mine, self.lease.as_ref().map(|lease| lease.id()));
        let unguarded = self.defect(Defect::DeletesUnguarded);
        let guard =
            |record: &Record| unguarded || lease.is_some_and(|lease| reconcile::is_mine(&found(record), mine, lease));
        if lease.is_none() && !unguarded || self.defect(Defect::DropLeavesTheInstance) {
            return self.driver.report_end(outcome(Deregistered::AlreadyGone));
        }
        let begun = enlist::Moment::now();
        loop {
            match self.client.link.ask(|store, _| store.leave(&self.key, guard)).await {
                Ok(Ok(_)) => return self.driver.report_end(outcome(Deregistered::Removed)),
                Ok(Err(_)) => return self.driver.report_end(outcome(Deregistered::AlreadyGone)),
                Err(_) if begun.elapsed() >= PATIENCE => self.driver.report_end(outcome(Deregistered::LeftBehind)),
                Err(_) => {}
            }
            let mut link = self.client.link.watch();
            tokio::select! {
                () = tokio::time::sleep(self.backoff.next_delay()) => {}
                _ = link.changed() => {}
            }
        }
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
enum Disturbance {
    Look,
    Superseded,
}

impl Disturbance {
    fn is_superseded(self) -> bool {
        self == Self::Superseded
    }
}
