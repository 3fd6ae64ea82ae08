//! Calls that wait for an instance or for a stream of one. The end of a call wakes one of them. There is no order among
//! them and new calls.

use std::sync::atomic::{AtomicUsize, Ordering, fence};

use tokio::sync::{Notify, futures::Notified};

/// Calls of a channel that wait.
#[derive(Debug, Default)]
pub(crate) struct CallQueue {
    waiting: AtomicUsize,
    /// Those of them that have begun to wait for a stream. A connection that is lost meanwhile does not change that.
    for_streams: AtomicUsize,
    freed: Notify,
}

/// A wait for a stream, which ends on drop.
#[derive(Debug)]
pub(crate) struct StreamWait<'a>(&'a CallQueue);

/// Membership in the queue, which ends on drop.
#[derive(Debug)]
pub(crate) struct Queued<'a>(&'a CallQueue);

impl CallQueue {
    /// Counts the caller as waiting. Any state that it reads from now on is up to date, or followed by a wake-up.
    pub(crate) fn join(&self) -> Queued<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // Pairs with `wake_one`, where a stream is freed before the number of waiting calls is read.
        fence(Ordering::SeqCst);
        Queued(self)
    }

    /// Number of waiting calls.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Begins a wait for a stream, unless `limit` calls wait for one.
    pub(crate) fn wait_for_stream(&self, limit: usize) -> Option<StreamWait<'_>> {
        let one_more = |waiting| (waiting < limit).then_some(waiting + 1);
        self.for_streams.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).ok().map(|_| StreamWait(self))
    }

    /// A wake-up to wait for.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Wakes one call, since a stream has become free.
    pub(crate) fn wake_one(&self) {
        if self.waiting() > 0 {
            self.freed.notify_one();
        }
    }

    /// Wakes all calls, since there is a new connection.
    pub(crate) fn wake_all(&self) {
        self.freed.notify_waiters();
    }
}

impl Drop for StreamWait<'_> {
    fn drop(&mut self) {
        self.0.for_streams.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_wait_for_streams_are_limited() {
        let queue = CallQueue::default();
        let _for_connections = [queue.join(), queue.join()];
        let (first, second) = (queue.wait_for_stream(2), queue.wait_for_stream(2));
        assert!(first.is_some() && second.is_some());
        assert!(queue.wait_for_stream(2).is_none(), "the limit holds");
        drop(first);
        assert!(queue.wait_for_stream(2).is_some(), "and a wait that ends makes room");
    }
}
