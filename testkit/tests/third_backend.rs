//! A third backend and its conformance run: what somebody outside this project would write.
//!
//! The backend counts the requests that go through it and passes them on, as a metering or caching layer would. Its store is
//! the memory backend's, so the harness only has to forward the faults.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use enlist::{
    Election, Entry, Error, Evicted, Instance, InstanceId, Leader, LeaderWatcher, Leadership, Lease, LeaseId, Lock,
    LockGuard, LockName, LockOptions, Namespace, RawRegistration, RawSnapshot, RawValues, RawWatcher, RegisterOptions,
    Registration, Registry, Resolver, Revision, ServiceName, ServiceRef, Snapshot, Watcher,
};
use enlist_memory::{MemoryClient, MemoryStore};
use enlist_testkit::{Client, ClientFaults, Harness};

/// Passes everything on and counts it.
#[derive(Debug)]
struct Metered {
    inner: MemoryClient,
    requests: Arc<AtomicU64>,
}

impl Metered {
    fn count(&self) -> &MemoryClient {
        self.requests.fetch_add(1, Ordering::Relaxed);
        &self.inner
    }
}

#[async_trait]
impl Registry for Metered {
    async fn register(&self, s: &ServiceRef, i: Instance, options: RegisterOptions) -> Result<Registration, Error> {
        self.count().register(s, i, options).await
    }

    async fn publish(&self, service: &ServiceRef, instance: Instance) -> Result<Revision, Error> {
        self.count().publish(service, instance).await
    }

    async fn remove(&self, service: &ServiceRef, id: &InstanceId) -> Result<Entry, Error> {
        self.count().remove(service, id).await
    }

    async fn evict(&self, s: &ServiceRef, id: &InstanceId, modified: Option<Revision>) -> Result<Evicted, Error> {
        self.count().evict(s, id, modified).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, Error> {
        self.count().grant_lease(ttl).await
    }
}

#[async_trait]
impl Resolver for Metered {
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
        self.count().resolve(service).await
    }

    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        self.count().watch(service).await
    }

    async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
        self.count().services(namespace).await
    }
}

#[async_trait]
impl Lock for Metered {
    async fn acquire(&self, name: &LockName, options: LockOptions) -> Result<LockGuard, Error> {
        self.count().acquire(name, options).await
    }

    async fn try_acquire(&self, name: &LockName, options: LockOptions) -> Result<Option<LockGuard>, Error> {
        self.count().try_acquire(name, options).await
    }
}

#[async_trait]
impl Election for Metered {
    async fn campaign(&self, name: &LockName, value: &str, options: LockOptions) -> Result<Leadership, Error> {
        self.count().campaign(name, value, options).await
    }

    async fn leader(&self, name: &LockName) -> Result<Option<Leader>, Error> {
        self.count().leader(name).await
    }

    async fn observe(&self, name: &LockName) -> Result<LeaderWatcher, Error> {
        self.count().observe(name).await
    }
}

#[async_trait]
impl RawValues for Metered {
    async fn list_prefix(&self, prefix: &[u8]) -> Result<RawSnapshot, Error> {
        self.count().list_prefix(prefix).await
    }

    async fn watch_prefix(&self, prefix: &[u8]) -> Result<Box<dyn RawWatcher>, Error> {
        self.count().watch_prefix(prefix).await
    }

    async fn register_value(&self, k: &[u8], value: Vec<u8>, o: RegisterOptions) -> Result<RawRegistration, Error> {
        self.count().register_value(k, value, o).await
    }
}

struct MeteredFate {
    client: MemoryClient,
}

#[async_trait]
impl ClientFaults for MeteredFate {
    async fn cut(&self) {
        self.client.cut();
    }

    async fn heal(&self) {
        self.client.heal();
    }

    async fn crash(&self) {
        self.client.crash().await.unwrap();
    }

    async fn close(&self) {
        self.client.close().await.unwrap();
    }
}

struct MeteredHarness {
    store: MemoryStore,
    requests: Arc<AtomicU64>,
}

impl MeteredHarness {
    fn new() -> Self {
        Self { store: MemoryStore::new(), requests: Arc::default() }
    }
}

impl Drop for MeteredHarness {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.requests.load(Ordering::Relaxed) > 0, "the case went through the backend");
        }
    }
}

#[async_trait]
impl Harness for MeteredHarness {
    fn namespace(&self) -> Namespace {
        Namespace::parse("metered").unwrap()
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(3)
    }

    async fn client(&self) -> Client {
        let client = self.store.client();
        let backend = Metered { inner: client.clone(), requests: Arc::clone(&self.requests) };
        Client::new(backend, MeteredFate { client })
    }

    async fn lease_of(&self, service: &ServiceRef, id: &InstanceId) -> Option<LeaseId> {
        self.store.lease_of(service, id)
    }

    async fn revoke(&self, lease: LeaseId) {
        assert!(self.store.revoke(lease));
    }

    async fn delete(&self, service: &ServiceRef, id: &InstanceId) {
        assert!(self.store.delete(service, id));
    }

    async fn lease_of_holder(&self, name: &LockName) -> Option<LeaseId> {
        self.store.lease_of_holder(name)
    }

    async fn lease_of_waiter(&self, name: &LockName) -> Option<LeaseId> {
        self.store.lease_of_waiter(name)
    }

    async fn delete_holder(&self, name: &LockName) {
        assert!(self.store.delete_holder(name));
    }

    async fn in_line(&self, name: &LockName) -> usize {
        self.store.in_line(name)
    }

    async fn compact(&self) {
        self.store.compact();
    }

    async fn wipe(&self) {
        self.store.wipe();
    }
}

enlist_testkit::conformance!(
    #[tokio::test(start_paused = true)]
    MeteredHarness::new()
);
