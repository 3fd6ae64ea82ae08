//! Migrations between registries, on the memory backend.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{sync::Arc, time::Duration};

use enlist::{
    Deregistered, Directory, Endpoint, Error, Event, Health, Instance, InstanceId, Migration, RegisterOptions,
    Registry, Resolver, ServiceName, ServiceRef, Side, Snapshot,
};
use enlist_memory::{MemoryClient, MemoryStore};
use support::service;

fn instance(id: &str, port: u16) -> Instance {
    Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::new("10.0.0.1", port).unwrap()]).unwrap()
}

fn side(client: &MemoryClient) -> Side {
    Side::new(Arc::new(client.clone()))
}

fn shown(snapshot: &Snapshot) -> Vec<(String, u32)> {
    snapshot.entries().map(|entry| (entry.instance().id().to_string(), entry.instance().weight())).collect()
}

async fn stored(store: &MemoryStore) -> Vec<(String, u32)> {
    shown(&store.client().resolve(&service()).await.unwrap())
}

fn options() -> RegisterOptions {
    RegisterOptions::new().ttl(Duration::from_secs(5))
}

/// The three steps of a move, each together with the previous one: every program sees each instance once.
#[tokio::test(start_paused = true)]
async fn programs_of_neighbouring_steps_see_each_other() {
    let (old, new) = (MemoryStore::new(), MemoryStore::new());
    let (o, n) = (old.client(), new.client());
    let before = o.clone();
    let first = Migration::new(side(&o)).and(side(&n).read_only());
    let second = Migration::new(side(&n)).and(side(&o));
    let third = Migration::new(side(&n)).and(side(&o).read_only());
    let all = [
        before.register(&service(), instance("a", 1), options()).await.unwrap(),
        first.register(&service(), instance("b", 2), options()).await.unwrap(),
        second.register(&service(), instance("c", 3), options()).await.unwrap(),
        third.register(&service(), instance("d", 4), options()).await.unwrap(),
    ];
    let sees = |snapshot: Snapshot| shown(&snapshot).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(sees(before.resolve(&service()).await.unwrap()), ["a", "b", "c"]);
    for migration in [&first, &second, &third] {
        assert_eq!(sees(migration.resolve(&service()).await.unwrap()), ["a", "b", "c", "d"]);
    }
    let names = second.services(service().namespace()).await.unwrap();
    assert_eq!(names, [service().name().clone()]);
    for registration in all {
        assert_eq!(registration.deregister().await.unwrap(), Deregistered::Removed);
    }
    assert_eq!((stored(&old).await, stored(&new).await), (vec![], vec![]));
}

/// Lists of services are those of all sides, and so are their watches.
#[tokio::test(start_paused = true)]
async fn services_of_all_sides_are_watched() {
    let (old, new) = (MemoryStore::new(), MemoryStore::new());
    let migration = Migration::new(side(&new.client())).and(side(&old.client()));
    let mut watcher = migration.watch_services(service().namespace()).await.unwrap();
    let texts = |names: &[ServiceName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(watcher.next().await.unwrap().services.is_empty());
    let theirs = old.client().register(&service(), instance("theirs", 1), options()).await.unwrap();
    let change = watcher.next().await.unwrap();
    assert_eq!((texts(&change.added), change.removed.len()), (vec!["svc".to_owned()], 0));
    let other = ServiceRef::parse("other").unwrap();
    let ours = new.client().register(&service(), instance("ours", 2), options()).await.unwrap();
    let _other = new.client().register(&other, instance("ours", 2), options()).await.unwrap();
    assert_eq!(texts(&watcher.next().await.unwrap().added), ["other"], "`svc` is on both sides");
    assert_eq!(migration.namespaces().await.unwrap(), [service().namespace().clone()]);
    theirs.deregister().await.unwrap();
    ours.deregister().await.unwrap();
    let change = watcher.next().await.unwrap();
    assert_eq!(
        (texts(&change.removed), texts(&migration.services(other.namespace()).await.unwrap())),
        (vec!["svc".to_owned()], vec!["other".to_owned()])
    );
}

#[tokio::test(start_paused = true)]
async fn updates_reach_every_side() {
    let (old, new) = (MemoryStore::new(), MemoryStore::new());
    let migration = Migration::new(side(&new.client())).and(side(&old.client()).default_weight(10));
    let registration = migration.register(&service(), instance("a", 1).with_weight(50), options()).await.unwrap();
    assert_eq!((stored(&new).await, stored(&old).await), (vec![("a".into(), 50)], vec![("a".into(), 5)]));
    registration.update(|update| _ = update.weight(300).metadata("k", "v")).await.unwrap();
    assert_eq!((stored(&new).await, stored(&old).await), (vec![("a".into(), 300)], vec![("a".into(), 30)]));
    registration.update(|update| _ = update.remove_metadata("k").weight(1)).await.unwrap();
    assert_eq!(stored(&old).await, [("a".into(), 1)], "what is picked stays so");
    let moved = Endpoint::parse("h:9").unwrap();
    registration.update(|update| _ = update.endpoints([moved.clone()]).zone("z")).await.unwrap();
    for store in [&old, &new] {
        let snapshot = store.client().resolve(&service()).await.unwrap();
        let instance = snapshot.entries().next().unwrap().instance();
        assert_eq!((instance.endpoints(), instance.zone()), (std::slice::from_ref(&moved), Some("z")));
    }
    // On reading, the weight is scaled in the other direction.
    let _theirs = old.client().register(&service(), instance("b", 2).with_weight(10), options()).await.unwrap();
    assert_eq!(shown(&migration.resolve(&service()).await.unwrap()), [("a".into(), 1), ("b".into(), 100)]);
}

#[tokio::test(start_paused = true)]
async fn the_own_side_wins_for_equal_addresses() {
    let (old, new) = (MemoryStore::new(), MemoryStore::new());
    let migration = Migration::new(side(&new.client())).and(side(&old.client()));
    let mut watcher = migration.watch(&service()).await.unwrap();
    assert!(watcher.next().await.unwrap().snapshot.is_empty());
    let _theirs = old.client().register(&service(), instance("theirs", 1), options()).await.unwrap();
    assert_eq!(shown(&watcher.next().await.unwrap().snapshot), [("theirs".into(), 100)]);
    let ours = new.client().register(&service(), instance("ours", 1), options()).await.unwrap();
    let change = watcher.next().await.unwrap();
    assert_eq!(shown(&change.snapshot), [("ours".into(), 100)]);
    assert!(matches!(&change.events[..], [Event::Added(_), Event::Removed(_)]), "{:?}", change.events);
    // Two instances on one side are both shown.
    let twin = new.client().register(&service(), instance("twin", 1), options()).await.unwrap();
    assert_eq!(shown(&watcher.next().await.unwrap().snapshot), [("ours".into(), 100), ("twin".into(), 100)]);
    twin.deregister().await.unwrap();
    ours.deregister().await.unwrap();
    // The draining mark may be shown first.
    while shown(&watcher.next().await.unwrap().snapshot) != [("theirs".into(), 100)] {}
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_on_one_side_is_replaced() {
    let (old, new) = (MemoryStore::new(), MemoryStore::new());
    let migration = Migration::new(side(&new.client())).and(side(&old.client()));
    let registration = migration.register(&service(), instance("a", 1), options()).await.unwrap();
    let mut states = registration.states();
    old.revoke(old.leases()[0]);
    while !matches!(states.next().await.unwrap(), enlist::RegistrationState::Reregistering { .. }) {}
    while !matches!(states.next().await.unwrap(), enlist::RegistrationState::Registered { .. }) {}
    assert_eq!(stored(&old).await.len(), 1);
    drop(registration);
    while !(stored(&old).await.is_empty() && stored(&new).await.is_empty()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_one_side_removes_no_instance() {
    let (old, new) = (MemoryStore::new(), MemoryStore::new());
    let theirs = old.client();
    let migration = Migration::new(side(&new.client())).and(side(&theirs));
    let (_a, _b) = (
        new.client().register(&service(), instance("a", 1), options()).await.unwrap(),
        old.client().register(&service(), instance("b", 2), options()).await.unwrap(),
    );
    let view = Directory::new(Arc::new(migration)).view(&service());
    view.ready().await.unwrap();
    theirs.cut();
    while view.freshness().unwrap().is_live() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let _c = new.client().register(&service(), instance("c", 3), options()).await.unwrap();
    while view.snapshot().unwrap().len() < 3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!view.freshness().unwrap().is_live(), "one half is old, and it is reported");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(view.freshness().unwrap().age() >= Duration::from_secs(60));
    theirs.heal();
    while !view.freshness().unwrap().is_live() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(view.snapshot().unwrap().len(), 3);
    // The age of a quiet service stays low while its sides are proven.
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(view.freshness().unwrap().age() < Duration::from_secs(30), "{:?}", view.freshness().unwrap().age());
}

#[tokio::test(start_paused = true)]
async fn what_one_side_refuses_is_registered_nowhere() {
    let (old, new) = (MemoryStore::new(), MemoryStore::new());
    let nobody = Migration::new(side(&new.client()).read_only());
    let refused = nobody.register(&service(), instance("a", 1), options()).await;
    assert!(matches!(refused, Err(Error::InvalidConfig { .. })), "{refused:?}");
    let closed = old.client();
    closed.close().await.unwrap();
    let half = Migration::new(side(&new.client())).and(side(&closed));
    assert!(matches!(half.register(&service(), instance("a", 1), options()).await, Err(Error::Closed)));
    while !stored(&new).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn instances_are_fitted_to_a_side_if_asked() {
    let (old, new) = (MemoryStore::new(), MemoryStore::new());
    let plain = side(&old.client())
        .fit(|instance| Instance::new(instance.id().clone(), instance.endpoints().to_vec()).unwrap())
        .fit_options(|mut options| {
            options.owner = None;
            options
        });
    let migration = Migration::new(side(&new.client())).and(plain);
    let rich = instance("a", 1).with_zone("z").with_metadata("k", "v");
    let registration = migration.register(&service(), rich.clone(), options().owner("me")).await.unwrap();
    registration.update(|update| _ = update.health(Health::Draining)).await.unwrap();
    let held = async |store: &MemoryStore| {
        let snapshot = store.client().resolve(&service()).await.unwrap();
        snapshot.entries().next().unwrap().instance().clone()
    };
    assert_eq!(held(&new).await, rich.with_health(Health::Draining));
    assert_eq!(held(&old).await, instance("a", 1));
    // Fixed instances are written to the same sides.
    migration.publish(&service(), instance("fixed", 9)).await.unwrap();
    assert_eq!((stored(&old).await.len(), stored(&new).await.len()), (2, 2));
    migration.remove(&service(), &InstanceId::parse("fixed").unwrap()).await.unwrap();
    let gone = migration.remove(&service(), &InstanceId::parse("fixed").unwrap()).await;
    assert!(matches!(gone, Err(Error::NotRegistered { .. })), "{gone:?}");
}

/// An eviction removes an instance from every side that has it, also if only one side has it.
#[tokio::test(start_paused = true)]
async fn an_eviction_is_one_from_every_side() {
    let (old, new) = (MemoryStore::new(), MemoryStore::new());
    let migration = Migration::new(side(&new.client())).and(side(&old.client()));
    let both = migration.register(&service(), instance("a", 1), options()).await.unwrap();
    let kept = new.lease_of(&service(), instance("a", 1).id());
    let evicted = migration.evict(&service(), instance("a", 1).id(), None).await.unwrap();
    assert_eq!(evicted.lease, kept, "it is that of the own side");
    assert_eq!((old.revision(), new.revision()), (evicted.removed, evicted.removed), "both are gone");
    while stored(&old).await.len() + stored(&new).await.len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(both.lease(), kept, "it was not lost");
    new.revoke(kept.unwrap());
    while both.lease() == kept {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(both.lease(), new.lease_of(&service(), instance("a", 1).id()));
    both.deregister().await.unwrap();
    let fixed = old.client().publish(&service(), instance("b", 2)).await.unwrap();
    let guarded = migration.evict(&service(), instance("b", 2).id(), Some(fixed)).await;
    assert!(matches!(guarded, Err(Error::Unsupported { .. })), "whose revision it is cannot be known: {guarded:?}");
    migration.evict(&service(), instance("b", 2).id(), None).await.unwrap();
    let gone = migration.evict(&service(), instance("b", 2).id(), None).await;
    assert!(matches!(gone, Err(Error::NotRegistered { .. })), "{gone:?}");
}

/// A confirmed removal on one side does not stand for the other side, which did not answer.
#[tokio::test(start_paused = true)]
async fn an_unconfirmed_removal_on_a_side_is_reported() {
    let (old, new) = (MemoryStore::new(), MemoryStore::new());
    let (cut, id) = (old.client(), InstanceId::parse("a").unwrap());
    let migration = Migration::new(side(&new.client())).and(side(&cut));
    migration.publish(&service(), instance("a", 1)).await.unwrap();
    cut.cut();
    let removed = migration.remove(&service(), &id).await;
    assert!(matches!(removed, Err(Error::Unavailable(_))), "{removed:?}");
    let evicted = migration.evict(&service(), &id, None).await;
    assert!(matches!(evicted, Err(Error::Unavailable(_))), "{evicted:?}");
    cut.heal();
    assert_eq!(migration.remove(&service(), &id).await.unwrap().instance().id(), &id, "a repeated call completes it");
    migration.publish(&service(), instance("a", 1)).await.unwrap();
    cut.cut();
    let evicted = migration.evict(&service(), &id, None).await;
    assert!(matches!(evicted, Err(Error::Unavailable(_))), "{evicted:?}");
    cut.heal();
    assert!(migration.evict(&service(), &id, None).await.unwrap().entry.is_some());
}
