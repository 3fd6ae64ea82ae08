//! A token bucket whose rate can be changed while it is used.
//!
//! The crate `governor` is not used: its limiter keeps the quota that it was created with, so a change would replace
//! the limiter and refill it. It would also bring second versions of four dependencies.

use std::{sync::Mutex, time::Duration};

use enlist::backend::{LONGEST, MutexExt as _, rounded};
use serde::Deserialize;
use tokio::time::Instant;

/// A rate, as a value of configuration: `{ "per_second": 100, "burst": 20 }`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct RateLimit {
    per_second: f64,
    burst: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename = "RateLimit")]
struct Unchecked {
    per_second: f64,
    #[serde(default = "one")]
    burst: u32,
}

fn one() -> u32 {
    1
}

/// Invalid rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidRate;

impl std::fmt::Display for InvalidRate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a rate is above zero and finite, and a burst is at least 1")
    }
}

impl std::error::Error for InvalidRate {}

impl RateLimit {
    /// A limit of `per_second` calls per second, of which up to `burst` may come at once.
    ///
    /// # Errors
    ///
    /// [`InvalidRate`] unless the rate is finite and above zero, and the burst at least 1.
    pub fn new(per_second: f64, burst: u32) -> Result<Self, InvalidRate> {
        let valid = per_second.is_finite() && per_second > 0.0 && burst > 0;
        valid.then_some(Self { per_second, burst }).ok_or(InvalidRate)
    }

    /// Calls per second.
    pub fn per_second(self) -> f64 {
        self.per_second
    }

    /// Number of calls that may come at once.
    pub fn burst(self) -> u32 {
        self.burst
    }
}

impl TryFrom<Unchecked> for RateLimit {
    type Error = InvalidRate;

    fn try_from(Unchecked { per_second, burst }: Unchecked) -> Result<Self, InvalidRate> {
        Self::new(per_second, burst)
    }
}

/// A call that is not permitted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limited {
    /// Time until a call would be permitted, if no other call comes first and the rate stays.
    pub retry_after: Duration,
}

impl std::fmt::Display for Limited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the rate limit is exceeded for another {}", rounded(self.retry_after))
    }
}

impl std::error::Error for Limited {}

/// A token bucket. It starts full. It holds at most `burst` tokens, and a call takes one.
///
/// ```
/// use enlist_config::{RateLimit, RateLimiter};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limiter = RateLimiter::new(RateLimit::new(0.01, 2)?);
/// limiter.try_acquire()?;
/// limiter.try_acquire()?;
/// assert!(limiter.try_acquire().is_err());
/// // With `ConfigView::on_change`: `move |settings| limiter.set(settings.rate)`.
/// limiter.set(RateLimit::new(1_000_000.0, 2)?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RateLimiter(Mutex<Bucket>);

#[derive(Debug)]
struct Bucket {
    limit: RateLimit,
    tokens: f64,
    /// Time up to which `tokens` is counted.
    counted: Instant,
}

impl Bucket {
    /// Adds the tokens since the last count.
    fn count(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.counted).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.limit.per_second).min(f64::from(self.limit.burst));
        self.counted = now;
    }

    /// Takes a token, or returns the time until there is one.
    fn take(&mut self, now: Instant) -> Result<(), Limited> {
        self.count(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let seconds = (1.0 - self.tokens) / self.limit.per_second;
        // Rounded up, so that a caller that waits for it is not early.
        let retry_after = Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST);
        Err(Limited { retry_after: retry_after.saturating_add(Duration::from_nanos(1)).min(LONGEST) })
    }

    /// Changes the limit. Tokens up to now are counted with the former rate.
    fn set(&mut self, limit: RateLimit, now: Instant) {
        self.count(now);
        self.limit = limit;
        self.tokens = self.tokens.min(f64::from(limit.burst));
    }
}

impl RateLimiter {
    /// A limiter with a full bucket.
    pub fn new(limit: RateLimit) -> Self {
        Self(Mutex::new(Bucket { limit, tokens: f64::from(limit.burst), counted: Instant::now() }))
    }

    /// The current limit.
    pub fn limit(&self) -> RateLimit {
        self.0.locked().limit
    }

    /// Changes the limit. The tokens in the bucket stay, up to the new burst, so a change refills nothing.
    pub fn set(&self, limit: RateLimit) {
        self.0.locked().set(limit, Instant::now());
    }

    /// Takes a token.
    ///
    /// # Errors
    ///
    /// [`Limited`] if there is none.
    pub fn try_acquire(&self) -> Result<(), Limited> {
        self.0.locked().take(Instant::now())
    }

    /// Waits for a token and takes it. Waiting calls have no order. A change of the limit is noticed within a second.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes no token.
    pub async fn acquire(&self) {
        while let Err(Limited { retry_after }) = self.try_acquire() {
            tokio::time::sleep(retry_after.min(Duration::from_secs(1))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(per_second: f64, burst: u32) -> RateLimit {
        RateLimit::new(per_second, burst).unwrap()
    }

    /// Number of calls that are permitted now.
    fn permitted(limiter: &RateLimiter) -> usize {
        std::iter::from_fn(|| limiter.try_acquire().ok()).take(1_000_000).count()
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_return_at_the_rate_up_to_the_burst() {
        let limiter = RateLimiter::new(limit(10.0, 5));
        assert_eq!(permitted(&limiter), 5);
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(permitted(&limiter), 2);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(permitted(&limiter), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_refills_nothing_and_counts_from_now_on() {
        let limiter = RateLimiter::new(limit(10.0, 5));
        assert_eq!(permitted(&limiter), 5);
        tokio::time::advance(Duration::from_millis(200)).await;
        limiter.set(limit(1000.0, 100));
        assert_eq!(permitted(&limiter), 2, "at the former rate");
        tokio::time::advance(Duration::from_millis(50)).await;
        assert_eq!(permitted(&limiter), 50);
        tokio::time::advance(Duration::from_secs(1)).await;
        limiter.set(limit(1000.0, 3));
        assert_eq!(permitted(&limiter), 3);
        assert_eq!(limiter.limit(), limit(1000.0, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_calls_pass_at_the_rate() {
        let (limiter, begun) = (RateLimiter::new(limit(10.0, 1)), Instant::now());
        for _ in 0..21 {
            limiter.acquire().await;
        }
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(2) && took < Duration::from_millis(2200), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_call_notices_a_change_within_a_second() {
        let (limiter, begun) = (RateLimiter::new(limit(0.000_001, 1)), Instant::now());
        limiter.acquire().await;
        tokio::join!(limiter.acquire(), async { limiter.set(limit(1000.0, 1)) });
        assert!(begun.elapsed() <= Duration::from_millis(1010), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_rate_of_the_configuration_is_checked() {
        let read = |json: &str| serde_json::from_str::<RateLimit>(json).ok();
        assert_eq!(read(r#"{"per_second": 2, "burst": 3}"#), Some(limit(2.0, 3)));
        assert_eq!(read(r#"{"per_second": 0.5}"#), Some(limit(0.5, 1)));
        for bad in [r#"{"per_second": 0}"#, r#"{"per_second": -1}"#, r#"{"per_second": 1, "burst": 0}"#, "{}"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(RateLimit::new(f64::NAN, 1), Err(InvalidRate));
    }
}
