//! Writes that are applied long after they were given up, as by a member that is frozen and resumes after another
//! member has answered every request. Elapsed time does not make them harmless; the end of their lease does. A scripted
//! etcd under a paused clock applies them when every plausible client timeout has passed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{
    Counter, Deregistered, Error, LeaseChoice, LeaseId, Lock, LockName, LockOptions, OnConflict, OnDelete,
    RegisterOptions, Registration, RegistrationState, Registry, Released, Start,
};
use enlist_etcd::{Etcd, GobaseLock, lock_condition};
use enlist_testkit::{FakeEtcd, LateWrite, Misbehavior, eventually, soon};
use etcd_client::{Channel, Client, Txn, TxnOp};

use crate::support::{
    instance,
    scripted::{builder, client, live_tasks, no_lease_is_left},
    service,
};

/// Number of lost acquisitions, whose queue entries share one lease.
const LOST: usize = 250;

const SERVICES: &[u8] = b"enlist/services/";
const LOCKS: &[u8] = b"enlist/locks/default/l/";

/// Number of requests that are refused at most. A repetition without a pause would never end under a paused clock.
const REFUSALS: usize = 1000;

/// Delay of the late write: longer than any request, and than etcd's own limit.
const LATE: Duration = Duration::from_secs(30);

fn key(id: &str) -> String {
    format!("enlist/services/default/svc/{id}")
}

fn ids(fake: &FakeEtcd) -> Vec<String> {
    let id = |(key, _): (Vec<u8>, Vec<u8>)| String::from_utf8_lossy(&key).rsplit('/').next().unwrap().to_owned();
    fake.under(SERVICES).into_iter().map(id).collect()
}

async fn begin(etcd: &Etcd, id: &str, options: RegisterOptions) -> Registration {
    etcd.register(&service(), instance(id), options.start(Start::Background)).await.unwrap()
}

/// Waits until the first attempt has failed without a response.
async fn unanswered(registration: &Registration) {
    eventually("the first attempt has failed", || async {
        match registration.state() {
            RegistrationState::Registering { last: Some(Error::Unavailable(_)) } => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

async fn registered(registration: &Registration) {
    eventually("it is registered", || async {
        match registration.state() {
            RegistrationState::Registered { .. } => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// Registers `theirs` under a lease of its own, the only one in the store.
async fn with_own_lease(fake: &FakeEtcd, etcd: &Etcd) -> (Registration, LeaseId) {
    let own = RegisterOptions::new().lease(LeaseChoice::Own);
    let theirs = soon("registered", etcd.register(&service(), instance("theirs"), own)).await.unwrap();
    (theirs, LeaseId::new(fake.lease_ids()[0]))
}

/// Waits until `theirs` is the only instance in the store.
async fn undone(fake: &FakeEtcd) {
    eventually("it is undone", || async { if ids(fake) == ["theirs"] { Ok(()) } else { Err(ids(fake)) } }).await;
}

/// Waits until the late write was applied or refused; returns `true` if it was applied.
async fn late_write(fake: &FakeEtcd) -> bool {
    let mut seen = Vec::new();
    let arrived = async {
        while seen.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            seen = fake.late_writes();
        }
    };
    tokio::time::timeout(LATE * 2, arrived).await.expect("the late write comes");
    match &seen[..] {
        [Ok(outcome)] => *outcome == LateWrite::Applied,
        [Err(refused)] => {
            assert!(refused.message().contains("lease not found"), "{refused:?}");
            false
        }
        other => panic!("one late write: {other:?}"),
    }
}

/// Waits for a condition that takes longer than the usual limit of tests.
async fn eventually_within<S: std::fmt::Debug>(limit: Duration, what: &str, look: impl Fn() -> Result<(), S>) {
    let looked = async {
        while look().is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(limit, looked).await.is_ok();
    assert!(in_time, "not within {limit:?}: {what}; last seen: {:?}", look());
}

#[tokio::test(start_paused = true)]
async fn a_creation_after_its_removal_is_refused() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let keeper =
        soon("registered", etcd.register(&service(), instance("keeper"), RegisterOptions::new())).await.unwrap();
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let late = begin(&etcd, "late", RegisterOptions::new()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The registration is given up while its write is under way.
    assert_eq!(late.deregister().await.unwrap(), Deregistered::AlreadyGone);
    assert!(!late_write(&fake).await, "nothing is done under a lease that is revoked");
    assert_eq!(ids(&fake), ["keeper"]);
    assert!(matches!(keeper.state(), RegistrationState::Registered { .. }), "{:?}", keeper.state());
    assert_eq!(fake.leases(), 1, "the others have moved to another lease");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_creation_moves_to_another_lease() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let keeper =
        soon("registered", etcd.register(&service(), instance("keeper"), RegisterOptions::new())).await.unwrap();
    let before = fake.under(SERVICES);
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let late = begin(&etcd, "late", RegisterOptions::new()).await;
    unanswered(&late).await;
    registered(&late).await;
    assert!(!late_write(&fake).await);
    assert_eq!(ids(&fake), ["keeper", "late"]);
    assert_eq!(fake.under(SERVICES)[0], before[0], "moved in place, never absent");
    assert_eq!(late.deregister().await.unwrap(), Deregistered::Removed);
    assert_eq!(keeper.deregister().await.unwrap(), Deregistered::Removed);
}

#[tokio::test(start_paused = true)]
async fn a_late_creation_under_given_leases_is_undone() {
    let fake = FakeEtcd::start();
    let (etcd, other) = (client(&fake), client(&fake));
    let (_theirs, lease) = with_own_lease(&fake, &other).await;
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let late = begin(&etcd, "late", RegisterOptions::new().lease(LeaseChoice::Given(lease))).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(late.deregister().await.unwrap(), Deregistered::LeftBehind);
    assert!(late_write(&fake).await, "a given lease is not ended");
    undone(&fake).await;
    // The search ends with the lease.
    fake.revoke_all();
    tokio::time::sleep(Duration::from_secs(60)).await;
    fake.reset_requests();
    fake.put(key("late"), "whatever");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(ids(&fake).contains(&"late".to_owned()), "a later one is not its own");
}

#[tokio::test(start_paused = true)]
async fn an_id_is_free_before_late_creations_end() {
    let fake = FakeEtcd::start();
    let (etcd, other) = (client(&fake), client(&fake));
    let (_theirs, lease) = with_own_lease(&fake, &other).await;
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let late = begin(&etcd, "late", RegisterOptions::new().lease(LeaseChoice::Given(lease))).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(late.deregister().await.unwrap(), Deregistered::LeftBehind);
    // Once under the shared lease, and once under the given lease with a pending late creation of the same id.
    for options in [RegisterOptions::new(), RegisterOptions::new().lease(LeaseChoice::Given(lease))] {
        let again = soon("registered", etcd.register(&service(), instance("late"), options)).await.unwrap();
        assert!(fake.late_writes().is_empty(), "it may still be done");
        let before = fake.under(SERVICES);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(fake.under(SERVICES), before);
        assert_eq!(again.deregister().await.unwrap(), Deregistered::Removed);
    }
    assert!(late_write(&fake).await, "a given lease is not ended");
    undone(&fake).await;
}

/// A removal that only awaits proof reads at a slow pace, whatever the key's state.
#[tokio::test(start_paused = true)]
async fn a_removal_awaiting_proof_reads_slowly() {
    for replaced in [false, true] {
        let fake = FakeEtcd::start();
        let (etcd, other) = (client(&fake), client(&fake));
        let (_theirs, lease) = with_own_lease(&fake, &other).await;
        fake.misbehave(Misbehavior::LateTxn(Duration::from_secs(3600)));
        let late = begin(&etcd, "late", RegisterOptions::new().lease(LeaseChoice::Given(lease))).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(late.deregister().await.unwrap(), Deregistered::LeftBehind);
        if replaced {
            fake.put(key("late"), r#"{"v":1,"id":"late","endpoints":["10.9.9.9:1"]}"#);
        }
        tokio::time::sleep(Duration::from_secs(20)).await;
        fake.reset_requests();
        tokio::time::sleep(Duration::from_secs(600)).await;
        let reads = fake.requests().ranges;
        // One read by the removal every 10–12.5 s; no request probes the age of the other registration.
        assert!((40..=70).contains(&reads), "{reads} reads in ten minutes, replaced: {replaced}");
    }
}

/// Two creations under one lease, both of unknown outcome, while another registration keeps that lease. The second one
/// to check finds the lease retired and the registration moved off it.
#[tokio::test(start_paused = true)]
async fn both_lost_creations_under_one_lease_stay_gone() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let holder = soon("registered", etcd.register(&service(), instance("s"), RegisterOptions::new())).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    fake.put(key("s"), r#"{"v":1,"id":"s","endpoints":["10.9.9.9:1"]}"#);
    eventually("superseded", || async {
        let state = holder.state();
        if matches!(state, RegistrationState::Superseded { .. }) { Ok(()) } else { Err(state) }
    })
    .await;
    let late = Duration::from_secs(8);
    fake.misbehave(Misbehavior::LateTxn(late));
    fake.misbehave(Misbehavior::LateTxn(late));
    let one = begin(&etcd, "one", RegisterOptions::new()).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let two = begin(&etcd, "two", RegisterOptions::new()).await;
    registered(&one).await;
    registered(&two).await;
    let (one, two) = tokio::join!(one.deregister(), two.deregister());
    let (mut left, ended) = (Vec::new(), [("one", one.unwrap()), ("two", two.unwrap())]);
    while fake.late_writes().len() < 2 || left.len() < 1000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        left.push(ids(&fake));
    }
    for (id, ended) in ended {
        let back = left.iter().any(|ids| ids.iter().any(|back| back == id));
        assert!(ended == Deregistered::LeftBehind || !back, "{id} is back after {ended:?}");
    }
    eventually("both are gone", || async { if ids(&fake) == ["s"] { Ok(()) } else { Err(ids(&fake)) } }).await;
}

/// Loses the creation of a registration on the shared lease. The lease is revoked soon, and the id is free again.
async fn a_lost_creation_is_settled_soon(fake: &FakeEtcd, etcd: &Etcd) {
    tokio::time::sleep(Duration::from_secs(60)).await;
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let late = begin(etcd, "late", RegisterOptions::new()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(late.deregister().await.unwrap(), Deregistered::AlreadyGone, "its lease is revoked by then");
    assert!(!late_write(fake).await);
    let again = soon("registered", etcd.register(&service(), instance("late"), RegisterOptions::new())).await;
    drop(again.unwrap());
}

#[tokio::test(start_paused = true)]
async fn waiting_for_an_id_keeps_no_retired_lease() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    fake.put(key("theirs"), r#"{"v":1,"id":"theirs","endpoints":["10.9.9.9:1"]}"#);
    // One waits, and one retries at a slow pace.
    let _waits = begin(&etcd, "theirs", RegisterOptions::new().on_conflict(OnConflict::Wait)).await;
    fake.put(key("other"), r#"{"v":1,"id":"other","endpoints":["10.9.9.9:1"]}"#);
    let _refused = begin(&etcd, "other", RegisterOptions::new()).await;
    a_lost_creation_is_settled_soon(&fake, &etcd).await;
}

#[tokio::test(start_paused = true)]
async fn a_superseded_registration_keeps_no_retired_lease() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let _superseded =
        soon("registered", etcd.register(&service(), instance("a"), RegisterOptions::new())).await.unwrap();
    fake.put(key("a"), r#"{"v":1,"id":"a","endpoints":["10.9.9.9:1"]}"#);
    a_lost_creation_is_settled_soon(&fake, &etcd).await;
}

#[tokio::test(start_paused = true)]
async fn a_displaced_registration_keeps_no_retired_lease() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let options = || RegisterOptions::new().owner("me");
    let _older = soon("registered", etcd.register(&service(), instance("a"), options())).await.unwrap();
    let _newer = soon("registered", etcd.register(&service(), instance("a"), options())).await.unwrap();
    a_lost_creation_is_settled_soon(&fake, &etcd).await;
}

#[tokio::test(start_paused = true)]
async fn a_late_replacement_leaves_the_other_instance_alone() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let theirs = r#"{"v":1,"id":"a","endpoints":["10.9.9.9:1"]}"#;
    fake.put(key("a"), theirs);
    let _keeper = soon("registered", etcd.register(&service(), instance("b"), RegisterOptions::new())).await.unwrap();
    // Its creation is refused; the next write takes over.
    let takes = RegisterOptions::new().on_conflict(OnConflict::TakeOver);
    let background = begin(&etcd, "a", takes).await;
    fake.misbehave(Misbehavior::LateTxn(LATE));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ended = background.deregister().await.unwrap();
    assert_eq!(ended, Deregistered::AlreadyGone);
    assert!(!late_write(&fake).await);
    assert_eq!(fake.under(key("a").as_bytes()), [(key("a").into_bytes(), theirs.as_bytes().to_vec())]);
}

#[tokio::test(start_paused = true)]
async fn a_late_creation_does_not_restore_fixed_instances() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let published = soon("answered", etcd.publish(&service(), instance("a"))).await;
    assert!(matches!(published, Err(Error::Unavailable(_))), "{published:?}");
    let removed = etcd.remove(&service(), instance("a").id()).await;
    assert!(matches!(removed, Err(Error::NotRegistered { .. })), "{removed:?}");
    assert!(!late_write(&fake).await);
    assert!(ids(&fake).is_empty());
    // If applied in time, it outlives its lease.
    soon("published", etcd.publish(&service(), instance("a"))).await.unwrap();
    eventually("no lease is left", || async { if fake.leases() == 0 { Ok(()) } else { Err(fake.leases()) } }).await;
    assert_eq!(ids(&fake), ["a"]);
}

/// Publishes an instance whose key is created, but not detached from its lease before the call is given up. The
/// revocation of that lease takes longer than a request's timeout.
async fn publish_without_detaching(fake: &FakeEtcd, etcd: &Etcd) {
    fake.hold_revocations();
    fake.misbehave(Misbehavior::LateTxn(Duration::ZERO));
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let published = etcd.publish(&service(), instance("a")).await;
    assert!(matches!(published, Err(Error::Unavailable(_))), "{published:?}");
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!((ids(fake), fake.leases()), (vec!["a".to_owned()], 1), "it is under its lease yet");
}

async fn no_unrevoked_lease_is_left(fake: &FakeEtcd) {
    fake.release_revocations();
    no_lease_is_left(fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_repeated_publish_continues_an_undetached_instance() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    publish_without_detaching(&fake, &etcd).await;
    soon("published", etcd.publish(&service(), instance("a"))).await.unwrap();
    no_unrevoked_lease_is_left(&fake).await;
    tokio::time::sleep(LATE).await;
    assert!(
        matches!(fake.late_writes()[..], [Ok(LateWrite::Applied), Ok(LateWrite::Refused)]),
        "{:?}",
        fake.late_writes()
    );
    assert_eq!(ids(&fake), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn an_undetached_fixed_instance_can_be_removed() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    publish_without_detaching(&fake, &etcd).await;
    soon("removed", etcd.remove(&service(), instance("a").id())).await.unwrap();
    assert!(ids(&fake).is_empty());
    no_unrevoked_lease_is_left(&fake).await;
    tokio::time::sleep(LATE).await;
    assert!(
        matches!(fake.late_writes()[..], [Ok(LateWrite::Applied), Ok(LateWrite::Refused)]),
        "{:?}",
        fake.late_writes()
    );
    assert!(ids(&fake).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_publish_creates_nothing_late() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    fake.hold_revocations();
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let given_up = tokio::time::timeout(Duration::from_secs(1), etcd.publish(&service(), instance("a"))).await;
    assert!(given_up.is_err(), "{given_up:?}");
    tokio::time::sleep(Duration::from_secs(7)).await;
    no_unrevoked_lease_is_left(&fake).await;
    assert!(!late_write(&fake).await, "its lease is revoked");
    assert!(ids(&fake).is_empty());
}

/// Another process cannot distinguish such a key from that of a live instance.
#[tokio::test(start_paused = true)]
async fn an_undetached_instance_of_others_is_left_alone() {
    let fake = FakeEtcd::start();
    let (etcd, other) = (client(&fake), client(&fake));
    publish_without_detaching(&fake, &etcd).await;
    let refused = soon("refused", other.publish(&service(), instance("a"))).await;
    assert!(matches!(refused, Err(Error::NotOwner { .. })), "{refused:?}");
    no_unrevoked_lease_is_left(&fake).await;
    soon("published", other.publish(&service(), instance("a"))).await.unwrap();
}

/// Either order of the two calls is valid; neither is refused as another owner's instance.
#[tokio::test(start_paused = true)]
async fn concurrent_publishes_are_not_mistaken_for_live_instances() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let service = service();
    // The first one is created but not yet detached when the second one arrives.
    fake.misbehave(Misbehavior::LateTxn(Duration::ZERO));
    fake.misbehave(Misbehavior::LateTxn(Duration::from_secs(1)));
    let second = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        etcd.publish(&service, instance("a")).await
    };
    let (first, second) = tokio::join!(etcd.publish(&service, instance("a")), second);
    assert!(second.is_ok(), "{second:?}");
    assert!(matches!(first, Err(Error::Conflict { .. })), "{first:?}");
    no_unrevoked_lease_is_left(&fake).await;
    assert_eq!(ids(&fake), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_late_queue_entry_is_removed_on_sight() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let (name, other) = (LockName::parse("l").unwrap(), LockName::parse("other").unwrap());
    // The lease of both stays while this lock is held.
    let held = soon("acquired", etcd.acquire(&other, LockOptions::new())).await.unwrap();
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let given_up = etcd.acquire(&name, LockOptions::new().deadline(Duration::from_secs(1))).await;
    assert!(matches!(given_up, Err(Error::Timeout { .. })), "{given_up:?}");
    assert!(late_write(&fake).await, "its lease lives, so it is done");
    eventually("the entry is removed", || async {
        let entries = fake.under(LOCKS);
        if entries.is_empty() { Ok(()) } else { Err(entries) }
    })
    .await;
    let stranger = client(&fake);
    let guard = soon("acquired", stranger.acquire(&name, LockOptions::new())).await.unwrap();
    assert!(held.is_held());
    guard.release().await.unwrap();
    held.release().await.unwrap();
    eventually("its lease is revoked", || async { if fake.leases() == 1 { Ok(()) } else { Err(fake.leases()) } }).await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_entry_makes_contenders_join_again() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let (name, other) = (LockName::parse("l").unwrap(), LockName::parse("other").unwrap());
    let held = soon("acquired", etcd.acquire(&other, LockOptions::new())).await.unwrap();
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let guard = soon("acquired", etcd.acquire(&name, LockOptions::new())).await.unwrap();
    assert!(late_write(&fake).await);
    eventually("the late entry is removed", || async {
        let entries = fake.under(LOCKS);
        if entries.len() == 1 { Ok(()) } else { Err(entries) }
    })
    .await;
    assert!(guard.is_held() && held.is_held());
    guard.release().await.unwrap();
    assert!(fake.under(LOCKS).is_empty());
}

/// The entry is created, and the list of its predecessors fails. The next request is executed after the release.
#[tokio::test(start_paused = true)]
async fn a_created_entry_is_not_created_again() {
    let fake = FakeEtcd::start();
    let (etcd, stranger) = (client(&fake), client(&fake));
    let (name, other) = (LockName::parse("l").unwrap(), LockName::parse("other").unwrap());
    // The lease stays while this lock is held.
    let held = soon("acquired", etcd.acquire(&other, LockOptions::new())).await.unwrap();
    let before = soon("acquired", stranger.acquire(&name, LockOptions::new())).await.unwrap();
    fake.misbehave(Misbehavior::NoList);
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let acquire = etcd.acquire(&name, LockOptions::new().shared());
    let waits = async {
        let repeated = || async { if fake.has_misbehaved() { Ok(()) } else { Err("not yet") } };
        eventually("its position is read again", repeated).await;
        before.release().await.unwrap();
    };
    let (guard, ()) = soon("acquired", async { tokio::join!(acquire, waits) }).await;
    guard.unwrap().release().await.unwrap();
    assert!(!late_write(&fake).await, "the entry is gone, so the late write is refused");
    assert_eq!(fake.under(LOCKS), []);
    held.release().await.unwrap();
}

/// gobase's lock has one key for all contenders. A creation that was given up does not affect another holder's lock,
/// whether it is applied or not, and is undone if it is applied.
#[tokio::test(start_paused = true)]
async fn a_lost_gobase_creation_leaves_other_holders_alone() {
    const KEY: &[u8] = b"job";
    for (waits, revoked) in [(false, true), (true, true), (true, false)] {
        let fake = FakeEtcd::start();
        let client = || {
            let builder = builder(&fake);
            builder.lock_layout(GobaseLock).build().unwrap()
        };
        let (etcd, stranger) = (client(), client());
        let name = LockName::parse("job").unwrap();
        if !revoked {
            fake.hold_revocations();
        }
        fake.misbehave(Misbehavior::LateTxn(LATE));
        // An attempt with a short deadline ends at the first lost response; one that waits looks for its key and finds
        // the other client's.
        let limit = Duration::from_secs(if waits { 20 } else { 1 });
        let acquiring = etcd.acquire(&name, LockOptions::new().deadline(limit));
        let taking = async {
            eventually("the creation is under way", || async { if fake.has_misbehaved() { Ok(()) } else { Err(()) } })
                .await;
            stranger.acquire(&name, LockOptions::new()).await.unwrap()
        };
        let (given_up, held) = tokio::join!(acquiring, taking);
        assert!(matches!(given_up, Err(Error::Timeout { .. })), "{given_up:?}");
        assert_eq!(fake.under(KEY).len(), 1);
        assert!(held.is_held());
        if revoked {
            assert!(!late_write(&fake).await, "the key is there, or the lease is revoked");
            assert!(held.is_held());
            held.release().await.unwrap();
            assert!(fake.under(KEY).is_empty());
            continue;
        }
        // Its lease cannot be revoked, and the key is free when the creation is applied.
        held.release().await.unwrap();
        assert!(late_write(&fake).await, "its lease lives, so it is done");
        eventually("it is undone", || async {
            let keys = fake.under(KEY);
            if keys.is_empty() { Ok(()) } else { Err(keys) }
        })
        .await;
        let held = soon("acquired", stranger.acquire(&name, LockOptions::new())).await.unwrap();
        fake.release_revocations();
        tokio::time::sleep(LATE).await;
        assert!(held.is_held());
        held.release().await.unwrap();
    }
}

/// After a wipe, another client's key can have the revision that the former holder's key had.
#[tokio::test(start_paused = true)]
async fn a_former_gobase_holder_removes_its_key_only() {
    const KEY: &[u8] = b"job";
    let fake = FakeEtcd::start();
    let etcd = builder(&fake).lock_layout(GobaseLock).build().unwrap();
    let former = soon("acquired", etcd.acquire(&LockName::parse("job").unwrap(), LockOptions::new())).await.unwrap();
    let (created, condition) = (fake.revision(), lock_condition(&former).unwrap());
    fake.wipe();
    fake.put_under(KEY, "another's", 7);
    assert_eq!(fake.revision(), created);
    soon("the loss", former.lost()).await;
    assert_eq!(soon("given up", former.release()).await.unwrap(), Released::AlreadyLost);
    assert_eq!(fake.under(KEY), [(KEY.to_vec(), b"another's".to_vec())]);
    let mut client = Client::from_channel(Channel::Tonic(fake.channel()), None).await.unwrap();
    let written = client.txn(Txn::new().when([condition]).and_then([TxnOp::put("result", "", None)])).await.unwrap();
    assert!(!written.succeeded(), "its condition no longer holds");
}

/// Returns the number of requests in ten minutes, excluding renewals.
async fn requests_in_ten_minutes(fake: &FakeEtcd) -> usize {
    fake.reset_requests();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let requests = fake.requests();
    requests.ranges + requests.txns + requests.lease_questions + requests.watches
}

#[tokio::test(start_paused = true)]
async fn lost_acquisitions_under_one_lease_are_searched_together() {
    const VERY_LATE: Duration = Duration::from_secs(1800);
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let other = LockName::parse("other").unwrap();
    // The lease of all stays while this lock is held.
    let held = soon("acquired", etcd.acquire(&other, LockOptions::new())).await.unwrap();
    let usual = requests_in_ten_minutes(&fake).await;
    let before = live_tasks();
    // The creations are sent in four transactions.
    for _ in 0..4 {
        fake.misbehave(Misbehavior::LateTxn(VERY_LATE));
    }
    let acquisitions = (0..LOST).map(|number| {
        let etcd = etcd.clone();
        async move {
            let name = LockName::parse(format!("l{number}")).unwrap();
            etcd.acquire(&name, LockOptions::new().deadline(Duration::from_secs(1))).await.is_ok()
        }
    });
    assert!(futures::future::join_all(acquisitions).await.iter().all(|acquired| !acquired));
    assert!(fake.has_misbehaved());
    tokio::time::sleep(Duration::from_secs(600)).await;
    let requests = requests_in_ten_minutes(&fake).await;
    let more = live_tasks() - before;
    println!("{more} tasks, {requests} requests in ten minutes");
    assert!(more <= 60, "{more} tasks, those of the fake and its late transactions included");
    assert!(requests <= 120, "{requests} requests in ten minutes");
    assert_eq!(fake.late_writes().len(), 0);
    eventually_within(VERY_LATE, "all were created, and removed", || {
        let left = fake.under(b"enlist/locks/").len();
        if fake.late_writes().len() == 4 && left == 1 { Ok(()) } else { Err(left) }
    })
    .await;
    assert!(fake.late_writes().iter().all(|late| matches!(late, Ok(LateWrite::Applied))), "{:?}", fake.late_writes());
    // Each late creation is applied once: no search remains, although the lease lives.
    let requests = requests_in_ten_minutes(&fake).await;
    assert!(
        requests <= usual + 1 && live_tasks() == before,
        "{requests} and {usual} requests, {} and {before} tasks",
        live_tasks()
    );
    assert!(held.is_held());
    held.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unnoticed_first_claim_leaves_newer_registrations_alone() {
    let fake = FakeEtcd::start();
    let (etcd, other) = (client(&fake), client(&fake));
    let options = || RegisterOptions::new().owner("me");
    // Both have a lease.
    let (one, two) = (instance("one"), instance("two"));
    let _one = soon("registered", etcd.register(&service(), one, RegisterOptions::new())).await.unwrap();
    let _two = soon("registered", other.register(&service(), two, RegisterOptions::new())).await.unwrap();
    // Applied just after its caller has given up.
    fake.misbehave(Misbehavior::LateTxn(Duration::from_millis(5_001)));
    let older = begin(&etcd, "a", options()).await;
    while fake.late_writes().is_empty() {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    let newer = soon("registered", other.register(&service(), instance("a"), options())).await.unwrap();
    assert!(matches!(fake.late_writes()[..], [Ok(LateWrite::Applied)]), "{:?}", fake.late_writes());
    eventually("the older one has seen it", || async {
        let state = older.state();
        if matches!(state, RegistrationState::Refused { .. }) { Ok(()) } else { Err(state) }
    })
    .await;
    let before = fake.under(key("a").as_bytes());
    assert_eq!(soon("deregistered", older.deregister()).await.unwrap(), Deregistered::AlreadyGone);
    assert_eq!(fake.under(key("a").as_bytes()), before);
    assert!(matches!(newer.state(), RegistrationState::Registered { .. }));
}

/// The move of the other registration off the lease is not answered for a while, so the lease is not yet revoked when
/// the late write arrives.
#[tokio::test(start_paused = true)]
async fn a_late_creation_before_the_revocation_is_undone() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let keeper =
        soon("registered", etcd.register(&service(), instance("keeper"), RegisterOptions::new())).await.unwrap();
    fake.misbehave(Misbehavior::LateTxn(Duration::from_secs(8)));
    fake.misbehave(Misbehavior::LateTxn(Duration::from_secs(60)));
    let late = begin(&etcd, "late", RegisterOptions::new()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(late.deregister().await.unwrap(), Deregistered::LeftBehind);
    assert!(late_write(&fake).await, "its lease is there still");
    eventually("it is undone", || async { if ids(&fake) == ["keeper"] { Ok(()) } else { Err(ids(&fake)) } }).await;
    eventually("its lease is revoked", || async { if fake.leases() == 1 { Ok(()) } else { Err(fake.leases()) } }).await;
    registered(&keeper).await;
}

#[tokio::test(start_paused = true)]
async fn a_late_creation_after_an_eviction_is_undone() {
    let fake = FakeEtcd::start();
    let (etcd, other) = (client(&fake), client(&fake));
    let (_theirs, lease) = with_own_lease(&fake, &other).await;
    let given = LeaseChoice::Given(lease);
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let evicted = begin(&etcd, "a", RegisterOptions::new().lease(given).on_delete(OnDelete::Respect)).await;
    registered(&evicted).await;
    fake.delete(key("a").as_bytes());
    eventually("it ends", || async {
        let state = evicted.state();
        if matches!(state, RegistrationState::Ended) { Ok(()) } else { Err(state) }
    })
    .await;
    assert!(late_write(&fake).await, "a given lease is not ended");
    undone(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_removal_with_late_answers_reports_in_time() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let a = soon("registered", etcd.register(&service(), instance("a"), RegisterOptions::new())).await.unwrap();
    // The draining mark and the removal.
    for _ in 0..2 {
        fake.misbehave(Misbehavior::LateTxn(Duration::from_millis(4900)));
    }
    let begun = tokio::time::Instant::now();
    assert_eq!(a.deregister().await.unwrap(), Deregistered::LeftBehind);
    assert!(begun.elapsed() <= Duration::from_millis(3100), "{:?}", begun.elapsed());
    eventually("it is gone", || async { if ids(&fake).is_empty() { Ok(()) } else { Err(ids(&fake)) } }).await;
}

/// The creation is not answered, its lease is lost, and then etcd is unreachable, so no other lease is granted.
#[tokio::test(start_paused = true)]
async fn creations_under_lost_leases_repeat_slowly() {
    let fake = FakeEtcd::start();
    let refusals = Arc::new(AtomicUsize::new(0));
    let left = Arc::clone(&refusals);
    let refuse = move |request: tonic::Request<()>| {
        let refused = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if refused { Err(tonic::Status::unavailable("refused")) } else { Ok(request) }
    };
    let etcd = builder(&fake).layer(tonic::service::InterceptorLayer::new(refuse)).build().unwrap();
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let a = begin(&etcd, "a", RegisterOptions::new().ttl(Duration::from_secs(3))).await;
    eventually("the creation is under way", || async { fake.has_misbehaved().then_some(()).ok_or(()) }).await;
    fake.revoke_all();
    eventually("the lease is lost", || async {
        let losses = etcd.counters().get(Counter::LeaseLosses);
        if losses == 1 { Ok(()) } else { Err(losses) }
    })
    .await;
    refusals.store(REFUSALS, Ordering::Relaxed);
    unanswered(&a).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let refused = REFUSALS - refusals.swap(0, Ordering::Relaxed);
    assert!((2..=100).contains(&refused), "{refused} requests in ten seconds");
    registered(&a).await;
    assert!(!late_write(&fake).await, "its lease is gone");
    assert_eq!(ids(&fake), ["a"]);
}
