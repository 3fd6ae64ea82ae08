//! Handle for other tasks, which reads the state of a registration and changes the instance.

use std::{future::Future, sync::Arc, time::Duration};

use crate::{
    backend::registration::desired_state::{Desired, Goal},
    error::Error,
    model::{
        instance::{Health, Instance, InstanceUpdate},
        name::ServiceRef,
        revision::{LeaseId, Revision},
    },
    registration::{
        health,
        registration_cell::{RegistrationCell, Reported},
        state::RegistrationState,
        state_stream::RegistrationStates,
    },
    runtime::task::TaskOwner,
};

/// Maximum number of attempts of a change while other changes come in between.
const MOST_TRIES: u32 = 64;

/// Reads the state of a registered instance and changes it in place. Clones share the registration.
///
/// It keeps neither the instance registered nor the session alive: the [`Registration`](crate::Registration) that it
/// comes from does. After any end of the registration, [`update`](Self::update) and
/// [`health_check`](Self::health_check) fail with [`Error::Closed`]. [`state`](Self::state) is
/// [`RegistrationState::Ended`] as soon as the removal has been answered, and [`states`](Self::states) end.
///
/// ```
/// # use enlist::{Endpoint, Graceful, Instance, InstanceId, RegisterOptions, Registry, ServiceRef};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = enlist_memory::MemoryStore::new();
/// # let service = ServiceRef::parse("greeter")?;
/// # let instance = Instance::new(InstanceId::parse("a")?, [Endpoint::parse("10.0.0.1:80")?])?;
/// let registration = store.client().register(&service, instance, RegisterOptions::new()).await?;
/// let instance = registration.handle();
/// instance.update(|update| _ = update.weight(50)).await?;
/// registration.deregister().await?;
/// assert!(instance.update(|update| _ = update.weight(100)).await.is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct InstanceHandle {
    cell: Arc<RegistrationCell>,
}

impl InstanceHandle {
    pub(super) fn new(cell: Arc<RegistrationCell>) -> Self {
        Self { cell }
    }

    pub(super) fn cell(&self) -> &Arc<RegistrationCell> {
        &self.cell
    }

    /// The service of the instance.
    pub fn service(&self) -> &ServiceRef {
        &self.cell.service
    }

    /// The desired instance; the store follows.
    pub fn instance(&self) -> Arc<Instance> {
        Arc::clone(&self.cell.desired.borrow().instance)
    }

    /// State of the registration.
    pub fn state(&self) -> RegistrationState {
        self.cell.reported.borrow().state.clone()
    }

    /// States of the registration, for one task. The current state comes first.
    pub fn states(&self) -> RegistrationStates {
        RegistrationStates::new(self.cell.reported.subscribe())
    }

    /// The lease of the last acknowledged write, see [`Registration::lease`](crate::Registration::lease).
    pub fn lease(&self) -> Option<LeaseId> {
        self.cell.reported.borrow().lease
    }

    /// Changes the instance in place. The desired state changes at once, even if the returned future is dropped; the
    /// future waits until it is stored. A change survives re-registration, and a later one replaces it.
    ///
    /// `change` runs on the caller's thread, before this returns, and delays no other caller. If the instance was
    /// changed meanwhile, `change` runs again on the new instance, so concurrent changes are never lost.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] or [`Error::Unsupported`] for what the store cannot hold, [`Error::InvalidAddress`] without
    /// an endpoint, and nothing changes; [`Error::NotOwner`] while the registration is
    /// [`Superseded`](RegistrationState::Superseded), and the change is stored if it is published again;
    /// [`Error::PermissionDenied`], [`Error::AuthFailed`] and [`Error::StorageFull`] if the store refuses it while the
    /// instance stays published as it was ([`Suspect`](RegistrationState::Suspect)), and the change is stored once that
    /// is mended; [`Error::Closed`] once the registration has ended; [`Error::Conflict`], and nothing changes, if
    /// `change` was overtaken 64 times: it updates the instance itself, or takes very long. Without an answer from the
    /// store, and while the instance is [`Withdrawn`](RegistrationState::Withdrawn), the future waits on: put a
    /// deadline on it where that matters.
    ///
    /// # Cancel safety
    ///
    /// The change is made even if the future is never polled.
    pub fn update(
        &self,
        change: impl FnMut(&mut InstanceUpdate),
    ) -> impl Future<Output = Result<Revision, Error>> + Send + 'static {
        let generation = self.edit(change);
        let mut reported = self.cell.reported.subscribe();
        async move {
            let generation = generation?;
            let done = |reported: &Reported| {
                reported.ended.is_some()
                    || reported.stored.is_some_and(|(stored, _)| stored >= generation)
                    || reported.refused.as_ref().is_some_and(|(refused, _)| *refused >= generation)
                    || matches!(reported.state, RegistrationState::Superseded { .. })
            };
            let reported = reported.wait_for(done).await.map_err(|_| Error::Closed)?;
            match (&reported.stored, &reported.refused, &reported.state) {
                (Some((stored, revision)), ..) if *stored >= generation => Ok(*revision),
                (_, Some((refused, cause)), _) if *refused >= generation => Err(cause.clone()),
                (.., RegistrationState::Superseded { cause }) => Err(cause.clone()),
                _ => Err(Error::Closed),
            }
        }
    }

    /// Changes the desired state and returns its generation. No user code runs under the lock, which the backend's
    /// session takes as well.
    fn edit(&self, mut change: impl FnMut(&mut InstanceUpdate)) -> Result<u64, Error> {
        for _ in 0..MOST_TRIES {
            if self.cell.has_ended() {
                return Err(Error::Closed);
            }
            let Desired { instance, generation, .. } = self.cell.desired.borrow().clone();
            let mut update = InstanceUpdate::new((*instance).clone());
            change(&mut update);
            let instance = Arc::new(update.finish());
            self.cell.check(&instance)?;
            let replaced = self.cell.desired.send_if_modified(|desired| {
                let same = desired.goal == Goal::Present && desired.generation == generation;
                if same {
                    (desired.instance, desired.generation) = (instance, generation + 1);
                }
                same
            });
            if replaced {
                return Ok(generation + 1);
            }
        }
        let revision = self.cell.reported.borrow().stored.map(|(_, revision)| revision);
        Err(Error::Conflict { what: "the instance".to_owned(), revision: revision.unwrap_or_default() })
    }

    /// Runs `check` every `interval` and stores its result as the health, until the registration ends.
    ///
    /// In a store that cannot hold a health, a check that finds anything but [`Health::Serving`] removes the instance
    /// ([`Withdrawn`](RegistrationState::Withdrawn)), and one that passes registers it again. It keeps its id and its
    /// lease meanwhile.
    ///
    /// A check that takes longer than `interval`, or panics, counts as [`Health::NotServing`]. While the instance is
    /// [`Health::Draining`] the results of checks are ignored: that ends only with an [`update`](Self::update).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for an interval of zero; [`Error::Closed`] outside a runtime, and once the registration
    /// has ended.
    pub fn health_check<F, C>(&self, interval: Duration, check: F) -> Result<(), Error>
    where
        F: Fn() -> C + Send + Sync + 'static,
        C: Future<Output = Health> + Send + 'static,
    {
        if interval.is_zero() {
            return Err(Error::invalid_config("interval", "it must be above zero"));
        }
        let carrier = health::Carrier::of(&self.cell)?;
        if self.cell.has_ended() {
            return Err(Error::Closed);
        }
        let checks = self.cell.checks.get_or_init(TaskOwner::new);
        let stop = checks.stop_signal();
        let cell = Arc::clone(&self.cell);
        checks.spawn("health check", async move {
            stop.run_until_cancelled(health::drive(&cell, carrier, interval, check)).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Deregistered, RegisterOptions,
        backend::registration::registration_driver::{
            registration,
            tests::{instance, pair},
        },
    };

    #[tokio::test(start_paused = true)]
    async fn a_handle_keeps_neither_the_instance_nor_the_session() {
        let source = Arc::new(());
        let service = ServiceRef::parse("s").unwrap();
        let (registration, driver) =
            registration(service, instance(), &RegisterOptions::new(), Arc::<()>::clone(&source) as _).unwrap();
        let handle = registration.handle();
        assert_eq!(handle.instance().id().as_str(), "a");
        drop(registration);
        assert_eq!((driver.goal(), Arc::strong_count(&source)), (Goal::Dropped, 1));

        let refused = handle.update(|update| {
            update.weight(7);
        });
        assert!(matches!(refused.await, Err(Error::Closed)));
        let refused = handle.health_check(Duration::from_secs(1), || async { Health::Serving });
        assert!(matches!(refused, Err(Error::Closed)));
        let mut states = handle.states();
        assert!(
            matches!(states.next().await, Ok(RegistrationState::Registering { .. })),
            "the state as it is comes first"
        );
        driver.report_end(Ok(Deregistered::Removed));
        assert!(matches!(handle.state(), RegistrationState::Ended));
        for mut states in [states, handle.states()] {
            assert!(matches!(states.next().await, Ok(RegistrationState::Ended)));
            assert!(matches!(states.next().await, Err(Error::Closed)), "although the handle is still there");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_ended_by_itself_is_not_changed_any_more() {
        let (registration, mut driver) = pair();
        driver.report_end(Err(Error::Closed));
        let refused = registration.handle().update(|update| {
            update.weight(7);
        });
        assert!(matches!(refused.await, Err(Error::Closed)));
        assert_eq!(driver.desired().generation, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn checks_end_with_the_registration_and_not_with_the_handle_that_began_them() {
        let (registration, mut driver) = pair();
        let checked = Arc::new(());
        let check = Arc::clone(&checked);
        let check = move || {
            drop(Arc::clone(&check));
            async { Health::NotServing }
        };
        registration.handle().health_check(Duration::from_secs(1), check).unwrap();
        driver.changed().await;
        assert_eq!(driver.desired().instance.health(), Health::NotServing);
        drop(registration);
        while Arc::strong_count(&checked) > 1 {
            tokio::task::yield_now().await;
        }
    }

    /// Runs `act` on a thread of its own, so that a deadlock in it fails the test instead of blocking it.
    fn in_time<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, outcome) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(act()));
        outcome.recv_timeout(Duration::from_secs(5)).expect("in time")
    }

    #[test]
    fn the_closure_of_an_update_may_look_at_the_registration() {
        let (registration, mut driver) = pair();
        in_time(move || {
            drop(registration.update(|update| {
                assert!(matches!(registration.state(), RegistrationState::Registering { .. }));
                update.weight(registration.instance().weight() + 1);
            }));
            assert_eq!(driver.desired().instance.weight(), 101);
        });
    }

    #[test]
    fn the_closure_of_an_update_blocks_no_other_task() {
        let (registration, mut driver) = pair();
        let (begun, begins) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let handle = registration.handle();
        let slow = std::thread::spawn(move || {
            drop(handle.update(|update| {
                let _ = begun.send(());
                let _ = ends.recv();
                update.weight(7);
            }));
        });
        begins.recv().unwrap();
        let (goal, generation) = in_time(move || (driver.goal(), driver.desired().generation));
        assert_eq!((goal, generation), (Goal::Present, 1));
        drop(end);
        slow.join().unwrap();
        assert_eq!(registration.instance().weight(), 7);
    }

    #[test]
    fn no_change_of_many_at_once_is_lost() {
        let (registration, _driver) = pair();
        let handle = registration.handle();
        let add = || {
            for _ in 0..100 {
                drop(handle.update(|update| _ = update.weight(update.instance().weight() + 1)));
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|_| _ = scope.spawn(add)));
        assert_eq!(registration.instance().weight(), 500);
    }

    #[test]
    fn an_update_within_an_update_is_made_and_the_outer_one_is_refused() {
        let (registration, _driver) = pair();
        let (outer, weight) = in_time(move || {
            let outer = registration.update(|update| {
                drop(registration.update(|update| _ = update.weight(7)));
                update.weight(8);
            });
            (futures::FutureExt::now_or_never(outer), registration.instance().weight())
        });
        assert!(matches!(outer, Some(Err(Error::Conflict { .. }))), "{outer:?}");
        assert_eq!(weight, 7);
    }
}
