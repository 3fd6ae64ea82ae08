//! Provides etcd servers to the conformance suite.

#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{InstanceId, LeaseId, LockName, Namespace, ServiceRef};
use enlist_etcd::{
    Etcd, EtcdBuilder, KeyRange, Native,
    layout::{Layout, LockLayout, QueueKind},
};
use enlist_testkit::{Client, ClientFaults, EtcdServer, Harness, LayoutFeature, Proxy};
use etcd_client::{CompactionOptions, GetOptions};
use tokio::sync::Mutex;

/// Configures the builder of each client of a harness.
pub(crate) type Configure = fn(EtcdBuilder) -> EtcdBuilder;

pub(crate) struct EtcdHarness {
    server: Arc<Mutex<EtcdServer>>,
    address: std::net::SocketAddr,
    namespace: Namespace,
    carries: Vec<LayoutFeature>,
    layout: Arc<dyn Layout>,
    lock_layout: Arc<dyn LockLayout>,
    configure: Configure,
    /// The connections outlive the clients, as those of a network do.
    proxies: Mutex<Vec<Arc<Proxy>>>,
}

impl EtcdHarness {
    /// Starts a server for this harness, with the native layouts.
    pub(crate) async fn native() -> Self {
        let namespace = Namespace::parse(format!("conformance-{}", fastrand::u32(..))).unwrap();
        let native = Arc::new(Native::default());
        Self::over(namespace, LayoutFeature::ALL.to_vec(), native.clone(), native, |builder| builder).await
    }

    pub(crate) async fn over(
        namespace: Namespace,
        carries: Vec<LayoutFeature>,
        layout: Arc<dyn Layout>,
        lock_layout: Arc<dyn LockLayout>,
        configure: Configure,
    ) -> Self {
        let server = EtcdServer::start().await;
        let address = server.address();
        let (server, proxies) = (Arc::new(Mutex::new(server)), Mutex::default());
        Self { server, address, namespace, carries, layout, lock_layout, configure, proxies }
    }

    /// Returns a client that bypasses all proxies.
    pub(crate) async fn raw(&self) -> etcd_client::Client {
        etcd_client::Client::connect([format!("http://{}", self.address)], None).await.unwrap()
    }

    async fn records(&self, range: &KeyRange) -> Vec<etcd_client::KeyValue> {
        let (start, end) = range.bounds();
        let mut options = GetOptions::new();
        if let Some(end) = end {
            options = options.with_range(end);
        }
        self.raw().await.get(start, Some(options)).await.unwrap().take_kvs()
    }

    /// Returns the key of an instance, by its id, or in a layout without ids the only existing one.
    async fn instance(&self, service: &ServiceRef, id: &InstanceId) -> Option<etcd_client::KeyValue> {
        let range = self.layout.service_range(service).unwrap();
        let records = self.records(&range).await;
        let by_id = self.layout.key(service, id, Some(LeaseId::new(0))).unwrap();
        let named = self.carries.contains(&LayoutFeature::Id);
        records.into_iter().find(|record| !named || record.key() == by_id)
    }

    /// Returns the queue entries of a name, for its lock, its election and its semaphore, oldest first.
    async fn queue_entries(&self, name: &LockName) -> Vec<etcd_client::KeyValue> {
        let mut ranges = vec![self.lock_layout.queue(QueueKind::Lock, name).unwrap()];
        // A layout may have no elections and no semaphores.
        let mut kinds = vec![QueueKind::Election];
        kinds.extend(self.lock_layout.semaphores().map(|_| QueueKind::Semaphore));
        for queue in kinds.into_iter().filter_map(|kind| self.lock_layout.queue(kind, name).ok()) {
            if queue != ranges[0] {
                ranges.push(queue);
            }
        }
        let mut entries = Vec::new();
        for range in ranges {
            entries.extend(self.records(&range).await);
        }
        entries.sort_by_key(etcd_client::KeyValue::create_revision);
        entries
    }
}

struct EtcdFaults {
    proxy: Arc<Proxy>,
    etcd: Etcd,
}

#[async_trait]
impl ClientFaults for EtcdFaults {
    async fn cut(&self) {
        self.proxy.cut();
    }

    async fn heal(&self) {
        self.proxy.heal();
    }

    async fn crash(&self) {
        // For etcd, an ended process and one that never sends again are indistinguishable.
        self.proxy.cut();
    }

    async fn close(&self) {
        self.etcd.close().await.unwrap();
    }
}

fn lease(record: &etcd_client::KeyValue) -> Option<LeaseId> {
    Some(LeaseId::new(record.lease())).filter(|lease| lease.get() != 0)
}

#[async_trait]
impl Harness for EtcdHarness {
    fn namespace(&self) -> Namespace {
        self.namespace.clone()
    }

    fn carries(&self) -> Vec<LayoutFeature> {
        self.carries.clone()
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(3)
    }

    async fn client(&self) -> Client {
        let proxy = Arc::new(Proxy::start(self.address).await.unwrap());
        self.proxies.lock().await.push(Arc::clone(&proxy));
        let builder = Etcd::builder([format!("http://{}", proxy.address())]);
        let etcd = (self.configure)(builder).connect().await.unwrap();
        Client::new(etcd.clone(), EtcdFaults { proxy, etcd })
    }

    async fn lease_of(&self, service: &ServiceRef, id: &InstanceId) -> Option<LeaseId> {
        lease(&self.instance(service, id).await?)
    }

    async fn revoke(&self, lease: LeaseId) {
        self.raw().await.lease_revoke(lease.get()).await.unwrap();
    }

    async fn delete(&self, service: &ServiceRef, id: &InstanceId) {
        let record = self.instance(service, id).await.expect("the instance is there");
        self.raw().await.delete(record.key(), None).await.unwrap();
    }

    async fn lease_of_holder(&self, name: &LockName) -> Option<LeaseId> {
        lease(self.queue_entries(name).await.first()?)
    }

    async fn lease_of_last_contender(&self, name: &LockName) -> Option<LeaseId> {
        lease(self.queue_entries(name).await.last()?)
    }

    async fn delete_holder(&self, name: &LockName) {
        let entries = self.queue_entries(name).await;
        self.raw().await.delete(entries.first().expect("it has a holder").key(), None).await.unwrap();
    }

    async fn queue_length(&self, name: &LockName) -> usize {
        self.queue_entries(name).await.len()
    }

    async fn compact(&self) {
        let mut raw = self.raw().await;
        let revision = raw.get("\0", None).await.unwrap().header().unwrap().revision();
        raw.compact(revision, Some(CompactionOptions::new().with_physical())).await.unwrap();
    }

    async fn wipe(&self) {
        self.server.lock().await.wipe().await;
    }
}
