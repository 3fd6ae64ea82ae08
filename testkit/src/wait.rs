//! Waiting for conditions, never for time.

use std::{fmt::Debug, future::Future, time::Duration};

/// Time for which a case waits for something that has to happen.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Interval at which a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Looks until `look` returns `Ok`, and returns that.
///
/// # Panics
///
/// After [`LIMIT`], with what was seen last.
pub async fn eventually<T, S, F, L>(what: &str, mut look: L) -> T
where
    S: Debug,
    F: Future<Output = Result<T, S>>,
    L: FnMut() -> F,
{
    let start = tokio::time::Instant::now();
    loop {
        let seen = match look().await {
            Ok(value) => return value,
            Err(seen) => seen,
        };
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}; last seen: {seen:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits for `future`, at most [`LIMIT`].
///
/// # Panics
///
/// After [`LIMIT`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(elapsed) => panic!("not within {LIMIT:?}: {what} ({elapsed})"),
    }
}

/// Polls `future` for a while that is long enough for it to get going, then drops it. Says whether it was done.
pub async fn begun<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(100), future).await.ok()
}
