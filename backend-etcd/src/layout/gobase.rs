//! The layout of ChenLong-dev's gobase: `/{cluster}/{service}/{key}` contains a JSON string with, by convention,
//! `{"ip":…,"port":…,"weight":…}` and further fields of the user, which are the metadata here.
//!
//! The cluster is enlist's namespace: `/{namespace}/{service}/{id}`.

use std::{borrow::Cow, collections::BTreeMap};

use enlist::{DEFAULT_NAMESPACE, DEFAULT_WEIGHT, Error, Instance, Namespace, ServiceRef};
use serde::Serialize;
use serde_json::Value;

use super::{Part, Skip, address, go_json, parts, segments, tree::Dialect, typed};

/// Beginning of the rest of the keys that gobase's gRPC servers write.
const GRPC: &[u8] = b"/grpc";

/// Fields that are no metadata.
const OWN: [&str; 3] = ["ip", "port", "weight"];

/// The layout of gobase. The id is free; [`Instance::at`] makes it the address. Metadata keeps its JSON types: a text
/// is under its name, any other value as JSON text under `{name}.json`, as [`Instance::with_json`] writes and
/// [`Instance::json`] reads it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gobase;

#[derive(Serialize)]
struct Encoded<'a> {
    ip: &'a str,
    port: u16,
    weight: u32,
    #[serde(flatten)]
    metadata: BTreeMap<&'a str, typed::Field<'a>>,
}

impl Dialect for Gobase {
    const NAME: &'static str = "gobase";
    const CARRIES: &'static [Part] = &[Part::Id, Part::Namespace, Part::Weight, Part::Metadata];

    fn root(&self) -> String {
        format!("/{DEFAULT_NAMESPACE}/")
    }

    fn root_of(&self, namespace: &Namespace) -> Result<String, Error> {
        Ok(format!("/{}/", segments::as_segment("namespace", namespace.as_str())?))
    }

    fn trimmed<'a>(&self, key: &'a [u8]) -> &'a [u8] {
        key.strip_suffix(GRPC).unwrap_or(key)
    }

    /// A weight of 0 is refused, because it would be read as absent. Metadata follows the other fields, by name.
    fn write(&self, _: &ServiceRef, instance: &Instance) -> Result<Vec<u8>, Error> {
        if instance.weight() == 0 {
            return Err(parts::lost(self, "a weight of 0"));
        }
        let endpoint = parts::only_plain_endpoint(self, instance)?;
        let metadata = typed::fields(instance.metadata()).map_err(|what| parts::lost(self, what))?;
        if OWN.iter().any(|name| metadata.contains_key(name)) {
            return Err(parts::lost(self, "metadata named `ip`, `port` or `weight`, which are fields of their own,"));
        }
        let (ip, port, weight) = (endpoint.host(), endpoint.port(), instance.weight());
        let inner = go_json::write(&Encoded { ip, port, weight, metadata })?;
        go_json::write(&String::from_utf8_lossy(&inner))
    }

    /// Returns the content of the JSON string, as gobase's user wrote it.
    fn text_of(&self, value: &[u8]) -> Option<String> {
        match go_json::tree(value) {
            Ok(Value::String(inner)) => Some(inner),
            _ => String::from_utf8(value.to_vec()).ok(),
        }
    }

    /// A value that is an object instead of a string is read as well.
    fn read(&self, _: &ServiceRef, id: &str, value: &[u8]) -> Result<Instance, Skip> {
        let inner = match go_json::tree(value) {
            Ok(Value::String(inner)) => Cow::Owned(inner.into_bytes()),
            _ => Cow::Borrowed(value),
        };
        let mut fields = go_json::fields(&inner)?;
        let (ip, port): (String, Option<i64>) = (go_json::field(&fields, "ip")?, go_json::field(&fields, "port")?);
        let weight = parts::weight_or(go_json::field(&fields, "weight")?, DEFAULT_WEIGHT);
        fields.retain(|name, _| !OWN.contains(&name.as_str()));
        let instance =
            parts::instance(id, [address::host_and_port(&ip, port.unwrap_or_default())?])?.with_weight(weight);
        Ok(parts::with_metadata(instance, typed::entries_of(fields)))
    }
}
