//! Options of an acquisition of permits.

use std::time::Duration;

use crate::{error::Error, lock::options::LockOptions};

/// Options of an acquisition of permits. Those of a lock have the same meaning in [`LockOptions`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SemaphoreOptions {
    /// Number of permits to hold, at least 1. Default: 1.
    pub permits: u32,
    /// Number of permits that is stored for a semaphore without a number. A stored number is not changed. Default:
    /// `None`, the semaphore admits nothing until [`set_permits`](crate::Semaphore::set_permits).
    pub permits_if_unset: Option<u32>,
    /// Time for which the permits outlive their last renewal; whole seconds, rounded up. Default: 15 s.
    pub ttl: Duration,
    /// Time from one renewal of the lease to the next. Default: `None`, a third of `ttl`.
    pub renewal_interval: Option<Duration>,
    /// Maximum time to wait. Default: `None`, for ever.
    pub deadline: Option<Duration>,
    /// Use of a separate lease. Default: no.
    pub own_lease: bool,
    /// `true` if the loss of the queue entry while waiting ends the acquisition. Default: no, it enters the queue
    /// again.
    pub fail_on_lost_entry: bool,
}

impl Default for SemaphoreOptions {
    fn default() -> Self {
        // No `..`: a new option of locks has to be considered here.
        let LockOptions { ttl, renewal_interval, deadline, own_lease, fail_on_lost_entry, mode: _, lock_delay: _ } =
            LockOptions::default();
        Self { permits: 1, permits_if_unset: None, ttl, renewal_interval, deadline, own_lease, fail_on_lost_entry }
    }
}

impl SemaphoreOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of permits to hold.
    #[must_use]
    pub fn permits(mut self, permits: u32) -> Self {
        self.permits = permits;
        self
    }

    /// Sets the number of permits that is stored for a semaphore without a number.
    #[must_use]
    pub fn permits_if_unset(mut self, permits: u32) -> Self {
        self.permits_if_unset = Some(permits);
        self
    }

    /// Sets the time for which the permits outlive their last renewal.
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

    /// Uses a separate lease, as [`LockOptions::own_lease`] does.
    #[must_use]
    pub fn own_lease(mut self) -> Self {
        self.own_lease = true;
        self
    }

    /// Returns [`Error::LeaseLost`] if the queue entry is lost while waiting, as [`LockOptions::fail_on_lost_entry`]
    /// does.
    #[must_use]
    pub fn fail_on_lost_entry(mut self) -> Self {
        self.fail_on_lost_entry = true;
        self
    }

    /// Checks the options that a lock does not have.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for an acquisition of no permits.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.permits == 0 {
            return Err(Error::invalid_config("permits", "an acquisition holds at least one permit"));
        }
        Ok(())
    }

    /// Returns the options that a lock has as well.
    pub(crate) fn as_lock(&self) -> LockOptions {
        let Self { ttl, renewal_interval, deadline, own_lease, fail_on_lost_entry, permits: _, permits_if_unset: _ } =
            *self;
        LockOptions { ttl, renewal_interval, deadline, own_lease, fail_on_lost_entry, ..LockOptions::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_permits_are_refused_by_name() {
        let refused = SemaphoreOptions::new().permits(0).check();
        assert!(matches!(refused, Err(Error::InvalidConfig { field: "permits", .. })), "{refused:?}");
        assert!(SemaphoreOptions::new().check().is_ok());
    }

    #[test]
    fn options_of_a_lock_are_passed_on() {
        let second = Duration::from_secs(1);
        let options = SemaphoreOptions::new().ttl(9 * second).renewal_interval(second).deadline(2 * second);
        let lock = options.own_lease().fail_on_lost_entry().as_lock();
        assert_eq!((lock.ttl, lock.renewal_interval, lock.deadline), (9 * second, Some(second), Some(2 * second)));
        assert!(lock.own_lease && lock.fail_on_lost_entry);
    }
}
