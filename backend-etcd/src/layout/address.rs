//! Addresses in values of Go libraries, which need not be in the form `host:port`.

use std::net::IpAddr;

use enlist::Endpoint;

use super::Skip;

/// Reads `host:port`. Some writers omit the brackets of an IPv6 address: then the part after the last colon is the
/// port.
pub(super) fn parse(text: &str) -> Result<Endpoint, Skip> {
    let no_address = |_| Skip::malformed("no host:port");
    if text.contains("://") {
        return Err(Skip::malformed("a URL where host:port is due"));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if host.contains(':') && !host.starts_with('[') => {
            Endpoint::parse(format!("[{host}]:{port}")).map_err(no_address)
        }
        _ => Endpoint::parse(text).map_err(no_address),
    }
}

/// Reads `host:port`, or a host alone with `default_port` as its port.
pub(super) fn parse_or(text: &str, default_port: u16) -> Result<Endpoint, Skip> {
    if is_bare(text) { host_and_port(text, i64::from(default_port)) } else { parse(text) }
}

/// Returns `true` for an address without a port: an IP, or a host without a colon.
pub(super) fn is_bare(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || !text.contains(':')
}

/// Reads a host and a port.
pub(super) fn host_and_port(host: &str, port: i64) -> Result<Endpoint, Skip> {
    let port = u16::try_from(port).map_err(|_| Skip::malformed("no port"))?;
    Endpoint::new(host, port).map_err(|_| Skip::malformed("no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_brackets_has_its_port_at_the_end() {
        let shown = |text| parse(text).map(|endpoint| endpoint.to_string()).ok();
        assert_eq!(shown("fd00::5:80").as_deref(), Some("[fd00::5]:80"));
        assert_eq!(shown("[fd00::5]:80").as_deref(), Some("[fd00::5]:80"));
        assert_eq!((shown("h"), shown("h:"), shown("http://h:1"), shown("[::1:80")), (None, None, None, None));
    }
}
