//! The only backoff: exponential, capped, jittered, and reset on success; or a fixed delay on request.

use std::time::Duration;

use crate::error::Error;

/// Delays between attempts of an operation that keeps failing.
///
/// The n-th delay is drawn evenly from the upper half of `min(first × 2ⁿ, max)`, so that clients that failed together
/// do not retry together. Default: 200 ms growing to 10 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffPolicy {
    first: Duration,
    max: Duration,
    spread_evenly: bool,
}

impl Default for BackoffPolicy {
    fn default() -> Self {
        Self { first: Duration::from_millis(200), max: Duration::from_secs(10), spread_evenly: true }
    }
}

impl BackoffPolicy {
    /// Delays that grow from `first` to `max`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] if `first` is zero or larger than `max`.
    pub fn new(first: Duration, max: Duration) -> Result<Self, Error> {
        if first.is_zero() || first > max {
            return Err(Error::invalid_config("backoff", "the first delay must be above zero and at most the largest"));
        }
        Ok(Self { first, max, spread_evenly: true })
    }

    /// The same delay each time, without jitter.
    ///
    /// With a fixed delay, thousands of processes that failed together retry together each time. Prefer
    /// [`new`](Self::new) for large fleets.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] if `delay` is zero.
    pub fn fixed(delay: Duration) -> Result<Self, Error> {
        Ok(Self { spread_evenly: false, ..Self::new(delay, delay)? })
    }

    /// Starts a new sequence of delays.
    pub fn start(self) -> Backoff {
        Backoff { policy: self, failures: 0 }
    }

    /// The upper bound of the delay after `failures` failures in a row.
    fn ceiling(self, failures: u32) -> Duration {
        self.first.saturating_mul(2u32.saturating_pow(failures)).min(self.max)
    }
}

/// A running sequence of delays.
#[derive(Clone, Debug)]
pub struct Backoff {
    policy: BackoffPolicy,
    failures: u32,
}

impl Backoff {
    /// The next delay: longer than the last, up to the cap, unless the policy is [fixed](BackoffPolicy::fixed).
    pub fn next_delay(&mut self) -> Duration {
        let ceiling = self.policy.ceiling(self.failures);
        self.failures = self.failures.saturating_add(1);
        if self.policy.spread_evenly { ceiling.mul_f64(0.5 + 0.5 * fastrand::f64()) } else { ceiling }
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Number of delays returned since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// Returns a random time below `limit`, to spread simultaneous actions.
pub fn jitter(limit: Duration) -> Duration {
    limit.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_start_over() {
        let mut backoff = BackoffPolicy::new(Duration::from_millis(100), Duration::from_secs(1)).unwrap().start();
        for ceiling in [100, 200, 400, 800, 1000, 1000] {
            let delay = backoff.next_delay();
            assert!(
                delay <= Duration::from_millis(ceiling) && delay >= Duration::from_millis(ceiling / 2),
                "{delay:?}"
            );
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }

    #[test]
    fn endless_failure_does_not_overflow() {
        let mut backoff = Backoff { policy: BackoffPolicy::default(), failures: u32::MAX };
        assert!(backoff.next_delay() <= Duration::from_secs(10));
    }

    #[test]
    fn a_fixed_delay_is_the_same_each_time() {
        let delay = Duration::from_secs(10);
        let mut backoff = BackoffPolicy::fixed(delay).unwrap().start();
        for failures in 1..100 {
            assert_eq!((backoff.next_delay(), backoff.failures()), (delay, failures));
        }
        backoff.reset();
        assert_eq!(backoff.next_delay(), delay);
        assert_eq!(BackoffPolicy::fixed(Duration::MAX).unwrap().start().next_delay(), Duration::MAX);
    }

    #[test]
    fn jitter_spreads_over_its_limit() {
        let limit = Duration::from_secs(10);
        let times: Vec<_> = (0..256).map(|_| jitter(limit)).collect();
        assert!(times.iter().all(|time| *time <= limit));
        assert!(times.iter().any(|time| *time < limit / 4) && times.iter().any(|time| *time > limit / 4 * 3));
    }

    #[test]
    fn a_first_delay_above_the_largest_is_refused() {
        let second = Duration::from_secs(1);
        assert!(BackoffPolicy::new(2 * second, second).is_err());
    }

    #[test]
    fn a_zero_delay_is_refused() {
        assert!(BackoffPolicy::new(Duration::ZERO, Duration::from_secs(1)).is_err());
        assert!(BackoffPolicy::fixed(Duration::ZERO).is_err());
    }
}
