//! The connection to etcd: a channel with failover over the endpoints, requests with deadlines, and the batcher of
//! guarded writes. Begin with `connection.rs`.

pub(crate) mod channel;
pub(crate) mod connection;
pub(crate) mod endpoint_url;
pub(crate) mod hooks;
pub(crate) mod limits;
pub(crate) mod member_sync;
pub(crate) mod writes;
