//! A lease held by the user, shared by registrations that are to end together. Read [`LeaseChoice`] next.

use std::time::Duration;

use crate::{
    backend::session::lease_handle::LeaseHandle, error::Error, model::revision::LeaseId,
    registration::options::LeaseChoice,
};

/// A lease that is renewed until this is dropped. The drop revokes it in the background, with all its keys.
///
/// Granted by [`Registry::grant_lease`](crate::Registry::grant_lease). Registrations on it disappear with it, all at
/// one revision, and do not end it when they end. It is never replaced: once it is [lost](Self::lost), registrations on
/// it stay [`Reregistering`](crate::RegistrationState::Reregistering); grant another one and register again. It keeps
/// the session alive, as a registration does. A store removes the keys of a lease in one step, so a lease should have a
/// thousand keys at most.
///
/// ```
/// use enlist::{Endpoint, Instance, InstanceId, RegisterOptions, Registry, Resolver, ServiceRef};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = enlist_memory::MemoryStore::new().client();
/// let service = ServiceRef::parse("greeter")?;
/// let lease = client.grant_lease(Duration::from_secs(15)).await?;
/// let mut kept = Vec::new();
/// for (id, address) in [("a", "10.0.0.1:80"), ("b", "10.0.0.1:81")] {
///     let instance = Instance::new(InstanceId::parse(id)?, [Endpoint::parse(address)?])?;
///     kept.push(client.register(&service, instance, RegisterOptions::new().lease(&lease)).await?);
/// }
/// assert!(kept.iter().all(|registration| registration.lease() == Some(lease.id())));
/// lease.revoke().await?;
/// assert!(client.resolve(&service).await?.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping it revokes the lease"]
pub struct Lease {
    pub(crate) handle: Box<dyn LeaseHandle>,
}

impl Lease {
    /// Id of the lease, which can be given to other processes as well.
    pub fn id(&self) -> LeaseId {
        self.handle.id()
    }

    /// Time for which the lease lives after the last renewal. It is renewed after a third of that. The store may have
    /// granted more than requested.
    pub fn ttl(&self) -> Duration {
        self.handle.ttl()
    }

    /// Returns `true` unless the lease is known to be over: the store rejected a renewal, or the session has ended.
    /// Sends no request to the store.
    pub fn is_alive(&self) -> bool {
        self.handle.is_alive()
    }

    /// Waits until [`is_alive`](Self::is_alive) is `false`: the store rejected a renewal, or the session has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn lost(&self) {
        self.handle.lost().await;
    }

    /// Revokes the lease with all its keys, and confirms that. A lease that is over already is confirmed as well.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] or [`Error::Unavailable`] if the store has not answered within a few seconds. The revocation
    /// goes on in the background, and the lease is not renewed any more, so it expires at the latest. [`Error::Closed`]
    /// if the session ended first.
    ///
    /// # Cancel safety
    ///
    /// The revocation goes on in the background.
    pub async fn revoke(self) -> Result<(), Error> {
        self.handle.revoke().await
    }

    /// Stops renewing the lease and leaves it until it expires.
    pub fn abandon(self) {
        self.handle.abandon();
    }
}

impl From<&Lease> for LeaseChoice {
    fn from(lease: &Lease) -> Self {
        Self::Given(lease.id())
    }
}
