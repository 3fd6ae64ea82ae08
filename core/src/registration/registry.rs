//! Publication of instances, for the life of the process or permanently.

use std::{fmt, time::Duration};

use async_trait::async_trait;

#[cfg(doc)]
use crate::registration::options::{LeaseChoice, OnConflict, OnDelete, Start};
use crate::{
    error::Error,
    model::{
        instance::{Entry, Instance},
        name::{InstanceId, ServiceRef},
        revision::{LeaseId, Revision},
    },
    registration::{handle::Registration, lease::Lease, options::RegisterOptions},
};

/// Publishes instances. Implemented by the backends; users hold an `Arc<dyn Registry>`.
#[async_trait]
pub trait Registry: fmt::Debug + Send + Sync + 'static {
    /// Publishes `instance` and keeps it published until the [`Registration`] ends.
    ///
    /// Signature: `async fn register(&self, service: &ServiceRef, instance: Instance, options: RegisterOptions) ->
    /// Result<Registration, Error>`.
    ///
    /// Returns once the guarded transaction is acknowledged, see [`Start`]. From then on the instance is restored after
    /// a lost lease, a deleted key, a restart or a wipe of the store, automatically and without a limit on attempts.
    /// The registration deletes or overwrites no key of another client, except one with an equal owner token, or any
    /// one with [`OnConflict::TakeOver`](crate::OnConflict::TakeOver).
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyRegistered`] if another client's live instance has this id (see [`OnConflict`]). Distinguishing
    /// a live instance from a leftover takes a third of its TTL and 3 s. A call that waits for less returns
    /// [`Error::Timeout`] with [`Error::Observing`] as its cause, and a repeated call completes the observation. An
    /// equal `owner` needs no observation. [`Error::TooLarge`], [`Error::StorageFull`], [`Error::PermissionDenied`],
    /// [`Error::AuthFailed`] end the wait early; [`Error::Timeout`] if the store did not answer in time;
    /// [`Error::InvalidConfig`] for the options.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws the registration in the background.
    async fn register(
        &self,
        service: &ServiceRef,
        instance: Instance,
        options: RegisterOptions,
    ) -> Result<Registration, Error>;

    /// Publishes a fixed instance without a lease: it stays until [`remove`](Self::remove). It replaces an earlier
    /// fixed instance with the same id.
    ///
    /// Signature: `async fn publish(&self, service: &ServiceRef, instance: Instance) -> Result<Revision, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] if the id is held by a live registration; [`Error::Conflict`] if another client changed it
    /// meanwhile; else as [`register`](Self::register).
    ///
    /// # Cancel safety
    ///
    /// The instance may or may not have been published; publishing it again is safe.
    async fn publish(&self, service: &ServiceRef, instance: Instance) -> Result<Revision, Error>;

    /// Removes a fixed instance and returns its entry.
    ///
    /// Signature: `async fn remove(&self, service: &ServiceRef, id: &InstanceId) -> Result<Entry, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::NotRegistered`] if there is none; [`Error::NotOwner`] if it is held by a live registration;
    /// [`Error::Conflict`] if another client changed it meanwhile.
    ///
    /// # Cancel safety
    ///
    /// The instance may or may not have been removed; removing it again is safe.
    async fn remove(&self, service: &ServiceRef, id: &InstanceId) -> Result<Entry, Error>;

    /// Removes an instance of any origin, if its last change is at `modified`; `None` removes the current one. For
    /// operators: it removes an instance that no process can deregister any more, and a value that is no instance.
    ///
    /// Signature: `async fn evict(&self, service: &ServiceRef, id: &InstanceId, modified: Option<Revision>) ->
    /// Result<Evicted, Error>`.
    ///
    /// A live registration reacts according to its [`OnDelete`]: it restores the instance, or ends. Its lease lives on.
    /// If the layout creates the ids, `id` is the one that [`resolve`](crate::Resolver::resolve) returns.
    ///
    /// # Errors
    ///
    /// [`Error::NotRegistered`] if there is none; [`Error::Conflict`] with the current revision if it differs from
    /// `modified`, or without `modified` if the instance was changed repeatedly meanwhile.
    ///
    /// # Cancel safety
    ///
    /// The instance may or may not have been removed. A repetition with `modified` is safe. A repetition without it
    /// removes an instance that was restored since.
    async fn evict(&self, service: &ServiceRef, id: &InstanceId, modified: Option<Revision>) -> Result<Evicted, Error>;

    /// Grants a lease that is renewed until it is dropped, for use by registrations ([`LeaseChoice::Given`]). Locks
    /// cannot use it: they never share a lease with registrations.
    ///
    /// Signature: `async fn grant_lease(&self, ttl: Duration) -> Result<Lease, Error>`.
    ///
    /// `ttl` is in whole seconds, rounded up.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for a TTL outside 1 s to 9,000,000,000 s; [`Error::Unavailable`], [`Error::Timeout`],
    /// [`Error::PermissionDenied`], [`Error::AuthFailed`], [`Error::StorageFull`], [`Error::Closed`];
    /// [`Error::Unsupported`] where there is more than one store.
    ///
    /// # Cancel safety
    ///
    /// A granted lease is revoked, or expires.
    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, Error>;
}

/// An evicted instance.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Evicted {
    /// The instance; `None` if its value could not be read as one.
    pub entry: Option<Entry>,
    /// The lease of the instance; `None` if it was fixed.
    pub lease: Option<LeaseId>,
    /// The revision of the removal.
    pub removed: Revision,
}
