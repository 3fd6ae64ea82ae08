//! Modes of a proxy, and the choice of the mode of one connection.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::watch;

/// A direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Direction {
    /// Bytes that the client sends.
    ToServer,
    /// Bytes that the server answers.
    ToClient,
    /// Both.
    Both,
}

impl Direction {
    pub(super) fn covers(self, other: Self) -> bool {
        self == Self::Both || self == other
    }
}

/// Effect of a proxy on its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Passes everything on.
    #[default]
    Pass,
    /// Nothing arrives any more, and nobody is told: sockets stay open, and what was sent arrives after the mode ends.
    BlackHole(Direction),
    /// Ends connections, and new ones at once.
    Cut,
    /// Resets connections, and new ones at once.
    Reset,
    /// Resets connections; new ones are refused.
    Refuse,
    /// Delays what is sent, each way, by `delay` and up to `jitter` more, in order.
    Delay {
        /// The least delay.
        delay: Duration,
        /// The most that is added to it.
        jitter: Duration,
    },
    /// Passes at most so many bytes a second, each way of each connection.
    Throttle(u32),
    /// Passes so many more bytes of answers on each connection, then resets it.
    CutAfter(u64),
}

/// Modes of connections: by what their first bytes contain, else the general one.
#[derive(Clone, Debug, Default)]
pub(super) struct Modes {
    pub(super) general: Mode,
    pub(super) special: Vec<(Vec<u8>, Mode)>,
    /// Counts the changes, so that byte counts start over.
    pub(super) generation: u64,
}

/// Mode of one connection, which depends on its first bytes once they are known.
#[derive(Clone)]
pub(super) struct ConnectionMode {
    modes: watch::Receiver<Modes>,
    head: Arc<OnceLock<Vec<u8>>>,
}

impl ConnectionMode {
    pub(super) fn new(modes: watch::Receiver<Modes>) -> Self {
        Self { modes, head: Arc::default() }
    }

    /// Stores the first bytes of the connection. Later calls have no effect.
    pub(super) fn set_head(&self, bytes: &[u8]) {
        self.head.get_or_init(|| bytes.to_vec());
    }

    /// Returns the mode, and the number of changes of modes so far.
    pub(super) fn get(&mut self) -> (Mode, u64) {
        let modes = self.modes.borrow_and_update();
        let contains = |needle: &[u8]| {
            self.head.get().is_some_and(|head| head.windows(needle.len()).any(|window| window == needle))
        };
        let special = modes.special.iter().rev().find(|(needle, _)| contains(needle));
        (special.map_or(modes.general, |(_, mode)| *mode), modes.generation)
    }

    /// Waits for a mode that `fits`; for ever once the proxy is gone.
    pub(super) async fn until(&mut self, fits: impl Fn(Mode) -> bool) -> Mode {
        loop {
            let (mode, _) = self.get();
            if fits(mode) {
                return mode;
            }
            if self.modes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
