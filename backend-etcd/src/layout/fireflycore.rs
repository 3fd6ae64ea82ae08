//! The layouts of fireflycore's go-etcd: that of its registry (up to v0.2.9), with the lease's number at the end of the
//! key and in the value, and that of its Locator (v0.3.1), with a free id.
//!
//! enlist's namespace is fireflycore's (the registry's default is `firefly`, the Locator's `default`), and its
//! application id is the service. The environment is part of enlist's namespace (`default/dev`), and an option of the
//! layout for namespaces that name none.

use std::collections::BTreeMap;

use enlist::{
    DEFAULT_NAMESPACE, DEFAULT_WEIGHT, Endpoint, Error, Instance, InstanceId, LeaseId, Namespace, ServiceName,
    ServiceRef,
};
use serde::{Deserialize, Serialize};

use super::{
    Decoded, Identity, Layout, LeaseScope, Part, Skip, Writing, address, go_json, not_carried, object::Object, parts,
    segments, tree::Dialect,
};
use crate::watch::record::KeyRange;

/// The layout of the Locator: `{namespace}/{env}/{service}/{id}`. It also reads what the registry of v0.2.9 writes.
///
/// A namespace of enlist with one `/` names an environment: `auth` in `team/dev` has the keys `team/dev/auth/…`,
/// whatever the layout's own environment, which is that of namespaces without a `/`. So one client reads services of
/// all environments, and `team` is another name of `team/prod` if the layout's environment is `prod`. An environment
/// may be empty, as in Go: `team/` has the keys `team//auth/…`.
#[derive(Clone, Debug)]
pub struct Fireflycore {
    env: String,
    default_port: Option<u16>,
    proto_count: u64,
    methods: BTreeMap<String, bool>,
    serial: String,
    external: String,
    language: String,
    version: String,
    run_date: String,
}

/// The layout of the registry of v0.2.9: `{namespace}/{env}/{service}/{lease id, decimal}`. Each instance needs a lease
/// of its own and gets a new key when it is registered anew. Environments are those of [`Fireflycore`], but never
/// empty: readers of that version skip instances without one.
#[derive(Clone, Debug)]
pub struct FireflycoreByLease {
    inner: Fireflycore,
}

impl Fireflycore {
    /// Returns the layout with services in the environment `env`, unless their namespace contains one. `env` may be
    /// empty.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for a `/` or control characters.
    pub fn new(env: &str) -> Result<Self, Error> {
        if env.chars().any(|character| character == '/' || character.is_control()) {
            return Err(Error::invalid_config("env", "it must be one segment of a key"));
        }
        Ok(Self {
            env: env.to_owned(),
            default_port: None,
            proto_count: 0,
            methods: BTreeMap::new(),
            serial: String::new(),
            external: String::new(),
            language: "Rust".to_owned(),
            version: String::new(),
            run_date: String::new(),
        })
    }

    /// Sets the port of addresses without one, which the original derives by itself. Default: such addresses are
    /// malformed.
    #[must_use]
    pub fn default_port(mut self, port: u16) -> Self {
        self.default_port = Some(port);
        self
    }

    /// Sets the content of `methods` and `proto_count`. Default: none.
    #[must_use]
    pub fn methods<M: Into<String>>(mut self, proto_count: u64, methods: impl IntoIterator<Item = M>) -> Self {
        self.proto_count = proto_count;
        self.methods = methods.into_iter().map(|method| (method.into(), true)).collect();
        self
    }

    /// Sets the content of `network.sn` and `network.external`. Default: nothing.
    #[must_use]
    pub fn network(mut self, serial: impl Into<String>, external: impl Into<String>) -> Self {
        (self.serial, self.external) = (serial.into(), external.into());
        self
    }

    /// Sets the content of `kernel`. Default: `Rust`, and no version.
    #[must_use]
    pub fn kernel(mut self, language: impl Into<String>, version: impl Into<String>) -> Self {
        (self.language, self.version) = (language.into(), version.into());
        self
    }

    /// Sets the content of `run_date`. Default: nothing.
    #[must_use]
    pub fn run_date(mut self, text: impl Into<String>) -> Self {
        self.run_date = text.into();
        self
    }

    /// Returns the namespace and environment in a namespace: `team` and `dev` for `team/dev`, `team` and the layout's
    /// own for `team`.
    fn split<'a>(&'a self, namespace: &'a Namespace) -> Result<(&'a str, &'a str), Error> {
        match namespace.as_str().split_once('/') {
            None => Ok((namespace.as_str(), &self.env)),
            Some((namespace, env)) if !namespace.is_empty() && !env.contains('/') => Ok((namespace, env)),
            Some(_) => Err(not_carried("namespace", '/')),
        }
    }

    fn value<'a, M>(&'a self, instance: &'a Instance, lease_id: Option<i64>, meta: M) -> Result<Encoded<'a, M>, Error> {
        if instance.weight() == 0 {
            return Err(parts::lost(self, "a weight of 0"));
        }
        Ok(Encoded {
            proto_count: self.proto_count,
            lease_id,
            weight: instance.weight(),
            run_date: &self.run_date,
            methods: &self.methods,
            network: Network {
                sn: &self.serial,
                internal: parts::only_plain_endpoint(self, instance)?.authority(),
                external: &self.external,
            },
            kernel: Kernel { language: &self.language, version: &self.version },
            meta,
        })
    }

    fn address(&self, text: &str) -> Result<Endpoint, Skip> {
        match self.default_port {
            Some(port) => address::parse_or(text, port),
            None if address::is_bare(text) => Err(Skip::malformed("no port, and no default port")),
            None => address::parse(text),
        }
    }

    fn instance(&self, id: &str, read: Fields) -> Result<Instance, Skip> {
        let endpoint = self.address(&read.network.0.internal)?;
        let version = read.meta.and_then(|Object(meta)| meta.version).unwrap_or_default();
        let weight = parts::weight_or(read.weight, DEFAULT_WEIGHT);
        Ok(parts::instance(id, [endpoint])?.with_weight(weight).with_version(version))
    }
}

#[derive(Serialize)]
struct Encoded<'a, M> {
    proto_count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_id: Option<i64>,
    weight: u32,
    run_date: &'a str,
    methods: &'a BTreeMap<String, bool>,
    network: Network<'a>,
    kernel: Kernel<'a>,
    meta: M,
}

#[derive(Serialize)]
struct Network<'a> {
    sn: &'a str,
    internal: &'a str,
    external: &'a str,
}

#[derive(Serialize)]
struct Kernel<'a> {
    language: &'a str,
    version: &'a str,
}

/// Value in the form of the Locator's model.
#[derive(Serialize)]
struct LocatorMeta<'a> {
    app_id: &'a str,
    instance_id: &'a str,
    version: &'a str,
    env: &'a str,
}

/// Value in the form of the registry's model.
#[derive(Serialize)]
struct RegistryMeta<'a> {
    env: &'a str,
    app_id: &'a str,
    version: &'a str,
}

#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    weight: Option<i64>,
    network: Object<ReadNetwork>,
    #[serde(default)]
    meta: Option<Object<ReadMeta>>,
}

#[derive(Deserialize)]
struct ReadNetwork {
    internal: String,
}

#[derive(Deserialize)]
struct ReadMeta {
    #[serde(default)]
    env: Option<String>,
    #[serde(default)]
    app_id: Option<String>,
    #[serde(default)]
    version: Option<String>,
}

impl Dialect for Fireflycore {
    const NAME: &'static str = "fireflycore";
    const CARRIES: &'static [Part] = &[Part::Id, Part::Namespace, Part::Weight, Part::Version];

    fn root(&self) -> String {
        format!("{DEFAULT_NAMESPACE}/{}/", self.env)
    }

    fn root_of(&self, namespace: &Namespace) -> Result<String, Error> {
        let (namespace, env) = self.split(namespace)?;
        Ok(format!("{namespace}/{env}/"))
    }

    fn write(&self, service: &ServiceRef, instance: &Instance) -> Result<Vec<u8>, Error> {
        let (_, env) = self.split(service.namespace())?;
        go_json::write(&self.value(
            instance,
            None,
            LocatorMeta {
                app_id: service.name().as_str(),
                instance_id: instance.id().as_str(),
                version: instance.version().unwrap_or_default(),
                env,
            },
        )?)
    }

    fn read(&self, _: &ServiceRef, id: &str, value: &[u8]) -> Result<Instance, Skip> {
        self.instance(id, go_json::read(value)?)
    }
}

impl FireflycoreByLease {
    /// Returns the layout with services in the environment `env`, unless their namespace contains one.
    ///
    /// # Errors
    ///
    /// As [`Fireflycore::new`], and for an empty environment.
    pub fn new(env: &str) -> Result<Self, Error> {
        if env.is_empty() {
            return Err(Error::invalid_config("env", "the registry of v0.2.9 has no instances without an environment"));
        }
        Fireflycore::new(env).map(Self::from)
    }
}

/// Takes the options of `inner`.
impl From<Fireflycore> for FireflycoreByLease {
    fn from(inner: Fireflycore) -> Self {
        Self { inner }
    }
}

impl Layout for FireflycoreByLease {
    fn name(&self) -> &'static str {
        "fireflycore-by-lease"
    }

    fn carries(&self) -> &'static [Part] {
        &[Part::Namespace, Part::Weight, Part::Version]
    }

    fn identity(&self) -> Identity {
        Identity::Lease
    }

    fn lease_scope(&self) -> LeaseScope {
        LeaseScope::PerKey
    }

    /// A fixed instance has no lease. Its key contains its id, which has to be a number.
    fn key(&self, service: &ServiceRef, id: &InstanceId, lease: Option<LeaseId>) -> Result<Vec<u8>, Error> {
        Ok(format!("{}{}", self.inner.prefix(service)?, parts::number(self, id, lease)?).into_bytes())
    }

    fn service_range(&self, service: &ServiceRef) -> Result<KeyRange, Error> {
        self.inner.service_range(service)
    }

    fn services_range(&self, namespace: &Namespace) -> Option<KeyRange> {
        self.inner.services_range(namespace)
    }

    fn instance_of(&self, namespace: &Namespace, key: &[u8]) -> Option<(ServiceName, InstanceId)> {
        self.inner.instance_of(namespace, key)
    }

    fn service_of(&self, namespace: &Namespace, key: &[u8]) -> Option<ServiceName> {
        self.inner.service_of(namespace, key)
    }

    fn encode(&self, service: &ServiceRef, instance: &Instance, writing: &Writing<'_>) -> Result<Vec<u8>, Error> {
        parts::refuse_loss(self, instance, writing.owner)?;
        let lease_id = parts::number(self, instance.id(), writing.lease)?;
        let (_, env) = self.inner.split(service.namespace())?;
        if env.is_empty() {
            return Err(parts::lost(self, "an empty environment"));
        }
        let meta =
            RegistryMeta { env, app_id: service.name().as_str(), version: instance.version().unwrap_or_default() };
        go_json::write(&self.inner.value(instance, Some(lease_id), meta)?)
    }

    fn decode(&self, service: &ServiceRef, key: &[u8], value: &[u8]) -> Result<Decoded, Skip> {
        let prefix = self.inner.prefix(service).map_err(|_| Skip::Foreign)?;
        let id = segments::segment(key, &prefix)?;
        let read: Fields = go_json::read(value)?;
        let says = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
        // The original skips these too.
        if !read.meta.as_ref().is_some_and(|Object(meta)| says(&meta.env) && says(&meta.app_id)) {
            return Err(Skip::malformed("no environment or application id"));
        }
        Ok(Decoded { instance: self.inner.instance(id, read)?, owner: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str) -> ServiceRef {
        ServiceRef::new(Namespace::parse(namespace).unwrap(), ServiceName::parse("auth").unwrap())
    }

    fn prefix(layout: &dyn Layout, namespace: &str) -> Option<String> {
        let range = layout.service_range(&service(namespace)).ok()?;
        Some(String::from_utf8(range.bounds().0.to_vec()).unwrap())
    }

    #[test]
    fn an_environment_is_that_of_the_namespace_and_else_of_the_layout() {
        let (prod, none) = (Fireflycore::new("prod").unwrap(), Fireflycore::new("").unwrap());
        for (namespace, with_prod, with_none) in [
            ("default", "default/prod/auth/", "default//auth/"),
            ("team/dev", "team/dev/auth/", "team/dev/auth/"),
            ("team/", "team//auth/", "team//auth/"),
        ] {
            assert_eq!(prefix(&prod, namespace).as_deref(), Some(with_prod), "{namespace}");
            assert_eq!(prefix(&none, namespace).as_deref(), Some(with_none), "{namespace}");
            let by_lease = FireflycoreByLease::from(prod.clone());
            assert_eq!(prefix(&by_lease, namespace).as_deref(), Some(with_prod), "{namespace}");
            let key = format!("{with_none}i-1");
            let name = none.service_of(&Namespace::parse(namespace).unwrap(), key.as_bytes());
            assert_eq!(name, ServiceName::parse("auth").ok(), "{namespace}");
        }
        for namespace in ["/dev", "team/dev/east", "team//"] {
            assert_eq!(prefix(&prod, namespace), None, "{namespace}");
        }
        assert!(Fireflycore::new("a/b").is_err() && FireflycoreByLease::new("").is_err());
    }

    #[test]
    fn an_instance_states_the_environment_of_its_namespace() {
        let instance = parts::instance("1", [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
        let written = |layout: &dyn Layout, namespace: &str| {
            let writing = Writing { lease: Some(LeaseId::new(1)), ..Writing::default() };
            let bytes = layout.encode(&service(namespace), &instance, &writing).map_err(|error| error.to_string())?;
            let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            Ok::<_, String>(value["meta"]["env"].as_str().unwrap().to_owned())
        };
        let layout = Fireflycore::new("prod").unwrap();
        let by_lease = FireflycoreByLease::from(layout.clone());
        for layout in [&layout as &dyn Layout, &by_lease] {
            assert_eq!(written(layout, "default").as_deref(), Ok("prod"));
            assert_eq!(written(layout, "default/dev").as_deref(), Ok("dev"));
        }
        assert_eq!(written(&layout, "default/").as_deref(), Ok(""));
        // Readers of that version skip such a value.
        assert!(written(&by_lease, "default/").unwrap_err().contains("an empty environment"));
    }
}
