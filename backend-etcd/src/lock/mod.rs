//! Locks, elections and semaphores: a queue of keys ordered by creation revision, judged by
//! [`enlist::backend::queue_position`] or [`enlist::backend::permit_position`].
//!
//! Each acquisition has a task of the session. Its order of steps is [`enlist::backend::contender`]; [`contender`]
//! contains the requests to etcd. The server's own Lock RPC is not used: it grants false locks. Read `lock.rs` first,
//! then `contender.rs`.

mod contender;
pub(crate) mod context;
mod election;
pub(crate) mod key_suffixes;
pub(crate) mod local_queue;
#[expect(clippy::module_inception, reason = "the file of the trait `Lock`")]
mod lock;
mod queues;
mod semaphore;
mod semaphore_queues;

pub use self::{
    lock::lock_condition,
    semaphore_queues::{PermitContender, SemaphoreQueue},
};
