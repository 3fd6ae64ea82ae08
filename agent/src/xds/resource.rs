//! An encoded resource, its type, and the version of its content.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Type of a resource of xDS, in the order in which changes are sent: a cluster and its assignment come before the
/// routes that refer to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ResourceType {
    /// Cluster (CDS).
    Cluster,
    /// Assignment of endpoints to a cluster (EDS).
    Assignment,
    /// Listener (LDS).
    Listener,
    /// Configuration of routes (RDS).
    Route,
}

impl ResourceType {
    /// All types, in the order in which changes are sent.
    pub(super) const ALL: [Self; 4] = [Self::Cluster, Self::Assignment, Self::Listener, Self::Route];

    /// Returns the word for the type in JSON and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Assignment => "assignment",
            Self::Listener => "listener",
            Self::Route => "route",
        }
    }

    /// Returns the name of the type in requests and responses.
    pub(super) fn url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Assignment => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// Returns the type with this name; `None` for a type that the agent does not serve.
    pub(super) fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.url() == url)
    }

    /// Returns `true` if a response contains all resources that the client is to keep: a resource that is missing in it
    /// is deleted.
    pub(super) fn is_complete(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

/// Version of a resource or of a set of them: a hash of the content. Two agents with the same content agree, and so
/// does one agent before and after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Version(u64);

impl Version {
    /// Returns the version of a set of resources, in this order.
    pub(super) fn of_set<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> Self {
        let mut hash = Xxh3::new();
        for resource in resources {
            hash.update(resource.name().as_bytes());
            hash.update(&[0]);
            hash.update(&resource.version.0.to_be_bytes());
        }
        Self(hash.digest())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// An encoded resource. Cheap to clone: all responses with it share its bytes.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    name: Arc<str>,
    version: Version,
    /// The message, as an encoded [`Any`].
    any: Bytes,
    /// Bytes of the message alone, which are the last ones.
    length: usize,
}

impl Resource {
    /// Encodes a message as the resource `name`.
    pub(super) fn new<M: Message + Name>(name: &str, message: &M) -> Self {
        let any = any(message);
        let (version, length) = (Version(xxh3_64(&any.value)), any.value.len());
        Self { name: name.into(), version, any: any.encode_to_vec().into(), length }
    }

    /// Returns the name under which clients request the resource.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// As [`name`](Self::name), shared.
    pub(super) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// Returns the version of the content.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Returns the message, as an encoded [`Any`].
    pub(super) fn any(&self) -> &Bytes {
        &self.any
    }

    /// Returns the encoded message.
    pub(super) fn message(&self) -> &[u8] {
        // Protocol buffers are encoded in the order of their fields, and `value` is the last one.
        &self.any[self.any.len() - self.length..]
    }
}

/// Returns the name of a type of messages in [`Any`].
pub(super) fn type_url<M: Name>() -> String {
    format!("type.googleapis.com/{}", M::full_name())
}

/// Packs a message.
pub(super) fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: type_url::<M>(), value: message.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::{
        cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
        route::v3::RouteConfiguration,
    };

    #[test]
    fn types_are_numbered_in_their_order() {
        assert_eq!(ResourceType::ALL.map(|kind| kind as usize), [0, 1, 2, 3]);
    }

    #[test]
    fn the_names_of_types_are_those_of_their_messages() {
        assert_eq!(any(&Cluster::default()).type_url, ResourceType::Cluster.url());
        assert_eq!(any(&ClusterLoadAssignment::default()).type_url, ResourceType::Assignment.url());
        assert_eq!(any(&Listener::default()).type_url, ResourceType::Listener.url());
        assert_eq!(any(&RouteConfiguration::default()).type_url, ResourceType::Route.url());
        for one in ResourceType::ALL {
            assert_eq!(ResourceType::from_url(one.url()), Some(one));
        }
        assert_eq!(ResourceType::from_url("type.googleapis.com/envoy.service.runtime.v3.Runtime"), None);
    }

    #[test]
    fn a_resource_is_encoded_with_its_type() {
        let cluster = Cluster { name: "a".to_owned(), ..Cluster::default() };
        let resource = Resource::new("a", &cluster);
        assert_eq!(Any::decode(&resource.any()[..]).unwrap(), any(&cluster));
        assert_eq!(Cluster::decode(resource.message()).unwrap(), cluster);
        let empty = Resource::new("a", &Cluster::default());
        assert!(empty.message().is_empty());
    }

    #[test]
    fn a_version_depends_on_the_content_only() {
        let resource = |name: &str, content: &str| {
            Resource::new(name, &Cluster { name: content.to_owned(), ..Cluster::default() })
        };
        let (one, same, other) = (resource("a", "x"), resource("a", "x"), resource("a", "y"));
        assert_eq!(one.version(), same.version());
        assert_ne!(one.version(), other.version());
        assert_eq!(one.version().to_string().len(), 16);
        let renamed = resource("b", "x");
        assert_ne!(Version::of_set([&one, &other]), Version::of_set([&renamed, &other]));
        assert_eq!(Version::of_set([&one, &other]), Version::of_set([&same, &other]));
    }
}
