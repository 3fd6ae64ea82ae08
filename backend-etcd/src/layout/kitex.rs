//! The layout of kitex's `registry-etcd`: `{prefix}/{service}/{address}` contains
//! `{"network":…,"address":…,"weight":…,"tags":…}`.
//!
//! There are no namespaces besides the prefix. It is `kitex/registry-etcd` by default, and empty in kitex's deprecated
//! constructors.

use enlist::{Error, Instance, ServiceRef};
use serde::{Deserialize, Serialize};

use super::{Part, Skip, address, go_json, parts, segments, tree::Dialect};

/// kitex's default weight.
const DEFAULT_WEIGHT: u32 = 10;

/// Network of an endpoint without a protocol: kitex needs one to dial.
const NETWORK: &str = "tcp";

/// The layout of kitex. The id is free; [`Instance::at`] makes it the address, as in kitex. kitex's removals go by
/// address: they miss an instance with another id, and one with an IPv6 address, which has brackets here and none
/// there.
#[derive(Clone, Debug)]
pub struct Kitex {
    prefix: String,
}

impl Default for Kitex {
    fn default() -> Self {
        Self { prefix: "kitex/registry-etcd".to_owned() }
    }
}

#[derive(Serialize)]
struct Encoded<'a> {
    network: &'a str,
    address: &'a str,
    weight: u32,
    tags: go_json::Tags,
}

#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    network: Option<String>,
    address: String,
    #[serde(default)]
    weight: Option<i64>,
    #[serde(default)]
    tags: go_json::Tags,
}

impl Kitex {
    /// Returns the layout with another prefix, which may be empty.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for control characters, and for `%`, which kitex interprets as a directive of its
    /// format string.
    pub fn with_prefix(prefix: &str) -> Result<Self, Error> {
        if prefix.contains('%') {
            return Err(Error::invalid_config("prefix", "kitex cannot use a prefix with `%`"));
        }
        Ok(Self { prefix: segments::checked_prefix(prefix)? })
    }
}

impl Dialect for Kitex {
    const NAME: &'static str = "kitex";
    const CARRIES: &'static [Part] = &[Part::Id, Part::Weight, Part::Metadata];
    const WEIGHT: u32 = DEFAULT_WEIGHT;

    fn root(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// The protocol of the endpoint is kitex's network; the default is `tcp`. A weight of 0 is refused, because kitex
    /// has none.
    fn write(&self, _: &ServiceRef, instance: &Instance) -> Result<Vec<u8>, Error> {
        let endpoint = parts::only_endpoint(self, instance)?;
        if instance.weight() == 0 {
            return Err(parts::lost(self, "a weight of 0"));
        }
        go_json::write(&Encoded {
            network: endpoint.protocol().unwrap_or(NETWORK),
            address: endpoint.authority(),
            weight: instance.weight(),
            tags: go_json::tags(instance.metadata()),
        })
    }

    fn read(&self, _: &ServiceRef, id: &str, value: &[u8]) -> Result<Instance, Skip> {
        let Fields { network, address, weight, tags } = go_json::read(value)?;
        let mut endpoint = address::parse(&address)?;
        if let Some(network) = network.filter(|network| !network.is_empty()) {
            endpoint = endpoint.with_protocol(network).map_err(|_| Skip::malformed("no network"))?;
        }
        let instance = parts::instance(id, [endpoint])?.with_weight(parts::weight_or(weight, DEFAULT_WEIGHT));
        Ok(parts::with_metadata(instance, tags.unwrap_or_default()))
    }
}
