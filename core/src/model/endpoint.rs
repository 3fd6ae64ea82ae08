//! An address at which an instance accepts connections.

use std::{
    cmp::Ordering,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use crate::error::Error;

/// The protocol of an endpoint that is a Unix domain socket; its host is the socket's path and it has no port.
pub const UNIX: &str = "unix";

/// Separator after the protocol.
const AFTER_PROTOCOL: &str = "://";

/// An address at which an instance accepts connections: `grpc://10.0.0.1:8080`, `10.0.0.1:8080`, `[2001:db8::1]:80`
/// or `unix:///run/app.sock`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Written form: `[protocol://]host:port`. It is one text, because a process may hold a hundred thousand endpoints.
    text: Box<str>,
    /// End of the protocol; 0 without one.
    protocol: usize,
    /// Port; 0 for a Unix socket only.
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
        check_address(host, port)?;
        Ok(Self::of(None, host, port))
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
        Ok(Self { text: [UNIX, AFTER_PROTOCOL, path].concat().into(), protocol: UNIX.len(), port: 0 })
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
        check_address(host, port)?;
        protocol.map_or(Ok(()), check_protocol)?;
        let brackets = if needs_brackets(host) { "[]".len() } else { 0 };
        if rest.len() != host.len() + brackets + ":".len() + port.ilog10() as usize + 1 {
            // The text has unnecessary brackets, or zeros before the port.
            return Ok(Self::of(protocol, host, port));
        }
        Ok(Self { text: text.into(), protocol: protocol.map_or(0, str::len), port })
    }

    /// The same address with `protocol`: letters, digits, `+`, `-`, `.`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidAddress`] for any other character, an empty word, or a conversion of another address to a
    /// socket.
    pub fn with_protocol(self, protocol: impl AsRef<str>) -> Result<Self, Error> {
        let protocol = protocol.as_ref();
        if self.is_unix() && protocol == UNIX {
            return Ok(self);
        }
        check_protocol(protocol)?;
        if self.is_unix() { Err(no_protocol(protocol)) } else { Ok(Self::of(Some(protocol), self.host(), self.port)) }
    }

    /// An endpoint of checked parts.
    fn of(protocol: Option<&str>, host: &str, port: u16) -> Self {
        let before = protocol.map_or(String::new(), |protocol| format!("{protocol}{AFTER_PROTOCOL}"));
        let text =
            if needs_brackets(host) { format!("{before}[{host}]:{port}") } else { format!("{before}{host}:{port}") };
        Self { text: text.into(), protocol: protocol.map_or(0, str::len), port }
    }

    /// The whole endpoint, in the form that [`parse`](Self::parse) reads and `Display` prints.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The protocol, if one was given.
    pub fn protocol(&self) -> Option<&str> {
        Some(&self.text[..self.protocol]).filter(|protocol| !protocol.is_empty())
    }

    /// The host: a name, an address without brackets, or the path of a Unix socket.
    pub fn host(&self) -> &str {
        let authority = self.authority();
        match authority.rsplit_once(':') {
            Some((host, _)) if !self.is_unix() => host.trim_matches(['[', ']']),
            _ => authority,
        }
    }

    /// The port; 0 for a Unix socket only.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns `true` if this is a Unix domain socket.
    pub fn is_unix(&self) -> bool {
        self.port == 0
    }

    /// `host:port` without the protocol, an IPv6 address in brackets; the path of a Unix socket.
    pub fn authority(&self) -> &str {
        let rest = &self.text[self.protocol..];
        if self.protocol > 0 { &rest[AFTER_PROTOCOL.len()..] } else { rest }
    }
}

fn check_address(host: &str, port: u16) -> Result<(), Error> {
    if port == 0 {
        return Err(refused(host, "port 0 is no port to connect to; register after listening"));
    }
    match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => {
            Err(refused(host, "clients cannot connect to it; give an address of this machine that they reach"))
        }
        Err(_) if !is_host_name(host) => Err(refused(host, "neither an IP address nor a host name")),
        _ => Ok(()),
    }
}

fn check_protocol(protocol: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let is_word = !protocol.is_empty() && protocol.chars().all(plain);
    if is_word && protocol != UNIX { Ok(()) } else { Err(no_protocol(protocol)) }
}

fn no_protocol(protocol: &str) -> Error {
    refused(protocol, "not a protocol that this address can have")
}

/// Returns `true` for an IPv6 address, the only kind of host with colons.
fn needs_brackets(host: &str) -> bool {
    host.contains(':')
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
    // `u16::from_str` accepts a leading `+`, which other parsers of addresses do not.
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

impl PartialOrd for Endpoint {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Endpoint {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.protocol(), self.host(), self.port).cmp(&(other.protocol(), other.host(), other.port))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
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
    fn an_endpoint_is_its_parts_however_it_was_written() {
        for (text, protocol, host, port, authority) in [
            ("10.0.0.1:80", None, "10.0.0.1", 80, "10.0.0.1:80"),
            ("grpc://[2001:db8::1]:8080", Some("grpc"), "2001:db8::1", 8080, "[2001:db8::1]:8080"),
            ("grpc://[2001:db8::1]:08080", Some("grpc"), "2001:db8::1", 8080, "[2001:db8::1]:8080"),
            ("[host]:007", None, "host", 7, "host:7"),
            ("unix:///run/a:1", Some("unix"), "/run/a:1", 0, "/run/a:1"),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            let parts = (endpoint.protocol(), endpoint.host(), endpoint.port(), endpoint.authority());
            assert_eq!(parts, (protocol, host, port, authority), "{text}");
            let built = match protocol {
                Some(UNIX) => Endpoint::unix(host),
                None => Endpoint::new(host, port),
                Some(protocol) => Endpoint::new(host, port).and_then(|endpoint| endpoint.with_protocol(protocol)),
            };
            assert_eq!(built.unwrap(), endpoint, "{text}");
        }
        let in_order = ["h:9", "h:10", "i:1", "grpc://a:1", "unix:///a"].map(|text| Endpoint::parse(text).unwrap());
        assert!(in_order.is_sorted());
    }

    #[test]
    fn unreachable_addresses_are_refused_with_a_hint() {
        for (text, hint) in [
            ("0.0.0.0:80", "that they reach"),
            ("[::]:80", "that they reach"),
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
