//! Provides memory stores to the conformance suite.

use std::time::Duration;

use async_trait::async_trait;
use enlist::{InstanceId, LeaseId, LockName, Namespace, ServiceRef};
use enlist_memory::{MemoryClient, MemoryStore};
use enlist_testkit::{Client, ClientFaults, Harness};

pub(crate) struct MemoryHarness {
    store: MemoryStore,
}

impl MemoryHarness {
    pub(crate) fn new(store: MemoryStore) -> Self {
        Self { store }
    }
}

struct MemoryFaults {
    client: MemoryClient,
}

#[async_trait]
impl ClientFaults for MemoryFaults {
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

#[async_trait]
impl Harness for MemoryHarness {
    fn namespace(&self) -> Namespace {
        Namespace::parse("conformance").unwrap()
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(3)
    }

    async fn client(&self) -> Client {
        let client = self.store.client();
        Client::new(client.clone(), MemoryFaults { client })
    }

    async fn lease_of(&self, service: &ServiceRef, id: &InstanceId) -> Option<LeaseId> {
        self.store.lease_of(service, id)
    }

    async fn revoke(&self, lease: LeaseId) {
        assert!(self.store.revoke(lease), "lease {lease} is not there");
    }

    async fn delete(&self, service: &ServiceRef, id: &InstanceId) {
        assert!(self.store.delete(service, id), "{id} is not there");
    }

    async fn lease_of_holder(&self, name: &LockName) -> Option<LeaseId> {
        self.store.lease_of_holder(name)
    }

    async fn lease_of_last_contender(&self, name: &LockName) -> Option<LeaseId> {
        self.store.lease_of_last_contender(name)
    }

    async fn delete_holder(&self, name: &LockName) {
        assert!(self.store.delete_holder(name), "nobody holds {name}");
    }

    async fn queue_length(&self, name: &LockName) -> usize {
        self.store.queue_length(name)
    }

    async fn compact(&self) {
        self.store.compact();
    }

    async fn wipe(&self) {
        self.store.wipe();
    }
}
