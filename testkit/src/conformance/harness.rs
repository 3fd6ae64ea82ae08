//! The harness: clients, faults and an empty store, which a backend under test provides.

use std::{fmt, ops::Deref, sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Config, Election, InstanceId, LeaseId, Lock, LockName, Namespace, Once, Queues, RawValues, Registry, Resolver,
    Semaphore, ServiceRef,
};

use super::without_locks::WithoutLocks;

/// A feature that a layout may or may not carry. A run over a layout omits, by name, the cases that need a feature
/// which the layout lacks. It is no `Part` of `enlist-etcd`, which a layout declares about instances: this crate
/// depends on no backend, and its cases also need locks, lists of services, raw values and configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LayoutFeature {
    /// The id given to `register`. Without it, the layout derives an id.
    Id,
    /// The owner token.
    Owner,
    /// The term, which orders two registrations with an equal owner.
    Term,
    /// Namespaces.
    Namespace,
    /// Protocols, several endpoints, and Unix sockets.
    Endpoints,
    /// The weight.
    Weight,
    /// Version, zone, health and metadata.
    Details,
    /// The list of services.
    Services,
    /// Locks and elections.
    Locks,
    /// Elections, and queue entries of locks in the order of creation. Without it, one key is the lock, and waiting
    /// contenders do not show in the store.
    LockQueue,
    /// Shared mode of locks, separate queues per name and for elections, and queue entries that share a lease.
    LockDetails,
    /// Lists of the locks and elections of a namespace, with their queues.
    Queues,
    /// Semaphores. Their cases also need [`Locks`](Self::Locks).
    Semaphores,
    /// Raw keys and values.
    Raw,
    /// Configuration.
    Config,
}

impl LayoutFeature {
    /// All features, as native layouts carry them.
    pub const ALL: [Self; 15] = [
        Self::Id,
        Self::Owner,
        Self::Term,
        Self::Namespace,
        Self::Endpoints,
        Self::Weight,
        Self::Details,
        Self::Services,
        Self::Locks,
        Self::LockQueue,
        Self::LockDetails,
        Self::Queues,
        Self::Semaphores,
        Self::Raw,
        Self::Config,
    ];
}

/// All traits of a backend, except [`Config`], whose methods have the names of others. Implemented for every type that
/// implements them.
pub trait Backend: Registry + Resolver + Lock + Election + Semaphore + Queues + RawValues {}

impl<T: Registry + Resolver + Lock + Election + Semaphore + Queues + RawValues> Backend for T {}

/// Faults of the process and the connection of one client.
///
/// # Cancel safety
///
/// Cases await each method to its end.
#[async_trait]
pub trait ClientFaults: Send + Sync + 'static {
    /// Cuts the connection to the store: nothing passes in either direction until [`heal`](Self::heal).
    async fn cut(&self);

    /// Restores the connection.
    async fn heal(&self);

    /// Ends the process abruptly: nothing is removed, and leases are no longer renewed.
    async fn crash(&self);

    /// Closes the session in order. Later calls have to fail with `Closed`.
    async fn close(&self);
}

/// A client of the backend under test, which stands for a process of its own. Derefs to the backend.
///
/// # Cancel safety
///
/// That of the harness's [`ClientFaults`].
#[derive(Clone)]
pub struct Client {
    backend: Arc<dyn Backend>,
    config: Arc<dyn Config>,
    faults: Arc<dyn ClientFaults>,
}

impl Client {
    /// Creates a client over `backend`, with the faults of `faults`. A part that the store cannot have is implemented
    /// too: its methods return [`Error::Unsupported`](enlist::Error::Unsupported), and a run omits its cases.
    pub fn new(backend: impl Backend + Config, faults: impl ClientFaults) -> Self {
        let backend = Arc::new(backend);
        Self { backend: Arc::clone(&backend) as Arc<dyn Backend>, config: backend, faults: Arc::new(faults) }
    }

    /// Creates a client over a backend without locks, elections, semaphores, queues, raw values and configuration.
    /// Their methods return [`Error::Unsupported`](enlist::Error::Unsupported); the suite is run
    /// `without [Locks, Raw, Config]`.
    pub fn without_locks(backend: impl Registry + Resolver, faults: impl ClientFaults) -> Self {
        Self::new(WithoutLocks(backend), faults)
    }

    /// Returns the backend as a resolver, for a directory.
    pub fn resolver(&self) -> Arc<dyn Resolver> {
        Arc::clone(&self.backend) as Arc<dyn Resolver>
    }

    /// Returns the configuration of the backend.
    pub fn config(&self) -> &dyn Config {
        &*self.config
    }

    /// Returns jobs that run once, under the locks of the backend and with its configuration.
    pub fn once(&self) -> Once {
        Once::new(Arc::clone(&self.backend) as Arc<dyn Lock>, Arc::clone(&self.config))
    }

    /// See [`ClientFaults::cut`].
    pub async fn cut(&self) {
        self.faults.cut().await;
    }

    /// See [`ClientFaults::heal`].
    pub async fn heal(&self) {
        self.faults.heal().await;
    }

    /// See [`ClientFaults::crash`].
    pub async fn crash(&self) {
        self.faults.crash().await;
    }

    /// See [`ClientFaults::close`].
    pub async fn close(&self) {
        self.faults.close().await;
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("backend", &self.backend).finish_non_exhaustive()
    }
}

impl Deref for Client {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        &*self.backend
    }
}

/// Provides one case with an empty store, or an empty part of one, and with faults.
///
/// # Cancel safety
///
/// Cases await each method to its end.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// Namespace that no other case uses.
    fn namespace(&self) -> Namespace;

    /// Features that the layout carries. Without [`LayoutFeature::LockQueue`], the cases expect no entries of waiting
    /// contenders. This omits no case: a run names what it omits.
    fn carries(&self) -> Vec<LayoutFeature> {
        LayoutFeature::ALL.to_vec()
    }

    /// TTL of leases in the cases: short, and long enough for renewals on a busy machine.
    fn ttl(&self) -> Duration;

    /// Creates another client.
    async fn client(&self) -> Client;

    /// Returns the lease of an instance.
    async fn lease_of(&self, service: &ServiceRef, id: &InstanceId) -> Option<LeaseId>;

    /// Revokes a lease, as an operator could.
    async fn revoke(&self, lease: LeaseId);

    /// Deletes an instance, as an operator could.
    async fn delete(&self, service: &ServiceRef, id: &InstanceId);

    /// Returns the lease of the holder of a lock, of the leader of an election, or of the first holder of a semaphore.
    /// The default is for a backend without locks, as are those of the three methods below.
    async fn lease_of_holder(&self, name: &LockName) -> Option<LeaseId> {
        panic!("the harness has no lease of the holder of {name}: implement `lease_of_holder`")
    }

    /// Returns the lease of the last queue entry of a lock or semaphore.
    async fn lease_of_last_contender(&self, name: &LockName) -> Option<LeaseId> {
        panic!("the harness has no lease of the last queue entry of {name}: implement `lease_of_last_contender`")
    }

    /// Deletes the key of the holder of a lock, of the leader of an election, or of the first holder of a semaphore, as
    /// an operator could.
    async fn delete_holder(&self, name: &LockName) {
        panic!("the harness cannot delete the key of the holder of {name}: implement `delete_holder`")
    }

    /// Returns the number of queue entries of the lock, of the election and of the semaphore of that name, including
    /// holders. Without a [queue](LayoutFeature::LockQueue), returns the number of holders.
    async fn queue_length(&self, name: &LockName) -> usize {
        panic!("the harness cannot count the queue entries of {name}: implement `queue_length`")
    }

    /// Compacts the history up to the present revision.
    async fn compact(&self);

    /// Loses all data, including leases and the revision. Clients need not receive a notice.
    async fn wipe(&self);
}
