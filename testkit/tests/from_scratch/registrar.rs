//! 5. Registering: a task per instance that compares what is wanted with what is there, for ever.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use enlist::{
    Deregistered, Entry, Error, Evicted, Instance, InstanceId, LeaseChoice, LeaseId, Moment, OnConflict, Owner,
    RegisterOptions, Registration, RegistrationState, Registry, Revision, ServiceRef,
    backend::{
        Approach, Claim, Desired, Goal, LeaseTerms, Look, RegistrationDriver, check_ttl,
        reconcile::{self, Entitlement, Found, Mine, Observation, Step},
        registration, whole_seconds,
    },
};
use tokio::{sync::watch, time::Instant};

use crate::{
    client::{GrantedLease, Inner, Lease, Scratch},
    store::{Data, Key, Record, Value},
};

/// Time between looks at somebody else's lease.
const LOOK: Duration = Duration::from_millis(250);

/// By how much the time that a lease has left may be off. A store that tells whole seconds has a unit of one second.
const UNIT: Duration = Duration::from_millis(1);

struct Registrar {
    client: Arc<Inner>,
    key: Key,
    driver: RegistrationDriver,
    options: RegisterOptions,
    lease: Option<Arc<Lease>>,
    /// The last write, unless it was replaced since.
    written: Option<(Mine, Value)>,
    entitlement: Entitlement,
    /// Another registration of this process had the key since.
    gave_way: bool,
}

/// The result of one step.
enum Outcome {
    Settled,
    /// Something changed meanwhile.
    Again,
    Evicted,
}

impl Registrar {
    async fn run(mut self) {
        let mut approach = Approach::New;
        // One registration of a key at a time, within this process. One that gives way waits behind its successor.
        while let Some(claim) = self.claim(approach).await {
            if !self.keep(&claim).await {
                return;
            }
            if self.driver.was_stored() {
                self.superseded(self.options.owner.as_deref(), LeaseId::default());
            }
            self.gave_way = true;
            approach = Approach::Again;
        }
    }

    async fn claim(&self, approach: Approach) -> Option<Claim<Key>> {
        let withdrawal = self.driver.withdrawal();
        let claimed = tokio::select! {
            // A free key is claimed even by a registration that is to leave: a predecessor may have left something there.
            biased;
            claimed = self.client.key_claims.claim(&self.key, &self.options, &withdrawal, approach) => claimed,
            () = self.driver.unwanted() => {
                if approach == Approach::New {
                    self.driver.report_end(Ok(Deregistered::AlreadyGone));
                } else {
                    // Its instance may still be there: the successor need not have written anything.
                    self.leave(None).await;
                }
                return None;
            }
        };
        let refused = |revision| {
            let cause = self.taken(None, revision);
            self.driver.report(RegistrationState::Refused { cause: cause.clone() });
            self.driver.report_end(Err(cause));
        };
        claimed.map_err(refused).ok()
    }

    /// Keeps the instance present. `true` if another registration of this process wants the key, `false` at the end.
    async fn keep(&mut self, claim: &Claim<Key>) -> bool {
        let mut backoff = self.options.backoff.start();
        loop {
            match self.driver.goal() {
                Goal::Present => {}
                Goal::Absent | Goal::Dropped => {
                    claim.leave();
                    self.leave(None).await;
                    return false;
                }
                _ => {
                    self.driver.report_end(Ok(Deregistered::LeftBehind));
                    return false;
                }
            }
            let mut changes = self.client.link.store.changes.subscribe();
            let delay = match self.step().await {
                Ok(Outcome::Again) => continue,
                Ok(Outcome::Settled) => {
                    backoff.reset();
                    None
                }
                Ok(Outcome::Evicted) => {
                    self.driver.report_end(Ok(Deregistered::AlreadyGone));
                    return false;
                }
                Err(error) => {
                    let delay = backoff.next_delay();
                    if self.options.gives_up_after(backoff.failures()) {
                        claim.leave();
                        self.leave(Some(error)).await;
                        return false;
                    }
                    self.report(error);
                    Some(delay)
                }
            };
            if self.wait(claim, &mut changes, delay).await {
                return true;
            }
        }
    }

    /// One step towards what is wanted, which is decided by `enlist::backend::reconcile`.
    async fn step(&mut self) -> Result<Outcome, Error> {
        let desired = self.driver.desired();
        let lease = self.lease()?;
        let found = self.look()?;
        let (mine, entitlement) = (self.written.as_ref().map(|(mine, _)| *mine), self.entitlement);
        let mut step = reconcile::step(found.as_ref(), mine, entitlement, lease.id, desired.generation, &self.options);
        if let (Step::Observe { lease }, Some(found)) = (&step, &found) {
            let Some(observation) = self.observe(*lease).await? else { return Ok(Outcome::Again) };
            step = reconcile::after_observation(found, observation);
        }
        match (step, found) {
            (Step::Create, _) => self.write(None, &desired, lease.id),
            (Step::Replace { .. }, found) => self.write(found, &desired, lease.id),
            (Step::Keep, found) => {
                self.driver.report_lease(lease.id);
                self.driver.report_stored(desired.generation, found.map(|found| found.modified).unwrap_or_default());
                Ok(Outcome::Settled)
            }
            (Step::Observe { .. } | Step::Conflict, found) => {
                let (owner, revision) = found.map(|found| (found.owner, Some(found.modified))).unwrap_or_default();
                Err(self.taken(owner.as_deref(), revision))
            }
            (Step::Superseded, found) => {
                let (owner, lease) = found.map(|found| (found.owner, found.lease)).unwrap_or_default();
                self.written = None;
                self.superseded(owner.as_deref(), lease.unwrap_or_default());
                Ok(Outcome::Settled)
            }
            (Step::Evicted, _) => {
                // If its lease has ended, the key went with that; if it was removed in order, another registration had it since.
                let key = &self.key;
                let look = |data: &mut Data| (data.leases.contains_key(&lease.id), data.left.contains(key));
                let (is_alive, was_replaced) = self.client.link.ask(look)?;
                if was_replaced {
                    self.written = None;
                }
                Ok(if is_alive && !was_replaced { Outcome::Evicted } else { Outcome::Again })
            }
        }
    }

    /// The content of the store under the key.
    fn look(&mut self) -> Result<Option<Found>, Error> {
        let record = self.client.link.ask(|data| data.records.get(&self.key).cloned())?;
        let own = record.as_ref().is_some_and(|record| self.is_own(record));
        if std::mem::take(&mut self.gave_way) && !own {
            // It was replaced, so that its absence is no eviction.
            self.written = None;
        }
        Ok(record.map(|Record { value: Value { owner, term, .. }, lease, created, modified }| Found {
            created,
            modified,
            lease,
            owner,
            term: Some(term),
            own,
        }))
    }

    /// A key is its own by the lease and the value: each of them alone may be that of another registration as well.
    fn is_own(&self, record: &Record) -> bool {
        self.written.as_ref().is_some_and(|(mine, value)| record.lease == Some(mine.lease) && record.value == *value)
    }

    /// Writes the instance, if the key is still as it was `found`.
    fn write(&mut self, found: Option<Found>, desired: &Desired, lease: LeaseId) -> Result<Outcome, Error> {
        let (guard, term) = found.map(|found| (found.modified, found.term)).unzip();
        let term = self.entitlement.claim(term.flatten(), SystemTime::now());
        let value = Value { instance: Arc::clone(&desired.instance), owner: self.options.owner.clone(), term };
        let Some(record) = self.client.link.ask(|data| data.put(&self.key, guard, value, Some(lease)))? else {
            self.entitlement.refused();
            return Ok(Outcome::Again);
        };
        self.entitlement.stored();
        self.written = Some((Mine { created: record.created, lease, generation: desired.generation }, record.value));
        self.driver.report_lease(lease);
        self.driver.report_stored(desired.generation, record.modified);
        Ok(Outcome::Settled)
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

    /// Looks at somebody else's lease until it was renewed, or should have been. `None` if the instance is no longer wanted; a later
    /// registration goes on with what was seen.
    async fn observe(&self, lease: LeaseId) -> Result<Option<Observation>, Error> {
        let Inner { link, observations, .. } = &*self.client;
        loop {
            let asked = Moment::now();
            let look = link.ask(|data| {
                let granted = data.leases.get(&lease)?;
                let left = granted.deadline.saturating_duration_since(Instant::now());
                Some(Look { lease, left, granted: granted.ttl, asked, unit: UNIT })
            })?;
            let Some(look) = look else {
                observations.forget(&self.key);
                return Ok(Some(Observation::Gone));
            };
            let left = match observations.look(&self.key, look) {
                Ok(observation) => return Ok(Some(observation)),
                Err(left) => left,
            };
            let (service, id) = self.key.clone();
            self.driver.report_trouble(Error::Observing { service, id, left });
            tokio::select! {
                () = tokio::time::sleep(LOOK.min(left)) => {}
                () = self.driver.unwanted() => return Ok(None),
            }
        }
    }

    fn taken(&self, owner: Option<&str>, revision: Option<Revision>) -> Error {
        let (service, id) = self.key.clone();
        Error::AlreadyRegistered { service, id, owner: Owner::of(owner, self.options.owner.as_deref()), revision }
    }

    fn superseded(&self, owner: Option<&str>, lease: LeaseId) {
        self.driver.report_superseded(Owner::of(owner, self.options.owner.as_deref()), lease);
    }

    fn report(&self, error: Error) {
        let waits = self.options.on_conflict == OnConflict::Wait && matches!(error, Error::AlreadyRegistered { .. });
        if waits {
            self.driver.report(RegistrationState::Registering { last: Some(error) });
        } else if matches!(error, Error::Unavailable(_)) && self.written.is_some() {
            // As far as is known it is still there.
            self.driver.report(RegistrationState::Suspect { cause: error });
        } else {
            self.driver.report_failure(error);
        }
    }

    /// Waits until there may be something to do. `true` if a successor in this process wants the key.
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
    async fn leave(&self, gave_up: Option<Error>) {
        let outcome = |found| gave_up.clone().map_or(Ok(found), Err);
        // Before its first write, that is also what a predecessor with an equal owner left: it would have been taken over.
        let is_first = self.driver.goal() == Goal::Absent && !self.entitlement.is_stored();
        let owner = self.options.owner.as_ref().filter(|_| is_first);
        if self.written.is_none() && owner.is_none() {
            return self.driver.report_end(outcome(Deregistered::AlreadyGone));
        }
        let is_leftover = |record: &Record| {
            let is_older = self.entitlement.exceeds(Some(record.value.term));
            owner.is_some() && is_older && record.lease.is_some() && record.value.owner.as_ref() == owner
        };
        let (begun, mut cut) = (Moment::now(), self.client.link.cut.subscribe());
        loop {
            let may_go = |record: &Record| self.is_own(record) || is_leftover(record);
            match self.client.link.ask(|data| data.delete(&self.key, true, may_go)) {
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
        let registrar = Registrar {
            client: Arc::clone(&self.0),
            key,
            driver,
            options: options.clone(),
            lease: None,
            written: None,
            entitlement: Entitlement::default(),
            gave_way: false,
        };
        match options.lease {
            // Nobody ends that lease when the client is closed.
            LeaseChoice::Given(_) => {
                let withdrawal = registrar.driver.withdrawal();
                self.0
                    .tasks
                    .spawn_until_stopped("registration", self.0.departures.accompany(withdrawal, registrar.run()))?;
            }
            _ => self.0.tasks.spawn_until_stopped("registration", registrar.run())?,
        }
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
            let value = Value { instance: Arc::new(instance), owner: None, term: 0 };
            let written = data.put(&key, guard, value, None);
            Ok(written.map(|record| record.modified).unwrap_or_default())
        })?
    }

    async fn remove(&self, service: &ServiceRef, id: &InstanceId) -> Result<Entry, Error> {
        let key = (service.clone(), id.clone());
        self.ask(|data| match data.records.get(&key) {
            None => Err(Error::NotRegistered { service: service.clone(), id: id.clone() }),
            Some(record) if record.lease.is_some() => Err(not_owner(&key, record)),
            Some(record) => {
                let entry = Entry::new((*record.value.instance).clone(), record.created, record.modified);
                data.delete(&key, true, |_| true);
                Ok(entry)
            }
        })?
    }

    async fn evict(&self, s: &ServiceRef, id: &InstanceId, modified: Option<Revision>) -> Result<Evicted, Error> {
        let key = (s.clone(), id.clone());
        self.ask(|data| match data.records.get(&key).map(|record| record.modified) {
            None => Err(Error::NotRegistered { service: s.clone(), id: id.clone() }),
            Some(revision) if modified.is_some_and(|modified| modified != revision) => {
                Err(Error::Conflict { what: format!("{s}/{id}"), revision })
            }
            Some(_) => {
                let record = data.delete(&key, false, |_| true);
                let entry =
                    |record: &Record| Entry::new((*record.value.instance).clone(), record.created, record.modified);
                let lease = record.as_ref().and_then(|record| record.lease);
                Ok(Evicted::new(record.as_ref().map(entry), lease, Revision::new(data.revision)))
            }
        })?
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<enlist::Lease, Error> {
        check_ttl(ttl)?;
        self.check_open()?;
        let lease = self.0.grant(LeaseTerms::new(ttl, None))?;
        Ok(enlist::Lease::new(GrantedLease { lease, ttl: whole_seconds(ttl), client: self.clone(), ends: true }))
    }
}

fn not_owner((service, id): &Key, record: &Record) -> Error {
    let lease = record.lease.unwrap_or_default();
    Error::NotOwner { service: service.clone(), id: id.clone(), owner: Owner::Other, lease }
}
