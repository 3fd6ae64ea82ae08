//! Limits of the agent, and what they refuse: it is counted, logged, and shown to operators.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use enlist::{Moment, backend::MutexExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Minimum time between two logs of one kind that clients can cause, so that a flood does not fill the disk.
pub(crate) const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A limit, and the number of refusals that it has caused.
#[derive(Debug)]
pub(crate) struct Limit {
    name: &'static str,
    max: usize,
    refused: AtomicU64,
    log: LogThrottle,
}

/// Throttle of logs of one kind.
#[derive(Debug, Default)]
pub(crate) struct LogThrottle(Mutex<Option<Moment>>);

impl LogThrottle {
    /// Returns `true` if a log is due, which then counts as written.
    pub(crate) fn is_due(&self) -> bool {
        let mut logged = self.0.locked();
        let is_due = logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL);
        if is_due {
            *logged = Some(Moment::now());
        }
        is_due
    }
}

/// Use of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LimitUse {
    /// Name in the interface.
    pub(crate) name: &'static str,
    pub(crate) max: usize,
    /// Current number; `None` for a limit that applies to each client.
    pub(crate) used: Option<usize>,
    /// Number of refusals since the start.
    pub(crate) refused: u64,
}

impl Limit {
    /// Creates a limit that has refused nothing.
    pub(crate) fn new(name: &'static str, max: usize) -> Arc<Self> {
        Arc::new(Self { name, max, refused: AtomicU64::new(0), log: LogThrottle::default() })
    }

    /// The maximum.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Counts a refusal, and logs it unless one was logged a short time ago.
    pub(crate) fn refuse(&self) {
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if self.log.is_due() {
            tracing::warn!(limit = self.name, max = self.max, refused, "refused by a limit");
        }
    }

    /// Number of refusals.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Returns the use of the limit. `used`: current number, if there is one.
    pub(crate) fn usage(&self, used: Option<usize>) -> LimitUse {
        LimitUse { name: self.name, max: self.max, used, refused: self.refused() }
    }
}

/// Permits, as many as a limit has. Each is free again once it is dropped.
#[derive(Debug)]
pub(crate) struct Permits {
    limit: Arc<Limit>,
    free: Arc<Semaphore>,
}

impl Permits {
    /// Creates free slots.
    pub(crate) fn new(name: &'static str, max: usize) -> Self {
        let limit = Limit::new(name, max.min(Semaphore::MAX_PERMITS));
        let free = Arc::new(Semaphore::new(limit.max()));
        Self { limit, free }
    }

    /// Returns a slot; `None`, which is a refusal, if there is no free one.
    pub(crate) fn take(&self) -> Option<OwnedSemaphorePermit> {
        let slot = self.free();
        if slot.is_none() {
            self.limit.refuse();
        }
        slot
    }

    /// Returns a slot, if there is a free one.
    pub(crate) fn free(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }

    /// Waits for a slot; `None`, which is a refusal, if there is no free one within this time.
    pub(crate) async fn take_within(&self, limit: Duration) -> Option<OwnedSemaphorePermit> {
        let slot = tokio::time::timeout(limit, Arc::clone(&self.free).acquire_owned()).await;
        let slot = slot.ok().and_then(Result::ok);
        if slot.is_none() {
            self.limit.refuse();
        }
        slot
    }

    /// Returns the use of the limit.
    pub(crate) fn usage(&self) -> LimitUse {
        self.limit.usage(Some(self.limit.max() - self.free.available_permits()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logged::Logged;

    #[tokio::test(start_paused = true)]
    async fn refusals_are_logged_once_a_minute() {
        let logged = Logged::of("enlist_agent::limits");
        let _guard = tracing::subscriber::set_default(logged.clone());
        let limit = Limit::new("clients", 7);
        for _ in 0..3 {
            limit.refuse();
        }
        tokio::time::advance(LOG_INTERVAL).await;
        limit.refuse();
        assert_eq!(limit.usage(Some(5)), LimitUse { name: "clients", max: 7, used: Some(5), refused: 4 });
        let expected = ["1", "4"].map(|count| ("refused by a limit".to_owned(), count.to_owned()));
        assert_eq!(logged.messages("refused"), expected);
    }
}
