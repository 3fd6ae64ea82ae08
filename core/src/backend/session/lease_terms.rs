//! TTL and renewal interval of a lease.

use std::time::Duration;

use crate::error::Error;

/// The largest TTL etcd grants, in seconds (`server/lease/lessor.go`, `MaxLeaseTTL`).
pub(crate) const MAX_TTL_SECS: u64 = 9_000_000_000;

/// Smallest interval of renewals.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_millis(500);

/// Renewals per TTL: two in a row can fail before the lease ends.
const RENEWALS_PER_TTL: u32 = 3;

/// Requested TTL and renewal interval of a lease. Keys share leases with equal terms only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseTerms {
    ttl: Duration,
    /// Interval, if it is not the default for the TTL.
    renewal_interval: Option<Duration>,
}

impl LeaseTerms {
    /// Terms with a TTL that is rounded up to whole seconds, and by default a renewal every third of it.
    pub fn new(ttl: Duration, renewal_interval: Option<Duration>) -> Self {
        let ttl = whole_seconds(ttl);
        Self { ttl, renewal_interval: renewal_interval.filter(|interval| *interval != ttl / RENEWALS_PER_TTL) }
    }

    /// TTL, in whole seconds.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Returns the time between two renewals of a lease whose `granted` TTL may be longer than the requested one.
    pub fn renewal_interval(&self, granted: Duration) -> Duration {
        let longest = granted / RENEWALS_PER_TTL;
        self.renewal_interval.map_or(longest, |interval| interval.min(longest))
    }

    /// Checks terms against the limits of all leases.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for a TTL outside 1 s to 9,000,000,000 s, and a renewal interval outside 500 ms to a
    /// third of the TTL.
    pub(crate) fn check(ttl: Duration, renewal_interval: Option<Duration>) -> Result<(), Error> {
        check_ttl(ttl)?;
        let possible = MIN_RENEWAL_INTERVAL..=whole_seconds(ttl) / RENEWALS_PER_TTL;
        match renewal_interval {
            Some(interval) if !possible.contains(&interval) => {
                let reason = "it must be from 500 ms to a third of the TTL, which takes a TTL above 1 s";
                Err(Error::invalid_config("renewal_interval", reason))
            }
            _ => Ok(()),
        }
    }
}

/// Checks a TTL against the limits of all stores.
///
/// # Errors
///
/// [`Error::InvalidConfig`] outside 1 s to 9,000,000,000 s.
pub fn check_ttl(ttl: Duration) -> Result<(), Error> {
    if ttl < Duration::from_secs(1) || ttl.as_secs() > MAX_TTL_SECS {
        return Err(Error::invalid_config("ttl", "it must be from 1 s to 9,000,000,000 s"));
    }
    Ok(())
}

/// Returns the TTL in whole seconds, rounded up, as leases are granted.
pub fn whole_seconds(ttl: Duration) -> Duration {
    Duration::from_secs(ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LEAST: Duration = Duration::from_millis(500);

    #[test]
    fn an_interval_that_cannot_work_is_refused_by_name() {
        let refused = |ttl: Duration, interval| match LeaseTerms::check(ttl, Some(interval)) {
            Err(Error::InvalidConfig { field, .. }) => field,
            other => panic!("{ttl:?}, {interval:?}: {other:?}"),
        };
        let just = Duration::from_nanos(1);
        for interval in [Duration::ZERO, Duration::from_nanos(499_999_999), 5 * SECOND + just, Duration::MAX] {
            assert_eq!(refused(15 * SECOND, interval), "renewal_interval");
        }
        for interval in [LEAST, SECOND, 5 * SECOND] {
            LeaseTerms::check(15 * SECOND, Some(interval)).unwrap();
        }
        // The granted TTL counts.
        LeaseTerms::check(Duration::from_millis(14_001), Some(5 * SECOND)).unwrap();
        // A third of a second is less than any interval.
        assert_eq!(refused(SECOND, LEAST), "renewal_interval");
        assert_eq!(refused(SECOND, SECOND / 3), "renewal_interval");
        LeaseTerms::check(SECOND, None).unwrap();
        assert_eq!(refused(Duration::ZERO, LEAST), "ttl");
    }

    #[test]
    fn the_default_is_a_third_of_what_was_granted() {
        let terms = LeaseTerms::new(Duration::from_millis(14_001), None);
        assert_eq!((terms.ttl(), terms.renewal_interval(15 * SECOND)), (15 * SECOND, 5 * SECOND));
        assert_eq!(LeaseTerms::new(SECOND, None).renewal_interval(3 * SECOND), SECOND);
        let quick = LeaseTerms::new(15 * SECOND, Some(LEAST));
        assert_eq!(quick.renewal_interval(15 * SECOND), LEAST);
        assert_eq!(quick.renewal_interval(SECOND), SECOND / 3, "less was granted than was asked for");
    }

    #[test]
    fn a_third_that_was_asked_for_is_the_default() {
        assert_eq!(LeaseTerms::new(15 * SECOND, Some(5 * SECOND)), LeaseTerms::new(15 * SECOND, None));
        assert_ne!(LeaseTerms::new(15 * SECOND, Some(LEAST)), LeaseTerms::new(15 * SECOND, None));
    }

    #[test]
    fn ttls_have_limits() {
        for ttl in [SECOND, Duration::from_secs(MAX_TTL_SECS)] {
            check_ttl(ttl).unwrap();
        }
        for ttl in [Duration::from_nanos(999_999_999), Duration::from_secs(MAX_TTL_SECS + 1)] {
            check_ttl(ttl).unwrap_err();
        }
    }

    #[test]
    fn part_seconds_are_rounded_up() {
        assert_eq!(whole_seconds(Duration::from_millis(1001)), Duration::from_secs(2));
        assert_eq!(whole_seconds(Duration::from_secs(2)), Duration::from_secs(2));
        assert_eq!(whole_seconds(Duration::MAX), Duration::from_secs(u64::MAX));
    }
}
