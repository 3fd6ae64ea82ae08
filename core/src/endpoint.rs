//! An address at which an instance accepts connections.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use crate::error::Error;

/// The protocol of an endpoint that is a Unix domain socket; its host is the socket's path and it has no port.
pub const UNIX: &str = "unix";

/// An address at which an instance accepts connections: `grpc://10.0.0.1:8080`, `10.0.0.1:8080`, `[2001:db8::1]:80`
/// or `unix:///run/app.sock`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    protocol: Option<Box<str>>,
    host: Box<str>,
    port: u16,
}

fn refused(input: &str, reason: &'static str) -> Error {
    Error::InvalidAddress { input: input.to_owned(), reason }
}

impl Endpoint {
    /// An endpoint of `host` (a name, an IPv4 or an IPv6 address without brackets) and `port`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidAddress`] for port 0, an unspecified address such as `0.0.0.0`, and a host that is neither an
    /// address nor a plausible name.
    pub fn new(host: impl AsRef<str>, port: u16) -> Result<Self, Error> {
        let host = host.as_ref();
        if port == 0 {
            return Err(refused(host, "port 0 is no port to connect to; register after listening"));
        }
        match host.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => {
                return Err(refused(host, "clients cannot connect to it; `advertise` finds a reachable address"));
            }
            Ok(_) => {}
            Err(_) if is_host_name(host) => {}
            Err(_) => return Err(refused(host, "neither an IP address nor a host name")),
        }
        Ok(Self { protocol: None, host: host.into(), port })
    }

    /// An endpoint that is the Unix domain socket at the absolute `path`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidAddress`] if the path is not absolute or holds a control character.
    pub fn unix(path: impl AsRef<str>) -> Result<Self, Error> {
        let path = path.as_ref();
        if !path.starts_with('/') || path.chars().any(char::is_control) {
            return Err(refused(path, "the path of a unix socket must be absolute"));
        }
        Ok(Self { protocol: Some(UNIX.into()), host: path.into(), port: 0 })
    }

    /// Reads `[protocol://]host:port` or `unix://path`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidAddress`], as for [`Endpoint::new`], and if the port is missing or no number.
    pub fn parse(text: impl AsRef<str>) -> Result<Self, Error> {
        let text = text.as_ref();
        let colon = text.split_once(':').and_then(|(protocol, rest)| Some((protocol, rest.strip_prefix("//")?)));
        let (protocol, rest) = colon.map_or((None, text), |(protocol, rest)| (Some(protocol), rest));
        if protocol == Some(UNIX) {
            return Self::unix(rest);
        }
        let (host, port) = split_host_port(rest).map_err(|reason| refused(text, reason))?;
        let endpoint = Self::new(host, port)?;
        match protocol {
            Some(protocol) => endpoint.with_protocol(protocol),
            None => Ok(endpoint),
        }
    }

    /// The same address with `protocol`: letters, digits, `+`, `-`, `.`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidAddress`] for any other character, an empty word, and for making a socket of what is none.
    pub fn with_protocol(mut self, protocol: impl AsRef<str>) -> Result<Self, Error> {
        let protocol = protocol.as_ref();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if protocol.is_empty() || !protocol.chars().all(plain) || (protocol == UNIX) != self.is_unix() {
            return Err(refused(protocol, "not a protocol that this address can have"));
        }
        self.protocol = Some(protocol.into());
        Ok(self)
    }

    /// The protocol, if one was given.
    pub fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }

    /// The host: a name, an address without brackets, or the path of a Unix socket.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; 0 for a Unix socket only.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Says whether this is a Unix domain socket.
    pub fn is_unix(&self) -> bool {
        self.protocol() == Some(UNIX)
    }

    /// `host:port` without the protocol, an IPv6 address in brackets; the path of a Unix socket.
    pub fn authority(&self) -> String {
        Authority(self).to_string()
    }
}

fn is_host_name(host: &str) -> bool {
    let label = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    !host.is_empty() && host.len() <= 253 && host.chars().all(label)
}

fn split_host_port(text: &str) -> Result<(&str, u16), &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("the bracket is not closed")?;
        (host, rest.strip_prefix(':').ok_or("the port is missing")?)
    } else {
        let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
        if host.contains(':') {
            return Err("an IPv6 address needs brackets before the port");
        }
        (host, port)
    };
    // `u16::from_str` takes a leading `+`, which no other reader of an address does.
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err("the port is not a number from 1 to 65535");
    }
    Ok((host, port.parse().map_err(|_| "the port is not a number from 1 to 65535")?))
}

impl TryFrom<SocketAddr> for Endpoint {
    type Error = Error;

    fn try_from(address: SocketAddr) -> Result<Self, Error> {
        Self::new(address.ip().to_string(), address.port())
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(protocol) = self.protocol() {
            f.write_str(protocol)?;
            f.write_str("://")?;
        }
        Authority(self).fmt(f)
    }
}

/// An endpoint without its protocol.
struct Authority<'a>(&'a Endpoint);

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint { host, port, .. } = self.0;
        match (self.0.is_unix(), host.contains(':')) {
            (true, _) => f.write_str(host),
            (false, true) => write!(f, "[{host}]:{port}"),
            (false, false) => write!(f, "{host}:{port}"),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_read_is_printed_again() {
        for text in ["10.0.0.1:80", "grpc://[2001:db8::1]:8080", "http://host-1.example:9", "unix:///run/a b.sock"] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn addresses_nobody_can_reach_are_refused_with_a_hint() {
        for (text, hint) in [
            ("0.0.0.0:80", "advertise"),
            ("[::]:80", "advertise"),
            ("10.0.0.1:0", "after listening"),
            ("10.0.0.1", "port is missing"),
            ("::1:80", "brackets"),
            ("two words:80", "host name"),
            ("h:99999", "65535"),
            ("h:+1", "65535"),
            ("://h:1", "protocol"),
            ("unix://relative", "absolute"),
            (":80", "host name"),
        ] {
            let error = Endpoint::parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics_and_what_parses_round_trips(text in "\\PC*") {
            if let Ok(endpoint) = Endpoint::parse(&text) {
                prop_assert_eq!(Endpoint::parse(endpoint.to_string()).unwrap(), endpoint);
            }
        }
    }
}
