//! Options of a channel's connections: how many there are and how long they are kept. The [subchannel](crate::subchannel)
//! follows them.

use std::time::Duration;

use crate::channel::{ChannelBuilder, DEFAULT_PROBE_TIMEOUT};

/// The options of connections, of all subchannels of a channel.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionOptions {
    pub(crate) probe_timeout: Duration,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self { probe_timeout: DEFAULT_PROBE_TIMEOUT }
    }
}

impl ChannelBuilder {
    /// Sets how long a probe may take: a health check that asks a silent connection for a sign of life, and that any answer will
    /// do for. The time begins when the probe has a stream; one that gets none within the same time, because all streams of the
    /// connection are taken, postpones the verdict. Default: 1 s.
    pub fn probe_timeout(mut self, probe_timeout: Duration) -> Self {
        self.connections.probe_timeout = probe_timeout;
        self
    }
}
