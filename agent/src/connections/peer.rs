//! The client at the other end of a connection, and the use of the connection by streams and requests.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{Moment, backend::MutexExt as _};
use tokio::sync::watch;

/// Time for which a connection is kept although nothing uses it and another client needs its slot: clients send their
/// first request at once.
pub(super) const UNUSED: Duration = Duration::from_secs(1);

/// The client of a connection. Requests over it have a clone of this.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    address: Option<SocketAddr>,
    pub(super) state: Arc<PeerState>,
}

/// State of a connection.
#[derive(Debug)]
pub(super) struct PeerState {
    heard: Mutex<Moment>,
    pub(super) usage: Mutex<Usage>,
    /// `true` once it is to be closed.
    pub(super) closing: watch::Sender<bool>,
}

/// Use of a connection by streams of xDS, or requests over HTTP.
#[derive(Debug)]
pub(super) struct Usage {
    users: usize,
    /// Something has used it.
    was_used: bool,
    /// Bytes wait for the client, which may be those of a response that is complete for its request.
    is_writing: bool,
    /// Time at which the last use ended, or at which the connection was accepted.
    pub(super) since: Moment,
}

impl PeerState {
    /// Returns the time for which nothing has used the connection; `None` if something does, or it is closed already.
    pub(super) fn unused(&self) -> Option<Duration> {
        self.unused_in(&self.usage.locked())
    }

    fn unused_in(&self, usage: &Usage) -> Option<Duration> {
        let is_open = !*self.closing.borrow();
        // A client that may use nothing could let the refusals wait.
        let is_used = usage.users > 0 || usage.was_used && usage.is_writing;
        (is_open && !is_used).then(|| usage.since.elapsed())
    }

    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Closes the connection if nothing has used it for [`UNUSED`]; returns `false` otherwise.
    pub(super) fn close_unused(&self) -> bool {
        let usage = self.usage.locked();
        let is_unused = self.unused_in(&usage).is_some_and(|time| time >= UNUSED);
        if is_unused {
            self.close();
        }
        is_unused
    }

    /// Records whether bytes wait for the client.
    pub(super) fn set_writing(&self, is_writing: bool) {
        let mut usage = self.usage.locked();
        if usage.is_writing == is_writing {
            return;
        }
        usage.is_writing = is_writing;
        if usage.was_used {
            usage.since = Moment::now();
        }
    }
}

/// Use of a connection by a stream or a request, until it is dropped.
#[derive(Debug)]
pub(crate) struct InUse(Arc<PeerState>);

impl Drop for InUse {
    fn drop(&mut self) {
        let mut usage = self.0.usage.locked();
        (usage.users, usage.since) = (usage.users.saturating_sub(1), Moment::now());
    }
}

impl Peer {
    /// Creates the client of a new connection.
    pub(crate) fn new(address: Option<SocketAddr>) -> Self {
        let (now, closing) = (Moment::now(), watch::Sender::new(false));
        let usage = Mutex::new(Usage { users: 0, was_used: false, is_writing: false, since: now });
        Self { address, state: Arc::new(PeerState { heard: Mutex::new(now), usage, closing }) }
    }

    /// Address of the client.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Time at which bytes of the client arrived last.
    pub(crate) fn heard(&self) -> Moment {
        *self.state.heard.locked()
    }

    /// Records that a stream or a request uses the connection.
    pub(crate) fn in_use(&self) -> InUse {
        let mut usage = self.state.usage.locked();
        (usage.users, usage.was_used) = (usage.users + 1, true);
        drop(usage);
        InUse(Arc::clone(&self.state))
    }

    /// Records that a stream has begun, which will use the connection: it has the time of a new connection for that.
    pub(crate) fn begin(&self) {
        self.state.usage.locked().since = Moment::now();
    }

    /// Closes the connection if it is to give way to another one; returns `false` otherwise.
    pub(crate) fn close_unused(&self) -> bool {
        self.state.close_unused()
    }

    /// Returns `true` once the connection is to be closed.
    #[cfg(test)]
    pub(crate) fn is_closing(&self) -> bool {
        *self.state.closing.borrow()
    }

    /// Number of streams and requests that use the connection.
    #[cfg(test)]
    pub(crate) fn users(&self) -> usize {
        self.state.usage.locked().users
    }

    /// Closes the connection.
    pub(crate) fn disconnect(&self) {
        self.state.close();
    }

    /// Records that bytes of the client have arrived.
    pub(super) fn hear(&self) {
        *self.state.heard.locked() = Moment::now();
    }
}
