//! What a backend lends to the conformance suite.

use std::{fmt, ops::Deref, sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{Election, InstanceId, LeaseId, Lock, LockName, Namespace, RawValues, Registry, Resolver, ServiceRef};

use crate::without_locks::WithoutLocks;

/// A property of an instance that a store's layout may or may not carry. Cases that need one the layout lacks are left
/// out of a run over it, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LayoutFeature {
    /// The id given to `register`; without it the layout makes its own.
    Id,
    /// The owner token.
    Owner,
    /// The term, by which the newer one of two registrations with one owner is told.
    Term,
    /// Namespaces.
    Namespace,
    /// The protocol of an endpoint, more than one endpoint, and Unix sockets.
    Endpoints,
    /// The weight.
    Weight,
    /// Version, zone, health and metadata.
    Details,
    /// The list of services.
    Services,
    /// Locks and elections. A backend without any makes its clients with [`Client::without_locks`].
    Locks,
    /// Of locks: elections, and contenders that queue in the order of their coming, each with a key of its own. Without it one key is
    /// the lock, and those that wait are not seen in the store.
    LockQueue,
    /// Of locks: shared mode, lines of their own for each name and for elections, and places that share a lease.
    LockDetails,
    /// Keys and values of the user's own. A backend without any makes its clients with [`Client::without_locks`].
    Raw,
}

impl LayoutFeature {
    /// All of them: what a native layout carries.
    pub const ALL: [Self; 12] = [
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
        Self::Raw,
    ];
}

/// A backend: all traits on one type. Implemented for every such type.
pub trait Backend: Registry + Resolver + Lock + Election + RawValues {}

impl<T: Registry + Resolver + Lock + Election + RawValues> Backend for T {}

/// What can happen to the process and the connection of one client.
#[async_trait]
pub trait ClientFaults: Send + Sync + 'static {
    /// Cuts its connection to the store; nothing gets through in either direction until it is healed.
    async fn cut(&self);

    /// Mends the connection.
    async fn heal(&self);

    /// Ends the process without a goodbye: nothing is removed, leases are no longer renewed.
    async fn crash(&self);

    /// Ends the session in order; later calls have to fail with `Closed`.
    async fn close(&self);
}

/// A client of the backend under test, as if it were a process of its own. Derefs to the backend.
#[derive(Clone)]
pub struct Client {
    backend: Arc<dyn Backend>,
    fate: Arc<dyn ClientFaults>,
}

impl Client {
    /// A client that is `backend`, and suffers what `fate` brings.
    pub fn new(backend: impl Backend, fate: impl ClientFaults) -> Self {
        Self { backend: Arc::new(backend), fate: Arc::new(fate) }
    }

    /// A client of a backend that only registers and finds instances. All that concerns locks, elections and raw values is
    /// [`Error::Unsupported`](enlist::Error::Unsupported); run the suite `without locks`.
    pub fn without_locks(backend: impl Registry + Resolver, fate: impl ClientFaults) -> Self {
        Self::new(WithoutLocks(backend), fate)
    }

    /// The backend as a resolver, for a directory.
    pub fn resolver(&self) -> Arc<dyn Resolver> {
        Arc::clone(&self.backend) as Arc<dyn Resolver>
    }

    /// See [`ClientFaults::cut`].
    pub async fn cut(&self) {
        self.fate.cut().await;
    }

    /// See [`ClientFaults::heal`].
    pub async fn heal(&self) {
        self.fate.heal().await;
    }

    /// See [`ClientFaults::crash`].
    pub async fn crash(&self) {
        self.fate.crash().await;
    }

    /// See [`ClientFaults::close`].
    pub async fn close(&self) {
        self.fate.close().await;
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

/// Lends one case an empty store, or an empty part of one, and the faults that the case needs.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// A namespace no other case sees.
    fn namespace(&self) -> Namespace;

    /// Parts that the layout in use carries.
    fn carries(&self) -> Vec<LayoutFeature> {
        LayoutFeature::ALL.to_vec()
    }

    /// A TTL that is short, and long enough to be kept on a busy machine.
    fn ttl(&self) -> Duration;

    /// Another client.
    async fn client(&self) -> Client;

    /// The lease that keeps an instance.
    async fn lease_of(&self, service: &ServiceRef, id: &InstanceId) -> Option<LeaseId>;

    /// Ends a lease with all its keys, as an operator could.
    async fn revoke(&self, lease: LeaseId);

    /// Deletes an instance, as an operator could.
    async fn delete(&self, service: &ServiceRef, id: &InstanceId);

    /// The lease that keeps the holder of a lock, or the leader of an election. The default is for a backend without locks; so are
    /// those of the three methods below.
    async fn lease_of_holder(&self, name: &LockName) -> Option<LeaseId> {
        panic!("the harness does not say which lease keeps the holder of {name}: implement `lease_of_holder`")
    }

    /// The lease that keeps the last in line for a lock.
    async fn lease_of_waiter(&self, name: &LockName) -> Option<LeaseId> {
        panic!("the harness does not say which lease keeps the last in line for {name}: implement `lease_of_waiter`")
    }

    /// Deletes the key of the holder of a lock, or of the leader of an election, as an operator could.
    async fn delete_holder(&self, name: &LockName) {
        panic!("the harness cannot delete the key of the holder of {name}: implement `delete_holder`")
    }

    /// Number of queue entries for the lock and for the election of that name, holders included; without a [queue](LayoutFeature::LockQueue) the
    /// holders.
    async fn in_line(&self, name: &LockName) -> usize {
        panic!("the harness does not say how many are in line for {name}: implement `in_line`")
    }

    /// Forgets the history up to now.
    async fn compact(&self);

    /// Loses all data, leases and revision included. Clients need not be told.
    async fn wipe(&self);
}
