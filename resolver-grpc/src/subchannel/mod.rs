//! One endpoint of a channel, with its connections. A subchannel dials, opens further connections when all streams are
//! taken, watches the health of its instance, probes silent connections and ejects an instance that keeps failing.
//! Calls read its state without waiting. Begin with `subchannel.rs`; `connectivity.rs` has the states, `upkeep.rs` the
//! task.

pub(crate) mod activity;
pub(crate) mod call_queue;
pub(crate) mod config;
pub(crate) mod connections;
pub(crate) mod connectivity;
#[expect(clippy::module_inception, reason = "the file is named after its one type")]
pub(crate) mod subchannel;

mod liveness;
mod upkeep;
