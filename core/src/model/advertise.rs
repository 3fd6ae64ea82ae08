//! Conversion of a listener's address to one that other hosts can reach.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use crate::{error::Error, model::endpoint::Endpoint};

/// The environment variable that overrides the advertised address: `host` or `host:port`.
pub const ADVERTISE_ENV: &str = "ENLIST_ADVERTISE";

/// Origin of the address that [`advertise`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Chosen {
    /// The environment variable `ENLIST_ADVERTISE` was set.
    Environment,
    /// The listener is bound to one address, which is used.
    Listener,
    /// The listener is bound to all addresses; the address is that of the interface with the outward route.
    Route,
}

/// Converts the address of a listener to one that other hosts can reach, and reports its origin.
///
/// The order of precedence is: the environment variable `ENLIST_ADVERTISE` (`host` or `host:port`); the listener's own
/// address unless it is unspecified; the address of the interface with the outward route (from the kernel; nothing is
/// sent).
///
/// # Errors
///
/// [`Error::InvalidAddress`] if the variable cannot be read as an address, or there is no route outwards.
pub fn advertise(local: SocketAddr) -> Result<(Endpoint, Chosen), Error> {
    choose(local, env::var(ADVERTISE_ENV).ok().as_deref(), outward_address)
}

fn choose(
    local: SocketAddr,
    override_: Option<&str>,
    outward: impl FnOnce(Family) -> Option<IpAddr>,
) -> Result<(Endpoint, Chosen), Error> {
    if let Some(text) = override_.filter(|text| !text.is_empty()) {
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        let endpoint = match Endpoint::new(bare, local.port()) {
            Ok(endpoint) => endpoint,
            Err(_) => Endpoint::parse(text)?,
        };
        return Ok((endpoint, Chosen::Environment));
    }
    if !local.ip().is_unspecified() {
        return Ok((local.try_into()?, Chosen::Listener));
    }
    let family = if local.is_ipv6() { Family::DualStack } else { Family::V4 };
    let ip = outward(family).ok_or_else(|| Error::InvalidAddress {
        input: local.to_string(),
        reason: "no interface routes outwards; set ENLIST_ADVERTISE",
    })?;
    Ok((Endpoint::new(ip.to_string(), local.port())?, Chosen::Route))
}

/// Address families over which a listener is reachable.
#[derive(Clone, Copy, Debug)]
enum Family {
    V4,
    DualStack,
}

/// Returns the local address from which the kernel would send to a documentation address (RFC 5737, RFC 3849).
/// Connecting a UDP socket sends nothing.
fn outward_address(family: Family) -> Option<IpAddr> {
    let v4 = || route((Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()));
    let v6 = || route((Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()));
    // A dual-stack listener is reachable over IPv4 as well, which more networks route.
    match family {
        Family::V4 => v4(),
        Family::DualStack => v4().or_else(v6),
    }
}

fn route((from, to): (IpAddr, IpAddr)) -> Option<IpAddr> {
    let socket = UdpSocket::bind((from, 0)).ok()?;
    socket.connect((to, 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(local: &str, override_: Option<&str>) -> (String, Chosen) {
        let outward = |_| Some(IpAddr::from([10, 1, 2, 3]));
        let (endpoint, chosen) = choose(local.parse().unwrap(), override_, outward).unwrap();
        (endpoint.to_string(), chosen)
    }

    #[test]
    fn the_environment_comes_first_with_or_without_a_port() {
        assert_eq!(case("0.0.0.0:80", Some("api.example")), ("api.example:80".into(), Chosen::Environment));
        assert_eq!(case("0.0.0.0:80", Some("api.example:443")), ("api.example:443".into(), Chosen::Environment));
        assert_eq!(case("[::]:80", Some("[2001:db8::7]")), ("[2001:db8::7]:80".into(), Chosen::Environment));
        assert_eq!(case("[::]:80", Some("[2001:db8::7]:81")), ("[2001:db8::7]:81".into(), Chosen::Environment));
    }

    #[test]
    fn a_bound_address_is_taken_as_it_is() {
        assert_eq!(case("127.0.0.1:80", None), ("127.0.0.1:80".into(), Chosen::Listener));
        assert_eq!(case("[::1]:80", Some("")), ("[::1]:80".into(), Chosen::Listener));
    }

    #[test]
    fn an_unspecified_address_becomes_that_of_the_route_outwards() {
        assert_eq!(case("0.0.0.0:80", None), ("10.1.2.3:80".into(), Chosen::Route));
    }

    #[test]
    fn without_a_route_it_says_what_to_set() {
        let error = choose("0.0.0.0:80".parse().unwrap(), None, |_| None).unwrap_err();
        assert!(error.to_string().contains("ENLIST_ADVERTISE"));
    }
}
