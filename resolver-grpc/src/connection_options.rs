//! Options of a channel's connections: how many there are and how long they are kept. The [subchannel](crate::subchannel)
//! follows them.

use std::time::Duration;

use crate::channel::{
    ChannelBuilder, DEFAULT_CONCURRENT_DIALS, DEFAULT_CONNECTIONS, DEFAULT_PROBE_TIMEOUT, DEFAULT_QUEUE_LIMIT,
};

/// The options of connections, of all subchannels of a channel.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionOptions {
    pub(crate) probe_timeout: Duration,
    /// How many there may be to one instance; at least one.
    pub(crate) most: usize,
    /// How many are made at a time, over all instances.
    pub(crate) concurrent_dials: usize,
    /// How many calls may wait for a stream.
    pub(crate) queue_limit: usize,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            probe_timeout: DEFAULT_PROBE_TIMEOUT,
            concurrent_dials: DEFAULT_CONCURRENT_DIALS,
            most: DEFAULT_CONNECTIONS,
            queue_limit: DEFAULT_QUEUE_LIMIT,
        }
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

    /// Sets how many connections to one instance there may be at a time. A further one is made when the last stream is taken that
    /// the server allows on the others, and closed once it was not used for a minute. Default: 8; at least 1.
    ///
    /// At the ceiling, calls go to other instances. When all streams of all instances are taken, calls wait, in no particular
    /// order, until their deadline or the [wait limit](Self::wait_limit), at most [as many](Self::queue_limit) as are allowed.
    /// Over TLS the limit of the server cannot be seen: further connections are made for every 100 calls at a time, and at the
    /// ceiling calls go to the connections there are.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections.most = connections.max(1);
        self
    }

    /// Sets how many connections are made at a time, over all instances. Instances whose last dial failed share half of them.
    /// Default: 64; at least 1.
    pub fn concurrent_dials(mut self, concurrent_dials: usize) -> Self {
        self.connections.concurrent_dials = concurrent_dials;
        self
    }

    /// Sets how many calls may wait when all streams of all instances are taken; more fail with `UNAVAILABLE` at once.
    /// Default: 1,024.
    pub fn queue_limit(mut self, queue_limit: usize) -> Self {
        self.connections.queue_limit = queue_limit;
        self
    }
}
