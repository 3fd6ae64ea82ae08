//! The client of etcd: a channel with failover over the endpoints, requests with deadlines, and the batcher of
//! guarded writes. Begin with `store_client.rs`.

pub(crate) mod dial;
pub(crate) mod dial_settings;
pub(crate) mod dialled;
pub(crate) mod endpoint_url;
pub(crate) mod failover;
pub(crate) mod guarded_write;
pub(crate) mod kv;
pub(crate) mod layers;
pub(crate) mod limits;
pub(crate) mod list;
pub(crate) mod member_sync;
pub(crate) mod members;
pub(crate) mod queue_requests;
pub(crate) mod recovery;
pub(crate) mod request_channel;
pub(crate) mod response;
pub(crate) mod store_client;
pub(crate) mod store_revision;
pub(crate) mod tls;
pub(crate) mod write_batcher;
pub(crate) mod write_proofs;
