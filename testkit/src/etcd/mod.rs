//! etcd for tests: real servers, alone or three in a cluster, as processes or containers, and a scripted one in this
//! process. `provider.rs` documents the environment variables that select them; begin with `server.rs`.

pub(crate) mod cluster;
#[cfg(feature = "containers")]
mod container;
#[cfg(feature = "etcd")]
pub(crate) mod fake;
mod gateway;
mod process;
pub(crate) mod provider;
pub(crate) mod server;
pub(crate) mod server_options;
