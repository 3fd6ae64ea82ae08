//! Configuration: values by path, written in guarded transactions. Compare the folder of the same name in
//! `enlist-memory`.
//!
//! Values are watched through replicas of their ranges, as services are. A transaction is one request of its own. If
//! its reply is lost, its outcome is read back from the store. Begin with `values.rs`, then read `transaction.rs`.

pub(crate) mod context;
mod deletions;
mod first_change;
mod history;
mod transaction;
mod values;
mod watcher;
