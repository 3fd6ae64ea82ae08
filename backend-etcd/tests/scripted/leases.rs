//! Leases granted to a user while etcd does not answer. A scripted etcd under a paused clock.

use std::time::Duration;

use enlist::{Error, Registry};
use enlist_testkit::{FakeEtcd, soon};

use crate::support::scripted::{client, no_lease_is_left};

const LONG_TTL: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn an_unconfirmed_revocation_continues() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let lease = etcd.grant_lease(LONG_TTL).await.unwrap();
    assert_eq!(fake.lease_ids(), [lease.id().get()]);
    fake.hold_revocations();
    let unconfirmed = soon("given up", lease.revoke()).await;
    assert!(matches!(unconfirmed, Err(Error::Timeout { op: "lease revoke", .. })), "{unconfirmed:?}");
    // Longer than the timeout of a request.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.leases(), 1);
    fake.release_revocations();
    no_lease_is_left(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn an_unawaited_revocation_goes_on() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let lease = etcd.grant_lease(LONG_TTL).await.unwrap();
    drop(tokio::time::timeout(Duration::ZERO, lease.revoke()).await);
    no_lease_is_left(&fake).await;
    drop(etcd.grant_lease(LONG_TTL).await.unwrap());
    no_lease_is_left(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_grant_leaves_no_lease() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    for polls in 0..8 {
        let mut granting = Box::pin(etcd.grant_lease(LONG_TTL));
        for _ in 0..polls {
            tokio::select! {
                biased;
                _ = &mut granting => break,
                () = tokio::task::yield_now() => {}
            }
        }
        drop(granting);
        // The client still answers, and has already revoked the lease of the dropped grant.
        drop(soon("granted", etcd.grant_lease(LONG_TTL)).await.unwrap());
        no_lease_is_left(&fake).await;
    }
}

/// A lease keeps its session alive: it is renewed after the client is dropped.
#[tokio::test(start_paused = true)]
async fn a_lease_outlives_the_client_that_granted_it() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let lease = etcd.grant_lease(Duration::from_secs(15)).await.unwrap();
    drop(etcd);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(lease.is_alive() && fake.requests().renewals >= 10, "{:?}", fake.requests());
    soon("revoked", lease.revoke()).await.unwrap();
    assert_eq!(fake.leases(), 0);
}

/// The client is closed before any of its tasks has run.
#[tokio::test(start_paused = true)]
async fn a_close_does_not_revoke_abandoned_leases() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let lease = etcd.grant_lease(LONG_TTL).await.unwrap();
    let kept = lease.id();
    drop(etcd.grant_lease(LONG_TTL).await.unwrap());
    lease.abandon();
    soon("closed", etcd.close()).await.unwrap();
    assert_eq!(fake.lease_ids(), [kept.get()]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_lease_is_revoked_after_an_outage() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let lease = etcd.grant_lease(LONG_TTL).await.unwrap();
    fake.hold_revocations();
    drop(lease);
    // Longer than the timeout of a request.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.leases(), 1);
    fake.release_revocations();
    no_lease_is_left(&fake).await;
}
