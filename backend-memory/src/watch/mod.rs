//! Delivery of changes of the store to watchers. One file.

pub(crate) mod hub;
