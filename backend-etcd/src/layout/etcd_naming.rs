//! The layout of etcd's own `client/v3/naming`, which gRPC's `etcd:///target` resolver reads, and of the older
//! `clientv3/naming`: `{target}/{id}` contains `{"Op":0,"Addr":"host:port","Metadata":…}`.
//!
//! The service name is the target and may contain `/`; there are no namespaces. Deeper keys belong to a longer target.
//! The id is free; by the convention of the original it is the address.

use enlist::{Endpoint, Error, Instance, ServiceRef};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Part, Skip, address, go_json, not_carried, parts, tree::Dialect, typed};

/// Key of metadata that is no object.
const PLAIN: &str = "metadata";

/// The layout of etcd's naming packages. The id is free; [`Instance::at`] makes it the address, by the convention of
/// the originals: a removal by address from Go misses an instance with another id.
#[derive(Clone, Copy, Debug, Default)]
pub struct EtcdNaming {
    default_port: Option<u16>,
    metadata: Metadata,
}

/// Types of the values in metadata.
#[derive(Clone, Copy, Debug, Default)]
enum Metadata {
    /// Values are converted to texts.
    #[default]
    Texts,
    /// Values keep their types.
    Typed,
}

impl EtcdNaming {
    /// Sets the port of addresses without one. Default: such addresses are malformed.
    #[must_use]
    pub fn default_port(mut self, port: u16) -> Self {
        self.default_port = Some(port);
        self
    }

    /// Keeps the JSON types of metadata, in both directions. A text is stored under its name, any other value as JSON
    /// text under `{name}.json`, and metadata that is no object under `.json`, as [`Instance::with_json`] writes and
    /// [`Instance::json`] reads it. Default: metadata is written as texts, and other values are converted to texts when
    /// they are read, under their names.
    ///
    /// JSON text is kept as it was written, with all digits and in its order. Metadata under a name in `.json` that is
    /// no JSON is refused.
    #[must_use]
    pub fn typed_metadata(mut self) -> Self {
        self.metadata = Metadata::Typed;
        self
    }

    fn address(self, text: &str) -> Result<Endpoint, Skip> {
        match self.default_port {
            Some(port) => address::parse_or(text, port),
            None => address::parse(text),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Encoded<'a, M> {
    op: u8,
    addr: &'a str,
    metadata: M,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Fields {
    addr: String,
    #[serde(default)]
    metadata: Value,
}

impl Dialect for EtcdNaming {
    const NAME: &'static str = "etcd-naming";
    const CARRIES: &'static [Part] = &[Part::Id, Part::Metadata];

    fn root(&self) -> String {
        String::new()
    }

    fn prefix(&self, service: &ServiceRef) -> Result<String, Error> {
        let (root, target) = (self.root_of(service.namespace())?, service.name().as_str());
        if target.ends_with('/') { Err(not_carried("service", '/')) } else { Ok(format!("{root}{target}/")) }
    }

    fn keys_name_services(&self) -> bool {
        false
    }

    fn write(&self, _: &ServiceRef, instance: &Instance) -> Result<Vec<u8>, Error> {
        let addr = parts::only_plain_endpoint(self, instance)?.authority();
        match self.metadata {
            Metadata::Texts => go_json::write(&Encoded { op: 0, addr, metadata: go_json::tags(instance.metadata()) }),
            Metadata::Typed => {
                let metadata = typed::json(instance.metadata()).map_err(|what| parts::lost(self, what))?;
                go_json::write(&Encoded { op: 0, addr, metadata })
            }
        }
    }

    /// A stored `Op` is ignored: an existing value is an instance.
    fn read(&self, _: &ServiceRef, id: &str, value: &[u8]) -> Result<Instance, Skip> {
        let (addr, metadata) = match self.metadata {
            Metadata::Texts => {
                let Fields { addr, metadata } = go_json::read(value)?;
                (addr, as_texts(metadata))
            }
            Metadata::Typed => {
                let fields = go_json::fields(value)?;
                let metadata = fields.get("Metadata").map(|json| typed::entries(json));
                (go_json::field(&fields, "Addr")?, metadata.unwrap_or_default())
            }
        };
        let instance = parts::instance(id, [self.address(&addr)?])?;
        Ok(parts::with_metadata(instance, metadata))
    }
}

/// Returns metadata of any kind as texts.
fn as_texts(metadata: Value) -> Vec<(String, String)> {
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    match metadata {
        Value::Null => Vec::new(),
        Value::Object(entries) => {
            let present = entries.into_iter().filter(|(_, value)| !value.is_null());
            present.map(|(key, value)| (key, text(value))).collect()
        }
        // etcd's gRPC proxy writes an object as text.
        Value::String(inner) => match serde_json::from_str(&inner) {
            Ok(Value::Object(entries)) => as_texts(Value::Object(entries)),
            _ => vec![(PLAIN.to_owned(), inner)],
        },
        other => vec![(PLAIN.to_owned(), other.to_string())],
    }
}
