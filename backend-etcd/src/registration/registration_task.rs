//! The task behind one registration: compares what is desired with what etcd holds, for ever.
//!
//! What to do next is decided by [`enlist::backend::reconcile`]; this file only does it. An own key is watched, because a lease can
//! vanish although every renewal was answered.

mod eviction;
mod own_writes;
mod removal;
mod withdrawal;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use enlist::{
    Backoff, Counter, Deregistered, Error, InstanceId, LeaseChoice, LeaseId, Moment, OnConflict, Owner,
    RegisterOptions, RegistrationState, Revision, ServiceRef,
    backend::{
        Approach, Claim, Desired, Goal, Look, RegistrationDriver, Shown, Subscriber, jitter,
        reconcile::{self, Found, Mine, Observation, Step},
        reregistration_window,
    },
    with_causes,
};
use tokio::sync::watch;

pub(crate) use self::removal::marked_leaving;
use self::{
    eviction::Loss,
    own_writes::{Effect, OwnWrites},
};
use crate::{
    client::{guarded_write::Guard, kv::Written},
    defects::Defect,
    error::Failure,
    layout::{Layout, LeaseScope, Writing},
    registration::context::RegistrationContext,
    session::{
        lease::{self, Lease, LeaseState, Purpose, lease_changed},
        sweep::Impossible,
    },
    watch::{
        key_monitors::{Differs, KeyMonitor},
        record::{KeyRange, Record},
        replica::Replica,
        watch_task::Begin,
    },
};

/// Time for which `deregister` waits for etcd before it says `LeftBehind`.
const PATIENCE: Duration = Duration::from_secs(3);

/// The pace at which a conflict, or trouble that somebody has to mend, is looked at again.
const SLOW: Duration = Duration::from_secs(10);

/// etcd tells what is left of a lease in whole seconds.
const SECOND: Duration = Duration::from_secs(1);

/// Time for which a registration that lost its key waits to hear what became of the lease.
const VERDICT: Duration = Duration::from_secs(1);

/// A key is watched once it is this old, from its writing on. So thousands that are written together cost no events of their
/// own, and a service that is shared with others is listed once.
const UNWATCHED: Duration = Duration::from_millis(500);

/// Interval between two looks at a foreign lease.
const LOOK: Duration = Duration::from_millis(250);

/// The task behind one registration.
pub(crate) struct RegistrationTask {
    context: Arc<RegistrationContext>,
    /// How it lies in etcd.
    layout: Arc<dyn Layout>,
    id: InstanceId,
    /// What the registrations of this session are kept apart by: the key, unless that depends on the lease.
    slot: Arc<[u8]>,
    driver: RegistrationDriver,
    options: RegisterOptions,
    backoff: Backoff,
    lease: Option<Arc<Lease>>,
    /// The retired lease that the key is under until it is written under another one.
    former: Option<Arc<Lease>>,
    writes: OwnWrites,
    /// Another registration of this session had the key since.
    gave_way: bool,
    /// What was stored is known to be gone.
    gone: bool,
    /// Content of the key in etcd, as far as that need not be asked.
    known: Known,
    ward: Option<KeyMonitor>,
    /// The key could not be seen through a shared watch.
    alone: bool,
    /// The generation of the instance that was wanted last.
    wanted: u64,
    /// Number of times that etcd had answered again when the last step began.
    recoveries: u64,
    /// The rollbacks of the store that the session had seen when the key was last known to be as it was stored.
    rollbacks: u64,
}

/// Content of a key in etcd. Every write is guarded, so being wrong costs a request and nothing else.
#[derive(Default)]
enum Known {
    /// It has to be asked.
    #[default]
    Unknown,
    Absent,
    /// What was stored.
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
            // The session ended before its task heard of that.
            self.leave_lease();
        }
        self.context.registrations.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Next action after a step.
enum StepOutcome {
    /// All is as it should be.
    Settled,
    /// Something changed meanwhile; look again at once.
    None,
    /// It is over.
    Evicted,
    /// Another registration has the key.
    Superseded(Record),
    /// The instance is not to be shown for now, and is not; so the key was at the revision.
    Withdrawn(Revision),
}

impl RegistrationTask {
    /// Boxed: its task would hold it twice.
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
            gone: false,
            known: Known::Absent,
            ward: None,
            alone: false,
            wanted: 0,
            recoveries: 0,
            rollbacks: context.leases.rollbacks(),
        })
    }

    pub(crate) async fn run(mut self: Box<Self>) {
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
    async fn keep(mut self: Box<Self>, claim: Claim<Arc<[u8]>>) -> Option<Box<Self>> {
        // It was seen that the key has changed, and since then it could not be brought up to date.
        let mut changed = false;
        loop {
            match self.driver.goal() {
                Goal::Present => {}
                Goal::Absent | Goal::Dropped => {
                    Box::pin(self.remove(None, Some(claim))).await;
                    if self.lease.is_some() && self.has_own_lease() {
                        // It is revoked once this ends.
                        self.context.outlast_departures().await;
                    }
                    return None;
                }
                _ => {
                    self.abandon();
                    return None;
                }
            }
            self.recoveries = self.context.conn.fast.recoveries();
            match self.reconcile().await {
                Ok(StepOutcome::None) => {}
                Ok(StepOutcome::Settled) => {
                    self.backoff.reset();
                    changed = false;
                    let disturbance = self.disturbed(&claim, None).await;
                    if disturbance.is_superseded() {
                        self.give_way();
                        return Some(self);
                    }
                    if self.answer(disturbance).await {
                        self.known = Known::AsStored;
                    }
                }
                Ok(StepOutcome::Superseded(record)) => {
                    self.superseded(self.owner_of(&record).as_deref(), record.lease.unwrap_or_default());
                    match self.wait_until_free(&claim, record).await {
                        // It has given way already.
                        WakeReason::Superseded => return Some(self),
                        WakeReason::Gone => self.known = Known::Absent,
                        _ => {}
                    }
                }
                Ok(StepOutcome::Withdrawn(at)) => {
                    self.backoff.reset();
                    changed = false;
                    if self.wait_until_shown(&claim, at).await.is_superseded() {
                        self.give_way();
                        return Some(self);
                    }
                }
                Ok(StepOutcome::Evicted) => {
                    self.driver.report_end(Ok(Deregistered::AlreadyGone));
                    if self.writes.may_claim() {
                        // What is done late is no part of it any more.
                        Box::pin(self.remove(None, Some(claim))).await;
                    }
                    return None;
                }
                Err(error) => {
                    let published = self.may_be_there();
                    // That a change of it is refused is no reason to remove what is published.
                    let counts = !published || error.is_retryable();
                    if counts && self.options.gives_up_after(self.backoff.failures().saturating_add(1)) {
                        Box::pin(self.remove(Some(error), Some(claim))).await;
                        return None;
                    }
                    let disturbance = if published {
                        self.outdated(&claim, error, changed).await
                    } else {
                        self.fail(&claim, error).await
                    };
                    if disturbance.is_superseded() {
                        self.give_way();
                        return Some(self);
                    }
                    changed |= disturbance == WakeReason::Changed;
                    self.answer(disturbance).await;
                }
            }
        }
    }

    /// Does what has to be done before the next look. Returns `true` if the key is as it was stored, for all that is known.
    async fn answer(&mut self, disturbance: WakeReason) -> bool {
        match disturbance {
            WakeReason::Superseded | WakeReason::Look | WakeReason::Changed => false,
            WakeReason::Wanted => true,
            WakeReason::Unobservable => {
                // A watch of its own that cannot see the key either is tried again at a slow pace.
                if std::mem::replace(&mut self.alone, true) {
                    self.rest(SLOW + jitter(SLOW / 4)).await;
                }
                true
            }
            WakeReason::Gone if Defect::RegistrationDeaf.is_on() => {
                self.rest(enlist::backend::LONGEST).await;
                true
            }
            WakeReason::Gone => {
                self.lost().await;
                false
            }
            WakeReason::Retired => {
                self.rest(jitter(self.reregistration_window())).await;
                true
            }
            WakeReason::Recovered => {
                // With all the others that were waiting.
                self.rest(jitter(self.reregistration_window())).await;
                false
            }
        }
    }

    /// Waits for the key to be free of other registrations of this session.
    async fn claim(&mut self, approach: Approach) -> Option<Claim<Arc<[u8]>>> {
        // The key is the successor's to move off a lease.
        self.former = None;
        let (context, slot, options) = (Arc::clone(&self.context), Arc::clone(&self.slot), self.options.clone());
        let withdrawal = self.driver.withdrawal();
        let claimed = {
            let mut claiming = std::pin::pin!(context.key_claims.claim(&slot, &options, &withdrawal, approach));
            loop {
                tokio::select! {
                    // A key that is free is claimed even for a registration that is to leave: it may have to remove a leftover.
                    biased;
                    claim = &mut claiming => break Some(claim),
                    () = self.driver.unwanted() => break None,
                    () = lease::unusable(self.lease.as_ref()) => {
                        self.lease = None;
                        // Nobody looks at the key for now, so what may have been done counts as late.
                        self.settle(None);
                    }
                }
            }
        };
        let Some(claimed) = claimed else {
            if approach == Approach::New {
                self.driver.report_end(Ok(Deregistered::AlreadyGone));
            } else {
                // The successor may have given up before it wrote anything.
                Box::pin(self.remove(None, None)).await;
            }
            return None;
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
        if !matches!(self.driver.state(), RegistrationState::Superseded { .. }) {
            self.context.counters.count(Counter::Superseded);
        }
        self.driver.report_superseded(Owner::of(owner, self.options.owner.as_deref()), lease);
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

    /// Returns `true` if this is an earlier write of this registration, which the store was restored to.
    fn is_former(&self, record: &Record) -> bool {
        !matches!(self.options.lease, LeaseChoice::Given(_)) && self.writes.is_former(record)
    }

    fn owner_of(&self, record: &Record) -> Option<String> {
        owner_of(&*self.layout, self.driver.service(), record)
    }

    /// Forgets what was stored: it was replaced, so its absence is no eviction.
    fn disown(&mut self) {
        self.writes.disown();
        self.former = None;
    }

    /// Looks at the key as it was found after a claim of unknown outcome. If it does not show the claim, nothing more is written
    /// under its lease.
    fn settle(&mut self, found: Option<&Record>) {
        let Self { context, writes, options, .. } = self;
        let given = matches!(options.lease, LeaseChoice::Given(_));
        writes.settle(found, |lease| Impossible::after(&context.leases, lease, given));
    }

    fn key(&self, lease: LeaseId) -> Result<Arc<[u8]>, Error> {
        let layout = &self.layout;
        match layout.lease_scope() {
            // Whatever the lease is.
            LeaseScope::Shared => Ok(Arc::clone(&self.slot)),
            LeaseScope::PerKey => layout.key(self.driver.service(), &self.id, Some(lease)).map(Into::into),
        }
    }

    /// Brings etcd one step closer to what is desired.
    async fn reconcile(&mut self) -> Result<StepOutcome, Error> {
        let Some(lease) = self.lease().await? else {
            return Ok(StepOutcome::None);
        };
        let key = self.key(lease)?;
        let context = Arc::clone(&self.context);
        let desired = self.driver.desired();
        self.wanted = desired.generation;
        let mut at = None;
        let record = match std::mem::take(&mut self.known) {
            Known::Unknown => {
                let _turn = tokio::select! {
                    turn = context.reads.acquire() => turn,
                    () = self.driver.unwanted() => return Ok(StepOutcome::None),
                };
                let (record, read) = context.conn.get(&key).await.map_err(|failure| self.failed(failure))?;
                at = Some(read);
                record
            }
            Known::Absent => None,
            Known::AsStored => self.writes.stored().cloned(),
            Known::Is(record) => Some(record),
        };
        self.settle(record.as_ref());
        if self.lease.as_ref().is_some_and(|lease| lease.is_retired()) {
            // The next look is for another lease, and needs no request.
            self.known = record.into();
            return Ok(StepOutcome::None);
        }
        let found = record.as_ref().map(|record| self.found(record));
        let own = found.as_ref().is_some_and(|found| found.own);
        if !own {
            // Nothing is under it that is to be moved.
            self.former = None;
        }
        self.gone = record.is_none();
        if self.gone && std::mem::take(&mut self.writes.withdrawing) {
            self.disown();
        }
        // A read may be stale, so what was acknowledged is not forgotten for it.
        let former = record.as_ref().is_some_and(|record| self.is_former(record));
        if let (true, Some(record)) = (own && !former, &record) {
            // Also by a write whose answer was lost.
            self.writes.entitlement.stored();
            self.writes.renew(record);
        } else if std::mem::take(&mut self.gave_way) {
            self.disown();
        }
        if desired.shown == Shown::Withdrawn {
            return self.withdraw(record.filter(|_| own), at).await;
        }
        let mine = self.writes.mine().map(|mine| if former { Mine { generation: 0, ..mine } } else { mine });
        let entitlement = self.writes.entitlement;
        let mut step = reconcile::step(found.as_ref(), mine, entitlement, lease, desired.generation, &self.options);
        if let (Step::Observe { lease }, Some(found)) = (&step, &found) {
            let Some(observation) = self.observe(*lease).await? else {
                return Ok(StepOutcome::None);
            };
            step = reconcile::after_observation(found, observation);
        }
        match step {
            Step::Create => self.write(&key, None, Guard::Absent, &desired, lease).await,
            Step::Replace { .. } if own && Defect::UpdatesIgnored.is_on() => {
                self.driver.report_stored(desired.generation, record.map(|record| record.modified).unwrap_or_default());
                Ok(StepOutcome::Settled)
            }
            Step::Replace { modified } => {
                let noted = self.rollbacks;
                let written = self.write(&key, record.as_ref(), Guard::Modified(modified), &desired, lease).await;
                if former && matches!(written, Ok(StepOutcome::Settled)) {
                    // The guard proves what was read.
                    context.leases.store_went_back(noted);
                }
                written
            }
            Step::Keep => {
                let Some(record) = record else { return Ok(StepOutcome::None) };
                self.driver.report_lease(record.lease.unwrap_or(lease));
                self.driver.report_stored(desired.generation, record.modified);
                self.rollbacks = context.leases.rollbacks();
                self.writes.acknowledge(record, desired.generation);
                Ok(StepOutcome::Settled)
            }
            Step::Observe { .. } | Step::Conflict => {
                let revision = found.as_ref().map(|found| found.modified);
                Err(self.conflict(found.as_ref().and_then(|found| found.owner.as_deref()), revision))
            }
            Step::Superseded => {
                self.disown();
                Ok(record.map_or(StepOutcome::None, StepOutcome::Superseded))
            }
            Step::Evicted => self.evicted(&key, lease).await,
        }
    }

    /// The lease; only its id, because each that holds a lease counts as one of its keys. `None`: the registration is no longer
    /// wanted.
    async fn lease(&mut self) -> Result<Option<LeaseId>, Error> {
        if let Some(lease) = self.lease.as_ref().filter(|lease| !lease.is_lost() && !lease.is_retired()) {
            return Ok(Some(lease.id()));
        }
        // A key that is under it lives there until it is written under another one.
        let retired = self.lease.take_if(|lease| lease.is_retired());
        if let Some(retired) = retired.filter(|lease| self.writes.may_be_under(lease.id())) {
            self.former = Some(retired);
        }
        let leases = &self.context.leases;
        let own = self.layout.lease_scope() == LeaseScope::PerKey;
        let granting = async {
            match self.options.lease {
                LeaseChoice::Given(_) if self.lease.is_some() => Err(Failure::Final(Error::LeaseLost)),
                LeaseChoice::Given(id) => Ok(lease::given(id, self.options.ttl)),
                LeaseChoice::Own => leases.own(self.options.lease_terms()).await,
                _ if own => leases.own(self.options.lease_terms()).await,
                _ => leases.shared(Purpose::Registration, self.options.lease_terms()).await,
            }
        };
        let granted = tokio::select! {
            granted = granting => granted,
            () = self.driver.unwanted() => return Ok(None),
        };
        let lease = granted.map_err(|failure| self.failed(failure))?;
        Ok(Some(self.lease.insert(lease).id()))
    }

    async fn write(
        &mut self,
        key: &Arc<[u8]>,
        previous: Option<&Record>,
        guard: Guard,
        desired: &Desired,
        lease: LeaseId,
    ) -> Result<StepOutcome, Error> {
        let Desired { instance, generation, .. } = desired;
        let (context, layout) = (Arc::clone(&self.context), Arc::clone(&self.layout));
        let writing = Writing {
            owner: self.options.owner.as_deref(),
            previous: previous.map(|record| &*record.value),
            lease: Some(lease),
            term: self
                .writes
                .entitlement
                .claim(previous.and_then(|record| layout.term(&record.value)), SystemTime::now()),
        };
        let value = layout.encode(self.driver.service(), instance, &writing)?;
        let claims = previous.is_none_or(|record| !self.writes.is_own(record));
        // Given up, it waited behind others, or etcd is silent. What was not sent is not sent any more.
        let given_up = impatient(&self.driver);
        match context.conn.put_unless(key, guard, &value, Some(lease), given_up).await {
            Ok(Written::Done(revision)) => {
                if matches!(guard, Guard::Absent) {
                    let again = self.driver.was_stored();
                    self.context.counters.count(if again { Counter::Reregistrations } else { Counter::Registrations });
                }
                let created = previous.map_or(revision, |record| record.created);
                (self.gone, self.writes.withdrawing) = (false, false);
                self.driver.report_lease(lease);
                self.driver.report_stored(*generation, revision);
                self.rollbacks = context.leases.rollbacks();
                let record = Record { key: Arc::clone(key), value, created, modified: revision, lease: Some(lease) };
                self.writes.acknowledge(record, *generation);
                self.writes.forget_changes();
                self.former = None;
                Ok(StepOutcome::Settled)
            }
            Ok(Written::Refused(record)) => {
                self.writes.refused();
                self.known = record.into();
                Ok(StepOutcome::None)
            }
            Err(Failure::LeaseNotFound) => Err(self.lease_lost()),
            Err(failure) => {
                if failure.is_ambiguous() {
                    let claimed = self.lease.as_ref().filter(|_| claims);
                    let effect = claimed.map_or(Effect::Change, |lease| Effect::Claim(Arc::clone(lease)));
                    self.writes.remember(value, Some(lease), effect);
                }
                if self.driver.goal() == Goal::Present { Err(self.failed(failure)) } else { Ok(StepOutcome::None) }
            }
        }
    }

    /// Notes that etcd does not know the lease. A given one is never replaced.
    fn lease_lost(&mut self) -> Error {
        // Its keys went with it.
        self.gone = true;
        let given = matches!(self.options.lease, LeaseChoice::Given(_));
        if let Some(lost) = self.lease.take_if(|_| !given) {
            lost.condemn();
        }
        Error::LeaseLost
    }

    /// The key is gone: by hand, if its lease is still there, nobody had the key in between, and the history of the
    /// store has its deletion. Nothing else proves an eviction; renewals may have gone unanswered for a while.
    async fn evicted(&mut self, key: &[u8], lease: LeaseId) -> Result<StepOutcome, Error> {
        let context = Arc::clone(&self.context);
        let written = self.writes.stored().map(|stored| stored.modified).unwrap_or_default();
        let is_own = |record: &Record| self.writes.is_own(record);
        let loss = tokio::select! {
            loss = eviction::loss(&context.conn, key, written, is_own) => loss.map_err(|failure| self.failed(failure))?,
            () = self.driver.unwanted() => return Ok(StepOutcome::None),
        };
        let loss = if self.context.leases.rollbacks() == self.rollbacks { loss } else { Loss::Unwritten };
        match loss {
            Loss::Replaced => tracing::info!("the key was another registration's, which has left"),
            Loss::Unwritten => tracing::warn!("the key is not in a store that was restored"),
            Loss::Deleted => {}
        }
        if loss != Loss::Deleted {
            self.disown();
            return Ok(StepOutcome::None);
        }
        // A revocation is told by a member before another one has done it, so it is asked for twice.
        for again in [false, true] {
            if again {
                self.rest(VERDICT).await;
            }
            let left = context.conn.time_to_live(lease).await.map_err(|failure| self.failed(failure))?;
            if left.is_none() {
                return Err(self.lease_lost());
            }
        }
        Ok(StepOutcome::Evicted)
    }

    /// Watches a foreign lease for one renewal period and a bit: does its remaining time ever grow? `None` if the registration is
    /// no longer wanted, or needs another lease; a later one goes on with what was seen.
    async fn observe(&self, lease: LeaseId) -> Result<Option<Observation>, Error> {
        let RegistrationContext { conn, observations, .. } = &*self.context;
        loop {
            let asked = Moment::now();
            let answer = conn.time_to_live(lease).await.map_err(|failure| self.failed(failure))?;
            let Some((left, granted)) = answer else {
                observations.forget(&self.slot);
                return Ok(Some(Observation::Gone));
            };
            let left = match observations.look(&self.slot, Look { lease, left, granted, asked, unit: SECOND }) {
                Ok(observation) => return Ok(Some(observation)),
                Err(left) => left,
            };
            let (service, id) = (self.driver.service().clone(), self.id.clone());
            self.driver.report_trouble(Error::Observing { service, id, left });
            tokio::select! {
                () = tokio::time::sleep(LOOK.min(left)) => {}
                () = lease::unusable(self.lease.as_ref()) => return Ok(None),
                () = self.driver.unwanted() => return Ok(None),
            }
        }
    }

    /// Reports that what is published could not be brought up to date, and waits until it is worth another try, or until something
    /// else is no longer as it should be. `changed`: that the key has changed is known.
    async fn outdated(&mut self, claim: &Claim<Arc<[u8]>>, cause: Error, changed: bool) -> WakeReason {
        tracing::debug!(%cause, "not brought up to date");
        let delay = if cause.is_retryable() {
            self.driver.report(RegistrationState::Suspect { cause: cause.clone() });
            self.backoff.next_delay()
        } else {
            self.driver.report_refused(self.wanted, cause.clone());
            SLOW + jitter(SLOW / 4)
        };
        self.disturbed(claim, Some(Outdated { cause, delay, changed })).await
    }

    /// Reports why it is not published and waits until it is worth another try.
    async fn fail(&mut self, claim: &Claim<Arc<[u8]>>, error: Error) -> WakeReason {
        let conflict = matches!(error, Error::AlreadyRegistered { .. });
        let waits = conflict && self.options.on_conflict == OnConflict::Wait && !self.driver.was_stored();
        let next = self.backoff.next_delay();
        let retryable = error.is_retryable();
        let delay = if retryable { next } else { SLOW + jitter(SLOW / 4) };
        tracing::debug!(cause = %with_causes(&error), "not registered");
        if waits {
            self.driver.report(RegistrationState::Registering { last: Some(error) });
        } else {
            self.driver.report_failure(error);
        }
        // Whoever waits for a foreign key looks at it, so as not to come late.
        let mut foreign = match (conflict, &self.lease) {
            (true, Some(lease)) => {
                self.key(lease.id()).ok().and_then(|key| self.context.hub.follow(&KeyRange::key(key.to_vec())).ok())
            }
            _ => None,
        };
        let context = Arc::clone(&self.context);
        let mut due = std::pin::pin!(tokio::time::sleep(delay));
        let mut recovered = std::pin::pin!(context.conn.fast.recovered_since(self.recoveries));
        loop {
            tokio::select! {
                () = &mut due => return WakeReason::Look,
                () = claim.superseded() => return WakeReason::Superseded,
                () = self.driver.changed() => return WakeReason::Look,
                () = gone(&mut foreign) => return WakeReason::Look,
                () = &mut recovered, if retryable => return WakeReason::Recovered,
                () = lease::unusable(self.lease.as_ref()) => {
                    if self.writes.is_unsettled() {
                        // The key may be under it.
                        return WakeReason::Look;
                    }
                    self.lease = None;
                }
            }
        }
    }

    /// Reports that another registration of this session gets the key.
    fn give_way(&self) {
        if self.driver.was_stored() {
            self.superseded(self.options.owner.as_deref(), LeaseId::default());
        } else {
            self.driver.report_failure(self.conflict(self.options.owner.as_deref(), None));
        }
    }

    /// Returns `true` while the instance may be published, for all that is known: it was stored, and neither its key nor its lease
    /// is known to be gone.
    fn may_be_there(&self) -> bool {
        !self.gone && self.writes.stored().is_some() && self.lease.as_ref().is_some_and(|lease| !lease.is_lost())
    }

    /// Waits until the key that another registration has, as `record`, is free.
    async fn wait_until_free(&mut self, claim: &Claim<Arc<[u8]>>, record: Record) -> WakeReason {
        let (key, revision) = (Arc::clone(&record.key), record.modified);
        let mut followed = self.context.hub.follow_key(&key, Some(record), revision, Begin::Known).ok();
        let mut due = std::pin::pin!(tokio::time::sleep(SLOW + jitter(SLOW / 4)));
        loop {
            tokio::select! {
                () = gone(&mut followed) => return WakeReason::Gone,
                () = claim.superseded() => return WakeReason::Superseded,
                () = &mut due => return WakeReason::Look,
                () = self.driver.unwanted() => return WakeReason::Look,
                () = lease::unusable(self.lease.as_ref()) => self.lease = None,
            }
        }
    }

    /// Waits until something is no longer as it should be, or could be brought up to date.
    async fn disturbed(&mut self, claim: &Claim<Arc<[u8]>>, outdated: Option<Outdated>) -> WakeReason {
        let (Some(lease), Some(stored)) = (&self.lease, self.writes.stored()) else {
            return WakeReason::Look;
        };
        // Not the lease itself: whoever rests counts once among its keys.
        let phase = lease.phase();
        if lease.is_retired() {
            return WakeReason::Retired;
        }
        let mut ward = self.ward.take().filter(|ward| ward.key() == &*stored.key);
        let disturbance = self.wait(claim, phase, &mut ward, outdated).await;
        self.ward = ward.filter(|_| disturbance != WakeReason::Unobservable);
        disturbance
    }

    async fn wait(
        &mut self,
        claim: &Claim<Arc<[u8]>>,
        mut phase: watch::Receiver<LeaseState>,
        ward: &mut Option<KeyMonitor>,
        outdated: Option<Outdated>,
    ) -> WakeReason {
        let Self { context, layout, driver, options, alone, writes, recoveries, .. } = self;
        let Some(record) = writes.stored() else {
            return WakeReason::Look;
        };
        let service = driver.service().clone();
        let only_its_loss = outdated.as_ref().is_some_and(|outdated| outdated.changed);
        let mut differs = std::pin::pin!(async {
            if ward.is_none() {
                tokio::time::sleep(UNWATCHED).await;
            }
            let made = match ward.take() {
                Some(ward) => Ok(ward),
                None => context.key_monitors.watch(&**layout, &service, record, *alone),
            };
            match made {
                Ok(made) if only_its_loss => {
                    ward.insert(made).vanished(record.created).await;
                    Differs::Gone
                }
                Ok(made) => ward.insert(made).differs(record.modified).await,
                // The session has ended, and this task with it.
                Err(_) => std::future::pending().await,
            }
        });
        let recovers = outdated.as_ref().is_some_and(|outdated| outdated.cause.is_retryable());
        let mut due = std::pin::pin!(async {
            match &outdated {
                Some(outdated) => tokio::time::sleep(outdated.delay).await,
                None => options.audit_due().await,
            }
        });
        let conn = Arc::clone(&context.conn);
        let mut recovered = std::pin::pin!(conn.fast.recovered_since(*recoveries));
        loop {
            tokio::select! {
                () = &mut due => return WakeReason::Look,
                () = &mut recovered, if recovers => return WakeReason::Recovered,
                () = claim.superseded() => return WakeReason::Superseded,
                () = driver.changed() => return WakeReason::Wanted,
                changed = lease_changed(&mut phase) => match changed {
                    LeaseState::Lost => return WakeReason::Gone,
                    LeaseState::Retired => return WakeReason::Retired,
                    LeaseState::Suspect { cause, .. } => driver.report(RegistrationState::Suspect { cause }),
                    LeaseState::Alive { .. } => driver.report(match &outdated {
                        Some(Outdated { cause, .. }) => RegistrationState::Suspect { cause: cause.clone() },
                        None => RegistrationState::Registered { revision: record.modified },
                    }),
                },
                differs = &mut differs => match differs {
                    Differs::Gone => return WakeReason::Gone,
                    Differs::Changed => return WakeReason::Changed,
                    Differs::Unobservable => return WakeReason::Unobservable,
                },
            }
        }
    }

    /// The key is gone, or its lease is. Finds out which, and keeps those that lost it together from coming back together.
    async fn lost(&mut self) {
        let Some(lease) = self.lease.clone() else {
            return;
        };
        self.gone = true;
        let doubted = Moment::now();
        lease.doubt();
        let mut state = lease.state();
        let told = async {
            while !lease.is_lost() && lease.renewed().is_some_and(|sent| sent.since(doubted).is_zero()) {
                lease_changed(&mut state).await;
            }
        };
        // Without a verdict the key is looked at, and the guarded write settles it.
        let heard = tokio::time::timeout(VERDICT, told).await.is_ok();
        if heard && lease.is_lost() {
            self.known = Known::Absent;
            self.driver.report(RegistrationState::Reregistering { cause: Error::LeaseLost });
        }
        self.rest(jitter(self.reregistration_window())).await;
    }

    /// Window over which registrations that go on together are spread.
    fn reregistration_window(&self) -> Duration {
        reregistration_window(self.options.ttl, self.context.registrations.load(Ordering::Relaxed))
    }

    /// Does nothing for a while, unless the registration is no longer wanted.
    async fn rest(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.driver.unwanted() => {}
        }
    }

    /// Returns `true` if its lease keeps no other instance.
    fn has_own_lease(&self) -> bool {
        self.options.lease == LeaseChoice::Own || self.layout.lease_scope() == LeaseScope::PerKey
    }

    fn abandon(&self) {
        self.leave_lease();
        self.driver.report_end(Ok(Deregistered::LeftBehind));
    }

    /// Leaves its lease to run out, if that keeps no other instance.
    fn leave_lease(&self) {
        if let (Some(lease), true) = (&self.lease, self.has_own_lease()) {
            lease.abandon();
        }
    }
}

/// A published instance that could not be brought up to date.
struct Outdated {
    cause: Error,
    /// Time until the next try.
    delay: Duration,
    /// The key is known to have changed, so that it is watched for its loss only.
    changed: bool,
}

/// Event that ended the rest of a registration.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WakeReason {
    /// Something else is wanted.
    Wanted,
    /// The key may be different, or it is time for another try.
    Look,
    /// The key is different.
    Changed,
    /// etcd answers again.
    Recovered,
    /// The key, or its lease, is gone.
    Gone,
    /// The lease is to be left for another one.
    Retired,
    /// The watch cannot see the key.
    Unobservable,
    /// Another registration of this session has taken the key over.
    Superseded,
}

impl WakeReason {
    fn is_superseded(self) -> bool {
        self == Self::Superseded
    }
}

/// Waits until the registration is no longer wanted, and then as long as an answer may take.
async fn impatient(driver: &RegistrationDriver) {
    driver.unwanted().await;
    tokio::time::sleep(PATIENCE).await;
}

/// Waits until the key that is followed is gone.
async fn gone(followed: &mut Option<Subscriber<Replica>>) {
    let Some(reader) = followed else {
        return std::future::pending().await;
    };
    loop {
        match reader.next().await {
            Ok(reading) if reading.value.records().next().is_none() => return,
            Err(Error::Closed) => return std::future::pending().await,
            // A watch that is refused is opened again.
            Ok(_) | Err(_) => {}
        }
    }
}

fn owner_of(layout: &dyn Layout, service: &ServiceRef, record: &Record) -> Option<String> {
    layout.decode(service, &record.key, &record.value).ok()?.owner
}
