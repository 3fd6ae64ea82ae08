//! Configuration of the locator. The model and its defaults are those of fireflycore's go-etcd.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Configuration of a [`Locator`](crate::Locator): names, ports and schemes of targets. Read from any format of serde.
/// An absent field has its default, an unknown field is an error.
///
/// The JSON that fireflycore's go-etcd writes of its `invocation.Conf` is read unchanged. For an empty text or zero the
/// default applies, as in Go: see [`with_defaults`](Self::with_defaults).
///
/// ```
/// # use enlist_grpc::Invocation;
/// let invocation: Invocation = serde_json::from_str(r#"{"cache_ttl": "10s", "prefer_service_dns": true}"#)?;
/// assert_eq!(invocation.cache_ttl.as_secs(), 10);
/// assert_eq!(invocation.cluster_domain, "cluster.local");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Invocation {
    /// Namespace of callees without one. Default: `default`.
    pub namespace: String,
    /// Environment of callees without one; an empty one is none. Default: none.
    pub environment: Option<String>,
    /// Idle time of views. Text such as `5s` or `1m 30s`, or whole nanoseconds, as Go writes them; a negative number is
    /// zero. Also read from a field `cache`. Default: 5 s.
    #[serde(alias = "cache", with = "duration")]
    pub cache_ttl: Duration,
    /// DNS domain of the cluster, with or without the `svc.` that precedes it in the names of services: `cluster.local`
    /// and `svc.cluster.local` are the same. A domain that itself begins with `svc.` is written `svc.svc.…`. Default:
    /// `cluster.local`.
    pub cluster_domain: String,
    /// Port of callees without one, in service-DNS mode. Default: 9000.
    pub default_port: u16,
    /// Scheme of the targets of service-DNS mode, see [`Locator::target`](crate::Locator::target). Default: `dns`.
    pub resolver_scheme: String,
    /// Scheme of the targets that a registry resolves. Also read from a field `scheme`. Default: `enlist`.
    #[serde(alias = "scheme")]
    pub registry_scheme: String,
    /// Service-DNS mode: services are located by their DNS names instead of through the registry. Default: no.
    pub prefer_service_dns: bool,
}

impl Default for Invocation {
    fn default() -> Self {
        Self {
            namespace: enlist::DEFAULT_NAMESPACE.to_owned(),
            environment: None,
            cache_ttl: Duration::from_secs(5),
            cluster_domain: "cluster.local".to_owned(),
            default_port: 9000,
            resolver_scheme: "dns".to_owned(),
            registry_scheme: "enlist".to_owned(),
            prefer_service_dns: false,
        }
    }
}

impl Invocation {
    /// The same configuration with the default in place of each empty text, of port 0 and of a `cache_ttl` of zero.
    #[must_use]
    pub fn with_defaults(self) -> Self {
        let Self {
            namespace,
            environment,
            cache_ttl,
            cluster_domain,
            default_port,
            resolver_scheme,
            registry_scheme,
            prefer_service_dns,
        } = self;
        let default = Self::default();
        let text = |text: String, default: String| if text.is_empty() { default } else { text };
        Self {
            namespace: text(namespace, default.namespace),
            environment: environment.filter(|environment| !environment.is_empty()),
            cache_ttl: if cache_ttl.is_zero() { default.cache_ttl } else { cache_ttl },
            cluster_domain: text(cluster_domain, default.cluster_domain),
            default_port: if default_port == 0 { default.default_port } else { default_port },
            resolver_scheme: text(resolver_scheme, default.resolver_scheme),
            registry_scheme: text(registry_scheme, default.registry_scheme),
            prefer_service_dns,
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
            Ok(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0)))
        }
    }
}
