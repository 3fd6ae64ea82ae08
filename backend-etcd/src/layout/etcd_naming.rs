//! The layout of etcd's own `client/v3/naming`, which gRPC's `etcd:///target` resolver reads, and of the older `clientv3/naming`:
//! `{target}/{id}` holds `{"Op":0,"Addr":"host:port","Metadata":…}`.
//!
//! The service name is the target and may contain `/`; there are no namespaces. Keys that go deeper belong to a longer target.

use enlist::{Error, Instance, ServiceRef};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Part, Skip, go, not_carried, tree::Dialect};

/// Where metadata is kept that is no object.
const PLAIN: &str = "metadata";

/// The layout of etcd's naming packages.
#[derive(Clone, Copy, Debug, Default)]
pub struct EtcdNaming;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Written<'a> {
    op: u8,
    addr: &'a str,
    metadata: go::Tags,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Read {
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

    fn tells_services(&self) -> bool {
        false
    }

    fn write(&self, _: &ServiceRef, instance: &Instance) -> Result<Vec<u8>, Error> {
        let addr = go::only_plain_endpoint(self, instance)?.authority();
        go::write(&Written { op: 0, addr, metadata: go::tags(instance.metadata()) })
    }

    /// A stored `Op` is not looked at: what is there is an instance. Metadata is read as far as it can be told as text.
    fn read(&self, _: &ServiceRef, id: &str, value: &[u8]) -> Result<Instance, Skip> {
        let Read { addr, metadata } = go::read(value)?;
        let instance = go::instance(id, [go::address(&addr)?])?;
        Ok(go::with_metadata(instance, as_texts(metadata)))
    }
}

/// Metadata of any kind as texts.
fn as_texts(metadata: Value) -> Vec<(String, String)> {
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    match metadata {
        Value::Null => Vec::new(),
        Value::Object(entries) => {
            let told = entries.into_iter().filter(|(_, value)| !value.is_null());
            told.map(|(key, value)| (key, text(value))).collect()
        }
        // etcd's gRPC proxy writes an object as text.
        Value::String(inner) => match serde_json::from_str(&inner) {
            Ok(Value::Object(entries)) => as_texts(Value::Object(entries)),
            _ => vec![(PLAIN.to_owned(), inner)],
        },
        other => vec![(PLAIN.to_owned(), other.to_string())],
    }
}
