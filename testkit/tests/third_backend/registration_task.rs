//! Step 5. One task per registration, which compares the desired state with the store and writes the difference.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use enlist::{
    Deregistered, Error, LeaseChoice, LeaseId, Moment, OnConflict, Owner, RegisterOptions, RegistrationState, Revision,
    backend::{
        Approach, Claim, Desired, Goal, Look, RegistrationDriver,
        reconcile::{self, Entitlement, Found, Mine, Observation, Step},
    },
};
use tokio::{sync::watch, time::Instant};

use crate::{
    client::Inner,
    lease::Lease,
    store::{Cause, Data, Key, Record, Value},
};

/// Interval of reading the lease of another client while it is observed.
const LEASE_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Resolution of a lease's remaining time. For a store that reports whole seconds it is one second.
const REMAINING_RESOLUTION: Duration = Duration::from_millis(1);

/// Keeps one instance registered.
pub(crate) struct RegistrationTask {
    client: Arc<Inner>,
    key: Key,
    driver: RegistrationDriver,
    options: RegisterOptions,
    lease: Option<Arc<Lease>>,
    /// The last write of this task, unless another one has replaced it.
    written: Option<(Mine, Value)>,
    entitlement: Entitlement,
    /// Holders of the key in this process since the last write.
    key_history: KeyHistory,
}

/// Holders of a key in this process since the last write.
#[derive(Clone, Copy, PartialEq)]
enum KeyHistory {
    Unbroken,
    /// Another registration had the key.
    Interrupted,
}

/// Result of one step.
enum Outcome {
    Settled,
    /// The store changed during the step.
    Again,
    Evicted,
}

/// Reason for which a waiting task continues.
enum WakeReason {
    Superseded,
    Changed,
}

/// Reason for which a task stops keeping its instance.
enum KeepEnd {
    /// Another registration of this process wants the key.
    Superseded,
    Finished,
}

impl RegistrationTask {
    pub(crate) fn new(client: Arc<Inner>, key: Key, driver: RegistrationDriver, options: RegisterOptions) -> Self {
        let (lease, written, entitlement) = (None, None, Entitlement::default());
        Self { client, key, driver, options, lease, written, entitlement, key_history: KeyHistory::Unbroken }
    }

    pub(crate) async fn run(mut self) {
        let mut approach = Approach::New;
        // Within a process, one registration at a time has a key. A superseded one waits behind its successor.
        while let Some(claim) = self.claim(approach).await {
            if let KeepEnd::Finished = self.keep(&claim).await {
                return;
            }
            if self.driver.was_stored() {
                self.superseded(self.options.owner.as_deref(), LeaseId::default());
            }
            self.key_history = KeyHistory::Interrupted;
            approach = Approach::Again;
        }
    }

    async fn claim(&self, approach: Approach) -> Option<Claim<Key>> {
        let withdrawal = self.driver.withdrawal();
        let claimed = tokio::select! {
            // A withdrawn registration also claims a free key, because a predecessor may have left an instance there.
            biased;
            claimed = self.client.key_claims.claim(&self.key, &self.options, &withdrawal, approach) => claimed,
            () = self.driver.unwanted() => {
                if approach == Approach::New {
                    self.driver.report_end(Ok(Deregistered::AlreadyGone));
                } else {
                    // The successor may not have written anything, so this task's instance may still be there.
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

    /// Keeps the instance present until the registration ends or is superseded.
    async fn keep(&mut self, claim: &Claim<Key>) -> KeepEnd {
        let mut backoff = self.options.backoff.start();
        loop {
            match self.driver.goal() {
                Goal::Present => {}
                Goal::Absent | Goal::Dropped => {
                    claim.leave();
                    self.leave(None).await;
                    return KeepEnd::Finished;
                }
                _ => {
                    self.driver.report_end(Ok(Deregistered::LeftBehind));
                    return KeepEnd::Finished;
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
                    return KeepEnd::Finished;
                }
                Err(error) => {
                    let delay = backoff.next_delay();
                    if self.options.gives_up_after(backoff.failures()) {
                        claim.leave();
                        self.leave(Some(error)).await;
                        return KeepEnd::Finished;
                    }
                    self.report(error);
                    Some(delay)
                }
            };
            if let WakeReason::Superseded = self.wait(claim, &mut changes, delay).await {
                return KeepEnd::Superseded;
            }
        }
    }

    /// Makes one step towards the desired state. The decision is that of `enlist::backend::reconcile`.
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
                // A key that is gone with its lease was not evicted; one that was removed in order belonged to a
                // successor.
                let key = &self.key;
                let look = |data: &mut Data| (data.leases.contains_key(&lease.id), data.deregistered.contains(key));
                let (is_alive, was_replaced) = self.client.link.ask(look)?;
                if was_replaced {
                    self.written = None;
                }
                Ok(if is_alive && !was_replaced { Outcome::Evicted } else { Outcome::Again })
            }
        }
    }

    /// Reads the key.
    fn look(&mut self) -> Result<Option<Found>, Error> {
        let record = self.client.link.ask(|data| data.records.get(&self.key).cloned())?;
        let own = record.as_ref().is_some_and(|record| self.is_own(record));
        let history = std::mem::replace(&mut self.key_history, KeyHistory::Unbroken);
        if history == KeyHistory::Interrupted && !own {
            // A successor replaced the instance, so its absence is no eviction.
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

    /// Returns `true` if this task wrote the record. Lease and value decide together, because another registration may
    /// have an equal lease or an equal value.
    fn is_own(&self, record: &Record) -> bool {
        self.written.as_ref().is_some_and(|(mine, value)| record.lease == Some(mine.lease) && record.value == *value)
    }

    /// Writes the instance, if the key has not changed since it was `found`.
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

    /// Returns the lease to write under: the present one, or another one if the store no longer has it.
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

    /// Observes the lease of another client until it was renewed, or should have been. Returns `None` if the
    /// registration was withdrawn; a later one continues the observation.
    async fn observe(&self, lease: LeaseId) -> Result<Option<Observation>, Error> {
        let Inner { link, observations, .. } = &*self.client;
        loop {
            let asked = Moment::now();
            let look = link.ask(|data| {
                let granted = data.leases.get(&lease)?;
                let left = granted.deadline.saturating_duration_since(Instant::now());
                Some(Look { lease, left, granted: granted.ttl, asked, unit: REMAINING_RESOLUTION })
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
                () = tokio::time::sleep(LEASE_POLL_INTERVAL.min(left)) => {}
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
            // The instance is still registered, as far as is known.
            self.driver.report(RegistrationState::Suspect { cause: error });
        } else {
            self.driver.report_failure(error);
        }
    }

    /// Waits until another step may be necessary.
    async fn wait(
        &mut self,
        claim: &Claim<Key>,
        changes: &mut watch::Receiver<()>,
        delay: Option<Duration>,
    ) -> WakeReason {
        let link = Arc::clone(&self.client.link);
        let mut cut = link.cut.subscribe();
        let pause = async {
            match delay {
                Some(delay) => tokio::time::sleep(delay).await,
                None => self.options.audit_due().await,
            }
        };
        tokio::select! {
            () = claim.superseded() => return WakeReason::Superseded,
            () = self.driver.changed() => {}
            () = link.store.changed(changes) => {}
            _ = cut.changed() => {}
            () = pause => {}
        }
        WakeReason::Changed
    }

    /// Removes the task's own key, and retries until the removal is confirmed.
    async fn leave(&self, gave_up: Option<Error>) {
        let outcome = |found| gave_up.clone().map_or(Ok(found), Err);
        // Before the first write, an older key with an equal owner counts as own: the task would have taken it over.
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
            match self.client.link.ask(|data| data.delete(&self.key, Cause::Deregistration, may_go)) {
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
