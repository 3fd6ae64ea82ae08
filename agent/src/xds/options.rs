//! Options of the server for xDS.

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use envoy_types::pb::envoy::config::core::v3::Node;

use super::{clients::MAX_TEXT_BYTES, envoy::EnvoyListener};
#[cfg(feature = "tls")]
use crate::security::TlsIdentity;
use crate::{
    error::AgentError,
    security::{BearerToken, Protection},
};

/// Default port of xDS.
pub const DEFAULT_XDS_PORT: u16 = 18_000;

/// Default maximum number of streams and of connections.
pub const DEFAULT_XDS_STREAMS: usize = 10_000;

/// Default maximum number of names that one stream subscribes to.
pub const DEFAULT_XDS_NAMES: usize = 2_000;

/// Default maximum number of services that are followed at a time.
pub const DEFAULT_XDS_SERVICES: usize = 10_000;

/// Default time in which instances that lost their registration with the store register again. Kitex looks for its key
/// every 30 s, and tries again 10 s after a failure; all other layouts are faster.
pub const DEFAULT_XDS_SETTLE: Duration = Duration::from_secs(60);

/// Default time after which Envoy gives up a connection to an instance. That of Envoy is 5 s.
pub const DEFAULT_XDS_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Permitted times of [`XdsOptions::connect_timeout`]. Envoy refuses a cluster with zero.
const CONNECT_TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);

/// Zones to which a client's calls go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ZonePreference {
    /// All alike.
    #[default]
    None,
    /// The client's own one, while an instance in it receives calls.
    Own,
}

impl ZonePreference {
    /// Returns the zone that a client prefers, if it prefers one. One with a long name, which its stream would have to
    /// keep, counts as none.
    pub(super) fn of(self, node: &Node) -> Option<String> {
        let zone = node.locality.as_ref().map(|locality| &locality.zone);
        match self {
            Self::None => None,
            Self::Own => zone.filter(|zone| (1..=MAX_TEXT_BYTES).contains(&zone.len())).cloned(),
        }
    }
}

/// Options of the server for xDS.
#[derive(Clone, Debug)]
pub struct XdsOptions {
    pub(super) address: SocketAddr,
    pub(super) token: Option<BearerToken>,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<TlsIdentity>,
    protection: Protection,
    pub(super) max_streams: usize,
    pub(super) max_names: usize,
    pub(super) max_services: usize,
    pub(crate) settle: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) envoy: Vec<EnvoyListener>,
    pub(super) zones: ZonePreference,
}

impl Default for XdsOptions {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, DEFAULT_XDS_PORT).into(),
            token: None,
            #[cfg(feature = "tls")]
            tls: None,
            protection: Protection::None,
            max_streams: DEFAULT_XDS_STREAMS,
            max_names: DEFAULT_XDS_NAMES,
            max_services: DEFAULT_XDS_SERVICES,
            settle: DEFAULT_XDS_SETTLE,
            connect_timeout: DEFAULT_XDS_CONNECT_TIMEOUT,
            envoy: Vec::new(),
            zones: ZonePreference::None,
        }
    }
}

impl XdsOptions {
    /// Options with the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the address to listen on. Default: `127.0.0.1:18000`. Port 0 lets the system choose one. An address that
    /// other hosts can reach needs TLS or a token, or [`insecure`](Self::insecure).
    #[must_use]
    pub fn address(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// Requires a token of clients, in the header `authorization`. Default: none.
    #[must_use]
    pub fn token(mut self, token: BearerToken) -> Self {
        self.token = Some(token);
        self
    }

    /// Serves over TLS only. Default: without TLS.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, identity: TlsIdentity) -> Self {
        self.tls = Some(identity);
        self
    }

    /// Permits an address that other hosts can reach, without TLS and without a token. Everything in the registry can
    /// then be read by any program in the network.
    #[must_use]
    pub fn insecure(mut self) -> Self {
        self.protection = Protection::Waived;
        self
    }

    /// Sets the maximum number of open streams, and of connections. Further ones are refused, unless a connection
    /// without a subscription gives way. Each adds 52 KiB to the memory for names that all streams have in common.
    /// Default: 10,000. A program has a stream per service (gRPC in Python and C++) or one in all (Envoy, Rust).
    #[must_use]
    pub fn max_streams(mut self, max_streams: usize) -> Self {
        self.max_streams = max_streams;
        self
    }

    /// Sets the maximum number of names that one stream subscribes to, of each type. Further ones are not answered
    /// until a request of their type has room for them. If the first request of a client with resources of an earlier
    /// stream has more, it gets no listeners or clusters until they fit, because it would delete those that are
    /// missing; a name that comes in meanwhile counts as one that it has. Default: 2,000, with 128 bytes on average.
    #[must_use]
    pub fn max_names(mut self, max_names: usize) -> Self {
        self.max_names = max_names;
        self
    }

    /// Sets the maximum number of services that are followed at a time, for all streams together. Clients wait for the
    /// endpoints of a further one until there is room. A service counts until its watch ends, 5 s after its last
    /// stream ([`DirectoryOptions::idle`](enlist::DirectoryOptions::idle)). Default: 10,000.
    #[must_use]
    pub fn max_services(mut self, max_services: usize) -> Self {
        self.max_services = max_services;
        self
    }

    /// Sets the time in which instances that lost their registration with the store register again. Default: 60 s.
    ///
    /// For this time after the first answer of the store, a client that has instances from an earlier stream receives
    /// no empty assignment. Instances that the store loses together are held for as long, unless
    /// [`AgentBuilder::directory`](crate::AgentBuilder::directory) sets another time
    /// ([`hold`](enlist::DirectoryOptions::hold)). Zero disables both.
    #[must_use]
    pub fn settle(mut self, settle: Duration) -> Self {
        self.settle = settle;
        self
    }

    /// Sets the time after which Envoy gives up a connection to an instance, and tries the call on another one. From
    /// 1 ms to 1 h; `bind` refuses other times. Default: 1 s. gRPC clients do not use it.
    #[must_use]
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// Adds a listener for Envoy. Each Envoy gets all listeners. Default: none.
    #[must_use]
    pub fn envoy(mut self, listener: EnvoyListener) -> Self {
        self.envoy.push(listener);
        self
    }

    /// Prefers the zone of each client, which its node names as `locality.zone`: its calls go to other zones only if no
    /// instance of its own can take them. Default: calls go to all zones alike.
    #[must_use]
    pub fn prefer_own_zone(mut self) -> Self {
        self.zones = ZonePreference::Own;
        self
    }

    /// Refuses values that the agent cannot use.
    ///
    /// # Errors
    ///
    /// [`AgentError::InvalidOption`].
    pub(super) fn check(&self) -> Result<(), AgentError> {
        if CONNECT_TIMEOUTS.contains(&self.connect_timeout) {
            return Ok(());
        }
        Err(AgentError::InvalidOption { option: "connect_timeout", reason: "the time must be from 1 ms to 1 h" })
    }

    /// Returns the restriction of the use of the server.
    pub(super) fn protection(&self) -> Protection {
        #[cfg(feature = "tls")]
        let encrypts = self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        let encrypts = false;
        if encrypts || self.token.is_some() { Protection::Restricted } else { self.protection }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::core::v3::Locality;

    #[test]
    fn a_client_without_a_zone_prefers_none() {
        let node = |zone: &str| {
            let locality = Some(Locality { zone: zone.to_owned(), ..Locality::default() });
            Node { locality, ..Node::default() }
        };
        let long = "z".repeat(MAX_TEXT_BYTES + 1);
        for (preference, node, zone) in [
            (ZonePreference::Own, node("a"), Some("a")),
            (ZonePreference::Own, node(&long[1..]), Some(&long[1..])),
            (ZonePreference::Own, node(&long), None),
            (ZonePreference::Own, node(""), None),
            (ZonePreference::Own, Node::default(), None),
            (ZonePreference::None, node("a"), None),
        ] {
            assert_eq!(preference.of(&node).as_deref(), zone, "{preference:?} {node:?}");
        }
    }

    #[test]
    fn unusable_times_of_connections_are_refused() {
        let check = |time| XdsOptions::new().connect_timeout(time).check();
        assert!(check(Duration::from_millis(1)).is_ok() && check(Duration::from_secs(3600)).is_ok());
        for time in [Duration::ZERO, Duration::from_secs(3601)] {
            let error = check(time).unwrap_err();
            assert!(matches!(error, AgentError::InvalidOption { option: "connect_timeout", .. }), "{error:?}");
        }
    }

    #[test]
    fn a_token_restricts_the_use() {
        let options = XdsOptions::new();
        assert_eq!(options.protection(), Protection::None);
        assert_eq!(options.clone().insecure().protection(), Protection::Waived);
        assert_eq!(options.token(BearerToken::new("t").unwrap()).protection(), Protection::Restricted);
        #[cfg(feature = "tls")]
        assert_eq!(XdsOptions::new().tls(TlsIdentity::new("", "")).protection(), Protection::Restricted);
    }
}
