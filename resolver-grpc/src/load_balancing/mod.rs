//! The set of subchannels that a channel picks from, and the policy of that pick. A task follows the view of a service,
//! keeps one subchannel per endpoint and publishes the picker state that calls read. Begin with `pool_task.rs`.

pub(crate) mod balance;
pub(crate) mod picker_state;
pub(crate) mod pool_task;

mod idle;
mod listing;
