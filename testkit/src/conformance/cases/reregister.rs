//! Registering again after a lost lease, a deleted key, a wipe or an outage.

use std::time::Duration;

use enlist::{
    Deregistered, LeaseChoice, Moment, OnDelete, RegisterOptions, RegistrationState, ServiceName, ServiceRef, Start,
};

use super::support::*;
use crate::{
    conformance::harness::{Client, Harness},
    wait::{eventually, soon},
};

/// Maximum time from the end of an outage to the first successful attempt: a probe with its timeout, a dial, and the
/// jitter of waiting attempts.
const SOON: Duration = Duration::from_secs(4);

pub async fn an_instance_comes_back_after_a_revoked_lease(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    let _b = register(h, &server, &service, "b").await;
    let before = resolve(&*client, &service).await;
    let lease = h.lease_of(&service, &id("a")).await.unwrap();
    h.revoke(lease).await;
    eventually("both are back, created anew", || async {
        let now = client.resolve(&service).await.map_err(|error| error.to_string())?;
        let anew = now
            .entries()
            .filter(|entry| before.get(entry.instance().id()).is_some_and(|old| old.created() < entry.created()));
        if anew.count() == 2 { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    assert_ne!(h.lease_of(&service, &id("a")).await, Some(lease));
}

pub async fn an_instance_comes_back_after_a_deleted_key(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    let before = only(&client, &service, |_| true).await;
    let lease = h.lease_of(&service, &id("a")).await;
    h.delete(&service, &id("a")).await;
    only(&client, &service, |entry| entry.created() > before.created()).await;
    assert_eq!(h.lease_of(&service, &id("a")).await, lease);
}

pub async fn an_instance_comes_back_after_a_wipe(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    let _b = server.register(&service, instance("b"), options(h).lease(LeaseChoice::Own)).await.unwrap();
    h.wipe().await;
    listed(&client, &service, &["a", "b"]).await;
}

pub async fn a_short_outage_leaves_the_instance_unchanged(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let long = options(h).ttl(h.ttl() * 10);
    let a = server.register(&service, instance("a"), long).await.unwrap();
    let before = only(&client, &service, |_| true).await;
    server.cut().await;
    // The outage lasts until the registration has noticed it, or for the TTL of a short lease.
    let dying = h.client().await;
    dying.register(&service, instance("b"), own(h)).await.unwrap().abandon();
    listed(&client, &service, &["a"]).await;
    server.heal().await;
    let update = a.update(|update| {
        update.weight(9);
    });
    soon("stored after the outage", update).await.unwrap();
    assert_eq!(only(&client, &service, |_| true).await.created(), before.created());
}

pub async fn an_instance_comes_back_after_a_long_outage(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    server.cut().await;
    listed(&client, &service, &[]).await;
    server.heal().await;
    listed(&client, &service, &["a"]).await;
}

pub async fn an_update_survives_reregistration(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let update = a.update(|update| {
        update.weight(7);
    });
    soon("stored", update).await.unwrap();
    let before = only(&client, &service, |_| true).await;
    h.revoke(h.lease_of(&service, &id("a")).await.unwrap()).await;
    let after = only(&client, &service, |entry| entry.created() > before.created()).await;
    assert_eq!(after.instance().weight(), 7);
}

pub async fn changed_endpoints_survive_reregistration(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let lease = h.lease_of(&service, &id("a")).await;
    let update = a.update(|update| _ = update.endpoints(instance("moved").endpoints().to_vec()));
    soon("stored", update).await.unwrap();
    assert_eq!(h.lease_of(&service, &id("a")).await, lease, "it stays under its lease");
    let before = only(&client, &service, |_| true).await;
    h.revoke(lease.unwrap()).await;
    only(&client, &service, |entry| entry.created() > before.created()).await;
    assert_eq!(endpoints(&resolve(&*client, &service).await), expected(&["moved"]));
}

pub async fn an_update_during_an_outage_is_stored_afterwards(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    server.cut().await;
    let update = a.update(|update| {
        update.weight(7);
    });
    server.heal().await;
    soon("stored", update).await.unwrap();
    only(&client, &service, |entry| entry.instance().weight() == 7).await;
}

pub async fn an_update_during_long_outages_is_stored_soon(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let long = RegisterOptions::new().ttl(Duration::from_secs(300));
    let a = server.register(&service, instance("a"), long).await.unwrap();
    server.cut().await;
    let update = a.update(|update| {
        update.weight(7);
    });
    // By now, attempts have the maximum delay.
    outlast(h, &client, h.ttl() * 5).await;
    assert!(matches!(a.state(), RegistrationState::Suspect { .. }), "its lease lives: {:?}", a.state());
    server.heal().await;
    let healed = Moment::now();
    soon("stored", update).await.unwrap();
    assert!(healed.elapsed() < SOON, "{:?} after the outage", healed.elapsed());
    only(&client, &service, |entry| entry.instance().weight() == 7).await;
}

pub async fn a_registration_during_long_outages_is_made_soon(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    server.cut().await;
    let _a = server.register(&service, instance("a"), options(h).start(Start::Background)).await.unwrap();
    outlast(h, &client, h.ttl() * 5).await;
    server.heal().await;
    let healed = Moment::now();
    listed(&client, &service, &["a"]).await;
    assert!(healed.elapsed() < SOON, "{:?} after the outage", healed.elapsed());
}

/// Waits until a lease without renewals has expired.
async fn outlast(h: &impl Harness, client: &Client, time: Duration) {
    let clock = ServiceRef::new(h.namespace(), ServiceName::parse("clock").unwrap());
    client.register(&clock, instance("clock"), own(h).ttl(time)).await.unwrap().abandon();
    listed(client, &clock, &[]).await;
}

pub async fn an_eviction_is_respected_on_request(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let respects = options(h).on_delete(OnDelete::Respect);
    let a = server.register(&service, instance("a"), respects).await.unwrap();
    h.delete(&service, &id("a")).await;
    eventually("it ends", || async {
        match a.state() {
            RegistrationState::Ended => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::AlreadyGone);
    assert!(resolve(&*server, &service).await.is_empty());
}

pub async fn a_brief_successor_is_no_eviction(h: &impl Harness) {
    let (server, other, service) = (h.client().await, h.client().await, service(h, "svc"));
    let respects = options(h).owner("me").on_delete(OnDelete::Respect);
    let a = server.register(&service, instance("a").with_weight(1), respects.clone()).await.unwrap();
    let is_back = || only(&other, &service, |entry| entry.instance().weight() == 1);
    // A successor without time to take over the key removes it unchanged; one that had the time takes it over and
    // leaves.
    let brief = other.register(&service, instance("a"), respects.clone().start(Start::Background)).await.unwrap();
    assert_eq!(soon("deregistered", brief.deregister()).await.unwrap(), Deregistered::Removed);
    is_back().await;
    server.cut().await;
    let brief = other.register(&service, instance("a").with_weight(2), respects).await.unwrap();
    assert_eq!(soon("deregistered", brief.deregister()).await.unwrap(), Deregistered::Removed);
    server.heal().await;
    is_back().await;
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::Removed);
}

pub async fn a_lost_lease_is_no_eviction(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let respects = options(h).on_delete(OnDelete::Respect);
    let a = server.register(&service, instance("a"), respects).await.unwrap();
    for _ in 0..2 {
        let before = only(&client, &service, |_| true).await;
        h.revoke(h.lease_of(&service, &id("a")).await.unwrap()).await;
        only(&client, &service, |entry| entry.created() > before.created()).await;
    }
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::Removed);
}

pub async fn states_report_each_change(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let RegistrationState::Registered { revision: first } = a.state() else {
        panic!("the state is not that it is registered: {:?}", a.state());
    };
    let mut states = a.states();
    h.revoke(h.lease_of(&service, &id("a")).await.unwrap()).await;
    let back = async {
        loop {
            match states.next().await {
                Ok(RegistrationState::Registered { revision }) if revision > first => return,
                Ok(_) => {}
                Err(error) => panic!("the states ended: {error}"),
            }
        }
    };
    soon("registered again", back).await;
    soon("deregistered", a.deregister()).await.unwrap();
    let ended = async {
        let mut last = None;
        while let Ok(state) = states.next().await {
            last = Some(state);
        }
        assert!(matches!(last, Some(RegistrationState::Ended)), "the last state is the end: {last:?}");
    };
    soon("the end", ended).await;
}
