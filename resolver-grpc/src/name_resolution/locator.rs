//! Conversion of the name of a service into the target of a channel: in the registry, or as a DNS name of Kubernetes.
//! The model and its defaults are those of fireflycore's go-etcd.

use std::str::FromStr;

use enlist::{Endpoint, Error, NameFault, Namespace, ServiceName, ServiceRef};

use crate::name_resolution::{invocation::Invocation, sources::Dns, target::Target};

/// Service to be called.
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

    /// Sets the environment. An empty one is none, whatever the default of the [`Invocation`]: the namespace alone
    /// names the service, in the environment of the layout where that has one.
    #[must_use]
    pub fn in_environment(mut self, environment: impl Into<String>) -> Self {
        self.environment = Some(environment.into());
        self
    }

    /// Sets the port for service-DNS mode. The registry has the ports of its instances.
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

/// Converts callees into targets.
#[derive(Clone, Debug)]
pub struct Locator {
    invocation: Invocation,
    namespace: Namespace,
    /// Common end of the DNS names of all services: `svc.{cluster domain}`.
    domain: String,
    /// Kind of the targets of service-DNS mode.
    dns_target: DnsTarget,
}

/// Kind of a target that has a host and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DnsTarget {
    Dns,
    Static,
    Resolver,
}

impl DnsTarget {
    /// The kind of `scheme`; `None` if that is no valid scheme.
    fn of(scheme: &str) -> Option<Self> {
        match Target::parse(format!("{scheme}:///probe:1")).ok()? {
            Target::Dns { .. } => Some(Self::Dns),
            Target::Static(_) => Some(Self::Static),
            // A scheme of gRPC: the address is passed to the dialler unchanged.
            Target::Service { .. } if scheme == "passthrough" => Some(Self::Static),
            Target::Service { .. } => Some(Self::Resolver),
        }
    }
}

impl Locator {
    /// A locator with the configuration `invocation`, after its [defaults](Invocation::with_defaults).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] for its namespace, [`Error::InvalidConfig`] for a cluster domain that is no DNS name, and
    /// for invalid schemes.
    pub fn new(invocation: Invocation) -> Result<Self, Error> {
        let invocation = invocation.with_defaults();
        let namespace = Namespace::parse(&invocation.namespace)?;
        let labels = invocation.cluster_domain.split('.');
        if labels.into_iter().any(|label| not_in_a_label(label).is_some() || label.is_empty()) {
            return Err(Error::invalid_config("cluster_domain", "it is not a DNS name"));
        }
        let dns_target = DnsTarget::of(&invocation.resolver_scheme)
            .ok_or_else(|| Error::invalid_config("resolver_scheme", "it must be a scheme, such as `dns`"))?;
        if DnsTarget::of(&invocation.registry_scheme) != Some(DnsTarget::Resolver) {
            return Err(Error::invalid_config("registry_scheme", "it must be that of a resolver, such as `enlist`"));
        }
        Ok(Self { namespace, domain: with_svc(&invocation.cluster_domain), dns_target, invocation })
    }

    /// The configuration, with its defaults.
    pub fn invocation(&self) -> &Invocation {
        &self.invocation
    }

    /// The target of `callee`: in the registry, the service in its namespace, or in `namespace/environment` if it has
    /// an environment.
    ///
    /// In service-DNS mode the host is `{name}.{namespace}.svc.{cluster_domain}`, which has no environment, and the
    /// target is:
    ///
    /// | `resolver_scheme` | target |
    /// |---|---|
    /// | `dns` | `dns:///host:port`: every address of the name |
    /// | `passthrough`, `static` | `static:///host:port`: one instance, whose name is looked up at each dial |
    /// | any other | the service `host:port` in the namespace `default`, found by the [resolver](crate::Schemes::with) of that scheme |
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] for a name that cannot be part of a DNS name, or is too long with its environment;
    /// [`Error::InvalidAddress`] for port 0.
    pub fn target(&self, callee: &Callee) -> Result<Target, Error> {
        let namespace = callee.namespace.as_ref().unwrap_or(&self.namespace);
        if self.invocation.prefer_service_dns {
            return self.by_dns_name(callee, namespace);
        }
        let Invocation { environment, registry_scheme, .. } = &self.invocation;
        let environment = callee.environment.as_ref().or(environment.as_ref());
        let namespace = match environment.filter(|environment| !environment.is_empty()) {
            Some(environment) => Namespace::parse(format!("{namespace}/{environment}"))?,
            None => namespace.clone(),
        };
        Ok(Target::Service {
            scheme: registry_scheme.clone(),
            service: ServiceRef::new(namespace, callee.name.clone()),
        })
    }

    fn by_dns_name(&self, callee: &Callee, namespace: &Namespace) -> Result<Target, Error> {
        check_label("service", callee.name.as_str())?;
        check_label("namespace", namespace.as_str())?;
        let host = format!("{}.{namespace}.{}", callee.name, self.domain);
        let port = callee.port.unwrap_or(self.invocation.default_port);
        Ok(match self.dns_target {
            DnsTarget::Dns => Target::Dns { host, port },
            DnsTarget::Static => Target::Static(vec![Endpoint::new(host, port)?]),
            DnsTarget::Resolver => {
                let scheme = self.invocation.resolver_scheme.clone();
                Target::Service { scheme, service: Dns::service(&host, port)? }
            }
        })
    }
}

/// A cluster domain with the `svc` that precedes it in names of services.
fn with_svc(domain: &str) -> String {
    match domain.strip_prefix("svc") {
        Some(rest) if rest.is_empty() || rest.starts_with('.') => domain.to_owned(),
        _ => format!("svc.{domain}"),
    }
}

/// The first character that a label of a DNS name cannot have (RFC 1123, section 2.1).
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
    use std::time::Duration;

    fn target(invocation: &Invocation, callee: &Callee) -> String {
        let target = Locator::new(invocation.clone()).and_then(|locator| locator.target(callee));
        target.map_or_else(|error| error.to_string(), |target| target.to_string())
    }

    #[test]
    fn the_registry_is_asked_in_the_namespace() {
        let mut invocation = Invocation::default();
        let auth = Callee::parse("auth").unwrap();
        assert_eq!(target(&invocation, &auth), "enlist:///default/auth");
        assert_eq!(target(&invocation, &Callee::parse("team/auth").unwrap()), "enlist:///team/auth");
        assert_eq!(target(&invocation, &auth.clone().in_environment("test")), "enlist:///default%2Ftest/auth");
        (invocation.environment, invocation.registry_scheme) = (Some("prod".into()), "etcd".into());
        assert_eq!(target(&invocation, &auth.clone().at_port(1)), "etcd:///default%2Fprod/auth");
        assert_eq!(target(&invocation, &auth.clone().in_environment("")), "etcd:///default/auth");
        invocation.environment = Some(String::new());
        assert_eq!(target(&invocation, &auth), "etcd:///default/auth");
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

    /// `json.Marshal(invocation.Conf{})`, and of one with a value in each field, as go-etcd v0.3.1 defines it.
    const EMPTY_IN_GO: &str = concat!(
        r#"{"namespace":"","default_port":0,"cluster_domain":"","resolver_scheme":"","#,
        r#""prefer_service_dns":false,"cache_ttl":0}"#,
    );
    const FILLED_IN_GO: &str = concat!(
        r#"{"namespace":"team","default_port":7000,"cluster_domain":"svc.example.org","resolver_scheme":"dns","#,
        r#""prefer_service_dns":true,"cache_ttl":30000000000}"#,
    );

    #[test]
    fn a_configuration_written_by_go_is_read() {
        let auth = Callee::parse("auth").unwrap();
        let empty: Invocation = serde_json::from_str(EMPTY_IN_GO).unwrap();
        assert_eq!(target(&empty, &auth), "enlist:///default/auth");
        assert_eq!(Locator::new(empty.clone()).unwrap().invocation(), &Invocation::default());
        let by_dns = Invocation { prefer_service_dns: true, ..empty };
        assert_eq!(target(&by_dns, &auth), "dns:///auth.default.svc.cluster.local:9000");
        let mut filled: Invocation = serde_json::from_str(FILLED_IN_GO).unwrap();
        assert_eq!(filled.cache_ttl, Duration::from_secs(30));
        assert_eq!(target(&filled, &auth), "dns:///auth.team.svc.example.org:7000");
        // The resolver scheme applies to service-DNS mode only.
        filled.prefer_service_dns = false;
        assert_eq!(target(&filled, &auth), "enlist:///team/auth");
        // Go also treats negative durations as none.
        let negative: Invocation = serde_json::from_str(r#"{"cache_ttl": -1}"#).unwrap();
        assert_eq!(negative.with_defaults(), Invocation::default());
    }

    #[test]
    fn a_cluster_domain_may_omit_its_svc() {
        let of = |domain: &str| {
            let cluster_domain = domain.to_owned();
            let invocation = Invocation { prefer_service_dns: true, cluster_domain, ..Invocation::default() };
            target(&invocation, &Callee::parse("auth").unwrap())
        };
        for domain in ["cluster.local", "svc.cluster.local", ""] {
            assert_eq!(of(domain), "dns:///auth.default.svc.cluster.local:9000", "{domain:?}");
        }
        assert_eq!(of("svc"), "dns:///auth.default.svc:9000");
        assert_eq!(of("svc.svc.example"), "dns:///auth.default.svc.svc.example:9000");
        assert_eq!(of("svcs.example"), "dns:///auth.default.svc.svcs.example:9000");
    }

    #[test]
    fn the_resolver_scheme_is_that_of_service_dns_mode() {
        let of = |scheme: &str| {
            let resolver_scheme = scheme.to_owned();
            let invocation = Invocation { prefer_service_dns: true, resolver_scheme, ..Invocation::default() };
            Locator::new(invocation).unwrap().target(&Callee::parse("auth").unwrap()).unwrap()
        };
        let (host, port) = ("auth.default.svc.cluster.local", 9000);
        assert_eq!(of("dns"), Target::Dns { host: host.to_owned(), port });
        assert_eq!(of(""), of("dns"));
        let fixed = Target::Static(vec![Endpoint::new(host, port).unwrap()]);
        assert_eq!((of("passthrough"), of("static")), (fixed.clone(), fixed));
        let service = ServiceRef::parse(format!("{host}:{port}")).unwrap();
        assert_eq!(of("consul"), Target::Service { scheme: "consul".to_owned(), service });
        let by_registry = Invocation { resolver_scheme: "passthrough".to_owned(), ..Invocation::default() };
        assert_eq!(target(&by_registry, &Callee::parse("auth").unwrap()), "enlist:///default/auth");
    }

    #[test]
    fn durations_are_text_or_nanoseconds() {
        let cache = |text: &str| {
            let read = serde_json::from_str::<Invocation>(&format!("{{\"cache_ttl\": {text}}}"));
            read.map(|invocation| invocation.cache_ttl).map_err(|error| error.to_string())
        };
        assert_eq!(cache("\"1m30s\""), Ok(Duration::from_secs(90)));
        assert_eq!(cache("5000000000"), Ok(Duration::from_secs(5)));
        assert!(cache("\"soon\"").unwrap_err().contains("no duration"));
        assert_eq!(cache("-1"), Ok(Duration::ZERO));
        assert!(cache("1.5").unwrap_err().contains("whole number"));
    }

    #[test]
    fn a_configuration_is_read_back_without_unknown_fields() {
        let invocation = Invocation { environment: Some("prod".into()), ..Invocation::default() };
        let text = serde_json::to_string(&invocation).unwrap();
        assert!(text.contains("\"cache_ttl\":\"5s\""), "{text}");
        assert_eq!(serde_json::from_str::<Invocation>(&text).unwrap(), invocation);
        let former: Invocation = serde_json::from_str(r#"{"cache": "7s", "scheme": "etcd"}"#).unwrap();
        assert_eq!((former.cache_ttl.as_secs(), &*former.registry_scheme), (7, "etcd"));
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
        assert!(refused(|invocation| invocation.namespace = "\n".into()));
        for scheme in ["dns", "static", "passthrough", "a b"] {
            let invocation = Invocation { registry_scheme: scheme.to_owned(), ..Invocation::default() };
            assert!(Locator::new(invocation).is_err(), "{scheme}");
        }
        assert!(refused(|invocation| invocation.resolver_scheme = "a b".into()));
    }
}
