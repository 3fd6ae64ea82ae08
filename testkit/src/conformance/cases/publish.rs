//! Fixed instances, without a lease.

use enlist::{Deregistered, Error, OnDelete, Owner, RegistrationState};

use super::support::*;
use crate::{
    conformance::harness::Harness,
    wait::{eventually, soon},
};

pub async fn a_published_instance_outlives_its_publisher(h: &impl Harness) {
    let (publisher, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    publisher.publish(&service, instance("a")).await.unwrap();
    let _b = register(h, &publisher, &service, "b").await;
    publisher.crash().await;
    listed(&client, &service, &["a"]).await;
    assert_eq!(h.lease_of(&service, &id("a")).await, None);
}

pub async fn publishing_again_replaces_the_instance(h: &impl Harness) {
    let (publisher, service) = (h.client().await, service(h, "svc"));
    let first = publisher.publish(&service, instance("a")).await.unwrap();
    let second = publisher.publish(&service, instance("a").with_weight(7)).await.unwrap();
    assert!(second > first);
    let entry = only(&publisher, &service, |_| true).await;
    assert_eq!((entry.instance().weight(), entry.modified()), (7, second));
}

pub async fn a_removed_instance_is_returned(h: &impl Harness) {
    let (publisher, operator, service) = (h.client().await, h.client().await, service(h, "svc"));
    publisher.publish(&service, instance("a")).await.unwrap();
    let removed = operator.remove(&service, &id("a")).await.unwrap();
    assert_eq!(*removed.instance(), instance("a"));
    assert!(resolve(&*publisher, &service).await.is_empty());
}

pub async fn removing_an_absent_instance_is_reported(h: &impl Harness) {
    let (operator, service) = (h.client().await, service(h, "svc"));
    let missing = operator.remove(&service, &id("a")).await;
    assert!(matches!(missing, Err(Error::NotRegistered { .. })), "a missing instance is reported: {missing:?}");
}

pub async fn a_registered_instance_is_protected_from_publishers(h: &impl Harness) {
    let (server, operator, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = server.register(&service, instance("a"), options(h).owner("server")).await.unwrap();
    let before = only(&server, &service, |_| true).await;
    for refused in [
        operator.publish(&service, instance("a").with_weight(7)).await.err(),
        operator.remove(&service, &id("a")).await.err(),
    ] {
        let Some(Error::NotOwner { owner, .. }) = refused else {
            panic!("expected NotOwner: {refused:?}");
        };
        assert_eq!(owner, Owner::Other);
        // The owner token is secret: its reader could take over the id.
        assert!(!format!("{refused:?}").contains("server"), "{refused:?}");
    }
    assert_eq!(only(&server, &service, |_| true).await, before);
}

pub async fn a_registration_takes_over_no_fixed_instance(h: &impl Harness) {
    let (publisher, server, service) = (h.client().await, h.client().await, service(h, "svc"));
    publisher.publish(&service, instance("a")).await.unwrap();
    let refused = soon("refused", server.register(&service, instance("a"), options(h))).await;
    assert!(matches!(refused, Err(Error::AlreadyRegistered { .. })), "the id is taken: {refused:?}");
    assert_eq!(h.lease_of(&service, &id("a")).await, None);
}

pub async fn a_respected_eviction_ends_the_registration(h: &impl Harness) {
    let (server, operator, service) = (h.client().await, h.client().await, service(h, "svc"));
    let respects = options(h).on_delete(OnDelete::Respect);
    let a = server.register(&service, instance("a"), respects).await.unwrap();
    let lease = h.lease_of(&service, &id("a")).await;
    let before = only(&operator, &service, |_| true).await;
    let evicted = operator.evict(&service, &id("a"), Some(before.modified())).await.unwrap();
    assert_eq!((evicted.entry.as_ref(), evicted.lease), (Some(&*before), lease));
    assert!(evicted.removed > before.modified(), "{evicted:?}");
    eventually("its registration ends", || async {
        match a.state() {
            RegistrationState::Ended => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::AlreadyGone);
    assert!(resolve(&*operator, &service).await.is_empty());
}

pub async fn an_evicted_instance_comes_back_if_restored(h: &impl Harness) {
    let (server, operator, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let lease = h.lease_of(&service, &id("a")).await;
    let evicted = operator.evict(&service, &id("a"), None).await.unwrap();
    only(&operator, &service, |entry| entry.created() > evicted.removed).await;
    assert_eq!(h.lease_of(&service, &id("a")).await, lease, "its lease was not lost");
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::Removed);
}

pub async fn evicting_a_changed_instance_is_refused(h: &impl Harness) {
    let (server, operator, service) = (h.client().await, h.client().await, service(h, "svc"));
    let registration = register(h, &server, &service, "a").await;
    let before = only(&operator, &service, |_| true).await;
    let changed = soon("stored", registration.update(|update| _ = update.weight(7))).await.unwrap();
    let refused = operator.evict(&service, &id("a"), Some(before.modified())).await;
    assert!(matches!(refused, Err(Error::Conflict { revision, .. }) if revision == changed), "{refused:?}");
    assert_eq!(only(&operator, &service, |_| true).await.modified(), changed);
}

pub async fn evicting_an_absent_instance_is_reported(h: &impl Harness) {
    let (operator, service) = (h.client().await, service(h, "svc"));
    let published = operator.publish(&service, instance("b")).await.unwrap();
    for modified in [None, Some(published)] {
        let missing = operator.evict(&service, &id("a"), modified).await;
        assert!(matches!(missing, Err(Error::NotRegistered { .. })), "{missing:?}");
    }
    assert_eq!(endpoints(&resolve(&*operator, &service).await), expected(&["b"]));
}

pub async fn a_fixed_instance_can_be_evicted(h: &impl Harness) {
    let (publisher, operator, service) = (h.client().await, h.client().await, service(h, "svc"));
    let stored = publisher.publish(&service, instance("a")).await.unwrap();
    let evicted = operator.evict(&service, &id("a"), Some(stored)).await.unwrap();
    assert_eq!(evicted.lease, None);
    assert_eq!(evicted.entry.map(|entry| entry.modified()), Some(stored));
    assert!(resolve(&*publisher, &service).await.is_empty());
}
