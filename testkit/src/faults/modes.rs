//! Modes of a proxy, and the choice of the mode of one connection.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::watch;

/// Direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
    /// Both directions.
    Both,
}

impl Direction {
    pub(super) fn covers(self, other: Self) -> bool {
        self == Self::Both || self == other
    }
}

/// Mode of a proxy, which applies to its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Forwards everything.
    #[default]
    Pass,
    /// Holds back all bytes without closing the connection. They arrive after the mode ends.
    BlackHole(Direction),
    /// Ends connections, and new ones at once.
    Cut,
    /// Resets connections, and new ones at once.
    Reset,
    /// Resets connections, and refuses new ones.
    Refuse,
    /// Delays bytes in both directions by `delay` plus up to `jitter`, in order.
    Delay {
        /// Minimum delay.
        delay: Duration,
        /// Maximum additional delay.
        jitter: Duration,
    },
    /// Limits each direction of each connection to this many bytes per second.
    Throttle(u32),
    /// Forwards this many more bytes to the client on each connection, then resets it.
    CutAfter(u64),
}

/// Modes of connections: by their first bytes, otherwise the general one.
#[derive(Clone, Debug, Default)]
pub(super) struct Modes {
    pub(super) general: Mode,
    pub(super) special: Vec<(Vec<u8>, Mode)>,
    /// Number of changes, so that byte counts restart after each.
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
