//! Keys that a removal does not touch when the link is cut in between, which the conformance suite cannot time.

use std::time::Duration;

use enlist::{
    Deregistered, Endpoint, Instance, InstanceId, LeaseChoice, OnConflict, RegisterOptions, RegistrationState,
    Registry, Resolver, ServiceRef, Start,
};
use enlist_memory::MemoryStore;
use enlist_testkit::eventually;

#[tokio::test(start_paused = true)]
async fn a_failed_first_claim_leaves_newer_registrations_alone() {
    let (store, service) = (MemoryStore::new(), ServiceRef::parse("svc").unwrap());
    let (one, two) = (store.client(), store.client());
    let instance = || Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
    let options = || RegisterOptions::new().owner("me");
    // A lease, a read and a claim take a second each; the link is cut during the claim.
    one.delay(Duration::from_secs(1));
    let older = one.register(&service, instance(), options().start(Start::Background)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    one.cut();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let newer = two.register(&service, instance().with_weight(7), options()).await.unwrap();
    one.delay(Duration::ZERO);
    let (ended, ()) = tokio::join!(older.deregister(), async { one.heal() });
    assert_eq!(ended.unwrap(), Deregistered::AlreadyGone);
    let left = two.resolve(&service).await.unwrap();
    let weights: Vec<_> = left.entries().map(|entry| entry.instance().weight()).collect();
    assert_eq!(weights, [7], "{:?}", newer.state());
}

/// The successor leaves before it has written, so the key is still that of the abandoned registration.
#[tokio::test(start_paused = true)]
async fn an_abandoned_loser_is_left_to_its_lease() {
    let (store, service) = (MemoryStore::new(), ServiceRef::parse("svc").unwrap());
    let client = store.client();
    let instance = || Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
    let options = || RegisterOptions::new().on_conflict(OnConflict::TakeOver);
    let older = client.register(&service, instance(), options().lease(LeaseChoice::Own)).await.unwrap();
    client.cut();
    let newer = client.register(&service, instance(), options().start(Start::Background)).await.unwrap();
    let mut states = older.states();
    while !matches!(states.next().await, Ok(RegistrationState::Superseded { .. })) {}
    older.abandon();
    // Gives its task time to act.
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop(newer);
    client.heal();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(store.client().resolve(&service).await.unwrap().len(), 1, "it lives as long as its lease");
    eventually("the lease has run out", || async {
        let left = store.client().resolve(&service).await.unwrap().len();
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
}
