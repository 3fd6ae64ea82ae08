//! Semaphores: a stored number of permits, which the contenders of a queue hold together.
//!
//! The queue is that of a lock, with a number of permits per entry. The longest prefix of the queue whose permits fit
//! together holds, so no entry is overtaken, and a large request does not starve. The limits of a lock with a lease
//! apply (`lock.rs`): without fencing, at most that many permits are in use by *live* guards.

use std::{fmt, ops::Deref};

use async_trait::async_trait;

use crate::{
    error::Error,
    lock::{guard::LockGuard, loss::Released, semaphore_options::SemaphoreOptions},
    model::name::LockName,
};

/// Grants permits of semaphores. Implemented by the backends; users hold an `Arc<dyn Semaphore>`.
///
/// The names of semaphores are separate from those of locks and elections.
#[async_trait]
pub trait Semaphore: fmt::Debug + Send + Sync + 'static {
    /// Waits for the permits that `options` ask for, and returns once this caller holds them. Contenders are served
    /// strictly in the order in which their entries reached the store: while a large request waits, later small ones
    /// wait behind it. A request for more permits than the semaphore has waits until their number is raised. A
    /// contender that loses its queue entry enters the queue again, at its end; the deadline stays.
    ///
    /// Signature: `async fn acquire_permits(&self, name: &LockName, options: SemaphoreOptions) ->
    /// Result<PermitGuard, Error>`.
    ///
    /// # Errors
    ///
    /// As [`Lock::acquire`](crate::Lock::acquire); [`Error::Unsupported`] if the layout of the store has no semaphores.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the queue. A queue entry that reached the store is removed in the background.
    async fn acquire_permits(&self, name: &LockName, options: SemaphoreOptions) -> Result<PermitGuard, Error>;

    /// Takes the permits if that is possible without waiting, and leaves no queue entry otherwise. It does not overtake
    /// a waiting contender.
    ///
    /// Signature: `async fn try_acquire_permits(&self, name: &LockName, options: SemaphoreOptions) ->
    /// Result<Option<PermitGuard>, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if the store does not answer; otherwise as [`acquire_permits`](Self::acquire_permits), a
    /// deadline included.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire_permits`](Self::acquire_permits).
    async fn try_acquire_permits(
        &self,
        name: &LockName,
        options: SemaphoreOptions,
    ) -> Result<Option<PermitGuard>, Error>;

    /// Reads the number of permits of a semaphore; `None` if none is stored.
    ///
    /// Signature: `async fn permits(&self, name: &LockName) -> Result<Option<u32>, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`], [`Error::PermissionDenied`], [`Error::Unsupported`], [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn permits(&self, name: &LockName) -> Result<Option<u32>, Error>;

    /// Stores the number of permits of a semaphore, for all its users. Of concurrent calls the last one counts. More
    /// permits are granted at once. Fewer permits revoke nothing: nothing is granted until the holders and the next
    /// contender fit together. 0 pauses the semaphore. The number outlives its users.
    ///
    /// Signature: `async fn set_permits(&self, name: &LockName, permits: u32) -> Result<(), Error>`.
    ///
    /// # Errors
    ///
    /// As [`permits`](Self::permits). [`Error::Unsupported`] also for a value that a newer version has written.
    ///
    /// # Cancel safety
    ///
    /// The number may or may not have been changed.
    async fn set_permits(&self, name: &LockName, permits: u32) -> Result<(), Error>;
}

/// Held permits of a semaphore: a [`LockGuard`] with their number.
///
/// The token is that of the queue entry, and tokens increase in the order of the grants. Several tokens are valid at
/// the same time, so a resource can refuse a token below the smallest one in use, and not each one below the largest.
#[derive(Debug)]
#[must_use = "dropping it releases the permits"]
pub struct PermitGuard {
    pub(crate) guard: LockGuard,
    pub(crate) permits: u32,
}

impl PermitGuard {
    /// Number of held permits.
    pub fn permits(&self) -> u32 {
        self.permits
    }

    /// Releases the permits, like [`LockGuard::release`].
    ///
    /// # Errors
    ///
    /// As [`LockGuard::release`].
    ///
    /// # Cancel safety
    ///
    /// The release goes on in the background.
    pub async fn release(self) -> Result<Released, Error> {
        self.guard.release().await
    }
}

impl Deref for PermitGuard {
    type Target = LockGuard;

    fn deref(&self) -> &LockGuard {
        &self.guard
    }
}
