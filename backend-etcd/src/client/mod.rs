//! The client of etcd, in two parts: `connection` has the channel with failover over the endpoints, and `requests` the
//! requests with deadlines and the batcher of guarded writes. Begin with `store_client.rs`.

pub(crate) mod connection;
pub(crate) mod requests;
pub(crate) mod store_client;
pub(crate) mod store_revision;
