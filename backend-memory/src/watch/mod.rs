//! Delivery of changes of the store to watchers. Read `shared_store.rs`, the only file.

pub(crate) mod shared_store;
