//! The layout of ChenLong-dev's gobase: `/{cluster}/{service}/{key}` holds a JSON string, and in it, by convention,
//! `{"ip":…,"port":…,"weight":…}`.
//!
//! The cluster is enlist's namespace: `/{namespace}/{service}/{id}`.

use enlist::{Error, Instance, Namespace, ServiceRef, instance::DEFAULT_WEIGHT, name::DEFAULT_NAMESPACE};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Part, Skip, go, tree::Dialect};

/// What gobase's own keys of gRPC servers go on with.
const GRPC: &[u8] = b"/grpc";

/// The layout of gobase.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gobase;

#[derive(Serialize)]
struct Written<'a> {
    ip: &'a str,
    port: u16,
    weight: u32,
}

#[derive(Deserialize)]
struct Read {
    ip: String,
    #[serde(default, deserialize_with = "go::or_default")]
    port: i64,
    #[serde(default)]
    weight: Option<i64>,
}

impl Dialect for Gobase {
    const NAME: &'static str = "gobase";
    const CARRIES: &'static [Part] = &[Part::Id, Part::Namespace, Part::Weight];

    fn root(&self) -> String {
        format!("/{DEFAULT_NAMESPACE}/")
    }

    fn root_of(&self, namespace: &Namespace) -> Result<String, Error> {
        Ok(format!("/{}/", go::as_segment("namespace", namespace.as_str())?))
    }

    fn trimmed<'a>(&self, key: &'a [u8]) -> &'a [u8] {
        key.strip_suffix(GRPC).unwrap_or(key)
    }

    /// A weight of 0, which reads as none, is refused.
    fn write(&self, _: &ServiceRef, instance: &Instance) -> Result<Vec<u8>, Error> {
        if instance.weight() == 0 {
            return Err(go::lost(self, "a weight of 0"));
        }
        let endpoint = go::only_plain_endpoint(self, instance)?;
        let inner = go::write(&Written { ip: endpoint.host(), port: endpoint.port(), weight: instance.weight() })?;
        go::write(&String::from_utf8_lossy(&inner))
    }

    /// What the JSON string holds, which is what gobase's user gave.
    fn said(&self, value: &[u8]) -> Option<String> {
        match go::tree(value) {
            Ok(Value::String(inner)) => Some(inner),
            _ => String::from_utf8(value.to_vec()).ok(),
        }
    }

    /// A value that is the object itself is read as it stands.
    fn read(&self, _: &ServiceRef, id: &str, value: &[u8]) -> Result<Instance, Skip> {
        let Read { ip, port, weight } = match go::tree(value)? {
            Value::String(inner) => go::read(inner.as_bytes())?,
            _ => go::read(value)?,
        };
        let instance = go::instance(id, [go::host_and_port(&ip, port)?])?;
        Ok(instance.with_weight(go::weight_or(weight, DEFAULT_WEIGHT)))
    }
}
