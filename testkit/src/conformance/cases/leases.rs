//! Leases granted to a user.

use std::time::Duration;

use enlist::{Error, LeaseChoice, RegistrationState, ServiceName, ServiceRef, Start};

use super::support::*;
use crate::{
    conformance::harness::{Client, Harness},
    wait::{eventually, soon},
};

pub async fn a_registration_reports_its_lease(h: &impl Harness) {
    let (server, cut, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let first = a.lease();
    assert_eq!((first, a.handle().lease()), (h.lease_of(&service, &id("a")).await, first));
    h.revoke(first.unwrap()).await;
    let second = eventually("it is registered under another lease", || async {
        match (a.state(), a.lease()) {
            (RegistrationState::Registered { .. }, now) if now != first => Ok(now),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(h.lease_of(&service, &id("a")).await, second);
    cut.cut().await;
    let b = cut.register(&service, instance("b"), options(h).start(Start::Background)).await.unwrap();
    assert_eq!(b.lease(), None, "nothing of it was acknowledged");
}

pub async fn a_granted_lease_is_renewed_until_dropped(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let lease = server.grant_lease(h.ttl()).await.unwrap();
    assert!(lease.ttl() >= h.ttl() && lease.is_alive(), "{lease:?}");
    let a = server.register(&service, instance("a"), options(h).lease(&lease)).await.unwrap();
    assert_eq!((h.lease_of(&service, &id("a")).await, a.lease()), (Some(lease.id()), Some(lease.id())));
    outlast(h, &client).await;
    assert!(lease.is_alive());
    assert_eq!(endpoints(&resolve(&*client, &service).await), expected(&["a"]));
    drop(lease);
    listed(&client, &service, &[]).await;
}

pub async fn several_registrations_share_a_granted_lease(h: &impl Harness) {
    let (keeper, other, service) = (h.client().await, h.client().await, service(h, "svc"));
    let lease = keeper.grant_lease(h.ttl()).await.unwrap();
    let given = || options(h).lease(LeaseChoice::Given(lease.id()));
    let a = keeper.register(&service, instance("a"), given()).await.unwrap();
    let _b = other.register(&service, instance("b"), given()).await.unwrap();
    let _c = register(h, &keeper, &service, "c").await;
    assert_ne!(
        h.lease_of(&service, &id("c")).await,
        Some(lease.id()),
        "only instances that were given the lease are on it"
    );
    soon("deregistered", a.deregister()).await.unwrap();
    assert_eq!(endpoints(&resolve(&*other, &service).await), expected(&["b", "c"]), "it is left alone");
    soon("revoked", lease.revoke()).await.unwrap();
    assert_eq!(endpoints(&resolve(&*other, &service).await), expected(&["c"]));
}

pub async fn revoking_a_granted_lease_removes_its_instances(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let lease = server.grant_lease(h.ttl()).await.unwrap();
    let a = server.register(&service, instance("a"), options(h).lease(&lease)).await.unwrap();
    let _b = server.register(&service, instance("b"), options(h).lease(&lease)).await.unwrap();
    let mut watcher = watch(&client, &service).await;
    until(&mut watcher, "both", |change| change.snapshot.len() == 2).await;
    soon("revoked", lease.revoke()).await.unwrap();
    assert!(resolve(&*client, &service).await.is_empty(), "at once");
    let gone = next(&mut watcher).await;
    assert_eq!((gone.events.len(), gone.snapshot.len()), (2, 0), "at one revision: {gone:?}");
    eventually("its registration says that the lease is lost", || async {
        match a.state() {
            RegistrationState::Reregistering { cause: Error::LeaseLost } => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let lost = server.grant_lease(h.ttl()).await.unwrap();
    h.revoke(lost.id()).await;
    soon("it is known to be lost", lost.lost()).await;
    assert!(!lost.is_alive());
    soon("confirmed", lost.revoke()).await.unwrap();
}

pub async fn an_abandoned_lease_runs_out(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let lease = server.grant_lease(h.ttl()).await.unwrap();
    let _a = server.register(&service, instance("a"), options(h).lease(&lease)).await.unwrap();
    lease.abandon();
    assert_eq!(endpoints(&resolve(&*client, &service).await), expected(&["a"]));
    listed(&client, &service, &[]).await;
}

pub async fn a_lease_that_cannot_be_granted_is_refused(h: &impl Harness) {
    let server = h.client().await;
    server.cut().await;
    let zero = server.grant_lease(Duration::ZERO).await;
    assert!(matches!(zero, Err(Error::InvalidConfig { field: "ttl", .. })), "before anything is sent: {zero:?}");
    let unanswered = soon("refused", server.grant_lease(h.ttl())).await;
    assert!(unanswered.as_ref().is_err_and(is_outage), "{unanswered:?}");
    server.heal().await;
    let lease = eventually("granted", || server.grant_lease(h.ttl())).await;
    soon("closed", server.close()).await;
    soon("it ends with the session", lease.lost()).await;
    assert!(!lease.is_alive());
    let closed = soon("refused", server.grant_lease(h.ttl())).await;
    assert!(matches!(closed, Err(Error::Closed)), "{closed:?}");
    assert!(matches!(soon("refused", lease.revoke()).await, Err(Error::Closed)));
}

/// Waits until two leases without renewals have expired, one after the other.
async fn outlast(h: &impl Harness, client: &Client) {
    let clock = ServiceRef::new(h.namespace(), ServiceName::parse("clock").unwrap());
    let clocked = own(h).ttl(h.ttl() * 2);
    client.register(&clock, instance("clock"), clocked).await.unwrap().abandon();
    listed(client, &clock, &[]).await;
}
