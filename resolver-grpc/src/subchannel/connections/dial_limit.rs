//! A limit on the connections that are made at a time, over all instances of a channel.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Permits for dials. Instances whose last dial failed share half of them, so that unreachable instances do not delay a
/// new one.
#[derive(Debug)]
pub(crate) struct DialLimit {
    all: Semaphore,
    failing: Semaphore,
}

/// Turn of an instance among the dials of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DialTurn {
    /// The latest dial of the instance did not fail.
    First,
    /// The latest dial of the instance failed.
    AfterFailure,
}

/// Right to dial, until it is dropped.
#[derive(Debug)]
pub(crate) struct DialPermit<'a> {
    _all: Option<SemaphorePermit<'a>>,
    _failing: Option<SemaphorePermit<'a>>,
}

impl DialLimit {
    /// A limit of `most` dials at a time; at least one.
    pub(crate) fn new(most: usize) -> Self {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        Self { all: Semaphore::new(most), failing: Semaphore::new(most.div_ceil(2)) }
    }

    /// Waits for a permit. Each permit is returned within the limit of a dial.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the queue.
    pub(crate) async fn permit(&self, turn: DialTurn) -> DialPermit<'_> {
        // Neither semaphore is ever closed.
        let failing = match turn {
            DialTurn::First => None,
            DialTurn::AfterFailure => self.failing.acquire().await.ok(),
        };
        DialPermit { _failing: failing, _all: self.all.acquire().await.ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn failing_instances_leave_half_of_the_permits() {
        let limit = DialLimit::new(4);
        let failing = [limit.permit(DialTurn::AfterFailure).await, limit.permit(DialTurn::AfterFailure).await];
        assert!(limit.permit(DialTurn::AfterFailure).now_or_never().is_none());
        let others = [limit.permit(DialTurn::First).await, limit.permit(DialTurn::First).await];
        assert!(limit.permit(DialTurn::First).now_or_never().is_none());
        drop(failing);
        assert!(limit.permit(DialTurn::AfterFailure).now_or_never().is_some());
        drop(others);
    }
}
