//! Checkers: pure functions that compare the recorded history of a run with the guarantees. `history.rs` checks the
//! views of watchers and the ends of registrations, `lock_history.rs` the holders of a lock, and `semaphore_history.rs`
//! those of a semaphore. `losses.rs` checks that holders notice losses, and that lost instances return.

pub mod history;
pub mod lock_history;
pub mod losses;
pub mod semaphore_history;
