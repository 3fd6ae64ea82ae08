//! Calls that wait for an instance or for a stream of one. The end of a call wakes one of them. There is no order among
//! them and new calls.

use std::sync::atomic::{AtomicUsize, Ordering, fence};

use tokio::sync::{Notify, futures::Notified};

/// Calls of a channel that wait.
#[derive(Debug, Default)]
pub(crate) struct CallQueue {
    waiting: AtomicUsize,
    freed: Notify,
}

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

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
