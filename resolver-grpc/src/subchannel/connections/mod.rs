//! Connections to one endpoint: whether it may be used and with which settings, the dial, the observed stream, and the
//! set of connections that take calls. Begin with `connection.rs`.

pub(crate) mod connection;
pub(crate) mod connection_options;
pub(crate) mod connection_set;
pub(crate) mod dial_limit;
pub(crate) mod security;
pub(crate) mod settings;
pub(crate) mod transport;

mod frames;
mod monitored_stream;
mod shared_channel;
