//! The backend's end of a lease that a user holds, see [`granted_lease`](crate::backend::granted_lease).

use std::{fmt, time::Duration};

use async_trait::async_trait;

use crate::{error::Error, model::revision::LeaseId};

/// Backend's end of a [`Lease`](crate::Lease). Dropping it revokes the lease in the background, unless it was
/// abandoned.
#[async_trait]
pub trait LeaseHandle: fmt::Debug + Send + Sync + 'static {
    /// See [`Lease::id`](crate::Lease::id).
    fn id(&self) -> LeaseId;

    /// See [`Lease::ttl`](crate::Lease::ttl).
    fn ttl(&self) -> Duration;

    /// See [`Lease::is_alive`](crate::Lease::is_alive).
    fn is_alive(&self) -> bool;

    /// See [`Lease::lost`](crate::Lease::lost). Signature: `async fn lost(&self)`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn lost(&self);

    /// See [`Lease::revoke`](crate::Lease::revoke). Signature: `async fn revoke(self: Box<Self>) -> Result<(), Error>`.
    ///
    /// # Errors
    ///
    /// As [`Lease::revoke`](crate::Lease::revoke): the store has not answered, or the session ended first.
    ///
    /// # Cancel safety
    ///
    /// The revocation goes on in the background.
    async fn revoke(self: Box<Self>) -> Result<(), Error>;

    /// See [`Lease::abandon`](crate::Lease::abandon).
    fn abandon(self: Box<Self>);
}
