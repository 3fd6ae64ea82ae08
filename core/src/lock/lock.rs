//! Mutual exclusion, and what is left of it when a lease runs out.
//!
//! No lock that rests on a lease can promise exclusion over a resource outside the store: the holder may be paused
//! between its last check and its write. What can be promised is that the [`FencingToken`](crate::FencingToken) of a
//! later holder is larger, so a resource that refuses smaller tokens is safe. Without fencing there is at most one
//! *live* guard as long as clocks run at about the same rate, the holder checks [`LockGuard::is_held`] right before it
//! acts, and the store keeps its leases.

use std::fmt;

use async_trait::async_trait;

use crate::{
    error::Error,
    lock::{guard::LockGuard, options::LockOptions},
    model::name::LockName,
};

/// Grants locks. Implemented by the backends; users hold an `Arc<dyn Lock>`.
#[async_trait]
pub trait Lock: fmt::Debug + Send + Sync + 'static {
    /// Waits for the lock `name` and returns once this caller is a holder. Waiters are served in the order in which the
    /// store saw them. A waiter whose queue entry is lost, because its lease ended or the store was wiped, enters the
    /// queue again, at its end; the deadline stays.
    ///
    /// Signature: `async fn acquire(&self, name: &LockName, options: LockOptions) -> Result<LockGuard, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] at the deadline, also if the store could not be reached until then: the last trouble in
    /// entering the queue is its cause. Without a deadline it keeps trying. [`Error::LeaseLost`] if the queue entry was
    /// lost while it waited and the options [say so](LockOptions::fail_on_lost_entry), otherwise it enters the queue
    /// again; [`Error::PermissionDenied`], [`Error::StorageFull`], [`Error::InvalidConfig`], [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in line; whatever reached the store is removed in the background.
    async fn acquire(&self, name: &LockName, options: LockOptions) -> Result<LockGuard, Error>;

    /// Takes the lock if that is possible without waiting, and leaves nothing in line otherwise.
    ///
    /// Signature: `async fn try_acquire(&self, name: &LockName, options: LockOptions) ->
    /// Result<Option<LockGuard>, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if the store does not answer; otherwise as [`acquire`](Self::acquire), a deadline
    /// included.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    async fn try_acquire(&self, name: &LockName, options: LockOptions) -> Result<Option<LockGuard>, Error>;
}
