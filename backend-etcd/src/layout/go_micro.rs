//! The layout of go-micro's etcd registry: `/micro/registry/{service}/{node id}` contains the whole service with this
//! one node.
//!
//! go-micro replaces `/` in a name by `-`, so `a/b` and `a-b` would share their keys. Here such names are refused.

use std::collections::BTreeMap;

use enlist::{Error, Instance, ServiceRef};
use serde::{Deserialize, Serialize};

use super::{Part, Skip, address, go_json, object::Object, parts, tree::Dialect};

const PREFIX: &str = "/micro/registry/";

/// The layout of go-micro.
#[derive(Clone, Copy, Debug, Default)]
pub struct GoMicro;

#[derive(Serialize)]
struct Encoded<'a> {
    name: &'a str,
    version: &'a str,
    /// Metadata of the service, which is ignored.
    metadata: Option<()>,
    endpoints: [(); 0],
    nodes: [EncodedNode<'a>; 1],
}

#[derive(Serialize)]
struct EncodedNode<'a> {
    metadata: go_json::Tags,
    id: &'a str,
    address: &'a str,
}

#[derive(Deserialize)]
struct Fields {
    #[serde(default, deserialize_with = "go_json::or_default")]
    name: String,
    #[serde(default, deserialize_with = "go_json::or_default")]
    version: String,
    #[serde(default, deserialize_with = "go_json::or_default")]
    nodes: Vec<Object<NodeFields>>,
}

#[derive(Deserialize)]
struct NodeFields {
    #[serde(default, deserialize_with = "go_json::or_default")]
    metadata: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "go_json::or_default")]
    id: String,
    address: String,
    /// Port, written by releases before 1.8. Their address is the host alone.
    #[serde(default)]
    port: Option<i64>,
}

impl Dialect for GoMicro {
    const NAME: &'static str = "go-micro";
    const CARRIES: &'static [Part] = &[Part::Id, Part::Version, Part::Metadata];

    fn root(&self) -> String {
        PREFIX.to_owned()
    }

    fn write(&self, service: &ServiceRef, instance: &Instance) -> Result<Vec<u8>, Error> {
        let address = parts::only_plain_endpoint(self, instance)?.authority();
        let node = EncodedNode { metadata: go_json::tags(instance.metadata()), id: instance.id().as_str(), address };
        let (name, version) = (service.name().as_str(), instance.version().unwrap_or_default());
        go_json::write(&Encoded { name, version, metadata: None, endpoints: [], nodes: [node] })
    }

    /// Names of go-micro can share a key, so a value with another service's name is foreign.
    fn read(&self, service: &ServiceRef, key: &str, value: &[u8]) -> Result<Instance, Skip> {
        let Fields { name, version, nodes } = go_json::read(value)?;
        if name != service.name().as_str() {
            return Err(Skip::Foreign);
        }
        let [Object(node)] = <[_; 1]>::try_from(nodes)
            .map_err(|nodes| Skip::malformed(format!("{} nodes where one is due", nodes.len())))?;
        let endpoint = match node.port {
            Some(port) if port > 0 => address::host_and_port(&node.address, port)?,
            _ => address::parse(&node.address)?,
        };
        let id = if node.id.is_empty() { key } else { &node.id };
        let instance = parts::instance(id, [endpoint])?.with_version(version);
        Ok(parts::with_metadata(instance, node.metadata))
    }
}
