//! The one clock: tokio's, so that tests can pause it, and the boot-time clock, so that suspension counts.
//!
//! `CLOCK_MONOTONIC`, which tokio and `std` read on Linux, stops while the machine is suspended; the store's clock does
//! not (rust-lang/rust#87906). What has passed since a [`Moment`] is therefore the larger of the two clocks' answers.

use std::{fmt, time::Duration};

/// A point in time on both clocks. Its debug form tells how long ago it is.
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
    /// Now. Within a runtime with a paused clock this is the paused time.
    pub fn now() -> Self {
        Self { tokio: tokio::time::Instant::now(), boot: boot_time::Instant::now() }
    }

    /// The moment that was `age` ago; the earliest that can be told if the clocks do not reach back that far.
    pub fn ago(age: Duration) -> Self {
        let Self { tokio, boot } = Self::now();
        Self { tokio: tokio.checked_sub(age).unwrap_or(tokio), boot: boot.checked_sub(age).unwrap_or(boot) }
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

    /// What is left of `limit`, counted from this moment; zero once it has passed.
    pub fn remaining(&self, limit: Duration) -> Duration {
        limit.saturating_sub(self.elapsed())
    }
}

/// Longest time that an option keeps; a longer one, such as `Duration::MAX`, counts as this: 100 years. Adding it to a moment never
/// overflows.
pub const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// How long a sleep may last before the clocks are compared again: tokio's timers do not count suspension.
const CHECK: Duration = Duration::from_secs(1);

/// Waits until `limit` has passed since `start`, noticing suspension within a second.
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

    /// A machine that was suspended: the boot-time clock went on, the other one did not.
    #[tokio::test]
    async fn a_suspension_counts() {
        let hour = Duration::from_secs(3600);
        let Moment { tokio, boot } = Moment::now();
        let before = Moment { tokio, boot: boot.checked_sub(hour).unwrap() };
        assert!(before.elapsed() >= hour && before.remaining(hour).is_zero());
        let age = crate::Freshness::Live { proof: crate::Proof::new(before) }.age();
        assert!(age >= hour, "{age:?}");
        // Only what was left is waited for, not the hour.
        let left = Duration::from_millis(50);
        let waiting = sleep_until_elapsed(before, hour + left);
        tokio::time::timeout(hour / 60, waiting).await.unwrap();
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
