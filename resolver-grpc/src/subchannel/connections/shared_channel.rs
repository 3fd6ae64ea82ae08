//! The channel over one connection, lent to calls that need not wait.
//!
//! tonic's buffer keeps a boxed wait and two senders in each clone of a channel. A clone per call would cost two
//! allocations and a dozen atomic updates, so calls use one clone in turns.

use std::{
    fmt,
    sync::{Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use tonic::{
    body::Body,
    transport::{Channel, channel::ResponseFuture},
};
use tower::Service as _;

/// A channel, and a clone of it that one call at a time uses.
pub(crate) struct SharedChannel {
    channel: Channel,
    lent: Mutex<Channel>,
}

impl fmt::Debug for SharedChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedChannel").finish_non_exhaustive()
    }
}

impl SharedChannel {
    pub(crate) fn new(channel: Channel) -> Self {
        Self { lent: Mutex::new(channel.clone()), channel }
    }

    /// A clone, for a caller that may wait.
    pub(crate) fn cloned(&self) -> Channel {
        self.channel.clone()
    }

    /// The channel with room for one call; `None` if it has none now. If another call uses the lent clone at this
    /// moment, the call gets a clone of its own: calls never wait for each other here.
    pub(crate) fn ready_now(&self) -> Option<ReadyChannel<'_>> {
        // No waker is needed: without room, the call waits with a clone of its own.
        let cx = &mut Context::from_waker(Waker::noop());
        let Ok(mut lent) = self.lent.try_lock() else {
            let mut own = self.cloned();
            return is_ready(&own.poll_ready(cx)).then_some(ReadyChannel::Own(own));
        };
        if is_ready(&lent.poll_ready(cx)) {
            return Some(ReadyChannel::Lent(lent));
        }
        // It waits in line now, and would keep the room that it gets from calls that wait.
        *lent = self.cloned();
        None
    }
}

fn is_ready<E>(polled: &Poll<Result<(), E>>) -> bool {
    matches!(polled, Poll::Ready(Ok(())))
}

/// A channel with room for one call.
pub(crate) enum ReadyChannel<'a> {
    Lent(MutexGuard<'a, Channel>),
    Own(Channel),
}

impl ReadyChannel<'_> {
    /// Sends a call.
    pub(crate) fn call(self, request: http::Request<Body>) -> ResponseFuture {
        match self {
            Self::Lent(mut channel) => channel.call(request),
            Self::Own(mut channel) => channel.call(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::transport::Endpoint;

    fn shared(buffer: usize) -> SharedChannel {
        SharedChannel::new(Endpoint::from_static("http://127.0.0.1:1").buffer_size(buffer).connect_lazy())
    }

    #[tokio::test]
    async fn calls_at_the_same_moment_have_different_clones() {
        let shared = shared(2);
        let first = shared.ready_now();
        assert!(matches!(first, Some(ReadyChannel::Lent(_))));
        assert!(matches!(shared.ready_now(), Some(ReadyChannel::Own(_))));
        drop(first);
        assert!(matches!(shared.ready_now(), Some(ReadyChannel::Lent(_))));
    }

    #[tokio::test]
    async fn a_lent_clone_takes_no_room_from_waiting_calls() {
        let shared = shared(1);
        let (mut other, mut waiting) = (shared.cloned(), shared.cloned());
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(is_ready(&other.poll_ready(cx)));
        assert!(shared.ready_now().is_none());
        drop(other);
        assert!(is_ready(&waiting.poll_ready(cx)));
    }
}
