//! The layout of kratos: `{namespace}/{service}/{id}` contains
//! `{"id":…,"name":…,"version":…,"metadata":…,"endpoints":["grpc://host:port"]}`.
//!
//! kratos' namespace is an option, `/microservices` by default. enlist's namespaces are not carried.

use std::collections::BTreeMap;

use enlist::{DEFAULT_WEIGHT, Endpoint, Error, Instance, ServiceRef};
use serde::{Deserialize, Serialize};

use super::{Part, Skip, go_json, parts, segments, tree::Dialect};

/// Metadata key from which kratos reads the weight.
const WEIGHT: &str = "weight";

/// The layout of kratos.
#[derive(Clone, Debug)]
pub struct Kratos {
    namespace: String,
}

impl Default for Kratos {
    fn default() -> Self {
        Self { namespace: "/microservices".to_owned() }
    }
}

#[derive(Serialize)]
struct Encoded<'a> {
    id: &'a str,
    name: &'a str,
    version: &'a str,
    metadata: go_json::Tags,
    endpoints: Vec<String>,
}

#[derive(Deserialize)]
struct Fields {
    #[serde(default, deserialize_with = "go_json::or_default")]
    id: String,
    #[serde(default, deserialize_with = "go_json::or_default")]
    name: String,
    #[serde(default, deserialize_with = "go_json::or_default")]
    version: String,
    #[serde(default, deserialize_with = "go_json::or_default")]
    metadata: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "go_json::or_default")]
    endpoints: Vec<String>,
}

impl Kratos {
    /// Returns the layout with another kratos namespace, which is used unchanged: kratos' own begins with `/`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for control characters.
    pub fn with_namespace(namespace: &str) -> Result<Self, Error> {
        Ok(Self { namespace: segments::checked_prefix(namespace)? })
    }
}

impl Dialect for Kratos {
    const NAME: &'static str = "kratos";
    const CARRIES: &'static [Part] = &[Part::Id, Part::Endpoints, Part::Weight, Part::Version, Part::Metadata];

    fn root(&self) -> String {
        format!("{}/", self.namespace)
    }

    /// Endpoints need a protocol, by which kratos selects them. The weight is an entry of the metadata; the default
    /// weight is omitted.
    fn write(&self, service: &ServiceRef, instance: &Instance) -> Result<Vec<u8>, Error> {
        if instance.endpoints().iter().any(|endpoint| endpoint.protocol().is_none() || endpoint.is_unix()) {
            return Err(parts::lost(self, "an endpoint without a protocol such as grpc://"));
        }
        let mut metadata = instance.metadata().clone();
        if metadata.contains_key(WEIGHT) {
            return Err(parts::lost(self, "metadata named `weight`, which stands for the weight,"));
        }
        if instance.weight() != DEFAULT_WEIGHT {
            metadata.insert(WEIGHT.to_owned(), instance.weight().to_string());
        }
        go_json::write(&Encoded {
            id: instance.id().as_str(),
            name: service.name().as_str(),
            version: instance.version().unwrap_or_default(),
            metadata: go_json::tags(&metadata),
            endpoints: instance.endpoints().iter().map(ToString::to_string).collect(),
        })
    }

    /// A value with another service's name is foreign, as in kratos itself.
    fn read(&self, service: &ServiceRef, key: &str, value: &[u8]) -> Result<Instance, Skip> {
        let Fields { id, name, version, mut metadata, endpoints } = go_json::read(value)?;
        if name != service.name().as_str() {
            return Err(Skip::Foreign);
        }
        let decimal = |text: &&String| text.bytes().all(|byte| byte.is_ascii_digit());
        let weight = metadata.get(WEIGHT).filter(decimal).and_then(|weight| weight.parse().ok());
        if weight.is_some() {
            metadata.remove(WEIGHT);
        }
        let endpoints = endpoints.iter().map(|text| endpoint(text)).collect::<Result<Vec<_>, _>>()?;
        let instance = parts::instance(if id.is_empty() { key } else { &id }, endpoints)?
            .with_version(version)
            .with_weight(weight.unwrap_or(DEFAULT_WEIGHT));
        Ok(parts::with_metadata(instance, metadata))
    }
}

/// Reads a URL. Releases 2.1 to 2.3 write `?isSecure=true` instead of `grpcs` and `https`.
fn endpoint(text: &str) -> Result<Endpoint, Skip> {
    let (address, query) = text.split_once('?').unwrap_or((text, ""));
    let endpoint = Endpoint::parse(address).map_err(|_| Skip::malformed("an endpoint cannot be read"))?;
    let secure = query.split('&').any(|pair| pair == "isSecure=true");
    match endpoint.protocol() {
        Some(protocol @ ("grpc" | "http")) if secure => {
            let with_tls = format!("{protocol}s");
            endpoint.with_protocol(with_tls).map_err(|_| Skip::malformed("an endpoint cannot be read"))
        }
        _ => Ok(endpoint),
    }
}
