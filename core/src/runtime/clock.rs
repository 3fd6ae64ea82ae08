//! The only clock. It combines tokio's clock, which tests can pause, and the boot-time clock, which counts suspension.
//!
//! `CLOCK_MONOTONIC`, which tokio and `std` read on Linux, stops while the machine is suspended; the store's clock does
//! not (rust-lang/rust#87906). The time since a [`Moment`] is therefore the larger one of both clocks.

use std::{fmt, time::Duration};

/// Maximum duration of an option: 100 years. A longer one, such as `Duration::MAX`, is reduced to this. Adding it to a
/// moment never overflows.
pub const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// Maximum duration of a sleep before the clocks are compared again: tokio's timers do not count suspension.
const CHECK: Duration = Duration::from_secs(1);

/// A point in time on both clocks. Its debug form is the time since then.
#[derive(Clone, Copy)]
pub struct Moment {
    tokio: tokio::time::Instant,
    boot: boot_time::Instant,
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ago", self.elapsed())
    }
}

impl Moment {
    /// The current time. Within a runtime with a paused clock this is the paused time.
    pub fn now() -> Self {
        Self { tokio: tokio::time::Instant::now(), boot: boot_time::Instant::now() }
    }

    /// The moment `age` ago, at most [`LONGEST`]. If the clocks do not reach back that far, it is a later moment, but
    /// not now.
    pub fn ago(age: Duration) -> Self {
        let Self { tokio, boot } = Self::now();
        // The fallback is an earlier moment, not now: outdated data must not look new.
        let ages = || std::iter::successors(Some(age.min(LONGEST)), |age| Some(*age / 2));
        Self {
            tokio: ages().find_map(|age| tokio.checked_sub(age)).unwrap_or(tokio),
            boot: ages().find_map(|age| boot.checked_sub(age)).unwrap_or(boot),
        }
    }

    /// The time from this moment until now, suspension included. Never negative.
    pub fn elapsed(&self) -> Duration {
        Self::now().since(*self)
    }

    /// The time from `earlier` to this moment, suspension included; zero if `earlier` is later.
    pub fn since(&self, earlier: Self) -> Duration {
        let tokio = self.tokio.saturating_duration_since(earlier.tokio);
        let boot = self.boot.checked_duration_since(earlier.boot).unwrap_or_default();
        tokio.max(boot)
    }

    /// Remaining part of `limit`, counted from this moment; zero once it has passed.
    pub fn remaining(&self, limit: Duration) -> Duration {
        limit.saturating_sub(self.elapsed())
    }
}

/// Rounds a duration for texts. Texts with nine digits would almost never be equal, so logs could not be grouped by
/// them. Code that needs the exact value takes it from a field.
///
/// ```
/// use enlist::backend::rounded;
/// use std::time::Duration;
///
/// assert_eq!(rounded(Duration::from_nanos(72_108_282)).to_string(), "72 ms");
/// assert_eq!(rounded(Duration::new(7, 349_999_999)).to_string(), "7.3 s");
/// assert_eq!(rounded(Duration::new(73, 123_456_789)).to_string(), "73 s");
/// ```
pub fn rounded(duration: Duration) -> Rounded {
    Rounded(duration)
}

/// Display of a duration in rounded form, see [`rounded`].
#[derive(Clone, Copy, Debug)]
pub struct Rounded(Duration);

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = |unit: Duration| (self.0.saturating_add(unit / 2)).as_nanos() / unit.as_nanos();
        let (millis, tenths, seconds) =
            (to(Duration::from_millis(1)), to(Duration::from_millis(100)), to(Duration::from_secs(1)));
        match (millis, tenths) {
            (..1000, _) => write!(f, "{millis} ms"),
            (_, ..100) if tenths % 10 != 0 => write!(f, "{}.{} s", tenths / 10, tenths % 10),
            _ => write!(f, "{seconds} s"),
        }
    }
}

/// Waits until `limit` has passed since `start`. Detects suspension within a second.
///
/// # Cancel safety
///
/// Dropping the future has no effect.
pub async fn sleep_until_elapsed(start: Moment, limit: Duration) {
    loop {
        let left = start.remaining(limit);
        if left.is_zero() {
            return;
        }
        // Timers tick in milliseconds and round up, so the loop ends.
        tokio::time::sleep(left.min(CHECK)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_moves_moments() {
        let start = Moment::now();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(start.elapsed() >= Duration::from_secs(3600));
        assert_eq!(start.remaining(Duration::from_secs(60)), Duration::ZERO);
    }

    /// A suspended machine: the boot-time clock advanced, the other one did not.
    #[tokio::test]
    async fn a_suspension_counts() {
        let hour = Duration::from_secs(3600);
        let Moment { tokio, boot } = Moment::now();
        let before = Moment { tokio, boot: boot.checked_sub(hour).unwrap() };
        assert!(before.elapsed() >= hour && before.remaining(hour).is_zero());
        let age = crate::Freshness::Live { proof: crate::Proof::new(before) }.age();
        assert!(age >= hour, "{age:?}");
        // Only the remaining time is waited for, not the hour.
        let left = Duration::from_millis(50);
        let waiting = sleep_until_elapsed(before, hour + left);
        tokio::time::timeout(hour / 60, waiting).await.unwrap();
    }

    #[test]
    fn a_moment_before_the_clocks_began_is_long_ago() {
        let longest = Moment::ago(Duration::MAX).elapsed();
        assert!(longest >= LONGEST, "{longest:?}");
    }

    #[test]
    fn a_duration_has_few_digits_in_texts() {
        for (nanos, shown) in [
            (0, "0 ms"),
            (499_999, "0 ms"),
            (999_499_999, "999 ms"),
            (999_500_000, "1 s"),
            (2_500_000_000, "2.5 s"),
            (4_999_837_112, "5 s"),
            (9_949_999_999, "9.9 s"),
            (9_950_000_000, "10 s"),
            (73_499_999_999, "73 s"),
        ] {
            assert_eq!(rounded(Duration::from_nanos(nanos)).to_string(), shown);
        }
        assert_eq!(rounded(Duration::MAX).to_string(), "18446744073709551615 s");
    }

    #[test]
    fn an_age_reaches_back() {
        let age = Duration::from_secs(10);
        assert!(Moment::ago(age).elapsed() >= age && Moment::ago(age).elapsed() < 2 * age);
    }

    #[test]
    fn an_earlier_moment_is_not_after_a_later_one() {
        let (first, second) = (Moment::now(), Moment::now());
        assert_eq!(first.since(second), Duration::ZERO);
    }
}
