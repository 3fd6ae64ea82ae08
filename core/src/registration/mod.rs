//! A published instance: the user's handle, and the backend's end of it.
//!
//! The two ends share a *desired* state, written by the handle, and a *reported* one, written by the backend. Nothing
//! the handle does waits for the store; the backend reconciles. [`registration`] makes the pair.

pub(crate) mod graceful;
pub(crate) mod lease;
pub(crate) mod registry;

mod departures;
mod handle;
mod health;

use std::{
    fmt,
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::watch;

pub use self::{departures::Departures, handle::InstanceHandle};
use crate::{
    backend::publisher::OwnerHandle,
    error::{Cause, Error, Owner, with_causes},
    model::{
        instance::{Health, Instance, InstanceUpdate},
        name::ServiceRef,
        revision::{LeaseId, Revision},
    },
    registration::registry::{RegisterOptions, Start},
    runtime::task::TaskOwner,
};

/// State of a registration.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RegistrationState {
    /// Not yet acknowledged for the first time.
    Registering {
        /// Reason for which the last attempt failed, if one did.
        last: Option<Error>,
    },
    /// Published, at this revision.
    Registered {
        /// The revision of the last acknowledged write.
        revision: Revision,
    },
    /// Published as far as is known, but its lease or its watch is in trouble, or a change of it could not be stored
    /// and is tried again.
    Suspect {
        /// Cause of the trouble.
        cause: Error,
    },
    /// It was published, is not any more, and is being put back.
    Reregistering {
        /// Reason for which it was lost, or why the last attempt failed.
        cause: Error,
    },
    /// It was published, and another registration has the key since: a newer one, or one that was told to take over.
    /// This one writes nothing, watches the key, and is published again when that is free.
    Superseded {
        /// [`Error::NotOwner`], with the lease of the other one.
        cause: Error,
    },
    /// Removed because its health check fails, in a store that holds no health; it is registered again when one passes.
    Withdrawn,
    /// Not published for a reason that an operator has to repair; it is tried again at a slow pace.
    Refused {
        /// The reason.
        cause: Error,
    },
    /// Over: nothing will be written any more.
    Ended,
}

/// Result of a deregistration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Deregistered {
    /// The instance was there and was removed.
    Removed,
    /// It was not there any more, or another client's instance has its place, which was left alone.
    AlreadyGone,
    /// The store has not confirmed the removal, or that an earlier write whose answer was lost can no longer bring the
    /// instance back. The session goes on until it has; at the latest the lease runs out.
    LeftBehind,
}

/// Goal of the handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Goal {
    /// The instance is to be published.
    Present,
    /// The instance is to be removed, and this confirmed. So is what a dead predecessor with an equal owner left.
    Absent,
    /// As `Absent`, but the handle was dropped: what this registration never wrote is left alone.
    Dropped,
    /// The instance is to be left alone, and its lease no longer renewed.
    Abandoned,
}

/// For backends whose layouts may have no health: the part of an instance's health that is its presence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "an instance is in the store or not")]
pub enum Shown {
    /// The instance is to be in the store.
    #[default]
    Yes,
    /// It is not, for now: its health check fails, and the store cannot say so in another way. The backend removes it,
    /// reports [`RegistrationState::Withdrawn`], and keeps its claim on the id. Never in a store that holds
    /// [`Health::NotServing`].
    Withdrawn,
}

/// The desired state.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Desired {
    /// The instance as it should be.
    pub instance: Arc<Instance>,
    /// Counts the changes of `instance` and `shown`.
    pub generation: u64,
    /// Goal of the registration.
    pub goal: Goal,
    /// Its presence as long as the goal is [`Goal::Present`].
    pub shown: Shown,
}

#[derive(Clone, Debug)]
struct Reported {
    state: RegistrationState,
    /// The last generation the store has acknowledged, and the revision of that.
    stored: Option<(u64, Revision)>,
    /// The lease of that.
    lease: Option<LeaseId>,
    /// The last generation that the store refused while an earlier one is published, and why.
    refused: Option<(u64, Error)>,
    ended: Option<Result<Deregistered, Error>>,
}

struct Shared {
    service: ServiceRef,
    desired: watch::Sender<Desired>,
    reported: watch::Sender<Reported>,
    /// Check of what the store can hold.
    accepts: OnceLock<Accepts>,
    /// The health checks, once there is one.
    checks: OnceLock<TaskOwner>,
}

type Accepts = Box<dyn Fn(&Instance) -> Result<(), Error> + Send + Sync>;

impl Shared {
    /// Refuses what no store can hold, or this one cannot.
    fn check(&self, instance: &Instance) -> Result<(), Error> {
        instance.check()?;
        self.accepts.get().map_or(Ok(()), |accepts| accepts(instance))
    }

    fn stop_checks(&self) {
        if let Some(checks) = self.checks.get() {
            checks.stop_signal().cancel();
        }
    }

    /// Returns `true` if the registration is over, or about to be.
    fn has_ended(&self) -> bool {
        let unwanted = self.desired.borrow().goal != Goal::Present;
        unwanted || self.reported.borrow().ended.is_some()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, desired, reported, accepts: _, checks: _ } = self;
        let mut shown = f.debug_struct("Shared");
        shown.field("service", service).field("desired", desired).field("reported", reported).finish_non_exhaustive()
    }
}

/// For backends: makes the two ends of a registration. The handle keeps `source`, the backend's session, alive.
pub fn registration(
    service: ServiceRef,
    instance: Instance,
    source: OwnerHandle,
) -> (Registration, RegistrationDriver) {
    let desired = Desired { instance: Arc::new(instance), generation: 1, goal: Goal::Present, shown: Shown::Yes };
    let state = RegistrationState::Registering { last: None };
    let reported = Reported { state, stored: None, lease: None, refused: None, ended: None };
    let (desired, reported) = (watch::Sender::new(desired), watch::Sender::new(reported));
    let shared = Arc::new(Shared { service, desired, reported, accepts: OnceLock::new(), checks: OnceLock::new() });
    let driver = RegistrationDriver { shared: Arc::clone(&shared), desired: shared.desired.subscribe() };
    (Registration { handle: InstanceHandle::new(shared), _source: source }, driver)
}

/// A published instance.
///
/// [`deregister`](Self::deregister) is the orderly end. Dropping it asks for the same without waiting: the session
/// keeps trying to remove the instance until that is confirmed; if the session itself ends first, the lease runs out
/// after its TTL.
#[derive(Debug)]
#[must_use = "dropping it deregisters the instance"]
pub struct Registration {
    handle: InstanceHandle,
    _source: OwnerHandle,
}

impl Registration {
    /// A handle to read the state and to change the instance with, for other tasks. It does not keep the instance
    /// registered.
    pub fn handle(&self) -> InstanceHandle {
        self.handle.clone()
    }

    /// The service it is published under.
    pub fn service(&self) -> &ServiceRef {
        self.handle.service()
    }

    /// The instance as it should be; the store follows.
    pub fn instance(&self) -> Arc<Instance> {
        self.handle.instance()
    }

    /// Its state.
    pub fn state(&self) -> RegistrationState {
        self.handle.state()
    }

    /// The states, for a task of its own: the one as it is now comes first.
    pub fn states(&self) -> RegistrationStates {
        self.handle.states()
    }

    /// The lease of the last acknowledged write; `None` before one. It stays after that lease was lost, until there is
    /// another one. With a [`Migration`](crate::Migration) it is that of the first side which is written.
    pub fn lease(&self) -> Option<LeaseId> {
        self.handle.lease()
    }

    /// Changes the instance in place, see [`InstanceHandle::update`].
    ///
    /// # Errors
    ///
    /// Those of [`InstanceHandle::update`].
    ///
    /// # Cancel safety
    ///
    /// The change is made even if the future is never polled.
    pub fn update(
        &self,
        change: impl FnMut(&mut InstanceUpdate),
    ) -> impl Future<Output = Result<Revision, Error>> + Send + 'static {
        self.handle.update(change)
    }

    /// Lets a check drive the health, see [`InstanceHandle::health_check`].
    ///
    /// # Errors
    ///
    /// Those of [`InstanceHandle::health_check`].
    pub fn health_check<F, C>(&self, interval: Duration, check: F) -> Result<(), Error>
    where
        F: Fn() -> C + Send + Sync + 'static,
        C: Future<Output = Health> + Send + 'static,
    {
        self.handle.health_check(interval, check)
    }

    /// Wants the instance in the store or not, without a change of it.
    pub(crate) fn show(&self, shown: Shown) {
        health::show(self.shared(), shown);
    }

    /// Returns `true` if the store can hold an instance, for as long as the session lives.
    pub(crate) fn checker(&self) -> impl Fn(&Instance) -> Result<(), Error> + Send + Sync + use<> {
        let shared = Arc::clone(self.shared());
        move |instance| shared.check(instance)
    }

    fn shared(&self) -> &Arc<Shared> {
        self.handle.shared()
    }

    /// Wants something else than the instance to be present; the checks end.
    fn end(&self, goal: Goal) {
        set_goal(self.shared(), goal);
        self.shared().stop_checks();
    }

    /// Removes the instance and confirms it. After this returns no late write brings it back.
    ///
    /// The removal is guarded: an instance that another client has registered under the id meanwhile is left alone.
    /// What a dead process with an equal `owner` left under the id is removed, also before it could be taken over.
    ///
    /// Without an answer from the store it returns [`Deregistered::LeftBehind`] after a few seconds, and goes on in the
    /// background until the removal is confirmed.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the session ended first; what the registration had given up for, if it had.
    ///
    /// # Cancel safety
    ///
    /// The removal goes on in the background.
    pub async fn deregister(self) -> Result<Deregistered, Error> {
        self.end(Goal::Absent);
        let mut reported = self.shared().reported.subscribe();
        let reported = reported.wait_for(|reported| reported.ended.is_some()).await.map_err(|_| Error::Closed)?;
        reported.ended.clone().unwrap_or(Err(Error::Closed))
    }

    /// Stops renewing the lease, where it is its own, and leaves the instance to run out. For tests and hot restarts.
    /// An instance on a shared or given lease is no longer looked after, and lives as long as that lease; a later
    /// registration of the same process needs an equal `owner` to take it over.
    pub fn abandon(self) {
        self.end(Goal::Abandoned);
    }

    /// For backends: what `register` does after the driver was started: waits as `start` says.
    ///
    /// # Errors
    ///
    /// See [`Registry::register`](crate::Registry::register).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws the registration.
    pub async fn started(self, options: &RegisterOptions) -> Result<Self, Error> {
        let limit = match options.start {
            Start::Background => return Ok(self),
            Start::FailFast => crate::registration::registry::DEFAULT_START,
            Start::Wait(limit) => limit,
        };
        let fail_fast = options.start == Start::FailFast;
        let mut reported = self.shared().reported.subscribe();
        let first = reported.wait_for(|reported| match &reported.state {
            RegistrationState::Registering { last: Some(Error::Observing { .. }) } => false,
            RegistrationState::Registering { last } => fail_fast && last.is_some(),
            _ => true,
        });
        let outcome = tokio::time::timeout(limit, first).await;
        let state = match outcome {
            Ok(Ok(reported)) => reported.state.clone(),
            Ok(Err(_)) => return Err(Error::Closed),
            Err(_) => self.state(),
        };
        match state {
            RegistrationState::Registering { last: Some(error) } if fail_fast && !is_observing(&error) => Err(error),
            RegistrationState::Registering { last } => {
                let cause = last.map(|error| Arc::new(error) as Cause);
                Err(Error::Timeout { op: "register", limit, cause })
            }
            RegistrationState::Refused { cause } => Err(cause),
            RegistrationState::Ended => Err(self.end_cause()),
            RegistrationState::Registered { .. }
            | RegistrationState::Suspect { .. }
            | RegistrationState::Reregistering { .. }
            | RegistrationState::Withdrawn
            | RegistrationState::Superseded { .. } => Ok(self),
        }
    }

    fn end_cause(&self) -> Error {
        match &self.shared().reported.borrow().ended {
            Some(Err(error)) => error.clone(),
            _ => Error::Closed,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.end(Goal::Dropped);
    }
}

/// The first goal other than `Present` stays: neither a drop after `abandon` nor anything else revives or removes it.
fn set_goal(shared: &Shared, goal: Goal) {
    shared.desired.send_if_modified(|desired| {
        let first = desired.goal == Goal::Present;
        if first {
            desired.goal = goal;
        }
        first
    });
}

/// The states of a registration, for one reader.
#[derive(Debug)]
pub struct RegistrationStates {
    reported: watch::Receiver<Reported>,
    /// The end was returned.
    ended: bool,
}

impl RegistrationStates {
    fn new(mut reported: watch::Receiver<Reported>) -> Self {
        // The first call returns the state as it is.
        reported.mark_changed();
        Self { reported, ended: false }
    }

    /// First the state as it is now, then each change; a slow reader skips states and gets the latest one.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] once [`RegistrationState::Ended`] was returned.
    ///
    /// # Cancel safety
    ///
    /// What was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<RegistrationState, Error> {
        if self.ended {
            return Err(Error::Closed);
        }
        self.reported.changed().await.map_err(|_| Error::Closed)?;
        let state = self.reported.borrow_and_update().state.clone();
        self.ended = matches!(state, RegistrationState::Ended);
        Ok(state)
    }
}

/// For backends: a look at another registration of the same session, and the way to end it. It keeps nothing alive but
/// the state.
#[derive(Clone, Debug)]
pub struct Withdrawal {
    shared: Arc<Shared>,
}

impl Withdrawal {
    /// Returns `true` once the instance is no longer to be present.
    pub fn is_withdrawn(&self) -> bool {
        self.shared.desired.borrow().goal != Goal::Present
    }

    /// Wants the instance to be absent, as if its handle was dropped.
    pub fn withdraw(&self) {
        set_goal(&self.shared, Goal::Dropped);
        self.shared.stop_checks();
    }

    /// Returns the revision of the last acknowledged write; `None` before one.
    pub fn stored(&self) -> Option<Revision> {
        self.shared.reported.borrow().stored.map(|(_, revision)| revision)
    }
}

/// For backends: the end of a registration that does the work. Dropping it ends the registration.
#[derive(Debug)]
pub struct RegistrationDriver {
    shared: Arc<Shared>,
    desired: watch::Receiver<Desired>,
}

impl RegistrationDriver {
    /// Lets changes through only if `accepts` does: what the store cannot hold is refused at once, not in the
    /// background. It is called without a lock. Only the first call counts.
    pub fn accept_only(&self, accepts: impl Fn(&Instance) -> Result<(), Error> + Send + Sync + 'static) {
        // A second one would come after changes that the first one let through.
        let _ = self.shared.accepts.set(Box::new(accepts));
    }

    /// The service to publish under.
    pub fn service(&self) -> &ServiceRef {
        &self.shared.service
    }

    /// Tells other registrations whether this one is on its way out.
    pub fn withdrawal(&self) -> Withdrawal {
        Withdrawal { shared: Arc::clone(&self.shared) }
    }

    /// The desired state.
    pub fn desired(&mut self) -> Desired {
        self.desired.borrow_and_update().clone()
    }

    /// Goal for the instance.
    pub fn goal(&self) -> Goal {
        self.desired.borrow().goal
    }

    /// Waits until the desired state differs from what [`desired`](Self::desired) returned last. Returns at once when
    /// the instance is no longer to be present, however often that was seen: whoever waits would miss the end
    /// otherwise.
    ///
    /// # Cancel safety
    ///
    /// A change that was not returned is returned by the next call.
    pub async fn changed(&mut self) {
        if self.goal() != Goal::Present {
            return;
        }
        // The sender lives in `shared`, so this cannot fail.
        let _ = self.desired.changed().await;
    }

    /// Waits until the instance is no longer to be present. Takes note of nothing that [`changed`](Self::changed)
    /// tells.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn unwanted(&self) {
        // The sender lives in `shared`, so this cannot fail.
        let _ = self.shared.desired.subscribe().wait_for(|desired| desired.goal != Goal::Present).await;
    }

    /// The state that was reported last.
    pub fn state(&self) -> RegistrationState {
        self.shared.reported.borrow().state.clone()
    }

    /// Reports the state; a repetition of it wakes nobody.
    pub fn report(&self, state: RegistrationState) {
        let new = state.clone();
        let changed = self.shared.reported.send_if_modified(|reported| {
            let changed = !alike(&reported.state, &state);
            reported.state = state;
            changed
        });
        if changed {
            self.log(&new);
        }
    }

    /// Reports that the key belongs to another registration, under `lease`.
    pub fn report_superseded(&self, owner: Owner, lease: LeaseId) {
        let service = self.shared.service.clone();
        let id = self.shared.desired.borrow().instance.id().clone();
        self.report(RegistrationState::Superseded { cause: Error::NotOwner { service, id, owner, lease } });
    }

    /// Reports the lease of the write that [`report_stored`](Self::report_stored) tells next.
    pub fn report_lease(&self, lease: LeaseId) {
        // Nobody waits for it.
        self.shared.reported.send_if_modified(|reported| {
            reported.lease = Some(lease);
            false
        });
    }

    /// Reports that the store acknowledged `generation` at `revision`.
    pub fn report_stored(&self, generation: u64, revision: Revision) {
        let mut again = false;
        let state = RegistrationState::Registered { revision };
        self.shared.reported.send_modify(|reported| {
            again = matches!(reported.state, RegistrationState::Registered { .. });
            reported.stored = Some((generation, revision));
            reported.state = state.clone();
        });
        if !again {
            self.log(&state);
        }
    }

    /// Reports that the store refuses `generation` for a reason that an operator has to repair, and that what was
    /// stored before is published still, which is [`RegistrationState::Suspect`]. Those that wait for the change get
    /// `cause`. It may be stored all the same, later.
    pub fn report_refused(&self, generation: u64, cause: Error) {
        // First, for readers that are woken by it.
        self.report(RegistrationState::Suspect { cause: cause.clone() });
        self.shared.reported.send_modify(|reported| reported.refused = Some((generation, cause)));
    }

    fn log(&self, state: &RegistrationState) {
        use RegistrationState as S;
        let service = &self.shared.service;
        let instance = Arc::clone(&self.shared.desired.borrow().instance);
        let instance = instance.id();
        match state {
            S::Registering { last: None } => {}
            S::Registering { last: Some(cause) } if is_observing(cause) => {
                let cause = with_causes(cause);
                tracing::info!(%service, %instance, %cause, "id held, equal `owner` options would take it over at once");
            }
            S::Registering { last: Some(cause) } => {
                let cause = with_causes(cause);
                tracing::warn!(%service, %instance, %cause, "instance not registered yet");
            }
            S::Registered { revision } => tracing::info!(%service, %instance, %revision, "instance registered"),
            S::Suspect { cause } => {
                tracing::warn!(%service, %instance, cause = %with_causes(cause), "registration suspect");
            }
            S::Reregistering { cause } => {
                tracing::warn!(%service, %instance, cause = %with_causes(cause), "instance lost, registering again");
            }
            S::Superseded { cause } => {
                tracing::warn!(%service, %instance, cause = %with_causes(cause), "registration superseded");
            }
            S::Withdrawn => tracing::warn!(%service, %instance, "instance withdrawn, its health check fails"),
            S::Refused { cause } => {
                tracing::error!(%service, %instance, cause = %with_causes(cause), "registration refused");
            }
            S::Ended => tracing::info!(%service, %instance, "registration ended"),
        }
    }

    /// Reports why the instance is not published yet, or not any more; the attempt goes on.
    pub fn report_trouble(&self, cause: Error) {
        self.report(if self.was_stored() {
            RegistrationState::Reregistering { cause }
        } else {
            RegistrationState::Registering { last: Some(cause) }
        });
    }

    /// Reports a failed attempt, or the loss of what was stored. Trouble that will not pass by itself becomes
    /// [`RegistrationState::Refused`].
    pub fn report_failure(&self, error: Error) {
        if error.is_retryable() {
            self.report_trouble(error);
        } else {
            self.report(RegistrationState::Refused { cause: error });
        }
    }

    /// Returns `true` if the registration was published at least once.
    pub fn was_stored(&self) -> bool {
        self.shared.reported.borrow().stored.is_some()
    }

    /// Reports what became of the removal, or why it ended by itself. A later report replaces an earlier
    /// [`Deregistered::LeftBehind`], though a caller of `deregister` has seen only the first.
    pub fn report_end(&self, outcome: Result<Deregistered, Error>) {
        let mut again = false;
        self.shared.reported.send_modify(|reported| {
            again = reported.ended.is_some();
            reported.ended = Some(outcome);
            reported.state = RegistrationState::Ended;
        });
        if !again {
            self.log(&RegistrationState::Ended);
        }
    }
}

impl Drop for RegistrationDriver {
    fn drop(&mut self) {
        self.shared.reported.send_if_modified(|reported| {
            let open = reported.ended.is_none();
            if open {
                reported.ended = Some(Err(Error::Closed));
                reported.state = RegistrationState::Ended;
            }
            open
        });
    }
}

fn is_observing(error: &Error) -> bool {
    matches!(error, Error::Observing { .. })
}

/// Returns `true` if two states tell a reader the same. Causes are compared by their text, and the time that an
/// observation still takes makes no difference.
fn alike(old: &RegistrationState, new: &RegistrationState) -> bool {
    use RegistrationState as S;
    let text = |error: &Error| error.to_string();
    match (old, new) {
        (S::Registering { last: Some(a) }, S::Registering { last: Some(b) }) if is_observing(a) => is_observing(b),
        (S::Registering { last: a }, S::Registering { last: b }) => a.as_ref().map(text) == b.as_ref().map(text),
        (S::Registered { revision: a }, S::Registered { revision: b }) => a == b,
        (S::Suspect { cause: a }, S::Suspect { cause: b })
        | (S::Reregistering { cause: a }, S::Reregistering { cause: b })
        | (S::Superseded { cause: a }, S::Superseded { cause: b })
        | (S::Refused { cause: a }, S::Refused { cause: b }) => text(a) == text(b),
        (S::Withdrawn, S::Withdrawn) | (S::Ended, S::Ended) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, InstanceId};

    pub(super) fn instance() -> Instance {
        Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap()
    }

    pub(super) fn pair() -> (Registration, RegistrationDriver) {
        registration(ServiceRef::parse("s").unwrap(), instance(), Arc::new(()))
    }

    #[tokio::test(start_paused = true)]
    async fn an_update_is_wanted_at_once_even_if_nobody_waits_for_it() {
        let (registration, mut driver) = pair();
        drop(registration.update(|draft| {
            draft.weight(7);
        }));
        let desired = driver.desired();
        assert_eq!((desired.instance.weight(), desired.generation), (7, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_update_returns_when_it_or_a_later_one_is_stored() {
        let (registration, driver) = pair();
        let stored = registration.update(|draft| {
            draft.weight(7);
        });
        driver.report_stored(3, Revision::new(9));
        assert_eq!(stored.await.unwrap(), Revision::new(9));
    }

    #[tokio::test(start_paused = true)]
    async fn an_update_that_the_store_refuses_says_so_and_may_be_stored_later() {
        let (registration, driver) = pair();
        driver.report_stored(1, Revision::new(5));
        let first = registration.update(|draft| _ = draft.weight(7));
        driver.report_refused(2, Error::StorageFull);
        assert!(matches!(first.await, Err(Error::StorageFull)));
        assert!(matches!(registration.state(), RegistrationState::Suspect { cause: Error::StorageFull }));
        // What was refused before says nothing about a later change.
        let second = registration.update(|draft| _ = draft.weight(8));
        driver.report_stored(3, Revision::new(9));
        assert_eq!(second.await.unwrap(), Revision::new(9));
        assert!(matches!(registration.state(), RegistrationState::Registered { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn an_update_that_is_too_large_changes_nothing() {
        let (registration, mut driver) = pair();
        let refused = registration.update(|draft| {
            draft.metadata("blob", "x".repeat(2 << 20));
        });
        assert!(matches!(refused.await, Err(Error::TooLarge { .. })));
        assert_eq!(driver.desired().generation, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_handle_wants_it_absent_and_abandoning_stays_abandoned() {
        let (registration, driver) = pair();
        drop(registration);
        assert_eq!(driver.goal(), Goal::Dropped);
        let (registration, driver) = pair();
        registration.abandon();
        assert_eq!(driver.goal(), Goal::Abandoned);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_noticed_although_it_was_read_together_with_the_instance() {
        let (registration, mut driver) = pair();
        drop(registration);
        driver.desired();
        driver.changed().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_dies_ends_every_wait() {
        let (registration, driver) = pair();
        let stored = registration.update(|draft| {
            draft.weight(1);
        });
        drop(driver);
        assert!(matches!(stored.await, Err(Error::Closed)));
        assert!(matches!(registration.deregister().await, Err(Error::Closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_the_start_ends_at_the_deadline_with_the_last_cause() {
        let (registration, driver) = pair();
        driver.report(RegistrationState::Registering { last: Some(Error::LeaseLost) });
        let options = RegisterOptions::new().start(Start::Wait(Duration::from_secs(3)));
        let error = registration.started(&options).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { cause: Some(_), .. }), "{error:?}");
        assert_eq!(driver.goal(), Goal::Dropped);
    }

    #[tokio::test(start_paused = true)]
    async fn failing_fast_returns_the_first_error() {
        let (registration, driver) = pair();
        driver.report(RegistrationState::Registering { last: Some(Error::LeaseLost) });
        let options = RegisterOptions::new().start(Start::FailFast);
        assert!(matches!(registration.started(&options).await, Err(Error::LeaseLost)));
    }
}
