//! Health of an instance, set by checks of the user.

use std::{future::Future, sync::Arc, time::Duration};

use crate::{
    backend::registration::desired_state::{Goal, Shown},
    error::Error,
    model::{escape::escaped, instance::Health},
    registration::registration_cell::RegistrationCell,
    runtime::task::caught,
};

/// Representation of a health in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// A field of the instance.
    Instance,
    /// Presence of the instance.
    Presence,
}

impl Carrier {
    /// Determines the representation that the store can hold.
    pub(super) fn of(cell: &RegistrationCell) -> Result<Self, Error> {
        let instance = Arc::clone(&cell.desired.borrow().instance);
        match cell.check(&(*instance).clone().with_health(Health::NotServing)) {
            Ok(()) => Ok(Self::Instance),
            Err(Error::Unsupported { .. }) => Ok(Self::Presence),
            Err(error) => Err(error),
        }
    }
}

/// Runs `check` every `interval` and sets its result as the desired health, until the registration ends.
pub(super) async fn drive<C>(cell: &RegistrationCell, carrier: Carrier, interval: Duration, check: impl Fn() -> C)
where
    C: Future<Output = Health>,
{
    let mut panicked = false;
    while !cell.has_ended() {
        // Called inside the future, because the call itself may panic too.
        let found = caught(tokio::time::timeout(interval, async { check().await })).await;
        if let (Err(message), false) = (&found, panicked) {
            let instance = Arc::clone(&cell.desired.borrow().instance);
            let (service, instance) = (escaped(&cell.service), escaped(instance.id()));
            tracing::error!(%service, %instance, message, "health check panicked");
        }
        panicked = found.is_err();
        let health = found.map_or(Health::NotServing, |found| found.unwrap_or(Health::NotServing));
        match carrier {
            Carrier::Instance => set(cell, health),
            Carrier::Presence => show(cell, if health == Health::Serving { Shown::Yes } else { Shown::Withdrawn }),
        }
        tokio::time::sleep(interval).await;
    }
}

/// Sets the desired health, unless the instance drains: a server that is about to leave must not receive calls because
/// it is healthy.
fn set(cell: &RegistrationCell, health: Health) {
    cell.desired.send_if_modified(|desired| {
        let now = desired.instance.health();
        let changes = desired.goal == Goal::Present && now != Health::Draining && now != health;
        if changes {
            desired.instance = Arc::new((*desired.instance).clone().with_health(health));
            desired.generation += 1;
        }
        changes
    });
}

/// Sets whether the instance is to be in the store.
pub(super) fn show(cell: &RegistrationCell, shown: Shown) {
    cell.desired.send_if_modified(|desired| {
        let changes = desired.goal == Goal::Present && desired.shown != shown;
        if changes {
            desired.shown = shown;
            desired.generation += 1;
        }
        changes
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::registration::registration_driver::tests::pair;

    #[tokio::test(start_paused = true)]
    async fn without_a_health_in_the_store_a_failing_check_withdraws_the_instance() {
        let (registration, mut driver) = pair();
        driver.accept_only(|instance| match instance.health() {
            Health::Serving => Ok(()),
            _ => Err(Error::Unsupported { what: "health".to_owned() }),
        });
        let checks = std::sync::atomic::AtomicU32::new(0);
        let check = move || {
            let number = checks.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            // The health changes every ten checks.
            std::future::ready(if (number / 10).is_multiple_of(2) { Health::NotServing } else { Health::Serving })
        };
        registration.health_check(Duration::from_secs(1), check).unwrap();
        for (shown, generation) in [(Shown::Withdrawn, 2), (Shown::Yes, 3), (Shown::Withdrawn, 4)] {
            driver.changed().await;
            let desired = driver.desired();
            assert_eq!((desired.shown, desired.generation), (shown, generation), "one change each time");
            assert_eq!(desired.instance.health(), Health::Serving);
        }
        // The update is not stored while the instance is withdrawn.
        let update = registration.update(|update| _ = update.weight(7));
        driver.report(crate::RegistrationState::Withdrawn);
        assert!(tokio::time::timeout(Duration::from_secs(1), update).await.is_err());
        assert_eq!(driver.desired().instance.weight(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_health_check_drives_the_health_and_a_stuck_one_counts_as_failing() {
        let (registration, mut driver) = pair();
        registration.health_check(Duration::from_secs(1), std::future::pending).unwrap();
        driver.changed().await;
        assert_eq!(driver.desired().instance.health(), Health::NotServing);
        assert!(registration.health_check(Duration::ZERO, || async { Health::Serving }).is_err());
    }

    /// Collects the log output of this thread.
    #[derive(Clone, Default)]
    struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(line)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_health_check_that_panics_counts_as_failing_and_is_logged_once() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _logging = tracing::subscriber::set_default(subscriber);
        let (registration, mut driver) = pair();
        let checks = std::sync::atomic::AtomicU32::new(0);
        let check = move || {
            let check = checks.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            // The first and the second panic in different places: in the call, and in the future.
            assert!(check != 0, "on purpose");
            async move {
                assert!(check != 1, "on purpose");
                Health::Serving
            }
        };
        registration.health_check(Duration::from_secs(1), check).unwrap();
        for health in [Health::NotServing, Health::Serving] {
            tokio::time::timeout(Duration::from_secs(60), driver.changed()).await.expect("it goes on");
            assert_eq!(driver.desired().instance.health(), health);
        }
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let panics: Vec<_> = log.lines().filter(|line| line.contains("health check panicked")).collect();
        assert!(panics.len() == 1 && panics[0].contains("on purpose"), "{log}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_health_check_is_ignored_while_the_instance_drains() {
        let (registration, mut driver) = pair();
        drop(registration.update(|update| {
            update.health(Health::Draining);
        }));
        driver.desired();
        registration.health_check(Duration::from_secs(1), || async { Health::NotServing }).unwrap();
        let changed = tokio::time::timeout(Duration::from_secs(60), driver.changed()).await;
        assert!(changed.is_err() && driver.desired().instance.health() == Health::Draining);
        drop(registration.update(|update| {
            update.health(Health::Serving);
        }));
        driver.desired();
        tokio::time::timeout(Duration::from_secs(60), driver.changed()).await.expect("it goes on");
        assert_eq!(driver.desired().instance.health(), Health::NotServing, "an update ends it");
    }
}
