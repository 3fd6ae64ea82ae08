//! Renewals of leases, which the conformance suite can observe only for locks.

use std::time::Duration;

use enlist::{Endpoint, Instance, InstanceId, LeaseChoice, RegisterOptions, Registry, Resolver, ServiceRef};
use enlist_memory::MemoryStore;
use enlist_testkit::eventually;

#[tokio::test(start_paused = true)]
async fn equal_renewal_intervals_share_one_lease() {
    let (store, service) = (MemoryStore::new(), ServiceRef::parse("svc").unwrap());
    let (server, client) = (store.client(), store.client());
    let default = RegisterOptions::new().ttl(Duration::from_secs(6));
    let quick = default.clone().renewal_interval(Duration::from_millis(500));
    let third = default.clone().renewal_interval(Duration::from_secs(2));
    let mut registrations = Vec::new();
    for (id, options) in [("quick", &quick), ("as quick", &quick), ("default", &default), ("third", &third)] {
        let instance = Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
        registrations.push(server.register(&service, instance, options.clone()).await.unwrap());
    }
    assert_eq!(store.leases().len(), 2);
    // Just before the first renewal with the default interval.
    tokio::time::sleep(Duration::from_millis(1900)).await;
    server.cut();
    tokio::time::sleep(Duration::from_millis(4500)).await;
    let left = client.resolve(&service).await.unwrap();
    let ids: Vec<_> = left.entries().map(|entry| entry.instance().id().to_string()).collect();
    assert_eq!(ids, ["as quick", "quick"]);
}

#[tokio::test(start_paused = true)]
async fn a_revocation_during_outages_happens_afterwards() {
    let store = MemoryStore::new();
    let client = store.client();
    let ttl = Duration::from_secs(3600);
    let (dropped, revoked) = (client.grant_lease(ttl).await.unwrap(), client.grant_lease(ttl).await.unwrap());
    client.cut();
    drop(dropped);
    assert!(revoked.revoke().await.is_err());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(store.leases().len(), 2);
    client.heal();
    eventually("both are revoked", || async {
        let left = store.leases();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_close_leaves_abandoned_leases_to_expire() {
    let (store, service) = (MemoryStore::new(), ServiceRef::parse("svc").unwrap());
    let client = store.client();
    let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
    let options = RegisterOptions::new().lease(LeaseChoice::Own);
    let registration = client.register(&service, instance, options).await.unwrap();
    let granted = client.grant_lease(Duration::from_secs(15)).await.unwrap();
    registration.abandon();
    granted.abandon();
    client.close().await.unwrap();
    assert_eq!(store.leases().len(), 2, "each runs out by itself");
    eventually("the leases have run out", || async {
        let left = store.leases();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}
