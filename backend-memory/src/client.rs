//! The two handles of users: the store, with faults on demand, and a client, which represents a process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use enlist::{
    Entry, Error, Incarnation, InstanceId, LeaseId, LockName, Revision, ServiceRef, TaskOwner,
    backend::{Departures, KeyClaims, Observations, OwnerHandle},
};

#[cfg(feature = "defects")]
use crate::deliberate_defects::DeliberateDefect;
use crate::{
    session::leases::Leases,
    store::{Group, Key, Kind, Record, Value},
    watch::shared_store::{Connectivity, Link, SharedStore},
};

/// Maximum time for which a close waits for the client's tasks.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time for which a close waits for the removal of instances on given leases.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Number in the name of the next client.
static NEXT_CLIENT: AtomicU64 = AtomicU64::new(1);

/// A store in memory. Clones share it.
///
/// Its methods produce the faults that an operator or a broken network can cause. Programs use a
/// [`client`](Self::client).
#[derive(Clone, Debug)]
pub struct MemoryStore {
    store: Arc<SharedStore>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self { store: SharedStore::new(None) }
    }

    /// Creates an empty store with a deliberate defect.
    #[cfg(feature = "defects")]
    #[doc(hidden)]
    pub fn with_defect(defect: DeliberateDefect) -> Self {
        Self { store: SharedStore::new(Some(defect)) }
    }

    /// Creates another client, as if another process had connected, with its own leases and its own link.
    pub fn client(&self) -> MemoryClient {
        let inner = Inner {
            process: format!("memory:{}", NEXT_CLIENT.fetch_add(1, Ordering::Relaxed)),
            link: Link::new(Arc::clone(&self.store)),
            tasks: TaskOwner::new(),
            leases: Leases::default(),
            key_claims: KeyClaims::default(),
            observations: Observations::default(),
            departures: Departures::default(),
        };
        MemoryClient { inner: Arc::new(inner) }
    }

    /// Returns the store's revision.
    pub fn revision(&self) -> Revision {
        self.store.with(|store, _| store.revision())
    }

    /// Returns the live leases.
    pub fn leases(&self) -> Vec<LeaseId> {
        self.store.with(|store, _| store.leases().collect())
    }

    /// Ends a lease, with all its keys, at once. Returns `true` if it existed.
    pub fn revoke(&self, lease: LeaseId) -> bool {
        self.store.with(|store, _| store.revoke(lease))
    }

    /// Returns the lease of an instance.
    pub fn lease_of(&self, service: &ServiceRef, id: &InstanceId) -> Option<LeaseId> {
        self.store.with(|store, _| store.get(&Key::instance(service, id))?.lease)
    }

    /// Returns the lease of the holder of a lock, of the leader of an election, or of the first holder of a semaphore.
    pub fn lease_of_holder(&self, name: &LockName) -> Option<LeaseId> {
        let key = self.holder(name)?;
        self.store.with(|store, _| store.get(&key)?.lease)
    }

    /// Returns the lease of the last contender in the queue of a lock or semaphore.
    pub fn lease_of_last_contender(&self, name: &LockName) -> Option<LeaseId> {
        let last = |kind| {
            self.store.with(|store, _| {
                let queue = Group::queue(kind, name);
                store.range(&queue).max_by_key(|(_, record)| record.created)?.1.lease
            })
        };
        last(Kind::Lock).or_else(|| last(Kind::Semaphore))
    }

    /// Deletes an instance, as an operator would. Returns `true` if it existed.
    pub fn delete(&self, service: &ServiceRef, id: &InstanceId) -> bool {
        self.store.with(|store, _| store.delete(&Key::instance(service, id), |_| true).is_ok())
    }

    /// Deletes the key of the holder of a lock, of the leader of an election, or of the first holder of a semaphore, as
    /// an operator would. Returns `true` if it existed.
    pub fn delete_holder(&self, name: &LockName) -> bool {
        let Some(key) = self.holder(name) else { return false };
        self.store.with(|store, _| store.delete(&key, |_| true).is_ok())
    }

    /// Returns the number of queue entries of the lock, of the election and of the semaphore `name`, including holders.
    pub fn queue_length(&self, name: &LockName) -> usize {
        let count = |kind| self.store.with(|store, _| store.range(&Group::queue(kind, name)).count());
        count(Kind::Lock) + count(Kind::Election) + count(Kind::Semaphore)
    }

    /// Removes all history up to now, so that an interrupted watch cannot resume.
    pub fn compact(&self) {
        self.store.with(|store, _| store.compact(store.revision()));
    }

    /// Removes all data, including leases and the revision, as a new disk of the store does.
    pub fn wipe(&self) {
        self.store.with(|store, _| store.wipe());
    }

    fn holder(&self, name: &LockName) -> Option<Key> {
        let first = |kind| {
            self.store.with(|store, _| {
                let queue = Group::queue(kind, name);
                let first = store.range(&queue).min_by_key(|(_, record)| record.created);
                first.map(|(key, _)| key.clone())
            })
        };
        first(Kind::Lock).or_else(|| first(Kind::Election)).or_else(|| first(Kind::Semaphore))
    }
}

/// A client of a [`MemoryStore`]: implements all traits. Clones share the session.
///
/// Registrations, guards and watchers keep the session alive when all clones are dropped.
#[derive(Clone, Debug)]
pub struct MemoryClient {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    /// Name of the process that this client represents, like the `host:pid` of the etcd backend.
    pub(crate) process: String,
    pub(crate) link: Link,
    pub(crate) tasks: TaskOwner,
    pub(crate) leases: Leases,
    pub(crate) key_claims: KeyClaims<Key>,
    pub(crate) observations: Observations<Key>,
    /// Registrations with leases that this client does not revoke. They are removed one by one when it is closed.
    pub(crate) departures: Departures,
}

impl Inner {
    /// Rejects calls after the end, and calls from outside a runtime, where waiting would panic.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        tokio::runtime::Handle::try_current().map_err(|_| Error::Closed)?;
        let closed = self.departures.has_begun() || self.tasks.stop_signal().is_cancelled();
        if closed { Err(Error::Closed) } else { Ok(()) }
    }
}

impl MemoryClient {
    /// Cuts the link to the store: no request arrives until [`heal`](Self::heal). Leases continue to expire.
    pub fn cut(&self) {
        self.inner.link.set_connectivity(Connectivity::Cut);
    }

    /// Restores the link.
    pub fn heal(&self) {
        self.inner.link.set_connectivity(Connectivity::Up);
    }

    /// Delays every request by this time.
    pub fn delay(&self, delay: Duration) {
        self.inner.link.set_delay(delay);
    }

    /// Ends the session as a crash does: nothing is removed, and the leases run out.
    ///
    /// # Errors
    ///
    /// [`StopError`](enlist::StopError) if a task did not end within 5 s or had panicked.
    ///
    /// # Cancel safety
    ///
    /// The session ends nevertheless.
    pub async fn crash(&self) -> Result<(), enlist::StopError> {
        self.inner.tasks.stop(CLOSE_TIMEOUT).await
    }

    /// Ends the session in order: its leases are revoked, which removes its instances and locks. Before that, instances
    /// on [given leases](enlist::LeaseChoice::Given) are removed, as far as the store answers within 3 s. Later calls
    /// fail with [`Error::Closed`].
    ///
    /// # Errors
    ///
    /// [`StopError`](enlist::StopError) as [`crash`](Self::crash).
    ///
    /// # Cancel safety
    ///
    /// The session ends nevertheless; leases that were not revoked yet run out.
    pub async fn close(&self) -> Result<(), enlist::StopError> {
        // The tasks stop also if this future is dropped.
        let _stop = self.inner.tasks.stop_signal().drop_guard();
        // An instance that was not removed stays as long as its lease.
        let _ = self.inner.departures.leave(REMOVAL_TIMEOUT).await;
        let leases = self.inner.leases.alive();
        let stopped = self.inner.tasks.stop(CLOSE_TIMEOUT).await;
        // Without abandoned leases, some of which a task may have learned about only when it ended.
        for lease in leases.iter().filter(|lease| !lease.is_abandoned()) {
            // Without a connection the lease runs out.
            let _ = self.inner.link.ask(|store, _| store.revoke(lease.id())).await;
        }
        stopped
    }

    pub(crate) fn keep_alive(&self) -> OwnerHandle {
        Arc::clone(&self.inner) as OwnerHandle
    }
}

impl Key {
    pub(crate) fn instance(service: &ServiceRef, id: &InstanceId) -> Self {
        Self { group: Group::service(service), member: id.as_str().into() }
    }

    /// Returns the instance's id.
    pub(crate) fn id(&self) -> InstanceId {
        InstanceId::parse(&self.member).expect("instance keys are made from ids")
    }
}

impl Group {
    pub(crate) fn service(service: &ServiceRef) -> Self {
        Self { kind: Kind::Instance, namespace: service.namespace().clone(), name: service.name().as_str().into() }
    }

    pub(crate) fn queue(kind: Kind, name: &LockName) -> Self {
        Self { kind, namespace: name.namespace().clone(), name: name.name().into() }
    }
}

impl Record {
    /// Returns the entry in a view, if the value is an instance.
    pub(crate) fn entry(&self) -> Option<Entry> {
        match &self.value {
            Value::Instance { instance, term, .. } => {
                let entry = Entry::new((**instance).clone(), self.created, self.modified);
                Some(entry.with_incarnation(Incarnation::new(*term)))
            }
            _ => None,
        }
    }

    pub(crate) fn owner(&self) -> Option<&str> {
        match &self.value {
            Value::Instance { owner, .. } => owner.as_deref(),
            _ => None,
        }
    }
}
