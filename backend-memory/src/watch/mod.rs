//! Delivery of changes of the store to watchers. Read `hub.rs`, the only file.

pub(crate) mod hub;
