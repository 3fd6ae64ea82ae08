//! Options of a channel that concern its connections.

use std::time::Duration;

use enlist::{Endpoint, Instance};
use tokio::io::{AsyncRead, AsyncWrite};

use super::ChannelBuilder;
use crate::{retry::failure::BoxError, subchannel::connections::transport::Connector};

/// Minimum interval of HTTP/2 pings that servers of grpc-go allow by default. They end connections that ping more often
/// (<https://github.com/grpc/grpc-go/blob/master/Documentation/keepalive.md>).
const MIN_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(300);

/// Connections.
impl ChannelBuilder {
    /// Sets the maximum duration of a probe: a health check over a silent connection, to which any response will do.
    /// The time begins when the probe has a stream. If all streams of the connection are taken for the same time, the
    /// decision is postponed. Default: 1 s.
    pub fn probe_timeout(mut self, probe_timeout: Duration) -> Self {
        self.connections.probe_timeout = probe_timeout;
        self
    }

    /// Sets the maximum number of connections to one instance at a time. A further one is made when the last stream is
    /// taken that the server allows on the others, and closed once it was not used for a minute. Default: 8; at least
    /// 1.
    ///
    /// At the ceiling, calls go to other instances. When all streams of all instances are taken, calls wait, in no
    /// particular order, until their deadline or the [wait limit](Self::wait_limit), at most
    /// [`queue_limit`](Self::queue_limit) of them. Over TLS the limit of the server is not visible: a further
    /// connection is made for every 100 concurrent calls. At the ceiling calls go to the existing connections, as long
    /// as fewer than 100 wait for their stream there.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections.most = connections.max(1);
        self
    }

    /// Sets the maximum number of concurrent dials, over all instances. Instances whose last dial failed share half of
    /// them. Default: 64; at least 1.
    pub fn concurrent_dials(mut self, concurrent_dials: usize) -> Self {
        self.connections.concurrent_dials = concurrent_dials;
        self
    }

    /// Sets the maximum number of calls that wait when all streams of all instances are taken. Further calls fail with
    /// `UNAVAILABLE` at once. Default: 1,024.
    pub fn queue_limit(mut self, queue_limit: usize) -> Self {
        self.connections.queue_limit = queue_limit;
        self
    }

    /// Sets the idle time after which the kernel sends keepalive probes, which also keep the connection in the tables
    /// of load balancers and firewalls; `None` for never. `tcp_keepalive` in the settings overrides it. Default: 30 s,
    /// and every 10 s from then on while no response arrives.
    pub fn tcp_keepalive(mut self, tcp_keepalive: Option<Duration>) -> Self {
        self.connections.tcp_keepalive = tcp_keepalive;
        self
    }

    /// Sets the interval of HTTP/2 pings while calls are in flight. A connection without a response to one within 20 s
    /// is given up, also if all its streams are taken. At least 5 min, which is what servers of grpc-go allow; never
    /// without calls. [`settings`](Self::settings) that change the interval, the limit or pings without calls override
    /// it: use them for shorter intervals, where the servers are known to allow those. Default: `None`, no pings.
    pub fn http2_keep_alive(mut self, http2_keep_alive: Option<Duration>) -> Self {
        self.connections.http2_keep_alive = http2_keep_alive.map(|interval| interval.max(MIN_KEEP_ALIVE_INTERVAL));
        self
    }

    /// Sets the time after which a channel without calls closes its connections, at most a quarter later. The next call
    /// waits for new ones, as the first one does. With a timeout below that of a load balancer on the path, no call
    /// uses a connection that the load balancer has dropped. Calls that wait or are in flight count as use. Default:
    /// `None`, connections are kept; at least 10 ms.
    pub fn idle_timeout(mut self, idle_timeout: Option<Duration>) -> Self {
        self.connections.idle_timeout = idle_timeout.map(|timeout| timeout.max(Duration::from_millis(10)));
        self
    }

    /// Replaces the function that opens a stream to an instance: through a proxy or a tunnel, or to a test double.
    /// Called for each dial, also of Unix sockets. Default: TCP, or the socket.
    ///
    /// TLS, where the channel uses it, runs over the stream. The limit of a dial covers the function, and its future is
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
        subchannel::connections::connection_options::{DEFAULT_TCP_KEEPALIVE, TCP_KEEPALIVE_INTERVAL},
    };
    use tonic::transport::Endpoint as Settings;

    #[test]
    fn user_settings_come_first() {
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
