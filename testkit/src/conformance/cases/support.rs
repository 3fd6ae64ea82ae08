//! Helpers of the cases.

use std::{sync::Arc, time::Duration};

use enlist::{
    Change, Endpoint, Entry, Error, Freshness, Instance, InstanceId, LeaseChoice, LockGuard, LockName, LockOptions,
    Moment, RegisterOptions, Registration, Resolver, ServiceName, ServiceRef, Snapshot, Watcher,
};

use crate::{
    background_task::BackgroundTask,
    conformance::harness::{Client, Harness, LayoutFeature},
    wait::{eventually, soon},
};

/// Maximum age of a view while the store is healthy.
const HEALTHY: Duration = Duration::from_secs(10);

pub(super) fn service(harness: &impl Harness, name: &str) -> ServiceRef {
    ServiceRef::new(harness.namespace(), ServiceName::parse(name).unwrap())
}

pub(super) fn lock(harness: &impl Harness, name: &str) -> LockName {
    LockName::parse(name).unwrap().within(harness.namespace())
}

pub(super) fn id(text: &str) -> InstanceId {
    InstanceId::parse(text).unwrap()
}

/// Returns an instance with an endpoint derived from its id, so that layouts without ids distinguish it as well.
pub(super) fn instance(text: &str) -> Instance {
    let port = 1000 + text.bytes().fold(0u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(u16::from(byte)) % 50_000);
    Instance::new(id(text), [Endpoint::new("10.0.0.1", port).unwrap()]).unwrap()
}

/// Returns the endpoint of [`instance`], which identifies it in every layout.
pub(super) fn endpoint(text: &str) -> String {
    instance(text).endpoints()[0].to_string()
}

pub(super) fn options(harness: &impl Harness) -> RegisterOptions {
    RegisterOptions::new().ttl(harness.ttl())
}

pub(super) fn own(harness: &impl Harness) -> RegisterOptions {
    options(harness).lease(LeaseChoice::Own)
}

pub(super) fn lock_options(harness: &impl Harness) -> LockOptions {
    LockOptions::new().ttl(harness.ttl())
}

pub(super) async fn register(
    harness: &impl Harness,
    client: &Client,
    service: &ServiceRef,
    name: &str,
) -> Registration {
    soon("registered", client.register(service, instance(name), options(harness))).await.unwrap()
}

pub(super) fn endpoints(snapshot: &Snapshot) -> Vec<String> {
    let mut all: Vec<_> = snapshot.entries().map(|entry| entry.instance().endpoints()[0].to_string()).collect();
    all.sort();
    all
}

pub(super) fn expected(names: &[&str]) -> Vec<String> {
    let mut all: Vec<_> = names.iter().map(|name| endpoint(name)).collect();
    all.sort();
    all
}

/// Checks an age until the view has been proven once more.
pub(super) async fn stays_fresh(freshness: &Freshness) {
    let before = freshness.proven();
    eventually("it is proven right once more", || async {
        let age = freshness.age();
        assert!(freshness.is_live() && age <= HEALTHY, "{freshness:?}");
        if freshness.proven().since(before).is_zero() { Err(age) } else { Ok(()) }
    })
    .await;
}

/// Resolves until exactly the instances called `names` are listed.
pub(super) async fn listed(client: &Client, service: &ServiceRef, names: &[&str]) -> Snapshot {
    eventually(&format!("{names:?} are listed"), || async {
        match client.resolve(service).await {
            Ok(snapshot) if endpoints(&snapshot) == expected(names) => Ok(snapshot),
            other => Err(other),
        }
    })
    .await
}

/// Returns the only entry of the service, once there is one that `fits`.
pub(super) async fn only(client: &Client, service: &ServiceRef, fits: impl Fn(&Entry) -> bool) -> Arc<Entry> {
    eventually("the only entry fits", || async {
        let snapshot = client.resolve(service).await.map_err(|error| format!("{error:?}"))?;
        match snapshot.entries().next() {
            Some(entry) if snapshot.len() == 1 && fits(entry) => Ok(Arc::clone(entry)),
            _ => Err(format!("{:?}", snapshot.entries().collect::<Vec<_>>())),
        }
    })
    .await
}

pub(super) async fn watch(client: &Client, service: &ServiceRef) -> Box<dyn Watcher> {
    client.watch(service).await.unwrap()
}

pub(super) async fn next(watcher: &mut Box<dyn Watcher>) -> Change {
    soon("a change", watcher.next()).await.unwrap()
}

/// Reads changes until one `fits`, and returns it.
pub(super) async fn until(watcher: &mut Box<dyn Watcher>, what: &str, fits: impl Fn(&Change) -> bool) -> Change {
    let mut last = None;
    let read = async {
        loop {
            let change = watcher.next().await.unwrap();
            if fits(&change) {
                return change;
            }
            last = Some(change);
        }
    };
    match tokio::time::timeout(crate::wait::LIMIT, read).await {
        Ok(change) => change,
        Err(elapsed) => panic!("never seen ({elapsed}): {what}; last: {last:?}"),
    }
}

/// Checks that less than `limit` has passed since `begun`.
pub(super) fn assert_within(what: &str, begun: Moment, limit: Duration) {
    let took = begun.elapsed();
    assert!(took < limit, "{what}: awaited within {limit:?}, came after {took:?}");
}

pub(super) fn is_outage(error: &Error) -> bool {
    matches!(error, Error::Unavailable(_) | Error::Timeout { .. })
}

/// Resolves through a trait object, for cases that hold one.
pub(super) async fn resolve(client: &dyn Resolver, service: &ServiceRef) -> Snapshot {
    soon("resolved", client.resolve(service)).await.unwrap()
}

pub(super) async fn acquire(h: &impl Harness, client: &Client, name: &LockName) -> LockGuard {
    soon("acquired", client.acquire(name, lock_options(h))).await.unwrap()
}

/// Starts a contender in the background.
pub(super) fn contend(
    client: &Client,
    name: &LockName,
    options: LockOptions,
) -> BackgroundTask<Result<LockGuard, Error>> {
    let (client, name) = (client.clone(), name.clone());
    BackgroundTask::run(async move { client.acquire(&name, options).await })
}

/// Waits until the lock has `count` queue entries. Without queues, waiting contenders do not count.
pub(super) async fn queue_has(h: &impl Harness, name: &LockName, count: usize) {
    let count = if h.carries().contains(&LayoutFeature::LockQueue) { count } else { count.min(1) };
    eventually(&format!("the queue has {count} entries"), || async {
        let now = h.queue_length(name).await;
        if now == count { Ok(()) } else { Err(now) }
    })
    .await;
}
