//! Helpers of the tests over a scripted etcd under a paused clock.

use std::collections::BTreeMap;

use enlist::{Lock, LockGuard, LockOptions, RegisterOptions, Registration, Registry, Snapshot};
use enlist_etcd::{Etcd, EtcdBuilder, SessionRuntime};
use enlist_testkit::{BackgroundTask, FakeEtcd, eventually, soon};

use super::{PREFIX, instance, lock_name, service};

/// Options of a client on the runtime of the test, whose clock is paused.
pub(crate) fn builder(fake: &FakeEtcd) -> EtcdBuilder {
    Etcd::from_channel(fake.channel()).runtime(SessionRuntime::Caller)
}

pub(crate) fn client(fake: &FakeEtcd) -> Etcd {
    builder(fake).build().unwrap()
}

/// Stores an instance as another client does.
pub(crate) fn put(fake: &FakeEtcd, id: &str, weight: u32) {
    fake.put(format!("{PREFIX}{id}"), value(id, weight));
}

pub(crate) fn value(id: &str, weight: u32) -> String {
    format!(r#"{{"v":1,"id":"{id}","endpoints":["h:1"],"weight":{weight}}}"#)
}

pub(crate) async fn register(etcd: &Etcd, id: &str, options: RegisterOptions) -> Registration {
    soon("registered", etcd.register(&service(), instance(id), options)).await.unwrap()
}

/// Weights of the instances in a snapshot.
pub(crate) fn shown(snapshot: &Snapshot) -> BTreeMap<String, u32> {
    snapshot.entries().map(|entry| (entry.instance().id().to_string(), entry.instance().weight())).collect()
}

/// Weights of the instances in the store.
pub(crate) fn stored(fake: &FakeEtcd) -> BTreeMap<String, u32> {
    let parse = |(key, value): &(Vec<u8>, Vec<u8>)| {
        let value: serde_json::Value = serde_json::from_slice(value).unwrap();
        let id = String::from_utf8_lossy(&key[PREFIX.len()..]).into_owned();
        (id, u32::try_from(value["weight"].as_u64().unwrap()).unwrap())
    };
    fake.under(PREFIX.as_bytes()).iter().map(parse).collect()
}

/// Waits until `count` watches were opened.
pub(crate) async fn watched(fake: &FakeEtcd, count: usize) {
    eventually("a watch is open", || async {
        let watches = fake.requests().watches;
        if watches >= count { Ok(()) } else { Err(watches) }
    })
    .await;
}

/// Waits until the store has no lease.
pub(crate) async fn no_lease_is_left(fake: &FakeEtcd) {
    eventually("no lease is left", || async { if fake.leases() == 0 { Ok(()) } else { Err(fake.leases()) } }).await;
}

/// Number of tasks in this runtime, those of the fake included.
pub(crate) fn live_tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

pub(crate) async fn acquire(etcd: &Etcd) -> LockGuard {
    soon("acquired", etcd.acquire(&lock_name(), LockOptions::new())).await.unwrap()
}

/// A contender that runs beside the test.
pub(crate) fn contend(etcd: &Etcd) -> BackgroundTask<LockGuard> {
    let etcd = etcd.clone();
    BackgroundTask::run(async move { etcd.acquire(&lock_name(), LockOptions::new()).await.unwrap() })
}
