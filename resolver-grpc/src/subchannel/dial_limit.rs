//! A limit on the connections that are made at a time, over all instances of a channel.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Permits for dials. Instances whose last dial failed share half of them, so that instances that cannot be reached do not keep a
/// new one waiting.
#[derive(Debug)]
pub(crate) struct DialLimit {
    all: Semaphore,
    failing: Semaphore,
}

/// The right to dial, until it is dropped.
#[derive(Debug)]
pub(crate) struct DialPermit<'a> {
    _all: Option<SemaphorePermit<'a>>,
    _failing: Option<SemaphorePermit<'a>>,
}

impl DialLimit {
    /// At most so many dials at a time; at least one.
    pub(crate) fn new(most: usize) -> Self {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        Self { all: Semaphore::new(most), failing: Semaphore::new(most.div_ceil(2)) }
    }

    /// Waits for a permit. Each holder gives it back within the limit of a dial.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the queue.
    pub(crate) async fn permit(&self, failing: bool) -> DialPermit<'_> {
        // Neither is ever closed.
        let failing = if failing { self.failing.acquire().await.ok() } else { None };
        DialPermit { _failing: failing, _all: self.all.acquire().await.ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn those_that_fail_leave_half_to_the_others() {
        let limit = DialLimit::new(4);
        let failing = [limit.permit(true).await, limit.permit(true).await];
        assert!(limit.permit(true).now_or_never().is_none());
        let others = [limit.permit(false).await, limit.permit(false).await];
        assert!(limit.permit(false).now_or_never().is_none());
        drop(failing);
        assert!(limit.permit(true).now_or_never().is_some());
        drop(others);
    }
}
