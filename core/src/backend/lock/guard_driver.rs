//! The two halves of a held lock: [`LockGuard`] of the user, and [`GuardDriver`] of the backend.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backend::{
        discovery::publisher::OwnerHandle,
        lock::{contender::protocol::Grant, lock_validity::LockValidity},
    },
    error::Error,
    lock::{
        guard::{GuardState, LockGuard},
        loss::{Loss, Released},
    },
    model::name::LockName,
};

/// Creates the two halves of a lock that was granted. The guard keeps the source of the grant alive.
pub fn lock_guard(name: LockName, grant: Grant) -> (LockGuard, GuardDriver) {
    let Grant { sent, ttl, token, source } = grant;
    let state = Arc::new(GuardState {
        name,
        token,
        validity: LockValidity::new(sent, ttl),
        release: CancellationToken::new(),
        released: watch::Sender::new(None),
    });
    (LockGuard { state: Arc::clone(&state), source }, GuardDriver { state })
}

/// Returns the source of the grant that `guard` was created with. A backend recognizes its own guards by its type.
pub fn guard_source(guard: &LockGuard) -> &OwnerHandle {
    &guard.source
}

/// Backend's half of a held lock: keeps its validity current and releases it. Dropping it ends the lock.
#[derive(Debug)]
pub struct GuardDriver {
    state: Arc<GuardState>,
}

impl GuardDriver {
    /// Time for which the lock is known to be held.
    pub fn validity(&self) -> &LockValidity {
        &self.state.validity
    }

    /// Waits until the release of the guard is requested, or the guard is dropped.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn release_wanted(&self) {
        self.state.release.cancelled().await;
    }

    /// Reports the result of the release. The caller of `release` receives the first report.
    pub fn report(&self, outcome: Result<Released, Error>) {
        self.state.validity.lose(Loss::Released);
        self.state.released.send_if_modified(|reported| {
            let first = reported.is_none();
            if first {
                *reported = Some(outcome);
            }
            first
        });
    }
}

impl Drop for GuardDriver {
    fn drop(&mut self) {
        self.state.validity.lose(Loss::SessionClosed);
        self.state.released.send_if_modified(|outcome| {
            let open = outcome.is_none();
            if open {
                *outcome = Some(Err(Error::Closed));
            }
            open
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;
    use crate::{backend::lock::lock_validity::safe_validity, model::revision::FencingToken, runtime::clock::Moment};

    const TTL: Duration = Duration::from_secs(5);

    fn held_lock() -> (LockGuard, GuardDriver) {
        let grant = Grant { sent: Moment::now(), ttl: TTL, token: FencingToken::new(1), source: Arc::new(()) };
        lock_guard(LockName::parse("l").unwrap(), grant)
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_aborted_at_the_loss() {
        let (guard, driver) = held_lock();
        assert_eq!(guard.run(async { 7 }).await, Ok(7));
        // The boot-time clock advances while tokio's is paused.
        let left = guard.remaining();
        assert!(left > Duration::from_secs(4) && left <= safe_validity(TTL), "{left:?}");
        driver.validity().lose(Loss::KeyGone);
        assert_eq!(guard.remaining(), Duration::ZERO);
        assert_eq!(guard.run(std::future::pending::<()>()).await, Err(Loss::KeyGone));
        assert_eq!(guard.run(async { 7 }).await, Err(Loss::KeyGone));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_report_answers_the_release() {
        let (guard, driver) = held_lock();
        assert_eq!((guard.name(), guard.fencing_token().get()), (&LockName::parse("l").unwrap(), 1));
        assert!(guard.is_held() && driver.release_wanted().now_or_never().is_none());
        let reporting = async {
            driver.release_wanted().await;
            driver.report(Ok(Released::Released));
            driver.report(Err(Error::Closed));
        };
        let (outcome, ()) = tokio::join!(guard.release(), reporting);
        assert_eq!(outcome.unwrap(), Released::Released);
        let (guard, driver) = held_lock();
        driver.report(Ok(Released::Released));
        assert_eq!(guard.lost().await, Loss::Released);
        assert_eq!(guard.release().await.unwrap(), Released::AlreadyLost);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_guard_wants_its_release() {
        let (guard, driver) = held_lock();
        drop(guard);
        assert!(driver.release_wanted().now_or_never().is_some() && !driver.validity().is_held());
    }

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_dies_ends_the_lock() {
        let (guard, driver) = held_lock();
        drop(driver);
        assert_eq!(guard.lost().await, Loss::SessionClosed);
        assert!(matches!(guard.release().await, Err(Error::Closed)));
    }
}
