//! Helpers that wait for conditions, never for a fixed time.

use std::{fmt::Debug, future::Future, time::Duration};

/// Maximum wait for a condition.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Minimum pause between two checks of a condition.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// Maximum pause between two checks of a condition.
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// Calls `check` until it returns `Ok`, and returns that value. The pause between two checks is a tenth of the time so
/// far, from 10 ms to 100 ms: many tests that wait side by side for seconds would take the processors from each other.
///
/// # Panics
///
/// After [`LIMIT`], with the last observed value.
///
/// # Cancel safety
///
/// Dropping the future drops the check in progress.
pub async fn eventually<T, S, F, L>(what: &str, mut check: L) -> T
where
    S: Debug,
    F: Future<Output = Result<T, S>>,
    L: FnMut() -> F,
{
    let start = tokio::time::Instant::now();
    loop {
        let seen = match check().await {
            Ok(value) => return value,
            Err(seen) => seen,
        };
        let waited = start.elapsed();
        assert!(waited < LIMIT, "not within {LIMIT:?}: {what}; last seen: {seen:?}");
        tokio::time::sleep((waited / 10).clamp(MIN_PAUSE, MAX_PAUSE)).await;
    }
}

/// Waits for `future`.
///
/// # Panics
///
/// After [`LIMIT`].
///
/// # Cancel safety
///
/// That of `future`.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(elapsed) => panic!("not within {LIMIT:?}: {what} ({elapsed})"),
    }
}

/// Polls `future` for long enough that it starts, then drops it. Returns its output if it was ready.
///
/// # Cancel safety
///
/// That of `future`, which is dropped in any case.
pub async fn begun<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(100), future).await.ok()
}
