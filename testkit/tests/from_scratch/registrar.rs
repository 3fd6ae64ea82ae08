//! 5. Registering: a task per instance that compares what is wanted with what is there, for ever.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Deregistered, Entry, Error, Instance, InstanceId, LeaseChoice, LeaseId, Moment, OnConflict, RegisterOptions,
    Registration, RegistrationDriver, RegistrationState, Registry, Revision, ServiceRef,
    reconcile::{self, Found, Mine, Observation, Step},
    registration,
    registration::Goal,
    slots::Claim,
};
use tokio::{sync::watch, time::Instant};

use crate::{
    client::{Inner, Lease, Scratch},
    store::{Data, Key, Record},
};

struct Registrar {
    client: Arc<Inner>,
    key: Key,
    driver: RegistrationDriver,
    options: RegisterOptions,
    lease: Option<Arc<Lease>>,
    mine: Option<Mine>,
}

fn found(record: &Record) -> Found {
    let Record { created, modified, lease, owner, .. } = record.clone();
    Found { created, modified, lease, owner }
}

impl Registrar {
    async fn run(mut self) {
        // One registration of a key at a time, within this process.
        let claim = tokio::select! {
            claim = self.client.slots.claim(&self.key, &self.options) => claim,
            () = self.driver.unwanted() => return self.driver.report_end(Ok(Deregistered::AlreadyGone)),
        };
        let Some(claim) = claim else {
            let taken = self.taken(None);
            self.driver.report(RegistrationState::Refused { cause: taken.clone() });
            return self.driver.report_end(Err(taken));
        };
        let mut backoff = self.options.backoff.start();
        loop {
            match self.driver.goal() {
                Goal::Present => {}
                Goal::Absent => return self.leave(&claim, None).await,
                _ => return self.driver.report_end(Ok(Deregistered::LeftBehind)),
            }
            let mut changes = self.client.link.store.changes.subscribe();
            let delay = match self.step().await {
                Ok(true) => {
                    backoff.reset();
                    None
                }
                Ok(false) => return self.driver.report_end(Ok(Deregistered::AlreadyGone)),
                Err(error) => {
                    let delay = backoff.next_delay();
                    if self.options.max_attempts.is_some_and(|most| backoff.failures() >= most) {
                        return self.leave(&claim, Some(error)).await;
                    }
                    self.report(error);
                    Some(delay)
                }
            };
            if self.wait(&claim, &mut changes, delay).await {
                return self.driver.report_end(Ok(Deregistered::AlreadyGone));
            }
        }
    }

    /// One step towards what is wanted; `false` if the instance was evicted. What to do is decided by `enlist::reconcile`.
    async fn step(&mut self) -> Result<bool, Error> {
        let desired = self.driver.desired();
        let lease = self.lease()?;
        let record = self.client.link.ask(|data| data.records.get(&self.key).cloned())?.as_ref().map(found);
        let mut step = reconcile::step(record.as_ref(), self.mine, lease.id, desired.generation, &self.options);
        if let (Step::Observe { lease }, Some(record)) = (&step, &record) {
            step = reconcile::after_observation(record, self.observe(*lease).await?);
        }
        let guard = match step {
            Step::Create => None,
            Step::Replace { modified } => Some(modified),
            Step::Keep => {
                let revision = record.map(|record| record.modified).unwrap_or_default();
                self.driver.report(RegistrationState::Registered { revision });
                return Ok(true);
            }
            Step::Evicted => return Ok(false),
            Step::Observe { .. } | Step::Conflict => return Err(self.taken(record.as_ref())),
        };
        let owner = self.options.owner.clone();
        let put = |data: &mut Data| data.put(&self.key, guard, Arc::clone(&desired.instance), owner, Some(lease.id));
        let written = self.client.link.ask(put)?.ok_or(Error::LeaseLost)?;
        self.mine = Some(Mine { created: written.created, lease: lease.id, generation: desired.generation });
        self.driver.report_stored(desired.generation, written.modified);
        Ok(true)
    }

    /// The lease to write under: the one there is, unless the store says that it is gone.
    fn lease(&mut self) -> Result<Arc<Lease>, Error> {
        let Self { client, lease, options, .. } = self;
        if let Some(held) = lease.clone() {
            if client.link.ask(|data| data.leases.contains_key(&held.id))? {
                return Ok(held);
            }
            if matches!(options.lease, LeaseChoice::Given(_)) {
                return Err(Error::LeaseLost);
            }
            client.shared.lock().unwrap().retain(|_, shared| shared.id != held.id);
        }
        Ok(Arc::clone(lease.insert(client.lease(options)?)))
    }

    /// Looks at somebody else's lease until it was renewed, or should have been.
    async fn observe(&self, lease: LeaseId) -> Result<Observation, Error> {
        let look = || {
            self.client.link.ask(|data| {
                let granted = data.leases.get(&lease)?;
                Some((granted.deadline.saturating_duration_since(Instant::now()), granted.ttl))
            })
        };
        let Some((mut before, ttl)) = look()? else { return Ok(Observation::Gone) };
        for _ in 0..4 {
            tokio::time::sleep(ttl / 9).await;
            match look()? {
                None => return Ok(Observation::Gone),
                Some((left, _)) if left > before => return Ok(Observation::Renewed),
                Some((left, _)) => before = left,
            }
        }
        Ok(Observation::Falling)
    }

    fn taken(&self, found: Option<&Found>) -> Error {
        let (service, id) = self.key.clone();
        let owner = found.and_then(|found| found.owner.clone());
        Error::AlreadyRegistered { service, id, owner, created: found.map(|found| found.created).unwrap_or_default() }
    }

    fn report(&self, error: Error) {
        let waits = self.options.on_conflict == OnConflict::Wait && matches!(error, Error::AlreadyRegistered { .. });
        if waits {
            self.driver.report(RegistrationState::Registering { last: Some(error) });
        } else if matches!(error, Error::Unavailable(_)) && self.driver.was_stored() {
            // As far as is known it is still there.
            self.driver.report(RegistrationState::Suspect { cause: error });
        } else {
            self.driver.report_failure(error);
        }
    }

    /// Waits until there may be something to do. Says whether a successor in this process wants the key.
    async fn wait(&mut self, claim: &Claim<Key>, changes: &mut watch::Receiver<()>, delay: Option<Duration>) -> bool {
        let link = Arc::clone(&self.client.link);
        let mut cut = link.cut.subscribe();
        let pause = async {
            match delay {
                Some(delay) => tokio::time::sleep(delay).await,
                None => self.options.audit_due().await,
            }
        };
        tokio::select! {
            () = claim.superseded() => return true,
            () = self.driver.changed() => {}
            () = link.store.changed(changes) => {}
            _ = cut.changed() => {}
            () = pause => {}
        }
        false
    }

    /// Removes what is its own until that is confirmed.
    async fn leave(self, claim: &Claim<Key>, gave_up: Option<Error>) {
        claim.leave();
        let outcome = |found| gave_up.clone().map_or(Ok(found), Err);
        let Some(lease) = self.lease.as_ref().map(|lease| lease.id) else {
            return self.driver.report_end(outcome(Deregistered::AlreadyGone));
        };
        let (begun, mut cut) = (Moment::now(), self.client.link.cut.subscribe());
        loop {
            let is_mine = |record: &Record| reconcile::is_mine(&found(record), self.mine, lease);
            match self.client.link.ask(|data| data.delete(&self.key, true, is_mine)) {
                Ok(Some(_)) => return self.driver.report_end(outcome(Deregistered::Removed)),
                Ok(None) => return self.driver.report_end(outcome(Deregistered::AlreadyGone)),
                Err(_) if gave_up.is_some() || begun.elapsed() >= Duration::from_secs(3) => {
                    self.driver.report_end(outcome(Deregistered::LeftBehind));
                }
                Err(_) => {}
            }
            tokio::select! {
                _ = cut.changed() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }
}

#[async_trait]
impl Registry for Scratch {
    async fn register(
        &self,
        service: &ServiceRef,
        instance: Instance,
        options: RegisterOptions,
    ) -> Result<Registration, Error> {
        options.check()?;
        instance.check()?;
        self.check_open()?;
        let key = (service.clone(), instance.id().clone());
        // The handle that the user gets, and the end of it that does the work. The handle keeps the client alive.
        let (registration, driver) = registration(service.clone(), instance, Arc::clone(&self.0) as _);
        let (client, options_of) = (Arc::clone(&self.0), options.clone());
        let registrar = Registrar { client, key, driver, options: options_of, lease: None, mine: None };
        self.0.tasks.run("registration", registrar.run())?;
        registration.started(&options).await
    }

    async fn publish(&self, service: &ServiceRef, instance: Instance) -> Result<Revision, Error> {
        instance.check()?;
        let key = (service.clone(), instance.id().clone());
        self.ask(|data| {
            let present = data.records.get(&key).cloned();
            if let Some(record) = present.as_ref().filter(|record| record.lease.is_some()) {
                return Err(not_owner(&key, record));
            }
            let guard = present.map(|record| record.modified);
            let written = data.put(&key, guard, Arc::new(instance), None, None);
            Ok(written.map(|record| record.modified).unwrap_or_default())
        })?
    }

    async fn remove(&self, service: &ServiceRef, id: &InstanceId) -> Result<Entry, Error> {
        let key = (service.clone(), id.clone());
        self.ask(|data| match data.records.get(&key) {
            None => Err(Error::NotRegistered { service: service.clone(), id: id.clone() }),
            Some(record) if record.lease.is_some() => Err(not_owner(&key, record)),
            Some(record) => {
                let entry = Entry::new((*record.instance).clone(), record.created, record.modified);
                data.delete(&key, true, |_| true);
                Ok(entry)
            }
        })?
    }
}

fn not_owner((service, id): &Key, record: &Record) -> Error {
    let lease = record.lease.unwrap_or(LeaseId::new(0));
    Error::NotOwner { service: service.clone(), id: id.clone(), owner: record.owner.clone(), lease }
}
