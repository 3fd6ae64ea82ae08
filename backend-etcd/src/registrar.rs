//! The task behind one registration: compares what is desired with what etcd holds, for ever.
//!
//! What to do next is decided by [`enlist::reconcile`]; this file only does it. An own key is watched, because a lease can
//! vanish although every renewal was answered.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use enlist::{
    Backoff, Counter, Deregistered, Error, Health, InstanceId, LeaseChoice, LeaseId, Moment, OnConflict,
    RegisterOptions, RegistrationDriver, RegistrationState, ServiceRef,
    backoff::{herd_window, spread},
    feed::FeedReader,
    reconcile::{self, Found, Mine, Observation, Step},
    registration::{Desired, Goal},
    slots::Claim,
};
use tokio::sync::watch;

use crate::{
    connection::{SETTLED, Written},
    error::Failure,
    layout::{Decoded, LeaseScope, Part, Writing},
    lease::{self, Lease, LeaseState, Purpose, lease_changed},
    mirror::Mirror,
    own_keys::{Differs, OwnKeys, Ward},
    record::{KeyRange, Record},
    session::Session,
    writes::Guard,
};

/// How long `deregister` waits for etcd before it says `LeftBehind`.
const PATIENCE: Duration = Duration::from_secs(3);

/// The pace at which a conflict, or trouble that somebody has to mend, is looked at again.
const SLOW: Duration = Duration::from_secs(10);

/// etcd tells what is left of a lease in whole seconds.
const SECOND: Duration = Duration::from_secs(1);

/// How long a registration that lost its key waits to hear what became of the lease.
const VERDICT: Duration = Duration::from_secs(1);

/// A key is watched once it is this old, from its writing on. So thousands that are written together cost no events of their
/// own, and a service that is shared with others is listed once.
const UNWATCHED: Duration = Duration::from_millis(500);

/// How often a foreign lease is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// The task behind one registration.
pub(crate) struct Registrar {
    session: Arc<Session>,
    id: InstanceId,
    /// What the registrations of this session are kept apart by: the key, unless that depends on the lease.
    slot: Arc<[u8]>,
    driver: RegistrationDriver,
    options: RegisterOptions,
    backoff: Backoff,
    lease: Option<Arc<Lease>>,
    mine: Option<Mine>,
    /// What etcd holds under the key, as far as that need not be asked.
    known: Known,
    ward: Option<Ward>,
    /// The key could not be seen through a shared watch.
    alone: bool,
    /// When the answer to a write was given up.
    unsettled: Option<Moment>,
}

/// What etcd holds under a key. Every write is guarded, so being wrong costs a request and nothing else.
#[derive(Default)]
enum Known {
    /// It has to be asked.
    #[default]
    Unknown,
    Absent,
    Is(Record),
}

impl From<Option<Record>> for Known {
    fn from(record: Option<Record>) -> Self {
        record.map_or(Self::Absent, Self::Is)
    }
}

impl Drop for Registrar {
    fn drop(&mut self) {
        self.session.registrations.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What there is to do after a step.
enum Pause {
    /// All is as it should be; the key is this record.
    Settled(Record),
    /// Something changed meanwhile; look again at once.
    None,
    /// It is over.
    Evicted,
}

impl Registrar {
    /// Boxed: its task would hold it twice.
    pub(crate) fn new(
        session: &Arc<Session>,
        slot: Arc<[u8]>,
        id: &InstanceId,
        driver: RegistrationDriver,
        options: &RegisterOptions,
    ) -> Box<Self> {
        Box::new(Self {
            session: Arc::clone(session),
            id: id.clone(),
            slot,
            driver,
            options: options.clone(),
            backoff: options.backoff.start(),
            lease: None,
            mine: None,
            known: Known::Absent,
            ward: None,
            alone: false,
            unsettled: None,
        })
    }

    pub(crate) async fn run(mut self: Box<Self>) {
        let Some(claim) = self.claim().await else {
            return;
        };
        loop {
            match self.driver.goal() {
                Goal::Present => {}
                Goal::Absent => {
                    claim.leave();
                    return Box::pin(self.leave(None)).await;
                }
                _ => return self.abandon(),
            }
            match self.reconcile().await {
                Ok(Pause::None) => {}
                Ok(Pause::Settled(record)) => {
                    self.backoff.reset();
                    match self.disturbed(&claim, &record).await {
                        Disturbance::Superseded => return self.driver.report_end(Ok(Deregistered::AlreadyGone)),
                        Disturbance::Wanted => self.known = Known::Is(record),
                        Disturbance::Look => {}
                        Disturbance::Blind => {
                            // A watch of its own that cannot see the key either is tried again at a slow pace.
                            if std::mem::replace(&mut self.alone, true) {
                                self.rest(SLOW + spread(SLOW / 4)).await;
                            }
                            self.known = Known::Is(record);
                        }
                        Disturbance::Gone => self.lost().await,
                    }
                }
                Ok(Pause::Evicted) => return self.driver.report_end(Ok(Deregistered::AlreadyGone)),
                Err(error) => {
                    if self.options.max_attempts.is_some_and(|limit| self.backoff.failures() + 1 >= limit) {
                        return Box::pin(self.leave(Some(error))).await;
                    }
                    self.fail(error).await;
                }
            }
        }
    }

    /// Waits for the key to be free of other registrations of this session.
    async fn claim(&mut self) -> Option<Claim<Arc<[u8]>>> {
        let claimed = tokio::select! {
            claim = self.session.slots.claim(&self.slot, &self.options) => claim,
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
            id: self.id.clone(),
            owner: found.and_then(|found| found.owner.clone()),
            created: found.map(|found| found.created).unwrap_or_default(),
        }
    }

    fn failed(&self, failure: Failure) -> Error {
        failure.into_error(&format!("registering {}/{}", self.driver.service(), self.id))
    }

    fn found(&self, record: &Record) -> Found {
        Found {
            created: record.created,
            modified: record.modified,
            lease: record.lease,
            owner: owner_of(&self.session, self.driver.service(), record),
        }
    }

    fn key(&self, lease: LeaseId) -> Result<Arc<[u8]>, Error> {
        let layout = &self.session.layout;
        match layout.lease_scope() {
            // Whatever the lease is.
            LeaseScope::Shared => Ok(Arc::clone(&self.slot)),
            LeaseScope::PerKey => layout.key(self.driver.service(), &self.id, Some(lease)).map(Into::into),
        }
    }

    /// Brings etcd one step closer to what is desired.
    async fn reconcile(&mut self) -> Result<Pause, Error> {
        let lease = self.lease().await?;
        let key = self.key(lease)?;
        let session = Arc::clone(&self.session);
        let desired = self.driver.desired();
        let record = match std::mem::take(&mut self.known) {
            Known::Unknown => {
                let _turn = tokio::select! {
                    turn = session.reads.acquire() => turn,
                    () = self.driver.unwanted() => return Ok(Pause::None),
                };
                session.conn.get(&key).await.map_err(|failure| self.failed(failure))?.0
            }
            Known::Absent => None,
            Known::Is(record) => Some(record),
        };
        let found = record.as_ref().map(|record| self.found(record));
        let mut step = reconcile::step(found.as_ref(), self.mine, lease, desired.generation, &self.options);
        if let (Step::Observe { lease }, Some(found)) = (&step, &found) {
            step = reconcile::after_observation(found, self.observe(*lease).await?);
        }
        match step {
            Step::Create => self.write(&key, None, Guard::Absent, &desired, lease).await,
            Step::Replace { modified } => {
                self.write(&key, record.as_ref(), Guard::Modified(modified), &desired, lease).await
            }
            Step::Keep => {
                let Some(record) = record else { return Ok(Pause::None) };
                self.driver.report_stored(desired.generation, record.modified);
                Ok(Pause::Settled(record))
            }
            Step::Observe { .. } | Step::Conflict => Err(self.conflict(found.as_ref())),
            Step::Evicted => Ok(Pause::Evicted),
        }
    }

    /// The lease; only its id, because each that holds a lease counts as one of its keys.
    async fn lease(&mut self) -> Result<LeaseId, Error> {
        if let Some(lease) = self.lease.as_ref().filter(|lease| !lease.is_lost()) {
            return Ok(lease.id());
        }
        let Session { tasks, leases, layout, .. } = &*self.session;
        let own = layout.lease_scope() == LeaseScope::PerKey;
        let granted = match self.options.lease {
            LeaseChoice::Given(_) if self.lease.is_some() => return Err(Error::LeaseLost),
            LeaseChoice::Given(id) => Ok(lease::given(id, self.options.ttl)),
            LeaseChoice::Own => leases.own(tasks, self.options.ttl).await,
            _ if own => leases.own(tasks, self.options.ttl).await,
            _ => leases.shared(tasks, Purpose::Registration, self.options.ttl).await,
        };
        let lease = granted.map_err(|failure| self.failed(failure))?;
        Ok(self.lease.insert(lease).id())
    }

    async fn write(
        &mut self,
        key: &Arc<[u8]>,
        previous: Option<&Record>,
        guard: Guard,
        desired: &Desired,
        lease: LeaseId,
    ) -> Result<Pause, Error> {
        let Desired { instance, generation, .. } = desired;
        let writing = Writing {
            owner: self.options.owner.as_deref(),
            previous: previous.map(|record| &*record.value),
            lease: Some(lease),
        };
        let value = self.session.layout.encode(self.driver.service(), instance, &writing)?;
        let session = Arc::clone(&self.session);
        let written = tokio::select! {
            written = session.conn.put(key, guard, &value, Some(lease)) => written,
            () = impatient(&self.driver) => {
                // It waits behind others, or etcd is silent. What was not sent is not sent any more; the rest may still be done.
                self.unsettled = Some(Moment::now());
                return Ok(Pause::None);
            }
        };
        match written {
            Ok(Written::Done(revision)) => {
                if matches!(guard, Guard::Absent) {
                    let again = self.driver.was_stored();
                    self.session.counters.count(if again { Counter::Reregistrations } else { Counter::Registrations });
                }
                let created = previous.map_or(revision, |record| record.created);
                self.mine = Some(Mine { created, lease, generation: *generation });
                self.driver.report_stored(*generation, revision);
                let record = Record { key: Arc::clone(key), value, created, modified: revision, lease: Some(lease) };
                Ok(Pause::Settled(record))
            }
            Ok(Written::Refused(record)) => {
                self.known = record.into();
                Ok(Pause::None)
            }
            Err(Failure::LeaseNotFound) => {
                let given = matches!(self.options.lease, LeaseChoice::Given(_));
                if let Some(lost) = self.lease.take_if(|_| !given) {
                    lost.condemn();
                }
                Err(Error::LeaseLost)
            }
            Err(failure) => {
                if failure.is_ambiguous() {
                    // Not from when it was asked for: it may have waited for others before it was sent.
                    self.unsettled = Some(Moment::now());
                }
                Err(self.failed(failure))
            }
        }
    }

    /// Watches a foreign lease for one renewal period and a bit: does its remaining time ever grow?
    async fn observe(&self, lease: LeaseId) -> Result<Observation, Error> {
        let conn = &self.session.conn;
        let ask = || async { conn.time_to_live(lease).await.map_err(|failure| self.failed(failure)) };
        let Some((first, granted)) = ask().await? else {
            return Ok(Observation::Gone);
        };
        let begun = Moment::now();
        while begun.elapsed() < reconcile::observation_period(granted, SECOND) {
            tokio::time::sleep(LOOK).await;
            let asked = Moment::now();
            match ask().await? {
                None => return Ok(Observation::Gone),
                Some((now, _)) if reconcile::is_renewed(first, asked.since(begun), now, SECOND) => {
                    return Ok(Observation::Renewed);
                }
                Some(_) => {}
            }
        }
        Ok(Observation::Falling)
    }

    /// Reports a failure and waits until it is worth another try.
    async fn fail(&mut self, error: Error) {
        let conflict = matches!(error, Error::AlreadyRegistered { .. });
        let waits = conflict && self.options.on_conflict == OnConflict::Wait && !self.driver.was_stored();
        let next = self.backoff.next_delay();
        let delay = if error.is_retryable() { next } else { SLOW + spread(SLOW / 4) };
        tracing::debug!(cause = %error, "not registered");
        if waits {
            self.driver.report(RegistrationState::Registering { last: Some(error) });
        } else {
            self.driver.report_failure(error);
        }
        // Whoever waits for a foreign key looks at it, so as not to come late.
        let mut foreign = match (conflict, &self.lease) {
            (true, Some(lease)) => self
                .key(lease.id())
                .ok()
                .and_then(|key| self.session.hub.follow(&self.session, &KeyRange::key(key.to_vec())).ok()),
            _ => None,
        };
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.driver.changed() => {}
            () = gone(&mut foreign) => {}
        }
    }

    /// Waits until something is no longer as it should be.
    async fn disturbed(&mut self, claim: &Claim<Arc<[u8]>>, record: &Record) -> Disturbance {
        let Some(lease) = &self.lease else {
            return Disturbance::Look;
        };
        // Not the lease itself: whoever rests counts once among its keys.
        let phase = lease.phase();
        let mut ward = self.ward.take().filter(|ward| ward.key() == &*record.key);
        let disturbance = self.wait(claim, record, phase, &mut ward).await;
        self.ward = ward.filter(|_| disturbance != Disturbance::Blind);
        disturbance
    }

    async fn wait(
        &mut self,
        claim: &Claim<Arc<[u8]>>,
        record: &Record,
        mut phase: watch::Receiver<LeaseState>,
        ward: &mut Option<Ward>,
    ) -> Disturbance {
        let Self { session, driver, options, alone, .. } = self;
        let service = driver.service().clone();
        let mut differs = std::pin::pin!(async {
            if ward.is_none() {
                tokio::time::sleep(UNWATCHED).await;
            }
            let made = match ward.take() {
                Some(ward) => Ok(ward),
                None => OwnKeys::watch(session, &service, record, *alone),
            };
            match made {
                Ok(made) => ward.insert(made).differs(record.modified).await,
                // The session has ended, and this task with it.
                Err(_) => std::future::pending().await,
            }
        });
        let mut audit = std::pin::pin!(options.audit_due());
        loop {
            tokio::select! {
                () = &mut audit => return Disturbance::Look,
                () = claim.superseded() => return Disturbance::Superseded,
                () = driver.changed() => return Disturbance::Wanted,
                changed = lease_changed(&mut phase) => match changed {
                    LeaseState::Lost => return Disturbance::Gone,
                    LeaseState::Suspect { cause, .. } => driver.report(RegistrationState::Suspect { cause }),
                    LeaseState::Alive { .. } => {
                        driver.report(RegistrationState::Registered { revision: record.modified });
                    }
                },
                differs = &mut differs => match differs {
                    Differs::Gone => return Disturbance::Gone,
                    Differs::Changed => return Disturbance::Look,
                    Differs::Blind => return Disturbance::Blind,
                },
            }
        }
    }

    /// The key is gone, or its lease is. Finds out which, and keeps those that lost it together from coming back together.
    async fn lost(&mut self) {
        let Some(lease) = self.lease.clone() else {
            return;
        };
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
        let window = herd_window(lease.ttl(), self.session.registrations.load(Ordering::Relaxed));
        self.rest(spread(window)).await;
    }

    /// Does nothing for a while, unless the registration is no longer wanted.
    async fn rest(&mut self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.driver.unwanted() => {}
        }
    }

    /// Removes the instance until etcd has confirmed it. A registration that gave up says so at once and removes what its
    /// last attempt may have left: the lease lives on, and would keep it for ever.
    async fn leave(mut self: Box<Self>, gave_up: Option<Error>) {
        let outcome = |found: Deregistered| gave_up.clone().map_or(Ok(found), Err);
        if gave_up.is_some() {
            self.driver.report_end(outcome(Deregistered::LeftBehind));
        }
        let written = self.mine.is_some() || self.unsettled.is_some();
        let Some(lease) = self.lease.clone().filter(|_| written) else {
            return self.driver.report_end(outcome(Deregistered::AlreadyGone));
        };
        let Ok(key) = self.key(lease.id()) else {
            return self.driver.report_end(outcome(Deregistered::AlreadyGone));
        };
        let begun = Moment::now();
        loop {
            let (pending, refused) = match self.try_remove(&key, &lease).await {
                Ok(Some(found)) if !self.may_still_arrive() => return self.driver.report_end(outcome(found)),
                Ok(Some(_)) => (true, false),
                Ok(None) => (false, false),
                Err(failure) => {
                    let refused = !self.failed(failure).is_retryable();
                    (refused || begun.elapsed() >= PATIENCE, refused)
                }
            };
            if pending {
                self.driver.report_end(outcome(Deregistered::LeftBehind));
            }
            let soon = self.backoff.next_delay().min(PATIENCE / 3);
            tokio::time::sleep(if refused { SLOW + spread(SLOW / 4) } else { soon }).await;
        }
    }

    /// Says whether a write whose answer was lost could still be done.
    fn may_still_arrive(&self) -> bool {
        let lost = self.lease.as_ref().is_some_and(|lease| lease.is_lost());
        !lost && self.unsettled.is_some_and(|lost| lost.elapsed() < SETTLED)
    }

    /// Removes the key if it is this registration's. `None`: it changed meanwhile, look again.
    async fn try_remove(&self, key: &[u8], lease: &Lease) -> Result<Option<Deregistered>, Failure> {
        let (record, _) = self.session.conn.get(key).await?;
        let Some(record) = record else {
            return Ok(Some(Deregistered::AlreadyGone));
        };
        if !reconcile::is_mine(&self.found(&record), self.mine, lease.id()) {
            return Ok(Some(Deregistered::AlreadyGone));
        }
        mark_leaving(&self.session, self.driver.service(), &record).await;
        let guard = Guard::Mine(record.created, record.lease.unwrap_or_default());
        Ok(match self.session.conn.delete(key, guard).await? {
            Written::Done(_) => Some(Deregistered::Removed),
            Written::Refused(_) => None,
        })
    }

    fn abandon(&self) {
        let own = self.options.lease == LeaseChoice::Own || self.session.layout.lease_scope() == LeaseScope::PerKey;
        if let (Some(lease), true) = (&self.lease, own) {
            lease.abandon();
        }
        self.driver.report_end(Ok(Deregistered::LeftBehind));
    }
}

/// What ended the rest of a registration.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    /// Something else is wanted.
    Wanted,
    /// The key may be different.
    Look,
    /// The key, or its lease, is gone.
    Gone,
    /// The watch cannot see the key.
    Blind,
    /// Another registration of this session has taken the key over.
    Superseded,
}

/// Waits until the registration is no longer wanted, and then as long as an answer may take.
async fn impatient(driver: &RegistrationDriver) {
    driver.unwanted().await;
    tokio::time::sleep(PATIENCE).await;
}

/// Waits until the key that is followed is gone.
async fn gone(followed: &mut Option<FeedReader<Mirror>>) {
    let Some(reader) = followed else {
        return std::future::pending().await;
    };
    loop {
        match reader.next().await {
            Ok(reading) if reading.value.records().next().is_none() => return,
            Ok(_) => {}
            Err(_) => return std::future::pending().await,
        }
    }
}

/// Writes that the instance of `record` is about to leave, so that whoever watches can tell its departure from a death. Where
/// the layout cannot say it, or it says so already, nothing is written; that it failed keeps nobody from leaving.
pub(crate) async fn mark_leaving(session: &Session, service: &ServiceRef, record: &Record) -> Option<Written> {
    let Session { layout, conn, .. } = session;
    let Decoded { instance, owner, .. } = layout.decode(service, &record.key, &record.value).ok()?;
    if instance.health() == Health::Draining || !layout.carries().contains(&Part::Health) {
        return None;
    }
    let leaving = instance.with_health(Health::Draining);
    let writing = Writing { owner: owner.as_deref(), previous: Some(&record.value), lease: record.lease };
    let value = layout.encode(service, &leaving, &writing).ok()?;
    let written = conn.put(&record.key, Guard::Modified(record.modified), &value, record.lease).await;
    written.inspect_err(|failure| tracing::debug!(?failure, "instance not marked as leaving")).ok()
}

pub(crate) fn owner_of(session: &Session, service: &ServiceRef, record: &Record) -> Option<String> {
    session.layout.decode(service, &record.key, &record.value).ok()?.owner
}
