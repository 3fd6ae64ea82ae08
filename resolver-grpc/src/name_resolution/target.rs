//! Target of a channel, as text: `enlist:///namespace/service`, `dns:///host:port`, `static:///a:1,b:2`.

use std::{fmt, str::FromStr};

use enlist::{Endpoint, Error, Namespace, ServiceName, ServiceRef};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// Characters that are escaped in a segment, so that it can be split off again.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'/').add(b'%').add(b' ').add(b'?').add(b'#');

/// Hint for a DNS target with a protocol.
pub(crate) const NO_PROTOCOL: &str =
    "a name that DNS finds has no protocol; ChannelBuilder::require_tls connects to its addresses with TLS";

/// Target of a channel. It is parsed from the URLs that gRPC calls targets
/// (<https://github.com/grpc/grpc/blob/master/doc/naming.md>), with an empty authority:
///
/// | text | means |
/// |---|---|
/// | `enlist:///namespace/service` | a service, found by the resolver of the scheme `enlist` |
/// | `etcd:///service` | the same for `etcd`, in the namespace `default`; any scheme with a resolver |
/// | `dns:///host:port` | every address of the host; the [channel](crate::ChannelBuilder::require_tls) chooses TLS or plaintext |
/// | `static:///a:1,b:2` | these endpoints |
///
/// Names with `/`, `%` or spaces are percent-encoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// A service, found by the resolver of a scheme.
    Service {
        /// Scheme of the resolver.
        scheme: String,
        /// The service.
        service: ServiceRef,
    },
    /// Every address of a name.
    Dns {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
    /// These endpoints.
    Static(Vec<Endpoint>),
}

fn refused(input: &str, reason: &'static str) -> Error {
    Error::InvalidAddress { input: input.to_owned(), reason }
}

impl Target {
    /// Reads a target.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidAddress`] and [`Error::InvalidName`] say what is wrong with it.
    pub fn parse(text: impl AsRef<str>) -> Result<Self, Error> {
        let text = text.as_ref();
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| refused(text, "a target looks like `scheme:///name`"))?;
        let name =
            rest.strip_prefix('/').ok_or_else(|| refused(text, "there must be three slashes: `scheme:///name`"))?;
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if scheme.is_empty() || !scheme.chars().all(is_scheme) {
            return Err(refused(text, "not a scheme"));
        }
        match scheme {
            "dns" => {
                let endpoint = Endpoint::parse(name)?;
                if endpoint.protocol().is_some() {
                    return Err(refused(text, NO_PROTOCOL));
                }
                Ok(Self::Dns { host: endpoint.host().to_owned(), port: endpoint.port() })
            }
            "static" => Ok(Self::Static(name.split(',').map(Endpoint::parse).collect::<Result<_, _>>()?)),
            _ => Ok(Self::Service { scheme: scheme.to_owned(), service: service(text, name)? }),
        }
    }
}

/// `namespace/service` or `service`.
fn service(text: &str, path: &str) -> Result<ServiceRef, Error> {
    let decode = |segment: &str| {
        let decoded = percent_decode_str(segment).decode_utf8();
        decoded.map(std::borrow::Cow::into_owned).map_err(|_| refused(text, "not UTF-8 once decoded"))
    };
    match path.split('/').collect::<Vec<_>>()[..] {
        [name] => ServiceRef::parse(decode(name)?),
        [namespace, name] => {
            Ok(ServiceRef::new(Namespace::parse(decode(namespace)?)?, ServiceName::parse(decode(name)?)?))
        }
        _ => Err(refused(text, "a service is `service` or `namespace/service`; encode other slashes as %2F")),
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { scheme, service } => {
                let (namespace, name) = (service.namespace().as_str(), service.name().as_str());
                let encoded = |text| utf8_percent_encode(text, ESCAPED);
                write!(f, "{scheme}:///{}/{}", encoded(namespace), encoded(name))
            }
            Self::Dns { host, port } if host.contains(':') => write!(f, "dns:///[{host}]:{port}"),
            Self::Dns { host, port } => write!(f, "dns:///{host}:{port}"),
            Self::Static(endpoints) => {
                let texts: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
                write!(f, "static:///{}", texts.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_printed_as_read() {
        for text in [
            "enlist:///team/greeter",
            "enlist:///a%2Fb/100%25%20safe",
            "dns:///greeter.default.svc.cluster.local:9000",
            "dns:///[::1]:80",
            "static:///grpc://10.0.0.1:80,10.0.0.2:80,unix:///run/a.sock",
        ] {
            assert_eq!(Target::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Target::parse("etcd:///greeter").unwrap().to_string(), "etcd:///default/greeter");
        let Target::Service { service, .. } = Target::parse("enlist:///a%2Fb/c").unwrap() else { panic!() };
        assert_eq!(service.namespace().as_str(), "a/b");
    }

    #[test]
    fn invalid_targets_are_refused_with_a_hint() {
        for (text, hint) in [
            ("greeter", "scheme:///name"),
            ("etcd://host/greeter", "three slashes"),
            (":///greeter", "not a scheme"),
            ("etcd:///a/b/c", "%2F"),
            ("etcd:///", "empty"),
            ("etcd:///%ff", "UTF-8"),
            ("dns:///greeter", "port"),
            ("dns:///grpcs://h:443", "require_tls"),
            ("dns:///unix:///run/a.sock", "require_tls"),
            ("static:///", "port"),
            ("static:///a:1,,b:2", "port"),
        ] {
            let error = Target::parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
