//! From the name of a service to the target of a channel: through the registry, or through the DNS names that Kubernetes gives.
//! The model and its defaults are those of fireflycore's go-etcd, so that its users find what they know.

use std::{str::FromStr, time::Duration};

use enlist::{Error, Namespace, ServiceName, ServiceRef, error::NameFault};
use serde::{Deserialize, Serialize};

use crate::target::Target;

/// How services are located. Read from any format that serde knows; what is absent has its default, what is unknown is refused.
///
/// ```
/// # use enlist_grpc::Invocation;
/// let invocation: Invocation = serde_json::from_str(r#"{"cache": "10s", "prefer_service_dns": true}"#)?;
/// assert_eq!(invocation.cache.as_secs(), 10);
/// assert_eq!(invocation.cluster_domain, "cluster.local");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Invocation {
    /// The namespace of callees that name none. Default: `default`.
    pub namespace: String,
    /// The environment of callees that name none. Default: none.
    pub environment: Option<String>,
    /// How long the view of a service is kept when nobody uses it any more. Text such as `5s` or `1m 30s`, or whole nanoseconds,
    /// as Go writes them. Default: 5 s.
    #[serde(with = "duration")]
    pub cache: Duration,
    /// The DNS domain of the cluster. Default: `cluster.local`.
    pub cluster_domain: String,
    /// The port of callees that name none, where DNS finds them. Default: 9000.
    pub default_port: u16,
    /// The scheme of targets that the registry finds. Default: `enlist`.
    pub scheme: String,
    /// Whether DNS finds services, rather than the registry. Default: no.
    pub prefer_service_dns: bool,
}

impl Default for Invocation {
    fn default() -> Self {
        Self {
            namespace: enlist::name::DEFAULT_NAMESPACE.to_owned(),
            environment: None,
            cache: Duration::from_secs(5),
            cluster_domain: "cluster.local".to_owned(),
            default_port: 9000,
            scheme: "enlist".to_owned(),
            prefer_service_dns: false,
        }
    }
}

/// Durations as text, and as the whole nanoseconds of Go's `time.Duration`.
mod duration {
    use std::{fmt, time::Duration};

    use serde::{Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_any(Visitor)
    }

    struct Visitor;

    impl de::Visitor<'_> for Visitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration such as \"5s\", or a whole number of nanoseconds")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            humantime::parse_duration(text).map_err(|error| E::custom(format!("{text:?} is no duration: {error}")))
        }

        fn visit_u64<E: de::Error>(self, nanoseconds: u64) -> Result<Duration, E> {
            Ok(Duration::from_nanos(nanoseconds))
        }

        fn visit_i64<E: de::Error>(self, nanoseconds: i64) -> Result<Duration, E> {
            u64::try_from(nanoseconds).map(Duration::from_nanos).map_err(|_| E::custom("a duration cannot be negative"))
        }
    }
}

/// Who is to be called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Callee {
    namespace: Option<Namespace>,
    name: ServiceName,
    environment: Option<String>,
    port: Option<u16>,
}

impl Callee {
    /// The service `name`, in the locator's namespace and environment.
    pub fn new(name: ServiceName) -> Self {
        Self { namespace: None, name, environment: None, port: None }
    }

    /// Reads `service` or `namespace/service`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`].
    pub fn parse(text: impl AsRef<str>) -> Result<Self, Error> {
        match text.as_ref().split_once('/') {
            Some((namespace, name)) => {
                Ok(Self::new(ServiceName::parse(name)?).in_namespace(Namespace::parse(namespace)?))
            }
            None => Ok(Self::new(ServiceName::parse(text)?)),
        }
    }

    /// Sets the namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// Sets the environment.
    #[must_use]
    pub fn in_environment(mut self, environment: impl Into<String>) -> Self {
        self.environment = Some(environment.into());
        self
    }

    /// Sets the port that it is called at where DNS finds it. The registry knows the ports itself.
    #[must_use]
    pub fn at_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }
}

impl FromStr for Callee {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl From<ServiceRef> for Callee {
    fn from(service: ServiceRef) -> Self {
        Self::new(service.name().clone()).in_namespace(service.namespace().clone())
    }
}

/// Turns callees into targets.
#[derive(Clone, Debug)]
pub struct Locator {
    invocation: Invocation,
    namespace: Namespace,
}

impl Locator {
    /// A locator that goes by `invocation`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] for its namespace, [`Error::InvalidConfig`] for a cluster domain that is none, a port 0 and a scheme
    /// that cannot be one.
    pub fn new(invocation: Invocation) -> Result<Self, Error> {
        let namespace = Namespace::parse(&invocation.namespace)?;
        let labels = invocation.cluster_domain.split('.');
        if labels.into_iter().any(|label| not_in_a_label(label).is_some() || label.is_empty()) {
            return Err(Error::invalid_config("cluster_domain", "it is not a DNS name"));
        }
        if invocation.default_port == 0 {
            return Err(Error::invalid_config("default_port", "nothing can be called at port 0"));
        }
        let probe = format!("{}:///probe", invocation.scheme);
        if !matches!(Target::parse(&probe), Ok(Target::Service { .. })) {
            return Err(Error::invalid_config("scheme", "it must be that of a resolver, such as `enlist`"));
        }
        Ok(Self { invocation, namespace })
    }

    /// What it goes by.
    pub fn invocation(&self) -> &Invocation {
        &self.invocation
    }

    /// The target of `callee`: in the registry, the service in its namespace, or in `namespace/environment` if it has an
    /// environment; with service DNS `dns:///{name}.{namespace}.svc.{cluster_domain}:{port}`, which knows no environments.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] for a name that cannot be part of a DNS name, or is too long with its environment.
    pub fn target(&self, callee: &Callee) -> Result<Target, Error> {
        let Invocation { environment, cluster_domain, default_port, scheme, prefer_service_dns, .. } = &self.invocation;
        let namespace = callee.namespace.as_ref().unwrap_or(&self.namespace);
        let name = &callee.name;
        if *prefer_service_dns {
            check_label("service", name.as_str())?;
            check_label("namespace", namespace.as_str())?;
            let host = format!("{name}.{namespace}.svc.{cluster_domain}");
            return Ok(Target::Dns { host, port: callee.port.unwrap_or(*default_port) });
        }
        let namespace = match callee.environment.as_ref().or(environment.as_ref()) {
            Some(environment) => Namespace::parse(format!("{namespace}/{environment}"))?,
            None => namespace.clone(),
        };
        Ok(Target::Service { scheme: scheme.clone(), service: ServiceRef::new(namespace, name.clone()) })
    }
}

/// A character that a label of a DNS name cannot have (RFC 1123, section 2.1).
fn not_in_a_label(label: &str) -> Option<char> {
    label.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-')
}

fn check_label(field: &'static str, label: &str) -> Result<(), Error> {
    match not_in_a_label(label) {
        Some(character) => Err(Error::InvalidName { field, fault: NameFault::NotCarried { character } }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(invocation: &Invocation, callee: &Callee) -> String {
        let target = Locator::new(invocation.clone()).and_then(|locator| locator.target(callee));
        target.map_or_else(|error| error.to_string(), |target| target.to_string())
    }

    #[test]
    fn the_registry_is_asked_in_the_namespace_and_environment() {
        let mut invocation = Invocation::default();
        let auth = Callee::parse("auth").unwrap();
        assert_eq!(target(&invocation, &auth), "enlist:///default/auth");
        assert_eq!(target(&invocation, &Callee::parse("team/auth").unwrap()), "enlist:///team/auth");
        assert_eq!(target(&invocation, &auth.clone().in_environment("test")), "enlist:///default%2Ftest/auth");
        (invocation.environment, invocation.scheme) = (Some("prod".into()), "etcd".into());
        assert_eq!(target(&invocation, &auth.at_port(1)), "etcd:///default%2Fprod/auth");
    }

    #[test]
    fn service_dns_names_are_those_of_kubernetes() {
        let invocation = Invocation { prefer_service_dns: true, ..Invocation::default() };
        let auth = Callee::parse("auth").unwrap();
        assert_eq!(target(&invocation, &auth), "dns:///auth.default.svc.cluster.local:9000");
        let elsewhere = auth.in_namespace(Namespace::parse("team").unwrap()).at_port(80);
        assert_eq!(target(&invocation, &elsewhere), "dns:///auth.team.svc.cluster.local:80");
        assert_eq!(target(&invocation, &Callee::parse("a b").unwrap()), "invalid service: the layout cannot carry ' '");
    }

    #[test]
    fn durations_are_text_or_nanoseconds() {
        let cache = |text: &str| {
            let read = serde_json::from_str::<Invocation>(&format!("{{\"cache\": {text}}}"));
            read.map(|invocation| invocation.cache).map_err(|error| error.to_string())
        };
        assert_eq!(cache("\"1m30s\""), Ok(Duration::from_secs(90)));
        assert_eq!(cache("5000000000"), Ok(Duration::from_secs(5)));
        assert!(cache("\"soon\"").unwrap_err().contains("no duration"));
        assert!(cache("-1").unwrap_err().contains("negative"));
        assert!(cache("1.5").unwrap_err().contains("whole number"));
    }

    #[test]
    fn what_is_written_is_read_again_and_what_is_unknown_is_refused() {
        let invocation = Invocation { environment: Some("prod".into()), ..Invocation::default() };
        let text = serde_json::to_string(&invocation).unwrap();
        assert!(text.contains("\"cache\":\"5s\""), "{text}");
        assert_eq!(serde_json::from_str::<Invocation>(&text).unwrap(), invocation);
        assert!(serde_json::from_str::<Invocation>("{\"cach\": \"5s\"}").is_err());
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let refused = |change: fn(&mut Invocation)| {
            let mut invocation = Invocation::default();
            change(&mut invocation);
            Locator::new(invocation).is_err()
        };
        assert!(refused(|invocation| invocation.cluster_domain = "two words".into()));
        assert!(refused(|invocation| invocation.cluster_domain = "a..b".into()));
        assert!(refused(|invocation| invocation.default_port = 0));
        assert!(refused(|invocation| invocation.scheme = "dns".into()));
        assert!(refused(|invocation| invocation.scheme = "a b".into()));
        assert!(refused(|invocation| invocation.namespace = String::new()));
    }
}
