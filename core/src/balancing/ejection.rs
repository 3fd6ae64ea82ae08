//! Ejection: instances that fail several calls in a row get no calls for a while.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    error::Error,
    runtime::{
        backoff::{Backoff, BackoffPolicy},
        clock::Moment,
    },
};

/// Rule for ejecting instances. An instance is ejected after 5 failed calls in a row, for 5 to 10 s and twice as long
/// each time, up to 5 min. At most a third of the instances are ejected at once, but one of at least two always may be.
/// This is the consecutive-failure part of Envoy's outlier detection; gRFC A50 counts rates instead. The pool or the
/// channel determines which calls count as failed.
#[derive(Clone, Debug)]
#[must_use]
pub struct Ejection {
    failures: u32,
    times: BackoffPolicy,
    forgiven: Duration,
    share: f64,
}

impl Default for Ejection {
    fn default() -> Self {
        Self::new()
    }
}

impl Ejection {
    /// The defaults.
    pub fn new() -> Self {
        let (first, max) = (Duration::from_secs(10), Duration::from_secs(300));
        Self { failures: 5, times: BackoffPolicy::new(first, max).unwrap_or_default(), forgiven: max, share: 1.0 / 3.0 }
    }

    /// Sets the number of failed calls in a row before an ejection. Zero counts as one.
    pub fn failures(mut self, failures: u32) -> Self {
        self.failures = failures.max(1);
        self
    }

    /// Sets the length of the ejections: up to `first` for the first one, then twice as long each time, up to `max`. An
    /// instance that was not ejected for `max` starts again with `first`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] if `first` is zero or larger than `max`.
    pub fn time(mut self, first: Duration, max: Duration) -> Result<Self, Error> {
        (self.times, self.forgiven) = (BackoffPolicy::new(first, max)?, max);
        Ok(self)
    }

    /// Sets the share of the instances, from 0 to 1, that may be ejected at once.
    pub fn share(mut self, share: f64) -> Self {
        self.share = share.clamp(0.0, 1.0);
        self
    }

    /// For balancers: returns `true` if this number of failures in a row suffices for an ejection.
    pub fn is_enough(&self, failures: u32) -> bool {
        failures >= self.failures
    }

    /// Maximum number of `total` instances that may be ejected at once.
    fn most(&self, total: usize) -> usize {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a number of instances, between 0 and that number"
        )]
        let share = (total as f64 * self.share) as usize;
        if self.share > 0.0 && total >= 2 { share.max(1) } else { 0 }
    }
}

/// For balancers: lengths of the ejections of one instance. Each is longer than the last, unless that was long ago.
#[derive(Clone, Debug)]
pub struct EjectionTimes {
    times: Backoff,
    forgiven: Duration,
    /// Time at which the last ejection ended.
    last: Moment,
}

impl EjectionTimes {
    /// The times of an instance that was never ejected.
    pub fn new(ejection: &Ejection) -> Self {
        Self { times: ejection.times.start(), forgiven: ejection.forgiven, last: Moment::now() }
    }

    /// Duration of the ejection that begins now.
    pub fn begin(&mut self) -> Duration {
        if self.last.elapsed() > self.forgiven {
            self.times.reset();
        }
        self.times.next_delay()
    }

    /// Records the end of an ejection.
    pub fn end(&mut self) {
        self.last = Moment::now();
    }

    /// Waits for the end of an ejection of this length, or until `restarted` completes. After a restart the instance is
    /// another process, so its ejections start again with the shortest.
    ///
    /// # Cancel safety
    ///
    /// The ejection goes on until [`end`](Self::end), or the next one begins.
    pub async fn wait(&mut self, time: Duration, restarted: impl Future<Output = ()>) {
        if tokio::time::timeout(time, restarted).await.is_ok() {
            self.times.reset();
        }
        self.end();
    }
}

/// For balancers: number of ejected instances in a set.
#[derive(Debug, Default)]
pub struct Ejections {
    now: Arc<AtomicUsize>,
    total: AtomicUsize,
}

/// For balancers: an ejected instance. It counts as ejected while this lives.
#[derive(Debug)]
#[must_use = "dropping it ends the ejection"]
pub struct Ejected(Arc<AtomicUsize>);

impl Drop for Ejected {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Ejections {
    /// Records the number of instances.
    pub fn of(&self, total: usize) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Begins an ejection, unless too many instances are ejected already.
    pub fn begin(&self, ejection: &Ejection) -> Option<Ejected> {
        let most = ejection.most(self.total.load(Ordering::Relaxed));
        let one_more = |now: usize| (now < most).then_some(now + 1);
        self.now.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Ejected(Arc::clone(&self.now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_share_is_ejected_at_once_and_the_last_one_never() {
        let most = |share, total| Ejection::new().share(share).most(total);
        assert_eq!([0, 1, 2, 3, 6, 100].map(|total| most(1.0 / 3.0, total)), [0, 0, 1, 1, 2, 33]);
        assert_eq!((most(0.0, 10), most(1.0, 10)), (0, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn ejections_grow_until_the_instance_was_back_for_long() {
        let second = Duration::from_secs(1);
        let mut times = EjectionTimes::new(&Ejection::new().time(second, 8 * second).unwrap());
        for ceiling in [1, 2, 4, 8, 8] {
            let time = times.begin();
            assert!(time <= ceiling * second && time >= ceiling * second / 2, "{time:?}");
            times.end();
        }
        tokio::time::advance(8 * second).await;
        assert!(times.begin() > second, "it was not back for longer than the longest ejection");
        tokio::time::advance(9 * second).await;
        times.end();
        tokio::time::advance(second).await;
        assert!(times.begin() > second, "the time since the end of the last one counts");
        tokio::time::advance(9 * second).await;
        assert!(times.begin() <= second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_ends_an_ejection_and_the_next_one_is_a_first_one() {
        let second = Duration::from_secs(1);
        let mut times = EjectionTimes::new(&Ejection::new().time(second, 300 * second).unwrap());
        for _ in 0..8 {
            let time = times.begin();
            times.wait(time, std::future::pending()).await;
        }
        let (time, begin) = (times.begin(), Moment::now());
        assert!(time > 100 * second, "{time:?}");
        times.wait(time, tokio::time::sleep(second)).await;
        assert!(begin.elapsed() < 2 * second, "{:?}", begin.elapsed());
        assert!(times.begin() <= second);
    }

    #[test]
    fn failures_in_a_row_suffice_from_their_limit() {
        let enough = |ejection: Ejection| (0..10).find(|failures| ejection.is_enough(*failures));
        assert_eq!(enough(Ejection::new()), Some(5));
        assert_eq!(enough(Ejection::new().failures(3)), Some(3));
        assert_eq!(enough(Ejection::new().failures(0)), Some(1));
        assert!(Ejection::new().is_enough(u32::MAX));
    }

    #[test]
    fn an_ejection_that_ended_makes_room() {
        let (ejection, ejections) = (Ejection::new(), Ejections::default());
        ejections.of(3);
        let first = ejections.begin(&ejection).unwrap();
        assert!(ejections.begin(&ejection).is_none());
        drop(first);
        assert!(ejections.begin(&ejection).is_some());
    }
}
