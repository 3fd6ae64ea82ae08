//! Options of a channel that concern its connections.

use std::time::Duration;

use enlist::{Endpoint, Instance};
use tokio::io::{AsyncRead, AsyncWrite};

use super::ChannelBuilder;
use crate::{retry::failure::BoxError, subchannel::transport::Connector};

/// Minimum interval of HTTP/2 pings that servers of grpc-go allow, unless told otherwise: they end connections that
/// ping more often (<https://github.com/grpc/grpc-go/blob/master/Documentation/keepalive.md>).
const MIN_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(300);

/// Connections.
impl ChannelBuilder {
    /// Sets how long a probe may take: a health check that asks a silent connection for a sign of life, and that any
    /// answer will do for. The time begins when the probe has a stream; one that gets none within the same time,
    /// because all streams of the connection are taken, postpones the verdict. Default: 1 s.
    pub fn probe_timeout(mut self, probe_timeout: Duration) -> Self {
        self.connections.probe_timeout = probe_timeout;
        self
    }

    /// Sets how many connections to one instance there may be at a time. A further one is made when the last stream is
    /// taken that the server allows on the others, and closed once it was not used for a minute. Default: 8; at least
    /// 1.
    ///
    /// At the ceiling, calls go to other instances. When all streams of all instances are taken, calls wait, in no
    /// particular order, until their deadline or the [wait limit](Self::wait_limit), at most [as
    /// many](Self::queue_limit) as are allowed. Over TLS the limit of the server cannot be seen: further connections
    /// are made for every 100 calls at a time, and at the ceiling calls go to the connections there are, as long as
    /// fewer than 100 wait for their stream there.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections.most = connections.max(1);
        self
    }

    /// Sets how many connections are made at a time, over all instances. Instances whose last dial failed share half of
    /// them. Default: 64; at least 1.
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

    /// Sets how long a connection is idle before the kernel asks whether the other side is still there, which also
    /// keeps it in the tables of load balancers and firewalls; `None` for never. `tcp_keepalive` in the settings
    /// overrides it. Default: 30 s, and every 10 s from then on without an answer.
    pub fn tcp_keepalive(mut self, tcp_keepalive: Option<Duration>) -> Self {
        self.connections.tcp_keepalive = tcp_keepalive;
        self
    }

    /// Sets the interval of HTTP/2 pings while calls are in flight: a connection that does not answer one within 20 s
    /// is given up, also one whose streams are all taken. At least 5 min, which is what servers of grpc-go allow; never
    /// without calls. For shorter intervals, where the servers are known to allow them, there are the settings.
    /// Default: `None`, no pings.
    pub fn http2_keep_alive(mut self, http2_keep_alive: Option<Duration>) -> Self {
        self.connections.http2_keep_alive = http2_keep_alive.map(|interval| interval.max(MIN_KEEP_ALIVE_INTERVAL));
        self
    }

    /// Sets how long a channel without a call keeps its connections, and a quarter more at most; the next call waits
    /// for new ones, as the first one does. Shorter than that of a load balancer on the way, no call meets a connection
    /// that was cut off. Calls that wait or are in flight count as use. Default: `None`, for ever; at least 10 ms.
    pub fn idle_timeout(mut self, idle_timeout: Option<Duration>) -> Self {
        self.connections.idle_timeout = idle_timeout.map(|timeout| timeout.max(Duration::from_millis(10)));
        self
    }

    /// Replaces the way in which a stream to an instance is opened: through a proxy or a tunnel, or to a test double.
    /// Called for each dial, of Unix sockets too. Default: TCP, or the socket.
    ///
    /// TLS, where the channel uses it, is spoken over the stream. The limit for a dial covers it, and the future is
    /// dropped at the limit. An error or a panic counts as a failed dial. Of the [settings](Self::settings), those of
    /// TCP have no effect.
    pub fn connector<F, S>(mut self, connect: impl Fn(&Instance, &Endpoint) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<S, BoxError>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.connections.connector = Some(Connector::new(connect));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        channel::channel::Channel,
        subchannel::connection_options::{DEFAULT_TCP_KEEPALIVE, TCP_KEEPALIVE_INTERVAL},
    };
    use tonic::transport::Endpoint as Settings;

    #[test]
    fn user_settings_come_first_and_pings_are_rare() {
        let options = |builder: ChannelBuilder| builder.connections;
        let (second, bare) = (Duration::from_secs(1), Settings::from_static("http://h:1"));
        let default = options(Channel::builder()).applied_to(bare.clone());
        assert_eq!(default.get_tcp_keepalive(), Some(DEFAULT_TCP_KEEPALIVE));
        assert_eq!(default.get_tcp_keepalive_interval(), Some(TCP_KEEPALIVE_INTERVAL));
        let own = options(Channel::builder()).applied_to(bare.clone().tcp_keepalive(Some(second)));
        assert_eq!(own.get_tcp_keepalive(), Some(second));
        let never = options(Channel::builder().tcp_keepalive(None)).applied_to(bare);
        assert_eq!(never.get_tcp_keepalive(), None);
        assert_eq!(options(Channel::builder()).http2_keep_alive, None);
        let pinging = options(Channel::builder().http2_keep_alive(Some(second)));
        assert_eq!(pinging.http2_keep_alive, Some(Duration::from_secs(300)));
    }
}
