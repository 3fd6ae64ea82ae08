//! Mutual exclusion, and its limits when a lease expires.
//!
//! No lock with a lease can guarantee exclusion for a resource outside the store: the holder may be paused between its
//! last check and its write. The guarantee is that the [`FencingToken`](crate::FencingToken) of a later holder is
//! larger, so a resource that refuses smaller tokens is safe. Without fencing there is at most one *live* guard, as
//! long as clocks run at about the same rate, the holder checks [`LockGuard::is_held`] right before it acts, and the
//! store keeps its leases and keys. [`LockGuard::is_held`] states the bounds for a lease that another client revokes,
//! and for a key that it deletes.

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
    /// Waits for the lock `name` and returns once this caller is a holder. Contenders are served in the order in which
    /// their entries reached the store. A contender that loses its queue entry, because its lease ended or the store
    /// was wiped, enters the queue again, at its end; the deadline stays. The lock may be lost already when the guard
    /// is returned, because the store's answer arrived late: [`LockGuard::is_held`] counts.
    ///
    /// Signature: `async fn acquire(&self, name: &LockName, options: LockOptions) -> Result<LockGuard, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] at the deadline, also if the store could not be reached until then: its cause is the last
    /// failure to enter the queue. Without a deadline the call keeps trying. [`Error::LeaseLost`] if the queue entry
    /// was lost while waiting and the option [`fail_on_lost_entry`](LockOptions::fail_on_lost_entry) is set, otherwise
    /// it enters the queue again. [`Error::PermissionDenied`], [`Error::StorageFull`], [`Error::InvalidConfig`],
    /// [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the queue. A queue entry that reached the store is removed in the background.
    async fn acquire(&self, name: &LockName, options: LockOptions) -> Result<LockGuard, Error>;

    /// Takes the lock if that is possible without waiting, and leaves no queue entry otherwise.
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
