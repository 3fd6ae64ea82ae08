//! URLs of etcd's members, parsed from user input.

use std::net::{IpAddr, Ipv6Addr};

use enlist::Error;
use http::Uri;

/// Default port of etcd for clients.
const ETCD_PORT: u16 = 2379;

/// Presence of TLS options: an authority, a certificate of the client, or the name of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are options or there are none")]
pub enum Tls {
    /// There are TLS options.
    Configured,
    /// There are none.
    Absent,
}

/// Returns the URL of an etcd endpoint: `host`, `host:port`, `http://host[:port]` or `https://host[:port]`.
///
/// Without a scheme it is `https` if there are TLS options, else `http`, and the port is 2379 by default. An IPv6
/// address without a port may go without brackets. A URL keeps its scheme, and its default port is that of the scheme
/// (80, 443).
///
/// ```
/// use enlist_etcd::{Tls, endpoint_url};
///
/// assert_eq!(endpoint_url("etcd-1", Tls::Absent)?, "http://etcd-1:2379");
/// assert_eq!(endpoint_url("10.0.0.1:4001", Tls::Configured)?, "https://10.0.0.1:4001");
/// # Ok::<(), enlist::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::InvalidConfig`] for anything else, for `http` with TLS options, and for a user or a password in the
/// address, which the error does not show.
pub fn endpoint_url(endpoint: &str, tls: Tls) -> Result<String, Error> {
    let endpoint = endpoint.trim();
    let refuse = |reason: &str| Err(Error::invalid_config("endpoints", format!("{:?}: {reason}", shown(endpoint))));
    if endpoint.contains('@') {
        return refuse("give user and password as options, not in the address");
    }
    let url = match (endpoint.split_once("://"), tls) {
        (Some(("http", _)), Tls::Configured) => return refuse("TLS options need an https URL"),
        (Some(_), _) => endpoint.to_owned(),
        (None, Tls::Configured) => format!("https://{}", with_port(endpoint)),
        (None, Tls::Absent) => format!("http://{}", with_port(endpoint)),
    };
    let is_bare = url.len() != endpoint.len();
    if is_url(&url) && !(is_bare && endpoint.contains(['/', '?', '#'])) {
        Ok(url)
    } else {
        refuse("expected host:port, http://host:port or https://host:port")
    }
}

/// Returns `true` if traffic to this URL can be read on a network: it is not encrypted, and leaves this machine.
pub fn is_clear_text(url: &str) -> bool {
    url.strip_prefix("http://").is_some_and(|rest| !is_loopback(rest))
}

/// Returns `true` if the part of a URL after its scheme names this machine.
fn is_loopback(rest: &str) -> bool {
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Returns an address without a scheme, with a port.
fn with_port(address: &str) -> String {
    if address.parse::<Ipv6Addr>().is_ok() {
        format!("[{address}]:{ETCD_PORT}")
    } else if address.ends_with(']') || !address.contains(':') {
        format!("{address}:{ETCD_PORT}")
    } else {
        address.to_owned()
    }
}

/// Returns `true` for a URL with a scheme that etcd serves, a host, and a valid port.
fn is_url(url: &str) -> bool {
    let Ok(url) = url.parse::<Uri>() else { return false };
    let Some(authority) = url.authority() else { return false };
    let host = authority.host();
    let has_port = authority.as_str().len() > host.len();
    matches!(url.scheme_str(), Some("http" | "https"))
        && !host.is_empty()
        && (!has_port || authority.port_u16().is_some_and(|port| port != 0))
}

/// Returns the address without user and password, which must not appear in messages.
fn shown(endpoint: &str) -> String {
    let Some((before, host)) = endpoint.rsplit_once('@') else { return endpoint.to_owned() };
    match before.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://…@{host}"),
        None => format!("…@{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_becomes_a_url_of_the_scheme_that_the_options_mean() {
        for (endpoint, plain, secure) in [
            ("etcd-1", "http://etcd-1:2379", "https://etcd-1:2379"),
            ("127.0.0.1", "http://127.0.0.1:2379", "https://127.0.0.1:2379"),
            ("127.0.0.1:2379", "http://127.0.0.1:2379", "https://127.0.0.1:2379"),
            (" h:1 ", "http://h:1", "https://h:1"),
            ("::1", "http://[::1]:2379", "https://[::1]:2379"),
            ("[::1]", "http://[::1]:2379", "https://[::1]:2379"),
            ("[::1]:7", "http://[::1]:7", "https://[::1]:7"),
            ("https://h", "https://h", "https://h"),
            ("https://h:1/", "https://h:1/", "https://h:1/"),
        ] {
            assert_eq!(endpoint_url(endpoint, Tls::Absent).unwrap(), plain);
            assert_eq!(endpoint_url(endpoint, Tls::Configured).unwrap(), secure);
        }
        assert_eq!(endpoint_url("http://h:1", Tls::Absent).unwrap(), "http://h:1");
        assert_eq!(endpoint_url("http://[::1]", Tls::Absent).unwrap(), "http://[::1]");
    }

    #[test]
    fn only_a_network_without_tls_is_clear_text() {
        for own in ["127.0.0.1:2379", "127.9.9.9:1/", "localhost:2379", "localhost", "[::1]:2379"] {
            assert!(!is_clear_text(&format!("http://{own}")), "{own}");
        }
        for other in
            ["10.0.0.1:2379", "etcd:2379", "localhost.example:1", "127.0.0.1.example:1", "[::2]:1", "0.0.0.0:1"]
        {
            assert!(is_clear_text(&format!("http://{other}")), "{other}");
            assert!(!is_clear_text(&format!("https://{other}")), "{other}");
        }
    }

    #[test]
    fn refused_addresses_are_shown_without_a_password() {
        for (endpoint, tls, says) in [
            ("", Tls::Absent, "expected host:port"),
            ("http://", Tls::Absent, "expected host:port"),
            (":2379", Tls::Absent, "expected host:port"),
            ("ftp://h:1", Tls::Absent, "expected host:port"),
            ("unix:///run/etcd.sock", Tls::Absent, "expected host:port"),
            ("two words", Tls::Absent, "expected host:port"),
            ("h:1/path", Tls::Absent, "expected host:port"),
            ("h/", Tls::Absent, "expected host:port"),
            ("h:", Tls::Absent, "expected host:port"),
            ("h:0", Tls::Absent, "expected host:port"),
            ("h:65536", Tls::Absent, "expected host:port"),
            ("http://h:etcd", Tls::Absent, "expected host:port"),
            ("http://h:1", Tls::Configured, "https"),
            ("root:hunter2@h:1", Tls::Absent, "…@h:1\": give user and password as options"),
            ("http://root:hunter2@h:1", Tls::Absent, "http://…@h:1\": give user and password as options"),
        ] {
            let error = endpoint_url(endpoint, tls).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("hunter2"), "{endpoint}: {error}");
        }
    }
}
