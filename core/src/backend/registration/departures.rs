//! Orderly end of instances that outlive their session because their leases belong to another client.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::backend::registration::registration_driver::Withdrawal;

/// For backends: registrations of a session that are withdrawn one by one when the session is closed. It is for those
/// on [given leases](crate::LeaseChoice::Given), which the session does not revoke.
#[derive(Debug, Default)]
pub struct Departures {
    closing: CancellationToken,
    running: TaskTracker,
}

impl Departures {
    /// Returns `true` once the session is being closed, so nothing new should begin.
    pub fn has_begun(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// Wraps `task`, the work of a registration, so that it is withdrawn when the session is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `task`, and a close does not wait for it any more.
    pub fn accompany<F>(&self, withdrawal: Withdrawal, task: F) -> impl Future<Output = ()> + use<F>
    where
        F: Future<Output = ()>,
    {
        let (closing, running) = (self.closing.clone(), self.running.token());
        let task = Box::pin(task);
        async move {
            let _running = running;
            let mut task = task;
            tokio::select! {
                // Polled first, for a registration that begins too late.
                biased;
                () = closing.cancelled() => withdrawal.withdraw(),
                () = &mut task => return,
            }
            task.await;
        }
    }

    /// Withdraws all registrations and waits, at most `limit`, until they have ended. Returns `true` if they have.
    ///
    /// # Cancel safety
    ///
    /// The registrations are withdrawn nevertheless.
    pub async fn leave(&self, limit: Duration) -> bool {
        self.closing.cancel();
        self.running.close();
        tokio::time::timeout(limit, self.running.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::registration::{desired_state::Goal, registration_driver::tests::pair};

    #[tokio::test(start_paused = true)]
    async fn accompanied_registrations_are_withdrawn_and_awaited() {
        let departures = Departures::default();
        let owner = crate::TaskOwner::new();
        let mut kept = Vec::new();
        for takes in [1, 3, 60] {
            let (registration, driver) = pair();
            let withdrawal = driver.withdrawal();
            let task = async move {
                driver.unwanted().await;
                assert_eq!(driver.goal(), Goal::Dropped);
                tokio::time::sleep(Duration::from_secs(takes)).await;
            };
            owner.spawn("registration", departures.accompany(withdrawal, task)).unwrap();
            kept.push(registration);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!departures.has_begun());
        let begun = tokio::time::Instant::now();
        assert!(!departures.leave(Duration::from_secs(2)).await);
        assert!(!departures.leave(Duration::from_secs(2)).await, "one takes longer");
        assert!(departures.leave(Duration::from_secs(600)).await && departures.has_begun());
        assert_eq!(begun.elapsed(), Duration::from_secs(60));
        let (registration, driver) = pair();
        let withdrawal = driver.withdrawal();
        let late = async move { assert!(driver.withdrawal().is_withdrawn(), "it begins too late") };
        departures.accompany(withdrawal, late).await;
        drop(registration);
    }

    #[tokio::test(start_paused = true)]
    async fn ended_registrations_are_not_awaited() {
        let departures = Departures::default();
        let (_registration, driver) = pair();
        departures.accompany(driver.withdrawal(), async {}).await;
        assert!(departures.leave(Duration::ZERO).await || departures.leave(Duration::from_secs(1)).await);
    }
}
