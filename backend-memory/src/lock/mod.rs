//! Locks, elections and semaphores: a queue of entries in the store, judged by [`enlist::backend::queue_position`] or
//! [`enlist::backend::permit_position`].
//!
//! Each acquisition has a task of the session. Its order of steps is [`enlist::backend::contender`]; `contender.rs`
//! contains the requests to the store. Compare the folder of the same name in `enlist-etcd`. Read `lock.rs` first.

mod contender;
mod election;
#[expect(clippy::module_inception, reason = "the file of the trait `Lock`, as in enlist-etcd")]
mod lock;
mod lock_delay;
mod queues;
mod semaphore;
