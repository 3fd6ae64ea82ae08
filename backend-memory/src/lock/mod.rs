//! Locks and elections: a queue of entries in the store, judged by [`enlist::backend::queue_position`].
//!
//! A task of the session acts for each acquisition. Its order of steps is [`enlist::backend::contender`];
//! `contender.rs` is the part that touches the store. Compare the folder of the same name in `enlist-etcd`. Read
//! `lock.rs` first.

mod contender;
mod election;
#[expect(clippy::module_inception, reason = "the file of the trait `Lock`, as in enlist-etcd")]
mod lock;
mod lock_delay;
