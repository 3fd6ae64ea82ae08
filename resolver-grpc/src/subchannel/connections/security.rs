//! Transport security of a channel: the endpoints that it may connect to, with or without TLS, and for which authority.
//!
//! Endpoints come from a registry, so its writer must not be able to choose plaintext for a channel with secrets, nor a
//! socket of the client's machine. The decisions are pure; [`crate::subchannel::connections::settings`] applies them to
//! each dial.

use std::{error::Error as StdError, fmt};

use enlist::{Endpoint, Error, Instance};
use http::uri::Authority;

/// Protocols of gRPC endpoints. `tcp`, and `tri` of dubbo, whose servers answer gRPC, state nothing about encryption,
/// and never mean TLS.
const PROTOCOLS: [(&str, Wire); 7] = [
    ("grpc", Wire::Plaintext),
    ("http", Wire::Plaintext),
    ("tcp", Wire::Plaintext),
    ("tri", Wire::Plaintext),
    ("unix", Wire::Socket),
    ("grpcs", Wire::Tls),
    ("https", Wire::Tls),
];

/// Authority for a socket, unless the channel has one.
const SOCKET_AUTHORITY: &str = "localhost";

/// Transport of an endpoint, as its protocol states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// TLS.
    Tls,
    /// No TLS.
    Plaintext,
    /// No protocol is stated: the channel decides.
    Unstated,
    /// A unix domain socket of this machine.
    Socket,
}

impl Wire {
    /// Returns `None` for an endpoint of another protocol than gRPC.
    pub(crate) fn of(endpoint: &Endpoint) -> Option<Self> {
        let Some(protocol) = endpoint.protocol() else {
            return Some(Self::Unstated);
        };
        PROTOCOLS.iter().find(|(known, _)| *known == protocol).map(|(_, wire)| *wire)
    }
}

/// TLS in the settings that the user made for an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsSettings {
    Present,
    Absent,
}

/// Transport of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connect {
    Tls,
    Plaintext,
}

/// Reason not to use an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    TlsRequired,
    Credentials,
    TlsSettings,
    Socket,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TlsRequired => "plaintext endpoint not used, the channel requires TLS",
            Self::Credentials => {
                "plaintext endpoint not used, the interceptor's credentials could be read (require_tls speaks TLS \
                 where no protocol is stated, allow_plaintext accepts it)"
            }
            Self::TlsSettings => {
                "plaintext endpoint not used, its settings have TLS (require_tls uses another endpoint of the \
                 instance, allow_plaintext ignores the settings for this one)"
            }
            Self::Socket => "unix socket not used, the channel does not allow sockets (allow_unix)",
        })
    }
}

impl StdError for Refusal {}

/// Endpoints without TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Plaintext {
    /// Used unless there are secrets: credentials of an interceptor, or TLS settings.
    #[default]
    Guarded,
    Refused,
    Allowed,
}

/// Credentials that calls of a channel carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Credentials {
    #[default]
    None,
    /// The channel has an interceptor, which may add some.
    Possible,
}

/// Rules of a channel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Security {
    pub(crate) plaintext: Plaintext,
    /// Sockets are used.
    pub(crate) unix: bool,
    credentials: Credentials,
    pub(crate) authority: Option<String>,
}

impl Security {
    /// The rules for a channel whose calls carry `credentials`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for an invalid authority.
    pub(crate) fn checked(mut self, credentials: Credentials) -> Result<Self, Error> {
        self.credentials = credentials;
        match self.authority.as_deref().map(Authority::try_from) {
            None => Ok(self),
            Some(Ok(authority)) if !authority.as_str().contains('@') && !authority.host().is_empty() => Ok(self),
            Some(_) => Err(Error::invalid_config("authority", "it must be `host` or `host:port`")),
        }
    }

    /// Decides about an endpoint of an instance, given the TLS in its settings.
    pub(crate) fn decide(&self, wire: Wire, tls: TlsSettings) -> Result<Connect, Refusal> {
        let allowed = self.plaintext == Plaintext::Allowed;
        match (wire, tls) {
            (Wire::Tls, _) | (Wire::Unstated, TlsSettings::Present) => Ok(Connect::Tls),
            (Wire::Unstated, TlsSettings::Absent) if self.plaintext == Plaintext::Refused => Ok(Connect::Tls),
            (Wire::Plaintext, _) if self.plaintext == Plaintext::Refused => Err(Refusal::TlsRequired),
            (Wire::Socket, _) if !self.unix => Err(Refusal::Socket),
            (Wire::Plaintext | Wire::Socket, TlsSettings::Present) if !allowed => Err(Refusal::TlsSettings),
            (Wire::Plaintext | Wire::Unstated, _) if self.credentials == Credentials::Possible && !allowed => {
                Err(Refusal::Credentials)
            }
            // Traffic over a socket does not leave the machine.
            (Wire::Plaintext | Wire::Unstated | Wire::Socket, _) => Ok(Connect::Plaintext),
        }
    }

    /// The first endpoint of `instance` that can be used with one of the possible `settings`, one of HTTP only if no
    /// other can. If there is none, the first gRPC endpoint: its dial is refused, which reports the reason.
    pub(crate) fn endpoint<'a>(&self, instance: &'a Instance, settings: &[TlsSettings]) -> Option<&'a Endpoint> {
        let spoken = instance.endpoints().iter().filter_map(|endpoint| Some((endpoint, Wire::of(endpoint)?)));
        let mut spoken: Vec<_> = spoken.collect();
        // Servers of kratos may serve REST beside gRPC, and list it first.
        spoken.sort_by_key(|(endpoint, _)| matches!(endpoint.protocol(), Some("http" | "https")));
        let is_usable = |wire: Wire| settings.iter().any(|tls| self.decide(wire, *tls).is_ok());
        let usable = spoken.iter().find(|(_, wire)| is_usable(*wire));
        usable.or(spoken.first()).map(|(endpoint, _)| *endpoint)
    }

    /// URL of a connection to `endpoint`. Its authority is that of calls, and the name that certificates must have.
    pub(crate) fn url(&self, endpoint: &Endpoint, connect: Connect) -> String {
        let listed = if endpoint.is_unix() { SOCKET_AUTHORITY } else { endpoint.authority() };
        let authority = self.authority.as_deref().unwrap_or(listed);
        match connect {
            Connect::Tls => format!("https://{authority}"),
            Connect::Plaintext => format!("http://{authority}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist::InstanceId;

    const ALL: [Wire; 4] = [Wire::Tls, Wire::Plaintext, Wire::Unstated, Wire::Socket];

    fn decided(security: &Security, tls: TlsSettings) -> [Result<Connect, Refusal>; 4] {
        ALL.map(|wire| security.decide(wire, tls))
    }

    #[test]
    fn plaintext_is_used_only_without_secrets() {
        let (tls, plain) = (Ok(Connect::Tls), Ok(Connect::Plaintext));
        let open = Security::default();
        let hiding = Security { credentials: Credentials::Possible, ..open.clone() };
        let strict = Security { plaintext: Plaintext::Refused, unix: true, ..hiding.clone() };
        let lax = Security { plaintext: Plaintext::Allowed, unix: true, ..hiding.clone() };
        let (no_socket, credentials) = (Err(Refusal::Socket), Err(Refusal::Credentials));
        assert_eq!(decided(&open, TlsSettings::Absent), [tls, plain, plain, no_socket]);
        assert_eq!(decided(&open, TlsSettings::Present), [tls, Err(Refusal::TlsSettings), tls, no_socket]);
        assert_eq!(decided(&hiding, TlsSettings::Absent), [tls, credentials, credentials, no_socket]);
        assert_eq!(decided(&strict, TlsSettings::Absent), [tls, Err(Refusal::TlsRequired), tls, plain]);
        assert_eq!(decided(&lax, TlsSettings::Absent), [tls, plain, plain, plain]);
        assert_eq!(decided(&lax, TlsSettings::Present), [tls, plain, tls, plain]);
    }

    #[test]
    fn the_first_usable_endpoint_is_chosen() {
        let endpoints = ["redis://h:1", "grpc://h:2", "unix:///s", "grpcs://h:3"];
        let endpoints = endpoints.map(|text| Endpoint::parse(text).unwrap());
        let instance = Instance::new(InstanceId::parse("a").unwrap(), endpoints).unwrap();
        let used = |security: &Security| security.endpoint(&instance, &[TlsSettings::Absent]).unwrap().port();
        assert_eq!(used(&Security::default()), 2);
        let hiding = Security::default().checked(Credentials::Possible).unwrap();
        assert_eq!(used(&hiding), 3);
        assert_eq!(used(&Security { unix: true, ..hiding.clone() }), 0);
        let plain = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("grpc://h:2").unwrap()]).unwrap();
        assert_eq!(hiding.endpoint(&plain, &[TlsSettings::Absent]).unwrap().port(), 2);
    }

    #[test]
    fn endpoints_of_other_protocols_are_not_used() {
        let wire = |text: &str| Wire::of(&Endpoint::parse(text).unwrap());
        for text in ["grpc://h:1", "http://h:1", "tcp://h:1", "tri://h:1"] {
            assert_eq!(wire(text), Some(Wire::Plaintext), "{text}");
        }
        for text in ["dubbo://h:1", "rest://h:1", "redis://h:1"] {
            assert_eq!(wire(text), None, "{text}");
        }
    }

    #[test]
    fn an_endpoint_of_http_is_the_last_choice() {
        let used = |endpoints: &[&str]| {
            let endpoints = endpoints.iter().map(|text| Endpoint::parse(*text).unwrap());
            let instance = Instance::new(InstanceId::parse("a").unwrap(), endpoints).unwrap();
            Security::default().endpoint(&instance, &[TlsSettings::Absent]).unwrap().port()
        };
        assert_eq!(used(&["http://h:1", "grpc://h:2"]), 2);
        assert_eq!(used(&["grpc://h:1", "http://h:2"]), 1);
        assert_eq!(used(&["https://h:1", "h:2"]), 2);
        assert_eq!(used(&["redis://h:1", "http://h:2", "https://h:3"]), 2);
    }

    #[test]
    fn an_authority_is_a_host_with_or_without_a_port() {
        let checked = |text: &str| {
            Security { authority: Some(text.to_owned()), ..Security::default() }.checked(Credentials::None)
        };
        for text in ["greeter.test", "greeter.test:443", "[::1]:1"] {
            let security = checked(text).unwrap();
            let endpoint = Endpoint::parse("10.0.0.1:80").unwrap();
            assert_eq!(security.url(&endpoint, Connect::Tls), format!("https://{text}"));
        }
        for text in ["", "user@host", "two words", "a/b", ":80"] {
            assert!(checked(text).is_err(), "{text}");
        }
    }
}
