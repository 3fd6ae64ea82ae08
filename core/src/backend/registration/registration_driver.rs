//! The backend's end of a registration.
//!
//! [`registration`] creates both ends. The task of the registration owns the [`RegistrationDriver`]: it reads the
//! desired state and reports the actual one. `register` ends with [`wait_for_start`].

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::{
    backend::{
        discovery::publisher::OwnerHandle,
        registration::desired_state::{Desired, Goal, Shown},
    },
    error::{Cause, Error, Owner, with_causes},
    model::{
        escape::escaped,
        instance::Instance,
        name::ServiceRef,
        revision::{LeaseId, Revision},
    },
    registration::{
        handle::Registration,
        options::{DEFAULT_START, RegisterOptions, Start},
        registration_cell::{RegistrationCell, Reported, set_goal},
        state::{Deregistered, RegistrationState, alike, is_observing},
    },
};

/// Creates both ends of a registration. The handle keeps `source`, the backend's session, alive.
///
/// # Errors
///
/// Those of [`RegisterOptions::check`] and [`Instance::check`].
pub fn registration(
    service: ServiceRef,
    instance: Instance,
    options: &RegisterOptions,
    source: OwnerHandle,
) -> Result<(Registration, RegistrationDriver), Error> {
    options.check()?;
    instance.check()?;
    let desired = Desired { instance: Arc::new(instance), generation: 1, goal: Goal::Present, shown: Shown::Yes };
    let state = RegistrationState::Registering { last: None };
    let reported = Reported { state, stored: None, lease: None, refused: None, ended: None };
    let (desired, reported) = (watch::Sender::new(desired), watch::Sender::new(reported));
    let cell =
        Arc::new(RegistrationCell { service, desired, reported, accepts: OnceLock::new(), checks: OnceLock::new() });
    let driver = RegistrationDriver { cell: Arc::clone(&cell), desired: cell.desired.subscribe() };
    Ok((Registration::new(cell, source), driver))
}

/// Waits for the start of a registration, according to [`RegisterOptions::start`]. A backend calls it at the end of
/// `register`, after it has started the task with the driver.
///
/// # Errors
///
/// See [`Registry::register`](crate::Registry::register).
///
/// # Cancel safety
///
/// Dropping the future withdraws the registration.
pub async fn wait_for_start(registration: Registration, options: &RegisterOptions) -> Result<Registration, Error> {
    let limit = match options.start {
        Start::Background => return Ok(registration),
        Start::FailFast => DEFAULT_START,
        Start::Wait(limit) => limit,
    };
    let fail_fast = options.start == Start::FailFast;
    let mut reported = registration.cell().reported.subscribe();
    let first = reported.wait_for(|reported| match &reported.state {
        RegistrationState::Registering { last: Some(Error::Observing { .. }) } => false,
        RegistrationState::Registering { last } => fail_fast && last.is_some(),
        _ => true,
    });
    let outcome = tokio::time::timeout(limit, first).await;
    let state = match outcome {
        Ok(Ok(reported)) => reported.state.clone(),
        Ok(Err(_)) => return Err(Error::Closed),
        Err(_) => registration.state(),
    };
    match state {
        RegistrationState::Registering { last: Some(error) } if fail_fast && !is_observing(&error) => Err(error),
        RegistrationState::Registering { last } => {
            let cause = last.map(|error| Arc::new(error) as Cause);
            Err(Error::Timeout { op: "register", limit, cause })
        }
        RegistrationState::Refused { cause } => Err(cause),
        RegistrationState::Ended => Err(registration.end_cause()),
        RegistrationState::Registered { .. }
        | RegistrationState::Suspect { .. }
        | RegistrationState::Reregistering { .. }
        | RegistrationState::Withdrawn
        | RegistrationState::Superseded { .. } => Ok(registration),
    }
}

/// Reads and ends another registration of the same session. It keeps only the shared state alive.
#[derive(Clone, Debug)]
pub struct Withdrawal {
    cell: Arc<RegistrationCell>,
}

impl Withdrawal {
    /// Returns `true` once the instance is no longer to be present.
    pub fn is_withdrawn(&self) -> bool {
        self.cell.desired.borrow().goal != Goal::Present
    }

    /// Sets the goal to absence, like a drop of the handle.
    pub fn withdraw(&self) {
        set_goal(&self.cell, Goal::Dropped);
        self.cell.stop_checks();
    }

    /// Returns the revision of the last acknowledged write; `None` before one.
    pub fn stored(&self) -> Option<Revision> {
        self.cell.reported.borrow().stored.map(|(_, revision)| revision)
    }
}

/// Backend's end of a registration: reads the desired state and reports the actual one. Dropping it ends the
/// registration.
#[derive(Debug)]
pub struct RegistrationDriver {
    cell: Arc<RegistrationCell>,
    desired: watch::Receiver<Desired>,
}

impl RegistrationDriver {
    /// Sets the check of changes: a change that the store cannot hold is refused at once, not in the background.
    /// `accepts` is called without a lock. Only the first call has an effect.
    pub fn accept_only(&self, accepts: impl Fn(&Instance) -> Result<(), Error> + Send + Sync + 'static) {
        // A second check would come after changes that the first one accepted.
        let _ = self.cell.accepts.set(Box::new(accepts));
    }

    /// The service to publish under.
    pub fn service(&self) -> &ServiceRef {
        &self.cell.service
    }

    /// Handle to this registration for the other ones of the session.
    pub fn withdrawal(&self) -> Withdrawal {
        Withdrawal { cell: Arc::clone(&self.cell) }
    }

    /// The desired state.
    pub fn desired(&mut self) -> Desired {
        self.desired.borrow_and_update().clone()
    }

    /// Goal for the instance.
    pub fn goal(&self) -> Goal {
        self.desired.borrow().goal
    }

    /// Waits until the desired state differs from the one that [`desired`](Self::desired) returned last. Returns at
    /// once if the instance is no longer to be present, even if that was returned before: a later call would miss the
    /// end otherwise.
    ///
    /// # Cancel safety
    ///
    /// A change that was not returned is returned by the next call.
    pub async fn changed(&mut self) {
        if self.goal() != Goal::Present {
            return;
        }
        // The sender lives in `cell`, so this cannot fail.
        let _ = self.desired.changed().await;
    }

    /// Waits until the instance is no longer to be present. Leaves the changes to
    /// [`changed`](Self::changed).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn unwanted(&self) {
        // The sender lives in `cell`, so this cannot fail.
        let _ = self.cell.desired.subscribe().wait_for(|desired| desired.goal != Goal::Present).await;
    }

    /// The state that was reported last.
    pub fn state(&self) -> RegistrationState {
        self.cell.reported.borrow().state.clone()
    }

    /// Reports the state; a repetition of it wakes no reader.
    pub fn report(&self, state: RegistrationState) {
        let new = state.clone();
        let changed = self.cell.reported.send_if_modified(|reported| {
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
        let service = self.cell.service.clone();
        let id = self.cell.desired.borrow().instance.id().clone();
        self.report(RegistrationState::Superseded { cause: Error::NotOwner { service, id, owner, lease } });
    }

    /// Reports the lease of the write that the next [`report_stored`](Self::report_stored) reports.
    pub fn report_lease(&self, lease: LeaseId) {
        // No reader waits for it.
        self.cell.reported.send_if_modified(|reported| {
            reported.lease = Some(lease);
            false
        });
    }

    /// Reports that the store acknowledged `generation` at `revision`.
    pub fn report_stored(&self, generation: u64, revision: Revision) {
        let mut again = false;
        let state = RegistrationState::Registered { revision };
        self.cell.reported.send_modify(|reported| {
            again = matches!(reported.state, RegistrationState::Registered { .. });
            reported.stored = Some((generation, revision));
            reported.state = state.clone();
        });
        if !again {
            self.log(&state);
        }
    }

    /// Reports that the store refuses `generation` for a reason that an operator has to repair, while an earlier
    /// generation is still published ([`RegistrationState::Suspect`]). Calls that wait for the change receive `cause`.
    /// The generation may still be stored later.
    pub fn report_refused(&self, generation: u64, cause: Error) {
        // Reported first, for readers that the refusal wakes.
        self.report(RegistrationState::Suspect { cause: cause.clone() });
        self.cell.reported.send_modify(|reported| reported.refused = Some((generation, cause)));
    }

    fn log(&self, state: &RegistrationState) {
        use RegistrationState as S;
        let instance = Arc::clone(&self.cell.desired.borrow().instance);
        let (service, instance) = (escaped(&self.cell.service), escaped(instance.id()));
        match state {
            S::Registering { last: None } => {}
            S::Registering { last: Some(cause) } if is_observing(cause) => {
                let cause = with_causes(cause);
                tracing::info!(
                    %service, %instance, %cause,
                    "id held, equal `owner` options would take it over at once"
                );
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

    /// Reports the reason for which the instance is not published. The attempt goes on.
    pub fn report_trouble(&self, cause: Error) {
        self.report(if self.was_stored() {
            RegistrationState::Reregistering { cause }
        } else {
            RegistrationState::Registering { last: Some(cause) }
        });
    }

    /// Reports a failed attempt, or the loss of a stored instance. An error that will not pass by itself becomes
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
        self.cell.reported.borrow().stored.is_some()
    }

    /// Reports the result of the removal, or the reason for an end without one. A later report replaces an earlier
    /// [`Deregistered::LeftBehind`], though a caller of `deregister` has seen only the first.
    pub fn report_end(&self, outcome: Result<Deregistered, Error>) {
        let mut again = false;
        self.cell.reported.send_modify(|reported| {
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
        self.cell.reported.send_if_modified(|reported| {
            let open = reported.ended.is_none();
            if open {
                reported.ended = Some(Err(Error::Closed));
                reported.state = RegistrationState::Ended;
            }
            open
        });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Endpoint, InstanceId};

    pub(crate) fn instance() -> Instance {
        Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap()
    }

    pub(crate) fn pair() -> (Registration, RegistrationDriver) {
        registration(ServiceRef::parse("s").unwrap(), instance(), &RegisterOptions::new(), Arc::new(())).unwrap()
    }

    #[test]
    fn a_registration_is_validated() {
        let made = |instance, options| registration(ServiceRef::parse("s").unwrap(), instance, &options, Arc::new(()));
        let invalid = made(instance(), RegisterOptions::new().ttl(Duration::ZERO));
        assert!(matches!(invalid, Err(Error::InvalidConfig { field: "ttl", .. })), "{invalid:?}");
        let large = made(instance().with_metadata("blob", "x".repeat(2 << 20)), RegisterOptions::new());
        assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_update_is_desired_at_once_without_an_await() {
        let (registration, mut driver) = pair();
        drop(registration.update(|update| {
            update.weight(7);
        }));
        let desired = driver.desired();
        assert_eq!((desired.instance.weight(), desired.generation), (7, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_update_returns_when_it_or_a_later_one_is_stored() {
        let (registration, driver) = pair();
        let stored = registration.update(|update| {
            update.weight(7);
        });
        driver.report_stored(3, Revision::new(9));
        assert_eq!(stored.await.unwrap(), Revision::new(9));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_update_may_be_stored_later() {
        let (registration, driver) = pair();
        driver.report_stored(1, Revision::new(5));
        let first = registration.update(|update| _ = update.weight(7));
        driver.report_refused(2, Error::StorageFull);
        assert!(matches!(first.await, Err(Error::StorageFull)));
        assert!(matches!(registration.state(), RegistrationState::Suspect { cause: Error::StorageFull }));
        // The refusal of an earlier change does not affect a later one.
        let second = registration.update(|update| _ = update.weight(8));
        driver.report_stored(3, Revision::new(9));
        assert_eq!(second.await.unwrap(), Revision::new(9));
        assert!(matches!(registration.state(), RegistrationState::Registered { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn an_update_that_is_too_large_changes_nothing() {
        let (registration, mut driver) = pair();
        let refused = registration.update(|update| {
            update.metadata("blob", "x".repeat(2 << 20));
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
        let stored = registration.update(|update| {
            update.weight(1);
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
        let error = wait_for_start(registration, &options).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { cause: Some(_), .. }), "{error:?}");
        assert_eq!(driver.goal(), Goal::Dropped);
    }

    #[tokio::test(start_paused = true)]
    async fn failing_fast_returns_the_first_error() {
        let (registration, driver) = pair();
        driver.report(RegistrationState::Registering { last: Some(Error::LeaseLost) });
        let options = RegisterOptions::new().start(Start::FailFast);
        assert!(matches!(wait_for_start(registration, &options).await, Err(Error::LeaseLost)));
    }
}
