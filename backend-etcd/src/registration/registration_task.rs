//! Task of one registration: compares the desired state with etcd's, without end.
//!
//! The flow is that of [`enlist::backend::registration_flow`]: comparisons are in `comparison.rs`, the waits between
//! them in `waits.rs`, the end in `removal.rs`. An own key is watched, because a lease can vanish although every
//! renewal was answered.
//!
//! [`remove_until_confirmed`](enlist::backend::registration_flow::remove_until_confirmed) is not used for the removal,
//! because here a failed request may be applied later.

mod comparison;
mod eviction;
mod own_writes;
mod reads;
mod removal;
mod waits;
mod wake_reason;
mod withdrawal;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use enlist::{
    Backoff, Counter, Deregistered, Error, InstanceId, LeaseChoice, LeaseId, Owner, RegisterOptions, RegistrationState,
    Revision, ServiceRef,
    backend::{
        Claim, Goal, KeyClaims, Observations, RegistrationDriver, count, gives_up_after,
        reconcile::Found,
        registration_flow::{RegistrationSteps, StepOutcome, Waited},
        reregistration_window,
    },
};

pub(crate) use self::removal::marked_leaving;
use self::{
    own_writes::OwnWrites,
    wake_reason::{KeyState, WakeReason, Watched},
};
use crate::{
    error::Failure,
    layout::{Layout, LeaseScope},
    registration::context::RegistrationContext,
    session::{
        lease::{self, Lease},
        sweep::Impossible,
    },
    watch::{
        key_monitors::{KeyMonitor, Sharing},
        record::Record,
    },
};

/// Maximum time for which a registration that lost its key waits for a renewal. The renewal distinguishes the loss of
/// the lease from a deletion.
const LEASE_VERDICT_TIMEOUT: Duration = Duration::from_secs(1);

/// Task of one registration.
pub(crate) struct RegistrationTask {
    context: Arc<RegistrationContext>,
    /// Format of the key and the value.
    layout: Arc<dyn Layout>,
    id: InstanceId,
    /// Identifies the key among the claims of this session: the key itself, unless it depends on the lease.
    slot: Arc<[u8]>,
    driver: RegistrationDriver,
    options: RegisterOptions,
    backoff: Backoff,
    lease: Option<Arc<Lease>>,
    /// The retired lease of the key, until the key is written under another one.
    former: Option<Arc<Lease>>,
    writes: OwnWrites,
    /// Another registration of this session has held the key since. A flag, because it outlasts the claims and the
    /// states of the flow, up to a comparison that finds the key replaced. Finding the own key does not clear it,
    /// because a read may be stale: a key that another client deletes after that is created again, not reported as
    /// evicted.
    gave_way: bool,
    /// Content of the key in etcd, if it is known without a read.
    known: Known,
    monitor: Option<KeyMonitor>,
    /// `Sharing::Never` once a shared watch could not see the key.
    sharing: Sharing,
    /// `Watched::LossOnly` while the key is known to differ and could not be brought up to date.
    watched: Watched,
    /// Generation of the last desired instance.
    wanted: u64,
    /// Number of recoveries of etcd at the beginning of the last comparison.
    recoveries: u64,
    /// Number of observed rollbacks of the store at the last confirmation that the key was as stored.
    rollbacks: u64,
}

/// Content of a key in etcd. Every write is guarded, so a wrong assumption costs one request.
#[derive(Default)]
enum Known {
    /// It has to be read.
    #[default]
    Unknown,
    Absent,
    /// As it was stored.
    AsStored,
    Is(Record),
}

impl From<Option<Record>> for Known {
    fn from(record: Option<Record>) -> Self {
        record.map_or(Self::Absent, Self::Is)
    }
}

impl Drop for RegistrationTask {
    fn drop(&mut self) {
        if self.driver.goal() == Goal::Abandoned && self.context.lifecycle().tasks.stop_signal().is_cancelled() {
            // The session ended before this task was stopped.
            self.leave_lease();
        }
        self.context.registrations.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RegistrationTask {
    /// Boxed, because the future of the task would hold it twice.
    pub(crate) fn new(
        context: &Arc<RegistrationContext>,
        layout: &Arc<dyn Layout>,
        slot: Arc<[u8]>,
        id: &InstanceId,
        driver: RegistrationDriver,
        options: &RegisterOptions,
    ) -> Box<Self> {
        Box::new(Self {
            context: Arc::clone(context),
            layout: Arc::clone(layout),
            id: id.clone(),
            slot,
            driver,
            options: options.clone(),
            backoff: options.backoff.start(),
            lease: None,
            former: None,
            writes: OwnWrites::default(),
            gave_way: false,
            known: Known::Absent,
            monitor: None,
            sharing: Sharing::default(),
            watched: Watched::default(),
            wanted: 0,
            recoveries: 0,
            rollbacks: context.leases.rollbacks(),
        })
    }

    fn failed(&self, failure: Failure) -> Error {
        failure.into_error(&format!("registering {}/{}", self.driver.service(), self.id))
    }

    fn found(&self, record: &Record) -> Found {
        Found {
            created: record.created,
            modified: record.modified,
            lease: record.lease,
            owner: self.owner_of(record),
            term: self.layout.term(&record.value),
            own: self.writes.is_own(record) || self.is_former(record),
        }
    }

    /// Returns `true` if this is an earlier write of this registration: the store was restored to it.
    fn is_former(&self, record: &Record) -> bool {
        !matches!(self.options.lease, LeaseChoice::Given(_)) && self.writes.is_former(record)
    }

    fn owner_of(&self, record: &Record) -> Option<String> {
        owner_of(&*self.layout, self.driver.service(), record)
    }

    /// Removes the record of the stored key: it was replaced, so its absence is no eviction.
    fn disown(&mut self) {
        self.writes.disown();
        self.former = None;
    }

    /// Compares the key, as it was read, with a claim of unknown outcome. If the claim is not found, nothing more is
    /// written under its lease.
    fn settle(&mut self, found: Option<&Record>) {
        let Self { context, writes, options, .. } = self;
        writes.settle(found, |lease| match options.lease {
            LeaseChoice::Given(_) => Impossible::after_end(lease),
            _ => Impossible::by_retiring(&context.leases, lease),
        });
    }

    fn key_under(&self, lease: LeaseId) -> Result<Arc<[u8]>, Error> {
        let layout = &self.layout;
        match layout.lease_scope() {
            // The key does not depend on the lease.
            LeaseScope::Shared => Ok(Arc::clone(&self.slot)),
            LeaseScope::PerKey => layout.key(self.driver.service(), &self.id, Some(lease)).map(Into::into),
        }
    }

    /// Returns `true` while the instance may be published, as far as is known: it was stored, and neither its key nor
    /// its lease is known to be gone.
    fn may_be_there(&self) -> bool {
        self.writes.may_be_stored() && self.lease.as_ref().is_some_and(|lease| !lease.is_lost())
    }

    /// Returns the window over which registrations that continue at the same time are spread.
    fn reregistration_window(&self) -> Duration {
        reregistration_window(self.options.ttl, self.context.registrations.load(Ordering::Relaxed))
    }

    /// Sleeps, unless the registration is no longer wanted.
    async fn sleep_while_wanted(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.driver.unwanted() => {}
        }
    }

    /// Returns `true` if the lease keeps no other instance alive.
    fn has_own_lease(&self) -> bool {
        self.options.lease == LeaseChoice::Own || self.layout.lease_scope() == LeaseScope::PerKey
    }

    /// Leaves the lease to run out, if it keeps no other instance alive.
    fn leave_lease(&self) {
        if let (Some(lease), true) = (&self.lease, self.has_own_lease()) {
            lease.abandon();
        }
    }
}

fn owner_of(layout: &dyn Layout, service: &ServiceRef, record: &Record) -> Option<String> {
    layout.decode(service, &record.key, &record.value).ok()?.owner
}

impl RegistrationSteps for RegistrationTask {
    type Key = Arc<[u8]>;
    type Rival = Record;

    /// etcd reports the remaining time of a lease in whole seconds.
    const LEASE_RESOLUTION: Duration = Duration::from_secs(1);

    fn driver(&self) -> &RegistrationDriver {
        &self.driver
    }

    fn id(&self) -> &InstanceId {
        &self.id
    }

    fn options(&self) -> &RegisterOptions {
        &self.options
    }

    fn key(&self) -> &Arc<[u8]> {
        &self.slot
    }

    fn backoff(&mut self) -> &mut Backoff {
        &mut self.backoff
    }

    fn claims(&self) -> &KeyClaims<Arc<[u8]>> {
        &self.context.key_claims
    }

    fn observations(&self) -> &Observations<Arc<[u8]>> {
        &self.context.observations
    }

    async fn wait_unwanted(&mut self) {
        loop {
            tokio::select! {
                () = self.driver.unwanted() => return,
                () = lease::unusable(self.lease.as_ref()) => {
                    self.lease = None;
                    // The key is not read for now, so writes of unknown outcome count as late.
                    self.settle(None);
                }
            }
        }
    }

    async fn reconcile(&mut self) -> Result<StepOutcome<Record>, Error> {
        let outcome = self.compare().await;
        if matches!(outcome, Ok(StepOutcome::Settled | StepOutcome::Withdrawn(_))) {
            self.watched = Watched::AnyChange;
        }
        outcome
    }

    async fn wait_settled(&mut self, claim: &Claim<Arc<[u8]>>) -> Waited {
        let reason = self.wait_for_change(claim, None).await;
        if reason.is_superseded() {
            return Waited::Superseded;
        }
        if self.answer(reason).await == KeyState::AsStored {
            self.known = Known::AsStored;
        }
        Waited::Due
    }

    async fn wait_superseded(&mut self, claim: &Claim<Arc<[u8]>>, rival: Record) -> Waited {
        self.report_superseded(self.owner_of(&rival).as_deref(), rival.lease.unwrap_or_default());
        match self.wait_until_free(claim, rival).await {
            WakeReason::Superseded => return Waited::Superseded,
            WakeReason::Gone => self.known = Known::Absent,
            _ => {}
        }
        Waited::Due
    }

    async fn wait_withdrawn(&mut self, claim: &Claim<Arc<[u8]>>, at: Revision) -> Waited {
        if self.wait_until_shown(claim, at).await.is_superseded() { Waited::Superseded } else { Waited::Due }
    }

    async fn wait_failed(&mut self, claim: &Claim<Arc<[u8]>>, error: Error) -> Waited {
        let reason = if self.may_be_there() {
            self.wait_outdated(claim, error).await
        } else {
            self.wait_unpublished(claim, error).await
        };
        match reason {
            WakeReason::Superseded => return Waited::Superseded,
            WakeReason::Changed => self.watched = Watched::LossOnly,
            _ => {}
        }
        self.answer(reason).await;
        Waited::Due
    }

    fn gives_up(&mut self, error: &Error) -> bool {
        // A refused change is no reason to remove the published instance.
        let counts = !self.may_be_there() || error.is_retryable();
        counts && gives_up_after(&self.options, self.backoff.failures().saturating_add(1))
    }

    async fn remove(&mut self, gave_up: Option<Error>, claim: Option<Claim<Arc<[u8]>>>) {
        let is_given_up = gave_up.is_some();
        let has_claim = claim.is_some();
        // Boxed: the task would hold it twice.
        Box::pin(self.remove_for_good(gave_up, claim)).await;
        if has_claim && !is_given_up && self.lease.is_some() && self.has_own_lease() {
            // The lease is revoked once the task ends.
            self.context.outlast_departures().await;
        }
    }

    async fn evicted(&mut self, claim: Claim<Arc<[u8]>>) {
        self.driver.report_end(Ok(Deregistered::AlreadyGone));
        if self.writes.may_claim() {
            // A late effect does not belong to the registration any more.
            Box::pin(self.remove_for_good(None, Some(claim))).await;
        }
    }

    fn abandon(&mut self) {
        self.leave_lease();
        self.driver.report_end(Ok(Deregistered::LeftBehind));
    }

    fn gave_way(&mut self) {
        self.gave_way = true;
        self.watched = Watched::AnyChange;
        // The successor moves the key off its lease.
        self.former = None;
    }

    async fn time_to_live(&self, lease: LeaseId) -> Result<Option<(Duration, Duration)>, Error> {
        self.context.client.time_to_live(lease).await.map_err(|failure| self.failed(failure))
    }

    async fn observation_unneeded(&self) {
        tokio::select! {
            () = lease::unusable(self.lease.as_ref()) => {}
            () = self.driver.unwanted() => {}
        }
    }

    fn report_superseded(&self, owner: Option<&str>, lease: LeaseId) {
        if !matches!(self.driver.state(), RegistrationState::Superseded { .. }) {
            count(&self.context.counters, Counter::Superseded);
        }
        self.driver.report_superseded(Owner::of(owner, self.options.owner.as_deref()), lease);
    }
}
