//! Time for which a lock is known to be held.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    lock::loss::Loss,
    runtime::clock::{Moment, sleep_until_elapsed},
};

/// Minimum margin between the local deadline and the lease's expiry.
const MIN_MARGIN: Duration = Duration::from_millis(500);

/// Time for which a holder may go on without a renewal: the granted time, minus a margin for clocks that run at
/// different rates (10 %, at least 0.5 s).
pub fn safe_validity(granted: Duration) -> Duration {
    granted.saturating_sub((granted / 10).max(MIN_MARGIN))
}

/// Time for which a lock is known to be held. A loss is permanent.
///
/// The deadline counts from the *sending* of the last renewal that was acknowledged, on a clock that counts suspension.
#[derive(Debug)]
pub struct LockValidity {
    start: Moment,
    /// Nanoseconds after `start` at which the validity ends.
    until: AtomicU64,
    lost: watch::Sender<Option<Loss>>,
}

impl LockValidity {
    /// Validity from a grant or renewal that was sent at `sent` for `granted`.
    pub fn new(sent: Moment, granted: Duration) -> Self {
        let until = AtomicU64::new(nanos(safe_validity(granted)));
        Self { start: sent, until, lost: watch::Sender::new(None) }
    }

    /// Records an acknowledged renewal that was sent at `sent` for `granted`. Has no effect after a loss.
    pub fn renewed(&self, sent: Moment, granted: Duration) {
        if self.is_held() {
            let until = nanos(sent.since(self.start).saturating_add(safe_validity(granted)));
            self.until.fetch_max(until, Ordering::AcqRel);
        }
    }

    /// Ends the validity. The first reason stays.
    pub fn lose(&self, loss: Loss) {
        self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            if first {
                *lost = Some(loss);
            }
            first
        });
    }

    /// Returns `true` while the lock is known to be held. A result of `false` is final.
    pub fn is_held(&self) -> bool {
        if self.lost.borrow().is_some() {
            return false;
        }
        if self.remaining().is_zero() {
            self.lose(Loss::Expired);
            return false;
        }
        true
    }

    /// Reason for the loss, if the lock was lost.
    pub fn loss(&self) -> Option<Loss> {
        self.is_held();
        *self.lost.borrow()
    }

    /// Remaining time without another renewal.
    pub fn remaining(&self) -> Duration {
        self.start.remaining(Duration::from_nanos(self.until.load(Ordering::Acquire)))
    }

    /// Waits for the loss.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn lost(&self) -> Loss {
        let mut lost = self.lost.subscribe();
        loop {
            if let Some(loss) = self.loss() {
                return loss;
            }
            let expiry = sleep_until_elapsed(Moment::now(), self.remaining());
            tokio::select! {
                // The sender lives in `self`, so waiting for a change cannot fail.
                _ = lost.changed() => {}
                () = expiry => {}
            }
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn validity_ends_before_the_lease_and_a_late_renewal_does_not_revive_it() {
        let ttl = Duration::from_secs(5);
        let validity = LockValidity::new(Moment::now(), ttl);
        let started = Moment::now();
        assert_eq!(validity.lost().await, Loss::Expired);
        assert!(started.elapsed() < ttl && started.elapsed() >= Duration::from_secs(4));
        validity.renewed(Moment::now(), ttl);
        assert!(!validity.is_held());
    }

    #[tokio::test(start_paused = true)]
    async fn a_loss_is_noticed_at_once_and_its_first_reason_stays() {
        let ttl = Duration::from_secs(5);
        let (validity, started) = (LockValidity::new(Moment::now(), ttl), Moment::now());
        assert!(validity.is_held() && validity.loss().is_none());
        validity.lose(Loss::KeyGone);
        assert!(!validity.is_held());
        validity.lose(Loss::LeaseGone);
        assert_eq!((validity.loss(), validity.lost().await), (Some(Loss::KeyGone), Loss::KeyGone));
        assert!(started.elapsed() < Duration::from_secs(1), "it was not waited for the deadline");
    }

    #[test]
    fn safe_validity_leaves_a_margin() {
        let validities = [0, 1, 5, 15, 60].map(|granted| safe_validity(Duration::from_secs(granted)).as_millis());
        assert_eq!(validities, [0, 500, 4_500, 13_500, 54_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_extends_the_validity() {
        let ttl = Duration::from_secs(5);
        let validity = LockValidity::new(Moment::now(), ttl);
        tokio::time::advance(Duration::from_secs(3)).await;
        validity.renewed(Moment::now(), ttl);
        assert!(validity.remaining() > Duration::from_secs(4), "{:?}", validity.remaining());
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_counts_from_its_sending() {
        let ttl = Duration::from_secs(5);
        let validity = LockValidity::new(Moment::now(), ttl);
        let sent = Moment::now();
        tokio::time::advance(Duration::from_secs(3)).await;
        validity.renewed(sent, ttl);
        assert!(validity.remaining() <= Duration::from_millis(1600), "{:?}", validity.remaining());
    }
}
