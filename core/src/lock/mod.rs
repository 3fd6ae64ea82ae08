//! Locks and elections: the traits, their options, the guard of a held lock, and the fence of a guarded resource. Read
//! `lock.rs` first, then `guard.rs`. The task behind an acquisition is `backend/contender.rs`, and the backend's half
//! of a guard is `backend/guard_driver.rs`.

pub(crate) mod candidate;
pub(crate) mod election;
pub(crate) mod fence;
pub(crate) mod guard;
#[expect(clippy::module_inception, reason = "the file of the trait `Lock`, as in the backends")]
pub(crate) mod lock;
pub(crate) mod loss;
pub(crate) mod options;
