//! Locks, elections and semaphores: the traits, their options, the guard of a held lock, the fence of a guarded
//! resource, and jobs that run once. Read `lock.rs` first, then `guard.rs`. The task behind an acquisition is
//! `backend/lock/contender.rs`, and the backend's half of a guard is `backend/lock/guard_driver.rs`.

pub(crate) mod candidate;
pub(crate) mod election;
pub(crate) mod fence;
pub(crate) mod guard;
pub(crate) mod job_record;
#[expect(clippy::module_inception, reason = "the file of the trait `Lock`, as in the backends")]
pub(crate) mod lock;
pub(crate) mod loss;
pub(crate) mod once;
pub(crate) mod options;
pub(crate) mod queues;
pub(crate) mod semaphore;
pub(crate) mod semaphore_options;
