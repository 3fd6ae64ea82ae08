//! Serving: the lifecycle of a tonic server that is registered. One file.

pub(crate) mod serve;
