//! The layout of dubbo-go's service discovery at application level: `/services/{application}/{host}:{port}` contains an
//! object with Go's field names and a newline.
//!
//! The service is the application. dubbo's other keys (parent keys without a lease, the interface level) are not
//! instances.

use std::collections::BTreeMap;

use enlist::{DEFAULT_WEIGHT, Endpoint, Error, Health, Instance, ServiceRef};
use serde::{Deserialize, Serialize};

use super::{Part, Skip, address, go_json, object::Object, parts, tree::Dialect};

const PREFIX: &str = "/services/";

/// Metadata key under which dubbo keeps the protocols of an instance, as text.
const ENDPOINTS: &str = "dubbo.endpoints";

/// The layout of dubbo-go at application level.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dubbo;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Encoded<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    service_name: &'a str,
    host: &'a str,
    port: u16,
    weight: u32,
    enable: bool,
    healthy: bool,
    metadata: go_json::Tags,
    service_metadata: Option<()>,
    address: &'a str,
    group_name: &'a str,
    tag: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Fields {
    #[serde(rename = "ID", default, deserialize_with = "go_json::or_default")]
    id: String,
    host: String,
    #[serde(default, deserialize_with = "go_json::or_default")]
    port: i64,
    #[serde(default)]
    weight: Option<i64>,
    #[serde(default)]
    enable: Option<bool>,
    #[serde(default)]
    healthy: Option<bool>,
    #[serde(default, deserialize_with = "go_json::or_default")]
    metadata: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Protocol {
    port: u16,
    protocol: String,
}

impl Dialect for Dubbo {
    const NAME: &'static str = "dubbo";
    const CARRIES: &'static [Part] = &[Part::Id, Part::Weight, Part::Metadata];

    fn root(&self) -> String {
        PREFIX.to_owned()
    }

    /// Several endpoints are carried if all have a protocol and the same host. A weight of 0 is refused, because dubbo
    /// takes it for the default weight.
    fn write(&self, service: &ServiceRef, instance: &Instance) -> Result<Vec<u8>, Error> {
        let endpoints = instance.endpoints();
        let (first, named) = (&endpoints[0], endpoints.iter().filter(|endpoint| endpoint.protocol().is_some()).count());
        let one_host = endpoints.iter().all(|endpoint| endpoint.host() == first.host() && !endpoint.is_unix());
        if !one_host || (named != endpoints.len() && endpoints.len() > 1) {
            return Err(parts::lost(self, "endpoints on several hosts, without protocols, or unix sockets"));
        }
        if instance.weight() == 0 {
            return Err(parts::lost(self, "a weight of 0"));
        }
        let mut metadata = instance.metadata().clone();
        if metadata.contains_key(ENDPOINTS) {
            return Err(parts::lost(self, "metadata named `dubbo.endpoints`, which stands for the endpoints,"));
        }
        let protocol = |endpoint: &Endpoint| {
            let (port, protocol) = (endpoint.port(), endpoint.protocol()?.to_owned());
            Some(Protocol { port, protocol })
        };
        let protocols: Vec<_> = endpoints.iter().filter_map(protocol).collect();
        if !protocols.is_empty() {
            let text = String::from_utf8_lossy(&go_json::write(&protocols)?).into_owned();
            metadata.insert(ENDPOINTS.to_owned(), text);
        }
        let mut value = go_json::write(&Encoded {
            id: instance.id().as_str(),
            service_name: service.name().as_str(),
            host: first.host(),
            port: first.port(),
            weight: instance.weight(),
            enable: true,
            healthy: true,
            metadata: go_json::tags(&metadata),
            service_metadata: None,
            address: "",
            group_name: "",
            tag: "",
        })?;
        value.push(b'\n');
        Ok(value)
    }

    fn read(&self, _: &ServiceRef, key: &str, value: &[u8]) -> Result<Instance, Skip> {
        let Fields { id, host, port, weight, enable, healthy, mut metadata } = go_json::read(value)?;
        let endpoints = match metadata.get(ENDPOINTS).and_then(|text| protocols(&host, text)) {
            Some(endpoints) => {
                metadata.remove(ENDPOINTS);
                endpoints
            }
            None => vec![address::host_and_port(&host, port)?],
        };
        let serves = enable.unwrap_or(true) && healthy.unwrap_or(true);
        let instance = parts::instance(if id.is_empty() { key } else { &id }, endpoints)?
            .with_weight(parts::weight_or(weight, DEFAULT_WEIGHT))
            .with_health(if serves { Health::Serving } else { Health::NotServing });
        Ok(parts::with_metadata(instance, metadata))
    }
}

/// Returns the endpoints in the metadata, if they can be read.
fn protocols(host: &str, text: &str) -> Option<Vec<Endpoint>> {
    let named: Vec<Object<Protocol>> = serde_json::from_str(text).ok()?;
    let endpoint = |Object(Protocol { port, protocol })| Endpoint::new(host, port).ok()?.with_protocol(protocol).ok();
    let endpoints: Vec<_> = named.into_iter().map(endpoint).collect::<Option<_>>()?;
    (!endpoints.is_empty()).then_some(endpoints)
}
