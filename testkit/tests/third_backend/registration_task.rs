//! Step 5. One task per registration, which compares the desired state with the store and writes the difference.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use enlist::{
    Backoff, Deregistered, Error, InstanceId, LeaseChoice, LeaseId, RegisterOptions, RegistrationState, Revision,
    backend::{
        Claim, Desired, Goal, KeyClaims, Observations, RegistrationDriver, audit_due, gives_up_after,
        reconcile::{self, Entitlement, Found, Mine, Step},
        registration_flow::{RegistrationSteps, RemovalSteps, StepOutcome, Waited, observe, remove_until_confirmed},
    },
};
use tokio::{sync::watch, time::Instant};

use crate::{
    client::Inner,
    lease::Lease,
    store::{Cause, Data, Key, Record, Value},
};

/// Keeps one instance registered.
pub(crate) struct RegistrationTask {
    client: Arc<Inner>,
    key: Key,
    driver: RegistrationDriver,
    options: RegisterOptions,
    backoff: Backoff,
    lease: Option<Arc<Lease>>,
    /// The last write of this task, unless another one has replaced it.
    written: Option<(Mine, Value)>,
    entitlement: Entitlement,
    /// Holders of the key in this process since the last write.
    key_history: KeyHistory,
    /// Changes of the store since the beginning of the last step.
    changes: watch::Receiver<()>,
}

/// Holders of a key in this process since the last write.
#[derive(Clone, Copy, PartialEq)]
enum KeyHistory {
    Unbroken,
    /// Another registration had the key.
    Interrupted,
}

impl RegistrationTask {
    pub(crate) fn new(client: Arc<Inner>, key: Key, driver: RegistrationDriver, options: RegisterOptions) -> Self {
        let (backoff, changes) = (options.backoff.start(), client.link.store.changes.subscribe());
        let (lease, written, entitlement) = (None, None, Entitlement::default());
        let key_history = KeyHistory::Unbroken;
        Self { client, key, driver, options, backoff, lease, written, entitlement, key_history, changes }
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
    fn write(&mut self, found: Option<Found>, desired: &Desired, lease: LeaseId) -> Result<StepOutcome<Found>, Error> {
        let (guard, term) = found.map(|found| (found.modified, found.term)).unzip();
        let term = self.entitlement.claim(term.flatten(), SystemTime::now());
        let value = Value { instance: Arc::clone(&desired.instance), owner: self.options.owner.clone(), term };
        let Some(record) = self.client.link.ask(|data| data.put(&self.key, guard, value, Some(lease)))? else {
            self.entitlement.refused();
            return Ok(StepOutcome::Repeat);
        };
        self.entitlement.stored();
        self.written = Some((Mine { created: record.created, lease, generation: desired.generation }, record.value));
        self.driver.report_lease(lease);
        self.driver.report_stored(desired.generation, record.modified);
        Ok(StepOutcome::Settled)
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

    fn report(&self, error: Error) {
        if self.waits_out(&error) {
            self.driver.report(RegistrationState::Registering { last: Some(error) });
        } else if matches!(error, Error::Unavailable(_)) && self.written.is_some() {
            // The instance is still registered, as far as is known.
            self.driver.report(RegistrationState::Suspect { cause: error });
        } else {
            self.driver.report_failure(error);
        }
    }

    /// Waits until another step may be necessary.
    async fn wait(&mut self, claim: &Claim<Key>, delay: Option<Duration>) -> Waited {
        let Self { client, driver, options, changes, .. } = self;
        let (store, mut cut) = (&client.link.store, client.link.cut.subscribe());
        let pause = async {
            match delay {
                Some(delay) => tokio::time::sleep(delay).await,
                None => audit_due(options).await,
            }
        };
        tokio::select! {
            () = claim.superseded() => return Waited::Superseded,
            () = driver.changed() => {}
            () = store.changed(changes) => {}
            _ = cut.changed() => {}
            () = pause => {}
        }
        Waited::Due
    }
}

impl RegistrationSteps for RegistrationTask {
    type Key = Key;
    type Rival = Found;

    /// Resolution of a lease's remaining time. For a store that reports whole seconds it is one second.
    const LEASE_RESOLUTION: Duration = Duration::from_millis(1);

    fn driver(&self) -> &RegistrationDriver {
        &self.driver
    }

    fn id(&self) -> &InstanceId {
        &self.key.1
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

    /// Makes one step towards the desired state. The decision is that of `enlist::backend::reconcile`.
    async fn reconcile(&mut self) -> Result<StepOutcome<Found>, Error> {
        self.changes = self.client.link.store.changes.subscribe();
        let desired = self.driver.desired();
        let lease = self.lease()?;
        let found = self.look()?;
        let (mine, entitlement) = (self.written.as_ref().map(|(mine, _)| *mine), self.entitlement);
        let mut step = reconcile::step(found.as_ref(), mine, entitlement, lease.id, desired.generation, &self.options);
        if let (Step::Observe { lease }, Some(found)) = (&step, &found) {
            let Some(observation) = observe(self, *lease).await? else { return Ok(StepOutcome::Repeat) };
            step = reconcile::after_observation(found, observation);
        }
        match (step, found) {
            (Step::Create, _) => self.write(None, &desired, lease.id),
            (Step::Replace { .. }, found) => self.write(found, &desired, lease.id),
            (Step::Keep, found) => {
                self.driver.report_lease(lease.id);
                self.driver.report_stored(desired.generation, found.map(|found| found.modified).unwrap_or_default());
                Ok(StepOutcome::Settled)
            }
            (Step::Observe { .. } | Step::Conflict, found) => {
                let (owner, revision) = found.map(|found| (found.owner, Some(found.modified))).unwrap_or_default();
                Err(self.conflict(owner.as_deref(), revision))
            }
            (Step::Superseded, found) => {
                self.written = None;
                Ok(found.map_or(StepOutcome::Repeat, StepOutcome::Superseded))
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
                Ok(if is_alive && !was_replaced { StepOutcome::Evicted } else { StepOutcome::Repeat })
            }
        }
    }

    async fn wait_settled(&mut self, claim: &Claim<Key>) -> Waited {
        self.wait(claim, None).await
    }

    async fn wait_superseded(&mut self, claim: &Claim<Key>, rival: Found) -> Waited {
        self.report_superseded(rival.owner.as_deref(), rival.lease.unwrap_or_default());
        self.wait(claim, None).await
    }

    async fn wait_withdrawn(&mut self, _: &Claim<Key>, _: Revision) -> Waited {
        // Values have a health, so no instance is withdrawn.
        Waited::Due
    }

    async fn wait_failed(&mut self, claim: &Claim<Key>, error: Error) -> Waited {
        let delay = self.backoff.next_delay();
        self.report(error);
        self.wait(claim, Some(delay)).await
    }

    fn gives_up(&mut self, _: &Error) -> bool {
        gives_up_after(&self.options, self.backoff.failures().saturating_add(1))
    }

    async fn remove(&mut self, gave_up: Option<Error>, claim: Option<Claim<Key>>) {
        if let Some(claim) = &claim {
            claim.leave();
        }
        remove_until_confirmed(self, gave_up).await;
    }

    async fn evicted(&mut self, _: Claim<Key>) {
        self.driver.report_end(Ok(Deregistered::AlreadyGone));
    }

    fn abandon(&mut self) {
        self.driver.report_end(Ok(Deregistered::LeftBehind));
    }

    fn gave_way(&mut self) {
        self.key_history = KeyHistory::Interrupted;
    }

    async fn time_to_live(&self, lease: LeaseId) -> Result<Option<(Duration, Duration)>, Error> {
        self.client.link.ask(|data| {
            let granted = data.leases.get(&lease)?;
            Some((granted.deadline.saturating_duration_since(Instant::now()), granted.ttl))
        })
    }

    async fn observation_unneeded(&self) {
        self.driver.unwanted().await;
    }
}

impl RemovalSteps for RegistrationTask {
    /// Removes the task's own key.
    async fn try_remove(&mut self) -> Result<Deregistered, Error> {
        // Before the first write, an older key with an equal owner counts as own: the task would have taken it over.
        let is_first = self.driver.goal() == Goal::Absent && !self.entitlement.is_stored();
        let owner = self.options.owner.as_ref().filter(|_| is_first);
        if self.written.is_none() && owner.is_none() {
            return Ok(Deregistered::AlreadyGone);
        }
        let is_leftover = |record: &Record| {
            let is_older = self.entitlement.exceeds(Some(record.value.term));
            owner.is_some() && is_older && record.lease.is_some() && record.value.owner.as_ref() == owner
        };
        let may_go = |record: &Record| self.is_own(record) || is_leftover(record);
        let removed = self.client.link.ask(|data| data.delete(&self.key, Cause::Deregistration, may_go))?;
        Ok(if removed.is_some() { Deregistered::Removed } else { Deregistered::AlreadyGone })
    }

    async fn reconnected(&mut self) {
        let mut cut = self.client.link.cut.subscribe();
        // The sender lives as long as the client.
        let _ = cut.wait_for(|cut| !*cut).await;
    }
}
