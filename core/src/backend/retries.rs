//! Delays and numbers of attempts, and the times of audits.

use std::time::Duration;

use crate::{
    registration::options::RegisterOptions,
    runtime::{backoff::jitter, clock::LONGEST},
};

/// Interval between attempts after a conflict, or after a failure that an operator has to repair, such as a missing
/// permission.
pub const PERMANENT_ERROR_RETRY: Duration = Duration::from_secs(10);

/// Returns [`PERMANENT_ERROR_RETRY`] with jitter, so that many tasks do not stay in step.
pub fn permanent_error_delay() -> Duration {
    PERMANENT_ERROR_RETRY + jitter(PERMANENT_ERROR_RETRY / 4)
}

/// Returns `true` if `failures` failed attempts in a row reach the limit of `options`.
pub fn gives_up_after(options: &RegisterOptions, failures: u32) -> bool {
    options.max_attempts.is_some_and(|limit| limit > 0 && failures >= limit)
}

/// Waits until the next audit of `options` is due; for ever without audits.
///
/// # Cancel safety
///
/// Dropping the future has no effect.
pub async fn audit_due(options: &RegisterOptions) {
    match options.audit {
        Some(audit) => {
            let audit = audit.min(LONGEST);
            tokio::time::sleep(audit / 2 + jitter(audit)).await;
        }
        None => std::future::pending().await,
    }
}

/// Returns the time over which registrations that lost their keys together spread their next attempts: a tenth of the
/// TTL and at most a second, or longer if the session has so many `registrations` that they would exceed 2,000 attempts
/// per second.
pub fn reregistration_window(ttl: Duration, registrations: usize) -> Duration {
    let many = Duration::from_micros(500).saturating_mul(u32::try_from(registrations).unwrap_or(u32::MAX));
    (ttl / 10).min(Duration::from_secs(1)).max(many)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_spread_by_the_ttl_and_the_number_of_registrations() {
        let seconds = Duration::from_secs;
        assert_eq!(reregistration_window(seconds(5), 1), Duration::from_millis(500));
        assert_eq!(reregistration_window(seconds(60), 1), seconds(1));
        assert_eq!(reregistration_window(seconds(60), 5000), Duration::from_millis(2500));
    }

    #[test]
    fn zero_attempts_are_no_limit() {
        let options = RegisterOptions::new();
        assert!(!gives_up_after(&options, u32::MAX));
        let none = options.clone().max_attempts(0);
        assert!(none.check().is_ok() && !gives_up_after(&none, 1) && !gives_up_after(&none, u32::MAX));
        let five = options.max_attempts(5);
        assert!(!gives_up_after(&five, 4) && gives_up_after(&five, 5));
    }

    #[test]
    fn permanent_errors_repeat_after_ten_seconds() {
        for _ in 0..64 {
            let delay = permanent_error_delay();
            assert!((Duration::from_secs(10)..=Duration::from_millis(12_500)).contains(&delay), "{delay:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn audits_are_due_around_their_interval() {
        let options = RegisterOptions::new().audit(Some(Duration::from_secs(60)));
        for _ in 0..64 {
            let begun = tokio::time::Instant::now();
            audit_due(&options).await;
            // A paused clock advances by whole milliseconds.
            let range = Duration::from_secs(30)..=Duration::from_millis(90_001);
            assert!(range.contains(&begun.elapsed()), "{:?}", begun.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_audit_without_end_is_never_due() {
        let options = RegisterOptions::new().audit(Some(Duration::MAX));
        assert!(options.check().is_ok());
        // The pause is random.
        for _ in 0..64 {
            assert!(futures::FutureExt::now_or_never(audit_due(&options)).is_none());
        }
    }
}
