//! A store that goes back to a snapshot while a session lives. `storage.rs` has the cases on a real etcd; this file has
//! orders of events that are rare there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{
    Deregistered, LeaseChoice, Lock, LockName, LockOptions, OnDelete, RegisterOptions, Registration, RegistrationState,
    Resolver, ServiceRef,
};
use enlist_etcd::{Etcd, SessionRuntime};
use enlist_testkit::{EtcdDefect, FakeEtcd, Link, Misbehavior, eventually, soon};
use tokio::time::Instant;

use crate::support::{
    PREFIX, register, register_with,
    scripted::{builder, put},
    service,
};

/// Longer than the age at which a key is watched, and than the timeout of a request.
const WHILE: Duration = Duration::from_secs(30);

/// Number of watches of a session.
const WATCHERS: usize = 20;

/// Interval of the audits.
const AUDIT: Duration = Duration::from_secs(600);

/// A session with a connection of its own, which a restart of the server ends.
fn client(fake: &FakeEtcd) -> (Etcd, Link) {
    let link = fake.link();
    (Etcd::from_channel(link.channel()).runtime(SessionRuntime::Caller).build().unwrap(), link)
}

fn has(fake: &FakeEtcd, id: &str) -> bool {
    let key = format!("{PREFIX}{id}");
    fake.under(PREFIX.as_bytes()).iter().any(|(found, _)| *found == key.as_bytes())
}

async fn present(fake: &FakeEtcd, id: &str) {
    eventually("the instance is there", || async { if has(fake, id) { Ok(()) } else { Err("absent") } }).await;
}

async fn absent(fake: &FakeEtcd, id: &str) {
    eventually("the instance is gone", || async { if has(fake, id) { Err("present") } else { Ok(()) } }).await;
}

/// Writes as another client until the store is at `revision`.
fn advance(fake: &FakeEtcd, revision: i64) {
    while fake.revision() < revision {
        fake.put("elsewhere", "x");
    }
}

/// The snapshot has the shared lease, which an earlier instance uses, but not the key. Other clients have written
/// since, so the revision does not reveal the restore.
#[tokio::test(start_paused = true)]
async fn a_registration_that_respects_deletion_survives_a_restore() {
    let fake = FakeEtcd::start();
    let (etcd, _) = client(&fake);
    let _earlier = register(&etcd, "earlier").await;
    let snapshot = fake.snapshot();
    let later = register_with(&etcd, "later", RegisterOptions::new().on_delete(OnDelete::Respect)).await;
    tokio::time::sleep(WHILE).await;
    let before = fake.revision();
    fake.restore(&snapshot);
    advance(&fake, before);
    present(&fake, "later").await;
    assert_eq!(soon("deregistered", later.deregister()).await.unwrap(), Deregistered::Removed);
}

async fn ended(registration: &Registration) {
    eventually("the deletion is respected", || async {
        match registration.state() {
            RegistrationState::Ended => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// Its lease is not shared, so the restore does not move it to another one.
#[tokio::test(start_paused = true)]
async fn a_deletion_after_a_noticed_restore_is_respected() {
    let fake = FakeEtcd::start();
    let (etcd, link) = client(&fake);
    let options = RegisterOptions::new().on_delete(OnDelete::Respect).lease(LeaseChoice::Own);
    let own = register_with(&etcd, "own", options).await;
    let leaves = register(&etcd, "leaves").await;
    tokio::time::sleep(WHILE).await;
    let snapshot = fake.snapshot();
    soon("deregistered", leaves.deregister()).await.unwrap();
    fake.restore(&snapshot);
    link.cut();
    absent(&fake, "leaves").await;
    tokio::time::sleep(WHILE).await;
    assert!(has(&fake, "own"));
    fake.delete(format!("{PREFIX}own").as_bytes());
    ended(&own).await;
    assert!(!has(&fake, "own"));
}

/// The key is read from another member, which has the deletion.
#[tokio::test(start_paused = true)]
async fn a_deletion_is_respected_when_a_member_lags() {
    let fake = FakeEtcd::start();
    let (etcd, _) = client(&fake);
    let registration = register_with(&etcd, "a", RegisterOptions::new().on_delete(OnDelete::Respect)).await;
    tokio::time::sleep(WHILE).await;
    fake.misbehave(Misbehavior::LaggingWatch(Duration::from_secs(10)));
    fake.delete(format!("{PREFIX}a").as_bytes());
    ended(&registration).await;
    assert!(fake.has_misbehaved() && !has(&fake, "a"));
}

/// Its only watch has seen nothing since the snapshot.
#[tokio::test(start_paused = true)]
async fn an_idle_session_notices_a_restore() {
    let fake = FakeEtcd::start();
    let (etcd, link) = client(&fake);
    let _earlier = register(&etcd, "earlier").await;
    let leaves = register(&etcd, "leaves").await;
    tokio::time::sleep(WHILE).await;
    let snapshot = fake.snapshot();
    soon("deregistered", leaves.deregister()).await.unwrap();
    fake.restore(&snapshot);
    link.cut();
    assert!(has(&fake, "leaves"), "the control: it is back");
    absent(&fake, "leaves").await;
    present(&fake, "earlier").await;
}

#[tokio::test(start_paused = true)]
async fn a_session_notices_each_of_two_restores() {
    let fake = FakeEtcd::start();
    let (etcd, link) = client(&fake);
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let _earlier = register(&etcd, "earlier").await;
    for _ in 0..2 {
        let leaves = register(&etcd, "leaves").await;
        while soon("a change", watcher.next()).await.unwrap().snapshot.len() < 2 {}
        let snapshot = fake.snapshot();
        soon("deregistered", leaves.deregister()).await.unwrap();
        while soon("a change", watcher.next()).await.unwrap().snapshot.len() != 1 {}
        // The proof of the restore takes longer than the opening of the next watch.
        fake.hold_revocations();
        fake.restore(&snapshot);
        link.cut();
        while soon("a change", watcher.next()).await.unwrap().snapshot.len() != 2 {}
        tokio::time::sleep(Duration::from_secs(1)).await;
        fake.release_revocations();
        absent(&fake, "leaves").await;
        present(&fake, "earlier").await;
        while soon("a change", watcher.next()).await.unwrap().snapshot.len() != 1 {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_is_noticed_without_waiting_for_revocations() {
    let fake = FakeEtcd::start();
    let (etcd, _) = client(&fake);
    let snapshot = fake.snapshot();
    fake.put("elsewhere", "x");
    let mut watchers = Vec::new();
    for number in 0..WATCHERS {
        let service = ServiceRef::parse(format!("svc-{number}")).unwrap();
        let mut watcher = etcd.watch(&service).await.unwrap();
        let first = soon("a list", watcher.next()).await.unwrap().snapshot.epoch();
        watchers.push((watcher, first));
    }
    tokio::time::sleep(WHILE).await;
    fake.hold_revocations();
    let before = Instant::now();
    fake.restore(&snapshot);
    for (watcher, first) in &mut watchers {
        while soon("the restore is noticed", watcher.next()).await.unwrap().snapshot.epoch() == *first {}
    }
    // The revocation of a lease is no part of the proof.
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    fake.release_revocations();
    eventually("the leases are revoked", || async {
        match fake.leases() {
            0 => Ok(()),
            leases => Err(leases),
        }
    })
    .await;
}

/// The reads are stale, so a write does not show that the store went back.
#[tokio::test(start_paused = true)]
async fn an_audit_after_stale_reads_is_repeated_soon() {
    let fake = FakeEtcd::start();
    let link = fake.link();
    let builder = Etcd::from_channel(link.channel()).runtime(SessionRuntime::Caller).probe(None);
    let etcd = builder.audit(Some(AUDIT)).build().unwrap();
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let snapshot = fake.snapshot();
    fake.put(format!("{PREFIX}lost"), r#"{"v":1,"id":"lost","endpoints":["h:1"]}"#);
    while soon("a change", watcher.next()).await.unwrap().snapshot.is_empty() {}
    tokio::time::sleep(WHILE).await;
    let (before, audited) = (fake.revision(), fake.requests().keys_only);
    fake.restore(&snapshot);
    fake.set_defect(EtcdDefect::StaleReads);
    advance(&fake, before);
    eventually("an audit", || async { if fake.requests().keys_only > audited { Ok(()) } else { Err("none") } }).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    fake.mend();
    let repaired = async { while !watcher.next().await.unwrap().snapshot.is_empty() {} };
    tokio::time::timeout(AUDIT / 10, repaired).await.expect("the audit is repeated soon");
}

/// Its watch was opened again before its session noticed the restore.
#[tokio::test(start_paused = true)]
async fn a_noticed_restore_causes_no_lasting_reads() {
    let fake = FakeEtcd::start();
    let builder = builder(&fake).audit(None).probe(None);
    let etcd = builder.build().unwrap();
    let snapshot = fake.snapshot();
    advance(&fake, fake.revision() + 5);
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let first = soon("a list", watcher.next()).await.unwrap().snapshot.epoch();
    tokio::time::sleep(WHILE).await;
    fake.restore(&snapshot);
    while soon("the restore is noticed", watcher.next()).await.unwrap().snapshot.epoch() == first {}
    tokio::time::sleep(WHILE).await;
    fake.reset_requests();
    for weight in 0..30 {
        let value = format!(r#"{{"v":1,"id":"a","endpoints":["h:1"],"weight":{weight}}}"#);
        fake.put(format!("{PREFIX}a"), value);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let reads = fake.requests().ranges;
    assert!(reads <= 2, "{reads} reads in a minute of events");
}

/// The registration ends before its session has noticed the restore.
#[tokio::test(start_paused = true)]
async fn a_deregistration_after_restores_removes_former_values() {
    let fake = FakeEtcd::start();
    let (etcd, _) = client(&fake);
    let registration = register(&etcd, "a").await;
    let snapshot = fake.snapshot();
    let update = registration.update(|update| {
        update.weight(2);
    });
    soon("stored", update).await.unwrap();
    fake.restore(&snapshot);
    assert_eq!(soon("deregistered", registration.deregister()).await.unwrap(), Deregistered::Removed);
    assert!(!has(&fake, "a"));
}

#[tokio::test(start_paused = true)]
async fn a_lock_lease_of_lost_history_is_revoked() {
    let fake = FakeEtcd::start();
    let (etcd, link) = client(&fake);
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let name = LockName::parse("l").unwrap();
    let guard = soon("acquired", etcd.acquire(&name, LockOptions::new())).await.unwrap();
    let snapshot = fake.snapshot();
    let _later = register(&etcd, "later").await;
    while soon("a change", watcher.next()).await.unwrap().snapshot.is_empty() {}
    fake.hold_revocations();
    fake.restore(&snapshot);
    link.cut();
    tokio::time::sleep(WHILE).await;
    fake.release_revocations();
    soon("a guard of the lost history is lost", guard.lost()).await;
}

/// No write shows that the store went back, because it has no space. There are no audits.
#[tokio::test(start_paused = true)]
async fn views_of_a_full_restored_store_are_fresh() {
    let (fake, full) = (FakeEtcd::start(), Arc::new(AtomicBool::new(false)));
    let is_full = Arc::clone(&full);
    let refuse = move |request: tonic::Request<()>| {
        let method = request.extensions().get().map(tonic::GrpcMethod::method);
        let writes = matches!(method, Some("LeaseGrant" | "Txn" | "Put"));
        if writes && is_full.load(Ordering::Relaxed) {
            return Err(tonic::Status::resource_exhausted("etcdserver: mvcc: database space exceeded"));
        }
        Ok(request)
    };
    let link = fake.link();
    let builder = Etcd::from_channel(link.channel()).runtime(SessionRuntime::Caller).audit(None);
    let etcd = builder.layer(tonic::service::InterceptorLayer::new(refuse)).build().unwrap();
    put(&fake, "a", 1);
    let snapshot = fake.snapshot();
    advance(&fake, 100);
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let first = soon("a list", watcher.next()).await.unwrap();
    full.store(true, Ordering::Relaxed);
    fake.restore(&snapshot);
    link.cut();
    let mut last = first.clone();
    while last.snapshot.epoch() == first.snapshot.epoch() || !last.freshness.is_live() {
        last = soon("the restore is noticed", watcher.next()).await.unwrap();
    }
    assert!(fake.revision() < 100 && last.snapshot.len() == 1, "{last:?}");
    tokio::time::sleep(WHILE).await;
    assert!(last.freshness.age() <= Duration::from_secs(10), "{:?}", last.freshness.age());
    advance(&fake, 90);
    put(&fake, "b", 1);
    last = soon("a change", watcher.next()).await.unwrap();
    tokio::time::sleep(WHILE).await;
    assert!(last.freshness.age() <= Duration::from_secs(10), "{:?}", last.freshness.age());
}
