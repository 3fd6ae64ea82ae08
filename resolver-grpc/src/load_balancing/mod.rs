//! The set of subchannels that a channel picks from, and the policy of that pick. Begin with `set.rs`.

pub(crate) mod balance;
pub(crate) mod set;
