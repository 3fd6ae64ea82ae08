//! One endpoint of a channel, with its connections. A subchannel dials, opens further connections when all streams are
//! taken, watches the health of its instance, probes silent connections and ejects an instance that keeps failing.
//! Calls read its state without waiting. Begin with `subchannel.rs`; `connectivity.rs` has the states, `upkeep.rs` the
//! task.

pub(crate) mod activity;
pub(crate) mod call_queue;
pub(crate) mod config;
pub(crate) mod connection;
pub(crate) mod connection_options;
pub(crate) mod connectivity;
pub(crate) mod dial_limit;
pub(crate) mod security;
pub(crate) mod settings;
#[expect(clippy::module_inception, reason = "the file is named after its one type")]
pub(crate) mod subchannel;
pub(crate) mod transport;

mod connection_set;
mod ejection;
mod frames;
mod head_write;
mod health;
mod local_check;
mod monitored_stream;
mod probe;
mod probe_request;
mod shared_channel;
mod upkeep;
