//! A lease held by the user, shared by registrations that are to end together. Read [`LeaseChoice`] next.

use std::time::Duration;

use crate::{
    backend::lease_handle::LeaseHandle, error::Error, model::revision::LeaseId, registration::options::LeaseChoice,
};

/// A lease that is renewed until this is dropped, which revokes it in the background, with all its keys.
///
/// Granted by [`Registry::grant_lease`](crate::Registry::grant_lease). Registrations that are given it go when it goes,
/// all at one revision, and leave it alone when they end. It is never replaced: once it is [lost](Self::lost),
/// registrations on it stay [`Reregistering`](crate::RegistrationState::Reregistering); grant another one and register
/// again. It keeps the session alive, as a registration does. A store removes the keys of a lease in one step, so a
/// lease is for a thousand keys at most.
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
    /// Its id, by which other processes can be given it as well.
    pub fn id(&self) -> LeaseId {
        self.handle.id()
    }

    /// The time that it lives after the last renewal. It is renewed after a third of that. The store may have granted
    /// more than was asked for.
    pub fn ttl(&self) -> Duration {
        self.handle.ttl()
    }

    /// Returns `true` unless it is known to be over: the store said so to a renewal, or the session has ended. Does not
    /// ask the store.
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

    /// Revokes it with all its keys, and confirms that. One that is over already is confirmed as well.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] or [`Error::Unavailable`] if the store has not answered within a few seconds: it goes on in
    /// the background, and the lease is not renewed any more, so that it runs out at the latest. [`Error::Closed`] if
    /// the session ended first.
    ///
    /// # Cancel safety
    ///
    /// The revocation goes on in the background.
    pub async fn revoke(self) -> Result<(), Error> {
        self.handle.revoke().await
    }

    /// Stops renewing it and leaves it to run out.
    pub fn abandon(self) {
        self.handle.abandon();
    }
}

impl From<&Lease> for LeaseChoice {
    fn from(lease: &Lease) -> Self {
        Self::Given(lease.id())
    }
}
