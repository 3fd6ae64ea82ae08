//! Options of connections: how they are opened, how many there are and how long they are kept.

use std::time::Duration;

use enlist::{Endpoint, Instance};
use tonic::transport::Endpoint as Settings;

use crate::subchannel::connections::transport::{Connector, Opened, connect, tcp};

/// Default time for the response of a silent connection to a probe.
pub(crate) const DEFAULT_PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Default maximum number of connections to an instance.
pub(crate) const DEFAULT_CONNECTIONS: usize = 8;

/// Default maximum number of connections that a channel makes at a time.
pub(crate) const DEFAULT_CONCURRENT_DIALS: usize = 64;

/// Default idle time of a connection before the kernel sends a TCP keepalive probe.
pub(crate) const DEFAULT_TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// Default maximum number of calls that wait when all streams are taken.
pub(crate) const DEFAULT_QUEUE_LIMIT: usize = 1024;

/// Interval of further keepalive probes without a response. The limit for unacknowledged data, 20 s, ends the
/// connection.
pub(crate) const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Maximum time for the response to an HTTP/2 ping; gRPC's own default.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Options of the connections of all subchannels of a channel.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionOptions {
    pub(crate) probe_timeout: Duration,
    /// Maximum number to one instance; at least one.
    pub(crate) most: usize,
    /// Maximum number made at a time, over all instances.
    pub(crate) concurrent_dials: usize,
    /// Maximum number of calls that wait for a stream.
    pub(crate) queue_limit: usize,
    pub(crate) tcp_keepalive: Option<Duration>,
    pub(crate) http2_keep_alive: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    /// Opens the streams, in place of TCP and sockets.
    pub(crate) connector: Option<Connector>,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            probe_timeout: DEFAULT_PROBE_TIMEOUT,
            concurrent_dials: DEFAULT_CONCURRENT_DIALS,
            most: DEFAULT_CONNECTIONS,
            queue_limit: DEFAULT_QUEUE_LIMIT,
            tcp_keepalive: Some(DEFAULT_TCP_KEEPALIVE),
            http2_keep_alive: None,
            idle_timeout: None,
            connector: None,
        }
    }
}

impl ConnectionOptions {
    /// Opens a stream to `endpoint` of `instance`.
    pub(crate) fn open(&self, instance: &Instance, endpoint: &Endpoint, settings: &Settings) -> Opened {
        if let Some(connector) = &self.connector {
            return connector.open(instance, endpoint);
        }
        let (endpoint, tcp) = (endpoint.clone(), tcp(settings));
        Box::pin(async move { connect(&endpoint, tcp).await })
    }

    /// Adds the options that the user's own settings override: tonic does not reveal afterwards if they have pings.
    pub(crate) fn below(&self, settings: Settings) -> Settings {
        match self.http2_keep_alive {
            Some(interval) => settings
                .http2_keep_alive_interval(interval)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                .keep_alive_while_idle(false),
            None => settings,
        }
    }

    /// Adds the options that the user's own settings leave open.
    pub(crate) fn applied_to(&self, mut settings: Settings) -> Settings {
        if settings.get_tcp_keepalive().is_none() {
            settings = settings.tcp_keepalive(self.tcp_keepalive);
        }
        if settings.get_tcp_keepalive_interval().is_none() {
            settings = settings.tcp_keepalive_interval(Some(TCP_KEEPALIVE_INTERVAL));
        }
        settings
    }
}
