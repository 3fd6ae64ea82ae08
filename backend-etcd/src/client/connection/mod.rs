//! Connections to the members of etcd: URLs, TLS, dials, failover between members, and the request channels with their
//! deadlines and tokens. Begin with `request_channel.rs`.

pub(crate) mod dial;
pub(crate) mod dial_settings;
pub(crate) mod dialled;
pub(crate) mod endpoint_url;
pub(crate) mod failover;
pub(crate) mod layers;
pub(crate) mod member_sync;
pub(crate) mod members;
mod pinned;
pub(crate) mod recovery;
pub(crate) mod repetitions;
pub(crate) mod request_channel;
pub(crate) mod tls;
mod token;
pub(crate) mod watch_call;
