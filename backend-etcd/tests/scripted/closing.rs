//! The close of a session with instances on given leases.

use std::time::Duration;

use enlist::{Error, LeaseChoice, LeaseId, RegisterOptions, Registration, Resolver};
use enlist_etcd::Etcd;
use enlist_testkit::{FakeEtcd, eventually};
use futures::FutureExt;
use tokio::time::Instant;

use crate::support::{
    scripted::{client, register},
    service,
};

const KEYS: &[u8] = b"enlist/services/default/svc/";

/// Options of an instance on this lease.
fn on(lease: LeaseChoice) -> RegisterOptions {
    RegisterOptions::new().lease(lease)
}

/// A client with an instance on another client's lease.
async fn with_a_given_lease(fake: &FakeEtcd) -> (Etcd, Etcd, [Registration; 2]) {
    let (keeper, etcd) = (client(fake), client(fake));
    let kept = register(&keeper, "kept", on(LeaseChoice::Shared)).await;
    let given = LeaseId::new(fake.lease_ids()[0]);
    let registration = register(&etcd, "given", on(LeaseChoice::Given(given))).await;
    assert_eq!((fake.under(KEYS).len(), fake.leases()), (2, 1));
    (keeper, etcd, [kept, registration])
}

#[tokio::test(start_paused = true)]
async fn a_close_without_an_answer_ends_in_time() {
    let fake = FakeEtcd::start();
    let (_keeper, etcd, _registrations) = with_a_given_lease(&fake).await;
    fake.freeze();
    let begun = Instant::now();
    etcd.close().await.unwrap();
    assert!(begun.elapsed() <= Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(matches!(etcd.resolve(&service()).await, Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_close_still_ends_the_session() {
    let fake = FakeEtcd::start();
    let (_keeper, etcd, _registrations) = with_a_given_lease(&fake).await;
    fake.freeze();
    assert!(etcd.close().now_or_never().is_none());
    fake.thaw();
    assert!(matches!(etcd.resolve(&service()).await, Err(Error::Closed)));
    // Its tasks have stopped: a second close has nothing to wait for.
    let begun = Instant::now();
    etcd.close().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// Instances dropped before are still being removed.
#[tokio::test(start_paused = true)]
async fn a_close_waits_for_what_was_dropped_before() {
    let fake = FakeEtcd::start();
    let (_keeper, etcd, [_kept, registration]) = with_a_given_lease(&fake).await;
    drop(registration);
    etcd.close().await.unwrap();
    assert_eq!(fake.under(KEYS).len(), 1);
    eventually("the other one stays", || async { if fake.leases() == 1 { Ok(()) } else { Err(fake.leases()) } }).await;
}

/// The client is closed before any of its tasks has run.
#[tokio::test(start_paused = true)]
async fn an_abandoned_own_lease_outlives_a_close() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let abandoned = register(&etcd, "abandoned", on(LeaseChoice::Own)).await;
    let [lease] = fake.lease_ids()[..] else { panic!("{:?}", fake.lease_ids()) };
    let _kept = register(&etcd, "kept", on(LeaseChoice::Own)).await;
    assert_eq!(fake.under(KEYS).len(), 2);
    abandoned.abandon();
    etcd.close().await.unwrap();
    assert_eq!((fake.under(KEYS).len(), fake.lease_ids()), (1, vec![lease]));
}
