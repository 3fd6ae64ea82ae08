//! Options of the HTTP server.

use std::net::{Ipv4Addr, SocketAddr};

use super::messages::guard::Hosts;
#[cfg(feature = "tls")]
use crate::security::TlsIdentity;
use crate::{
    error::AgentError,
    security::{BearerToken, Protection},
};

/// Default port of HTTP.
pub const DEFAULT_HTTP_PORT: u16 = 18_001;

/// Default maximum number of connections.
pub const DEFAULT_HTTP_CONNECTIONS: usize = 2_000;

/// Default maximum number of event clients.
pub const DEFAULT_HTTP_EVENT_CLIENTS: usize = 1_000;

/// Default maximum number of namespaces and single services that are read at a time.
pub const DEFAULT_HTTP_VIEWS: usize = 1_000;

/// Default maximum number of services of a namespace that are followed.
pub const DEFAULT_HTTP_SERVICES: usize = 2_000;

/// Options of the HTTP server.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    pub(super) address: SocketAddr,
    pub(super) token: Option<BearerToken>,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<TlsIdentity>,
    protection: Protection,
    hosts: Vec<String>,
    pub(super) max_connections: usize,
    pub(super) max_event_clients: usize,
    max_views: usize,
    max_services: usize,
}

/// Limits of the followers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Maximum number of followers.
    pub(super) followers: usize,
    /// Maximum number of services that the follower of a namespace follows.
    pub(super) services: usize,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, DEFAULT_HTTP_PORT).into(),
            token: None,
            #[cfg(feature = "tls")]
            tls: None,
            protection: Protection::None,
            hosts: Vec::new(),
            max_connections: DEFAULT_HTTP_CONNECTIONS,
            max_event_clients: DEFAULT_HTTP_EVENT_CLIENTS,
            max_views: DEFAULT_HTTP_VIEWS,
            max_services: DEFAULT_HTTP_SERVICES,
        }
    }
}

impl HttpOptions {
    /// Options with the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the address to listen on. Default: `127.0.0.1:18001`. Port 0 lets the system choose one. An address that
    /// other hosts can reach needs TLS or a token, or [`insecure`](Self::insecure).
    #[must_use]
    pub fn address(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// Requires a token of clients, in the header `authorization`. Only the health endpoints and the files of the
    /// console, which contain no data, are served without. Default: none.
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

    /// Adds a name that requests may have in the header `host`. IP addresses and `localhost` need not be added.
    /// Requests with other names are refused, so that web pages cannot read the registry through a name of their own.
    /// The port does not matter; `bind` refuses a name with one.
    #[must_use]
    pub fn host(mut self, name: impl Into<String>) -> Self {
        self.hosts.push(name.into());
        self
    }

    /// Sets the maximum number of connections. A further one takes the place of one that has had no request for a
    /// second, or is closed at once. Default: 2,000.
    #[must_use]
    pub fn max_connections(mut self, max_connections: usize) -> Self {
        self.max_connections = max_connections;
        self
    }

    /// Sets the maximum number of event clients. Further ones are refused with status 503. Default: 1,000. Keep it
    /// below the maximum number of connections, so that other requests are served.
    #[must_use]
    pub fn max_event_clients(mut self, max_event_clients: usize) -> Self {
        self.max_event_clients = max_event_clients;
        self
    }

    /// Sets the maximum number of namespaces and single services that are read at a time, by all clients. A request for
    /// a further one is refused with status 503. One without a reader is kept for 70 s, or until another one needs its
    /// slot: a quarter of the maximum at a time, because each watch goes on for 5 s
    /// ([`DirectoryOptions::idle`](enlist::DirectoryOptions::idle)). Default: 1,000.
    #[must_use]
    pub fn max_views(mut self, max_views: usize) -> Self {
        self.max_views = max_views;
        self
    }

    /// Sets the maximum number of services of a namespace that are followed. Further ones are counted as `omitted`.
    /// Default: 2,000.
    #[must_use]
    pub fn max_services(mut self, max_services: usize) -> Self {
        self.max_services = max_services;
        self
    }

    /// Returns the restriction of the use of the server.
    pub(super) fn protection(&self) -> Protection {
        #[cfg(feature = "tls")]
        let encrypts = self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        let encrypts = false;
        if encrypts || self.token.is_some() { Protection::Restricted } else { self.protection }
    }

    /// Returns the limits of the followers.
    pub(super) fn limits(&self) -> Limits {
        Limits { followers: self.max_views, services: self.max_services }
    }

    /// Returns the names of this agent.
    pub(super) fn hosts(&self) -> Hosts {
        Hosts::new(self.hosts.iter().cloned())
    }

    /// Refuses values that the agent cannot use.
    ///
    /// # Errors
    ///
    /// [`AgentError::InvalidOption`].
    pub(super) fn check(&self) -> Result<(), AgentError> {
        if self.hosts.iter().all(|name| Hosts::can_have(name)) {
            return Ok(());
        }
        Err(AgentError::InvalidOption { option: "host", reason: "a host is a name without a port" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_a_port_is_refused() {
        let check = |name: &str| HttpOptions::new().host("a").host(name).check();
        check("registry.internal.").unwrap();
        for name in ["registry.internal:18001", "", "a:b"] {
            let error = check(name).unwrap_err();
            assert!(matches!(error, AgentError::InvalidOption { option: "host", .. }), "{error:?}");
        }
    }

    #[test]
    fn a_token_restricts_the_use() {
        let options = HttpOptions::new();
        assert_eq!(options.protection(), Protection::None);
        assert_eq!(options.clone().insecure().protection(), Protection::Waived);
        assert_eq!(options.token(BearerToken::new("t").unwrap()).protection(), Protection::Restricted);
        #[cfg(feature = "tls")]
        assert_eq!(HttpOptions::new().tls(TlsIdentity::new("", "")).protection(), Protection::Restricted);
    }
}
