//! Options of an acquisition.

use std::time::Duration;

use crate::{
    backend::session::lease_terms::{LeaseTerms, MAX_TTL_SECS},
    error::Error,
    registration::options::DEFAULT_TTL,
};

/// Mode of a lock: held alone, or together with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a fair reader-writer lock has these two sides")]
pub enum LockMode {
    /// Alone.
    #[default]
    Exclusive,
    /// Together with other shared holders, if no exclusive contender is ahead of it in the queue.
    Shared,
}

impl LockMode {
    /// Returns `true` if a holder in this mode and one in `other` mode cannot hold a lock together.
    pub fn excludes(self, other: Self) -> bool {
        self == Self::Exclusive || other == Self::Exclusive
    }
}

/// Options of an acquisition.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LockOptions {
    /// Exclusive or shared. Default: exclusive.
    pub mode: LockMode,
    /// Time for which the lock outlives its last renewal; whole seconds, rounded up. Default: 15 s.
    pub ttl: Duration,
    /// Time from one renewal of the lease to the next, with 10 % jitter in etcd: from 500 ms to a third of `ttl`.
    /// Shorter costs requests, and more of them can fail before the lock is lost. Locks with different intervals share
    /// no lease. Default: `None`, a third of `ttl`.
    pub renewal_interval: Option<Duration>,
    /// Maximum time to wait. Default: `None`, for ever.
    pub deadline: Option<Duration>,
    /// Time for which a lock counts as held after a holder that did not release it, so that the holder can notice its
    /// loss. Such a holder is known only if its own `lock_delay` left a record in the store, so all contenders of a
    /// lock should have the same value. Default: zero.
    pub lock_delay: Duration,
    /// Use of a separate lease. Default: no, locks of one session with the same TTL and renewal interval share leases.
    pub own_lease: bool,
    /// `true` if the loss of the queue entry while waiting ends the acquisition. Default: no, it enters the queue
    /// again.
    pub fail_on_lost_entry: bool,
}

impl Default for LockOptions {
    fn default() -> Self {
        Self {
            mode: LockMode::Exclusive,
            ttl: DEFAULT_TTL,
            renewal_interval: None,
            deadline: None,
            lock_delay: Duration::ZERO,
            own_lease: false,
            fail_on_lost_entry: false,
        }
    }
}

impl LockOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets shared mode.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.mode = LockMode::Shared;
        self
    }

    /// Sets the time for which the lock outlives its last renewal.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the time from one renewal of the lease to the next.
    #[must_use]
    pub fn renewal_interval(mut self, interval: Duration) -> Self {
        self.renewal_interval = Some(interval);
        self
    }

    /// Sets the maximum time to wait.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets the time for which a lock counts as held after a holder that did not release it: one that crashed, lost its
    /// lease or its key, or was closed while holding it. It costs one request per acquisition. An acquisition that ends
    /// before the delay has passed does not restart it for the next one;
    /// [`Lock::try_acquire`](crate::Lock::try_acquire) returns `None` meanwhile. [`Error::Unsupported`] if the layout
    /// of the store cannot hold it.
    #[must_use]
    pub fn lock_delay(mut self, lock_delay: Duration) -> Self {
        self.lock_delay = lock_delay;
        self
    }

    /// Uses a separate lease: its end ends no other lock, and also voids writes that are still on their way to the
    /// store. It costs a grant, a revocation and a stream of renewals per lock. A successor of such a holder waits for
    /// the [`lock_delay`](Self::lock_delay) after a release too, because the lease is gone then as after a crash.
    #[must_use]
    pub fn own_lease(mut self) -> Self {
        self.own_lease = true;
        self
    }

    /// Returns [`Error::LeaseLost`] if the queue entry is lost while waiting, instead of entering the queue again at
    /// its end. For callers that need their turn, and not only the lock.
    #[must_use]
    pub fn fail_on_lost_entry(mut self) -> Self {
        self.fail_on_lost_entry = true;
        self
    }

    /// Checks the options.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for a TTL outside 1 s to 9,000,000,000 s, a renewal interval outside 500 ms to a third
    /// of the TTL, and a `lock_delay` above 9,000,000,000 s.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.lock_delay.as_secs() > MAX_TTL_SECS {
            return Err(Error::invalid_config("lock_delay", "it must be at most 9,000,000,000 s"));
        }
        LeaseTerms::check(self.ttl, self.renewal_interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_options_are_refused_by_name() {
        let refused = |options: LockOptions| match options.check() {
            Err(Error::InvalidConfig { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(LockOptions::new().ttl(Duration::ZERO)), "ttl");
        assert_eq!(refused(LockOptions::new().renewal_interval(Duration::from_secs(6))), "renewal_interval");
        assert_eq!(refused(LockOptions::new().lock_delay(Duration::MAX)), "lock_delay");
        for delay in [3600, MAX_TTL_SECS] {
            assert!(LockOptions::new().lock_delay(Duration::from_secs(delay)).check().is_ok());
        }
    }

    #[test]
    fn each_option_is_kept() {
        let seconds = Duration::from_secs;
        let LockOptions { mode, ttl, renewal_interval, deadline, lock_delay, own_lease, fail_on_lost_entry } =
            LockOptions::new().shared().ttl(seconds(1)).renewal_interval(seconds(2)).deadline(seconds(3));
        assert_eq!((mode, ttl), (LockMode::Shared, seconds(1)));
        assert_eq!((renewal_interval, deadline), (Some(seconds(2)), Some(seconds(3))));
        assert_eq!((lock_delay, own_lease, fail_on_lost_entry), (Duration::ZERO, false, false));
        let LockOptions { mode, lock_delay, own_lease, fail_on_lost_entry, .. } =
            LockOptions::new().shared().lock_delay(seconds(4)).own_lease().fail_on_lost_entry();
        assert_eq!((mode, lock_delay, own_lease, fail_on_lost_entry), (LockMode::Shared, seconds(4), true, true));
    }

    #[test]
    fn only_shared_holders_hold_together() {
        let modes = [LockMode::Exclusive, LockMode::Shared];
        let together = modes.iter().flat_map(|one| modes.iter().map(move |other| !one.excludes(*other)));
        assert_eq!(together.collect::<Vec<_>>(), [false, false, false, true]);
    }
}
