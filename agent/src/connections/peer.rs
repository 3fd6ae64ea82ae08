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
    streams: usize,
    /// Time at which the last one ended, or at which the connection was accepted.
    pub(super) since: Moment,
}

impl PeerState {
    /// Returns the time for which nothing has used the connection; `None` if something does, or it is closed already.
    pub(super) fn unused(&self) -> Option<Duration> {
        let usage = self.usage.locked();
        let is_open = !*self.closing.borrow();
        (is_open && usage.streams == 0).then(|| usage.since.elapsed())
    }

    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }
}

/// Use of a connection by a stream or a request, until it is dropped.
#[derive(Debug)]
pub(crate) struct InUse(Arc<PeerState>);

impl Drop for InUse {
    fn drop(&mut self) {
        let mut usage = self.0.usage.locked();
        *usage = Usage { streams: usage.streams.saturating_sub(1), since: Moment::now() };
    }
}

impl Peer {
    /// Creates the client of a new connection.
    pub(crate) fn new(address: Option<SocketAddr>) -> Self {
        let (now, closing) = (Moment::now(), watch::Sender::new(false));
        let usage = Mutex::new(Usage { streams: 0, since: now });
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
        self.state.usage.locked().streams += 1;
        InUse(Arc::clone(&self.state))
    }

    /// Returns `true` if the connection is to give way to another one.
    pub(crate) fn is_unused(&self) -> bool {
        self.state.unused().is_some_and(|time| time >= UNUSED)
    }

    /// Returns `true` once the connection is to be closed.
    #[cfg(test)]
    pub(crate) fn is_closing(&self) -> bool {
        *self.state.closing.borrow()
    }

    /// Number of streams that use the connection.
    #[cfg(test)]
    pub(crate) fn streams(&self) -> usize {
        self.state.usage.locked().streams
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
