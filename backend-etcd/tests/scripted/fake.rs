//! Faults that a real etcd cannot be made to show: a server that loses, repeats, reorders and invents events, under a
//! paused clock. Also behaviour that depends on timing: registrations returning together, and detection of a silent
//! watch.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use enlist::{
    Change, Counter, Deregistered, Directory, DirectoryOptions, Election, Endpoint, Error, Freshness, Instance,
    InstanceId, Lock, LockName, LockOptions, OnConflict, OnDelete, PickPolicy, RegisterOptions, Registration,
    RegistrationState, Registry, Resolver, Semaphore, ServiceRef, Snapshot, Start, Watcher,
};
use enlist_etcd::{Etcd, SessionRuntime};
use enlist_testkit::{FakeEtcd, Minority, Misbehavior, eventually, soon};
use futures::{FutureExt, future::join_all};
use tower::ServiceExt;

use crate::support::{
    PREFIX,
    scripted::{builder, put, register, shown, stored, value, watched},
    service,
};

const AUDIT: Duration = Duration::from_secs(60);

/// Additional time for an event that the watch never delivered to arrive after all.
const GRACE: Duration = Duration::from_secs(15);

fn client(fake: &FakeEtcd) -> Etcd {
    let builder = builder(fake);
    builder.audit(Some(AUDIT)).build().unwrap()
}

/// Reads changes until the view equals the store, and checks that each change's events are the difference from the last
/// snapshot.
async fn converged(fake: &FakeEtcd, watcher: &mut Box<dyn Watcher>, seen: &mut Snapshot) -> Change {
    let mut looking = async || loop {
        let change = watcher.next().await.unwrap();
        assert_eq!(change.events, change.snapshot.diff(seen), "the events are the difference");
        *seen = change.snapshot.clone();
        if shown(&change.snapshot) == stored(fake) && fake.has_misbehaved() {
            return change;
        }
    };
    // The clock is paused: an hour costs nothing and exceeds every audit interval.
    tokio::time::timeout(Duration::from_secs(3600), looking()).await.expect("the view becomes what is stored")
}

struct Watching {
    fake: FakeEtcd,
    etcd: Etcd,
    watcher: Box<dyn Watcher>,
    seen: Snapshot,
}

impl Watching {
    /// Returns a watch that has shown `a`, `b` and `c`.
    async fn start() -> Self {
        let fake = FakeEtcd::start();
        for id in ["a", "b", "c"] {
            put(&fake, id, 1);
        }
        let etcd = client(&fake);
        let mut watcher = etcd.watch(&service()).await.unwrap();
        let seen = soon("a list", watcher.next()).await.unwrap().snapshot;
        assert_eq!(seen.len(), 3);
        Self { fake, etcd, watcher, seen }
    }

    async fn converged(&mut self) {
        converged(&self.fake, &mut self.watcher, &mut self.seen).await;
    }

    /// Waits until the stream is open, so that later events arrive over it.
    async fn opened(&self) {
        watched(&self.fake, 1).await;
    }

    fn count(&self, counter: Counter) -> u64 {
        self.etcd.counters().get(counter)
    }

    /// Waits until audits have passed and returns the number of repairs.
    async fn audited(&self, audits: u64) -> u64 {
        let target = self.count(Counter::Audits) + audits;
        let passed = async {
            while self.count(Counter::Audits) < target {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(36_000), passed).await.expect("audits go on");
        self.count(Counter::AuditRepairs)
    }
}

#[tokio::test(start_paused = true)]
async fn an_honest_server_never_needs_a_repair() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    // A quiet watch costs no request but the probe of its session: its liveness checks use its own stream.
    let before = watching.fake.requests().ranges;
    tokio::time::sleep(AUDIT / 3).await;
    let probes = watching.fake.requests().ranges - before;
    assert!((3..=5).contains(&probes), "{probes} requests");
    assert!(watching.count(Counter::WatchChecks) >= 2);
    for round in 2..30 {
        put(&watching.fake, "a", round);
        watching.fake.delete(format!("{PREFIX}b").as_bytes());
        watching.converged().await;
        put(&watching.fake, "b", round);
        watching.converged().await;
        watching.audited(1).await;
    }
    assert_eq!(watching.count(Counter::AuditRepairs), 0);
    assert_eq!(watching.count(Counter::WatchRepeats), 0);
    assert_eq!((watching.count(Counter::WatchResumes), watching.count(Counter::WatchRelists)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_audit_repairs_lost_events() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    watching.fake.misbehave(Misbehavior::Lose);
    put(&watching.fake, "d", 1);
    watching.converged().await;
    watching.fake.misbehave(Misbehavior::Lose);
    watching.fake.delete(format!("{PREFIX}a").as_bytes());
    watching.converged().await;
    watching.fake.misbehave(Misbehavior::Lose);
    put(&watching.fake, "b", 9);
    watching.converged().await;
    assert_eq!(watching.count(Counter::AuditRepairs), 3);
}

/// After any later change, the number of keys and the revision of the newest change match again.
#[tokio::test(start_paused = true)]
async fn a_lost_update_is_found_within_the_interval() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    watching.fake.misbehave(Misbehavior::Lose);
    put(&watching.fake, "b", 9);
    put(&watching.fake, "a", 2);
    let begun = tokio::time::Instant::now();
    watching.converged().await;
    assert!(begun.elapsed() <= AUDIT + GRACE, "{:?}", begun.elapsed());
    assert_eq!(watching.count(Counter::AuditRepairs), 1);
}

/// The pages of a large range are read in turn, all of them within the interval and without values.
#[tokio::test(start_paused = true)]
async fn a_large_range_is_audited_page_by_page() {
    const COUNT: usize = 4500;
    let mut watching = Watching::start().await;
    watching.opened().await;
    let id = |number: usize| format!("i{number:04}");
    watching.fake.put_all((0..COUNT).map(|number| (format!("{PREFIX}{}", id(number)), value(&id(number), 1))));
    watching.converged().await;
    // From here on the pages cover the whole range.
    watching.audited(1).await;
    let before = watching.fake.requests().keys_only;
    watching.audited(10).await;
    let pages = watching.fake.requests().keys_only - before;
    assert_eq!(pages, 10 * 5, "five pages for each comparison");
    for lost in [0, 1500, COUNT - 1] {
        watching.fake.misbehave(Misbehavior::Lose);
        put(&watching.fake, &id(lost), 9);
        put(&watching.fake, "a", u32::try_from(lost).unwrap() + 2);
        let begun = tokio::time::Instant::now();
        watching.converged().await;
        assert!(begun.elapsed() <= AUDIT + GRACE, "{lost}: {:?}", begun.elapsed());
    }
    assert_eq!(watching.count(Counter::AuditRepairs), 3);
}

/// The list that repairs the findings of an audit is refused twice.
#[tokio::test(start_paused = true)]
async fn a_failed_list_is_repeated_until_it_succeeds() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    watching.fake.misbehave(Misbehavior::Lose);
    put(&watching.fake, "b", 9);
    // A resumption does not deliver events lost before it.
    put(&watching.fake, "a", 2);
    watching.fake.misbehave(Misbehavior::NoList);
    watching.fake.misbehave(Misbehavior::NoList);
    let begun = tokio::time::Instant::now();
    watching.converged().await;
    assert!(begun.elapsed() <= AUDIT + GRACE + Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!((watching.count(Counter::AuditRepairs), watching.count(Counter::WatchRelists)), (1, 1));
}

/// A store that went back is one new history, regardless of the number of refused lists.
#[tokio::test(start_paused = true)]
async fn a_rollback_with_refused_lists_is_one_epoch() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    watching.fake.wipe();
    put(&watching.fake, "d", 1);
    watching.fake.misbehave(Misbehavior::NoList);
    watching.fake.misbehave(Misbehavior::NoList);
    watching.converged().await;
    assert_eq!(shown(&watching.seen), BTreeMap::from([("d".to_owned(), 1)]));
    assert_eq!((watching.seen.epoch().get(), watching.count(Counter::StoreWentBack)), (1, 1));
}

/// The first watch is interrupted before it is open, and the store has passed the old revision when the next one is.
#[tokio::test(start_paused = true)]
async fn a_wipe_before_the_first_watch_is_noticed() {
    let fake = FakeEtcd::start();
    put(&fake, "a", 1);
    fake.misbehave(Misbehavior::LateWatch(Duration::from_secs(3600)));
    let link = fake.link();
    let builder = Etcd::from_channel(link.channel()).runtime(SessionRuntime::Caller);
    let etcd = builder.audit(Some(AUDIT)).build().unwrap();
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let mut seen = soon("a list", watcher.next()).await.unwrap().snapshot;
    eventually("the watch is held back", || async { if fake.has_misbehaved() { Ok(()) } else { Err("not asked") } })
        .await;
    fake.wipe();
    (1..9).for_each(|weight| put(&fake, "b", weight));
    link.cut();
    let begun = tokio::time::Instant::now();
    converged(&fake, &mut watcher, &mut seen).await;
    assert!(begun.elapsed() <= Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// The control of the tests above: without audits the same lost event is never repaired.
#[tokio::test(start_paused = true)]
async fn without_audits_a_lost_event_is_never_noticed() {
    let fake = FakeEtcd::start();
    put(&fake, "a", 1);
    let builder = builder(&fake);
    let etcd = builder.audit(None).build().unwrap();
    let mut watcher = etcd.watch(&service()).await.unwrap();
    soon("a list", watcher.next()).await.unwrap();
    watched(&fake, 1).await;
    fake.misbehave(Misbehavior::Lose);
    fake.delete(format!("{PREFIX}a").as_bytes());
    let day = Duration::from_secs(24 * 3600);
    assert!(tokio::time::timeout(day, watcher.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn repeated_events_are_dropped() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    watching.fake.misbehave(Misbehavior::Twice);
    put(&watching.fake, "a", 2);
    watching.converged().await;
    put(&watching.fake, "a", 3);
    watching.converged().await;
    assert_eq!(watching.count(Counter::WatchRepeats), 1);
    watching.fake.misbehave(Misbehavior::Backwards);
    put(&watching.fake, "a", 4);
    watching.converged().await;
    put(&watching.fake, "a", 5);
    watching.converged().await;
    assert_eq!(watching.count(Counter::WatchRepeats), 2);
    assert_eq!(watching.count(Counter::WatchResumes), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_only_repeats_itself_is_replaced() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    watching.fake.misbehave(Misbehavior::Again(10));
    put(&watching.fake, "a", 2);
    watching.converged().await;
    put(&watching.fake, "a", 3);
    watching.converged().await;
    assert!(watching.count(Counter::WatchResumes) >= 1);
    assert_eq!(watching.audited(2).await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_early_progress_notification_loses_nothing() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    watching.fake.misbehave(Misbehavior::EarlyProgress);
    put(&watching.fake, "a", 2);
    watching.converged().await;
    put(&watching.fake, "d", 1);
    watching.converged().await;
}

#[tokio::test(start_paused = true)]
async fn malformed_events_do_not_panic() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    for misbehavior in [Misbehavior::UnknownType, Misbehavior::NoKey, Misbehavior::NoRevision] {
        watching.fake.misbehave(misbehavior);
        put(&watching.fake, "a", 2);
        watching.converged().await;
        watching.fake.delete(format!("{PREFIX}a").as_bytes());
        watching.converged().await;
    }
}

/// A message above the size limit would exceed it at the next resumption as well.
#[tokio::test(start_paused = true)]
async fn a_message_above_the_limit_causes_one_list() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    let filler = "x".repeat(1 << 20);
    let large =
        |id: usize| format!(r#"{{"v":1,"id":"l{id}","endpoints":["h:1"],"weight":1,"metadata":{{"f":"{filler}"}}}}"#);
    watching.fake.put_all((0..70).map(|id| (format!("{PREFIX}l{id}"), large(id))));
    let shown = async {
        loop {
            let change = watching.watcher.next().await.unwrap();
            assert!(matches!(change.snapshot.len(), 3 | 73), "all of it, or nothing: {}", change.snapshot.len());
            if change.snapshot.len() == 73 {
                return;
            }
        }
    };
    soon("all of it", shown).await;
    assert_eq!(watching.count(Counter::WatchRelists), 1);
    assert_eq!(watching.audited(1).await, 0);
}

#[tokio::test(start_paused = true)]
async fn events_with_future_revisions_keep_the_watch() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    watching.fake.misbehave(Misbehavior::Future);
    put(&watching.fake, "a", 2);
    watching.converged().await;
    put(&watching.fake, "b", 2);
    watching.fake.delete(format!("{PREFIX}c").as_bytes());
    watching.converged().await;
    for weight in 3..10 {
        put(&watching.fake, "a", weight);
        watching.converged().await;
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_noticed_soon() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    watching.fake.misbehave(Misbehavior::Silence);
    let begun = tokio::time::Instant::now();
    put(&watching.fake, "a", 2);
    watching.converged().await;
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    assert_eq!(watching.count(Counter::WatchRelists), 0, "it goes on from where it was");
    assert_eq!(watching.audited(2).await, 0);

    watching.fake.freeze();
    let begun = tokio::time::Instant::now();
    let stale = soon("trouble", watching.watcher.next()).await.unwrap();
    assert!(!stale.freshness.is_live());
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    watching.fake.thaw();
    put(&watching.fake, "a", 3);
    watching.converged().await;
}

/// The cause of a silent stream may recur at each resumption, for example a message that takes long to arrive.
#[tokio::test(start_paused = true)]
async fn streams_that_stay_silent_end_in_a_list() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    for _ in 0..4 {
        watching.fake.misbehave(Misbehavior::Silence);
    }
    let begun = tokio::time::Instant::now();
    put(&watching.fake, "a", 2);
    let shown = async { while shown(&watching.watcher.next().await.unwrap().snapshot)["a"] != 2 {} };
    soon("the change", shown).await;
    assert!(begun.elapsed() < Duration::from_secs(18), "{:?}", begun.elapsed());
    assert_eq!(watching.count(Counter::WatchRelists), 1);
}

#[tokio::test(start_paused = true)]
async fn a_history_that_is_gone_becomes_the_difference() {
    let mut watching = Watching::start().await;
    watching.opened().await;
    watching.fake.misbehave(Misbehavior::Silence);
    put(&watching.fake, "a", 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    put(&watching.fake, "d", 2);
    watching.fake.delete(format!("{PREFIX}b").as_bytes());
    watching.fake.compact();
    watching.converged().await;
    assert_eq!(watching.count(Counter::WatchRelists), 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_refused_inside_streams_is_renewed_once() {
    for reason in [
        "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
        "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
    ] {
        let fake = FakeEtcd::start();
        put(&fake, "a", 1);
        let builder = builder(&fake);
        let etcd = builder.user("u", "p".to_owned()).build().unwrap();
        fake.misbehave(Misbehavior::Refuse(reason));
        let mut watcher = etcd.watch(&service()).await.unwrap();
        let mut seen = soon("a list", watcher.next()).await.unwrap().snapshot;
        put(&fake, "b", 1);
        converged(&fake, &mut watcher, &mut seen).await;
        // One request at the start, one after the refusal, and one of the channel that then checks the store.
        assert_eq!(fake.requests().tokens, 3, "{reason}");
    }
}

const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";

/// A client with a password, whose next watches are created, and canceled after this time for these reasons.
fn canceled_once_created(after: Duration, reasons: &[&'static str]) -> (FakeEtcd, Etcd) {
    let fake = FakeEtcd::start();
    put(&fake, "a", 1);
    for reason in reasons {
        fake.misbehave(Misbehavior::RefuseCreated(after, reason));
    }
    let etcd = builder(&fake).user("u", "p".to_owned()).build().unwrap();
    (fake, etcd)
}

/// A server may create a watch before it refuses it. If that lasted for a while, a token may have expired since.
#[tokio::test(start_paused = true)]
async fn a_watch_refused_once_created_is_retried_slowly() {
    for (after, expected) in [(Duration::ZERO, (2, 3)), (Duration::from_millis(1200), (3, 4))] {
        let (fake, etcd) = canceled_once_created(after, &[DENIED; 20]);
        let mut watcher = etcd.watch(&service()).await.unwrap();
        soon("a list", watcher.next()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let requests = fake.requests();
        assert_eq!((requests.watches, requests.tokens), expected, "after {after:?}");
    }
}

/// A refusal after another end of a watch is the first one, so that a token is renewed at once.
#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_after_an_interruption() {
    let (fake, etcd) = canceled_once_created(Duration::ZERO, &[DENIED, "etcdserver: no leader", DENIED]);
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let mut seen = soon("a list", watcher.next()).await.unwrap().snapshot;
    let begun = tokio::time::Instant::now();
    put(&fake, "b", 1);
    converged(&fake, &mut watcher, &mut seen).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_permanently_refused_watch_retries_slowly() {
    let fake = FakeEtcd::start();
    put(&fake, "a", 1);
    let etcd = client(&fake);
    for _ in 0..1000 {
        fake.misbehave(Misbehavior::Refuse("rpc error: code = PermissionDenied desc = etcdserver: permission denied"));
    }
    let mut watcher = etcd.watch(&service()).await.unwrap();
    soon("a list", watcher.next()).await.unwrap();
    let stale = soon("trouble", watcher.next()).await.unwrap();
    assert!(!stale.freshness.is_live() && stale.snapshot.len() == 1, "the instances stay");
    tokio::time::sleep(Duration::from_secs(600)).await;
    let asked = fake.requests().watches;
    assert!((30..=65).contains(&asked), "{asked} watches in ten minutes");
}

async fn register_number(etcd: &Etcd, number: usize) -> Registration {
    register(etcd, &format!("i{number}"), RegisterOptions::new()).await
}

#[tokio::test(start_paused = true)]
async fn a_lease_reported_missing_is_replaced() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let registration = register_number(&etcd, 0).await;
    let mut states = registration.states();
    fake.misbehave(Misbehavior::LeaseGone);
    let lost = async {
        while !matches!(states.next().await, Ok(RegistrationState::Reregistering { .. })) {}
        while !matches!(states.next().await, Ok(RegistrationState::Registered { .. })) {}
    };
    soon("lost and back", lost).await;
    assert_eq!(stored(&fake).len(), 1);
    assert_eq!(etcd.counters().get(Counter::LeaseLosses), 1);
    registration.deregister().await.unwrap();
    assert_eq!(stored(&fake).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_registration_without_a_watch_stays_registered() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    for _ in 0..10_000 {
        fake.misbehave(Misbehavior::Refuse("rpc error: code = PermissionDenied desc = etcdserver: permission denied"));
    }
    let registration = register_number(&etcd, 0).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(matches!(registration.state(), RegistrationState::Registered { .. }), "{:?}", registration.state());
    assert_eq!(stored(&fake).len(), 1);
    let asked = fake.requests();
    assert!(asked.watches <= 130 && asked.txns <= 10, "{} watches, {} writes", asked.watches, asked.txns);
}

/// Returns the largest number of `times` in one bucket of 100 ms.
fn densest(times: &[tokio::time::Instant]) -> usize {
    let first = times.iter().min().copied().unwrap();
    let mut buckets = BTreeMap::<u128, usize>::new();
    for time in times {
        *buckets.entry(time.duration_since(first).as_millis() / 100).or_default() += 1;
    }
    buckets.values().max().copied().unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn five_thousand_instances_register_again_spread_out() {
    const COUNT: usize = 5000;
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let mut registrations = Vec::new();
    for id in 0..COUNT {
        let id = InstanceId::parse(format!("i{id}")).unwrap();
        let instance = Instance::new(id, [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
        let options = RegisterOptions::new().start(Start::Background);
        registrations.push(etcd.register(&service(), instance, options).await.unwrap());
    }
    let all = async |count: usize| {
        while fake.under(PREFIX.as_bytes()).len() != count {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    all(COUNT).await;
    // All are idle, observed by a few shared watches.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(fake.requests().watches <= 10, "{} watches", fake.requests().watches);
    fake.reset_requests();
    let lost = tokio::time::Instant::now();
    fake.revoke_all();
    assert_eq!(fake.under(PREFIX.as_bytes()).len(), 0);
    all(COUNT).await;
    let (requests, took) = (fake.requests(), lost.elapsed());
    let asked = requests.txns + requests.ranges;
    println!("{asked} requests for {COUNT}, {} grants, all back after {took:?}", requests.grants);
    assert!(asked <= 2 * COUNT, "{asked} requests");
    let densest = densest(&requests.txn_times);
    assert!(densest * 5 <= COUNT, "{densest} of {COUNT} within 100 ms");
    assert!(took < Duration::from_secs(15), "{took:?}");
    // They stay, and the old leases are not granted again and again.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.under(PREFIX.as_bytes()).len(), COUNT);
    assert_eq!(etcd.counters().get(Counter::Reregistrations), COUNT as u64);
}

/// More registrations than may write concurrently, updated again while some of them wait for their turn.
#[tokio::test(start_paused = true)]
async fn an_update_made_before_registering_again_is_stored() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let mut registrations = Vec::new();
    for id in 0..40 {
        registrations.push(register_number(&etcd, id).await);
    }
    fake.freeze();
    for weight in 1..4 {
        for registration in &registrations {
            drop(registration.update(move |update| {
                update.weight(weight);
            }));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    fake.thaw();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(stored(&fake).values().all(|weight| *weight == 3), "{:?}", stored(&fake));
}

/// Hundreds of registrations wait to be written while etcd is silent, or for their shared lease. A deregistration does
/// not wait for them.
#[tokio::test(start_paused = true)]
async fn a_departure_does_not_wait_for_other_writes() {
    for first in [0, 1] {
        let fake = FakeEtcd::start();
        let etcd = client(&fake);
        // With a first registration the lease already exists.
        let mut registrations = Vec::new();
        for id in 0..first {
            registrations.push(register_number(&etcd, id).await);
        }
        fake.freeze();
        for id in first..900 {
            let id = InstanceId::parse(format!("i{id}")).unwrap();
            let instance = Instance::new(id, [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
            let options = RegisterOptions::new().start(Start::Background);
            registrations.push(etcd.register(&service(), instance, options).await.unwrap());
        }
        // All of them are waiting.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let last = registrations.pop().unwrap();
        let asked = tokio::time::Instant::now();
        let outcome = last.deregister().await.unwrap();
        assert_eq!(outcome, Deregistered::AlreadyGone, "it was withdrawn before it was sent");
        assert!(asked.elapsed() < Duration::from_secs(9), "{:?}", asked.elapsed());
        fake.thaw();
        eventually("the others are stored", || async {
            let stored = fake.under(PREFIX.as_bytes()).len();
            if stored == 899 { Ok(()) } else { Err(stored) }
        })
        .await;
        // It is not written, not even for a moment.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let written = fake.journal().into_iter().filter(|change| change.key.ends_with(b"/i899"));
        assert_eq!(written.count(), 0);
    }
}

/// etcd takes four seconds for each transaction, of which two are under way and have 128 writes each.
#[tokio::test(start_paused = true)]
async fn a_write_behind_many_others_fails_in_time() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    for _ in 0..20 {
        fake.misbehave(Misbehavior::LateTxn(Duration::from_secs(4)));
    }
    let names: Vec<_> = (0..1000).map(|id| LockName::parse(format!("n{id}")).unwrap()).collect();
    let begun = tokio::time::Instant::now();
    let outcomes = join_all(names.iter().map(|name| etcd.set_permits(name, 1))).await;
    let took = begun.elapsed();
    let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(fake.under(b"enlist/semaphore-permits").len(), done, "nothing is written late");
    assert!((1..1000).contains(&done), "{done}");
    let late = |outcome: &&Result<(), Error>| matches!(outcome, Err(Error::Unavailable(_)));
    assert_eq!(done + outcomes.iter().filter(late).count(), 1000);
    // A read, the wait in the queue (5 s), and a transaction.
    assert!(took < Duration::from_secs(15), "{took:?}");
}

/// etcd takes four seconds for each transaction, and registrations that wait need more transactions than two within the
/// limit of a request.
#[tokio::test(start_paused = true)]
async fn a_removal_has_its_turn_among_writes() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let mut removed = Some(register_number(&etcd, 0).await);
    for _ in 0..40 {
        fake.misbehave(Misbehavior::LateTxn(Duration::from_secs(4)));
    }
    let mut others = Vec::new();
    for ids in [1..801, 801..1601] {
        for id in ids {
            let id = InstanceId::parse(format!("i{id}")).unwrap();
            let instance = Instance::new(id, [Endpoint::parse("h:1").unwrap()]).unwrap();
            let options = RegisterOptions::new().start(Start::Background);
            others.push(etcd.register(&service(), instance, options).await.unwrap());
        }
        // All of them are waiting.
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(removed.take());
        // The first attempt is given up after three seconds, and the next one waits.
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    let stored = async {
        while fake.under(PREFIX.as_bytes()).len() < 1600 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), stored).await.expect("all others are stored");
    let journal = fake.journal();
    let of_removed = journal.iter().skip(1).position(|change| change.key.ends_with(b"/i0"));
    let at = of_removed.expect("it is marked as leaving, or removed");
    assert!(at < 1000, "after {at} writes");
}

#[tokio::test(start_paused = true)]
async fn equal_renewal_intervals_share_one_lease() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let default = RegisterOptions::new();
    let quick = default.clone().renewal_interval(Duration::from_millis(500));
    let third = default.clone().renewal_interval(Duration::from_secs(5));
    let mut registrations = Vec::new();
    for (id, options) in [("quick", &quick), ("as quick", &quick), ("default", &default), ("third", &third)] {
        let instance = Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
        registrations.push(etcd.register(&service(), instance, options.clone()).await.unwrap());
    }
    assert_eq!(fake.requests().grants, 2);
    let before = fake.requests().renewals;
    tokio::time::sleep(Duration::from_secs(60)).await;
    // One lease is renewed every half second and one every five seconds, with a jitter of a tenth.
    let renewals = fake.requests().renewals - before;
    assert!((118..=148).contains(&renewals), "{renewals}");
}

/// A lost lease is no eviction, even if the state of the lease is unknown for a while.
#[tokio::test(start_paused = true)]
async fn a_lease_lost_during_hanging_renewals_evicts_nothing() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let instance = Instance::new(InstanceId::parse("i0").unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
    let options = RegisterOptions::new().on_delete(OnDelete::Respect);
    let registration = etcd.register(&service(), instance, options).await.unwrap();
    watched(&fake, 1).await;
    fake.hold_renewals();
    fake.revoke_all();
    tokio::time::sleep(Duration::from_secs(2)).await;
    fake.release_renewals();
    eventually("it is back", || async {
        match (registration.state(), stored(&fake).len()) {
            (RegistrationState::Registered { .. }, 1) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    // An eviction is still recognized.
    fake.delete(format!("{PREFIX}i0").as_bytes());
    eventually("it has ended", || async {
        match registration.state() {
            RegistrationState::Ended => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(stored(&fake).len(), 0);
}

/// A call that was dropped while etcd was silent does not block its repetition.
#[tokio::test(start_paused = true)]
async fn registering_again_after_a_frozen_attempt_succeeds() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let _first = register_number(&etcd, 0).await;
    fake.freeze();
    let instance = Instance::new(InstanceId::parse("i1").unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
    let (second, service) = (Duration::from_secs(1), service());
    let attempt = etcd.register(&service, instance.clone(), RegisterOptions::new());
    assert!(tokio::time::timeout(second, attempt).await.is_err());
    let again = etcd.register(&service, instance, RegisterOptions::new().start(Start::Wait(second * 60)));
    let thaw = async {
        tokio::time::sleep(second).await;
        fake.thaw();
    };
    let (again, ()) = tokio::join!(again, thaw);
    let again = again.unwrap();
    assert_eq!(stored(&fake).len(), 2);
    again.deregister().await.unwrap();
    assert_eq!(stored(&fake).len(), 1);
}

/// etcd is unreachable for long and its leases survive that. A queue entry given up in the meantime must be removed,
/// otherwise no contender could acquire the lock again.
#[tokio::test(start_paused = true)]
async fn a_release_during_an_outage_frees_the_lock() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let name = LockName::parse("night").unwrap();
    let guard = etcd.acquire(&name, LockOptions::new()).await.unwrap();
    assert_eq!(fake.under(b"enlist/locks/").len(), 1);
    fake.freeze();
    assert!(matches!(guard.release().await, Err(Error::Timeout { .. })));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    fake.thaw();
    eventually("the queue is empty", || async {
        let entries = fake.under(b"enlist/locks/");
        if entries.is_empty() { Ok(()) } else { Err(entries) }
    })
    .await;
    // Its suffix is free again as well.
    let _again = soon("the lock", etcd.acquire(&name, LockOptions::new())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn changes_of_own_keys_are_noticed() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let mut registrations = Vec::new();
    for id in 0..20 {
        registrations.push(register_number(&etcd, id).await);
    }
    fake.delete(format!("{PREFIX}i15").as_bytes());
    while fake.under(PREFIX.as_bytes()).len() != 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut states = registrations[16].states();
    put(&fake, "i16", 7);
    let superseded = async {
        loop {
            if let Ok(RegistrationState::Superseded { cause }) = states.next().await {
                return cause;
            }
        }
    };
    let cause = soon("superseded", superseded).await;
    assert!(matches!(cause, Error::NotOwner { .. }), "{cause:?}");
    // The registration does not overwrite the foreign value.
    let before = fake.revision();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!((stored(&fake)["i16"], fake.revision()), (7, before));
    // Once the foreign key is gone, the instance is published again.
    fake.delete(format!("{PREFIX}i16").as_bytes());
    while stored(&fake).get("i16") != Some(&100) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns the maximum age in ten minutes in which `change` happens every second.
async fn oldest(freshness: &Freshness, change: impl Fn(u32)) -> Duration {
    let mut oldest = Duration::ZERO;
    for second in 0..600 {
        change(second);
        tokio::time::sleep(Duration::from_secs(1)).await;
        oldest = oldest.max(freshness.age());
    }
    oldest
}

#[tokio::test(start_paused = true)]
async fn a_healthy_view_is_below_ten_seconds_old() {
    let watching = Watching::start().await;
    let mut watcher = watching.etcd.watch(&service()).await.unwrap();
    let freshness = soon("a list", watcher.next()).await.unwrap().freshness;
    let quiet = oldest(&freshness, |_| {}).await;
    // No watched key changes, but the store's revision does.
    let elsewhere = oldest(&freshness, |second| watching.fake.put("elsewhere", second.to_string())).await;
    let busy = oldest(&freshness, |second| put(&watching.fake, "a", second + 2)).await;
    println!("{quiet:?} in a quiet store, {elsewhere:?} in a busy one, {busy:?} for a busy service");
    assert!([quiet, elsewhere, busy].iter().all(|age| *age <= Duration::from_secs(10)));
    watching.fake.freeze();
    let before = freshness.age();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert!(freshness.age() >= before + Duration::from_secs(1000));
}

/// The view of an election and its age stay current.
#[tokio::test(start_paused = true)]
async fn a_quiet_election_is_below_ten_seconds_old() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let mut watcher = etcd.observe(&LockName::parse("e").unwrap()).await.unwrap();
    let freshness = soon("a list", watcher.next()).await.unwrap().freshness;
    let quiet = oldest(&freshness, |_| {}).await;
    let elsewhere = oldest(&freshness, |second| fake.put("elsewhere", second.to_string())).await;
    assert!(quiet.max(elsewhere) <= Duration::from_secs(10), "{quiet:?}, {elsewhere:?}");
    fake.freeze();
    let before = freshness.age();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert!(freshness.age() >= before + Duration::from_secs(1000));
}

/// Events do not prove freshness: they may be a minute old.
#[tokio::test(start_paused = true)]
async fn a_watch_that_lags_reports_its_age() {
    let fake = FakeEtcd::start();
    put(&fake, "a", 0);
    let etcd = client(&fake);
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let mut last = soon("a list", watcher.next()).await.unwrap();
    watched(&fake, 1).await;
    // Delivery is half as fast as the changes.
    fake.slow_down(Duration::from_secs(2));
    let mut puts = Vec::new();
    let (mut behind, mut age) = (Duration::ZERO, Duration::ZERO);
    for weight in 1..=200 {
        puts.push(tokio::time::Instant::now());
        put(&fake, "a", weight);
        tokio::time::sleep(Duration::from_secs(1)).await;
        while let Some(change) = watcher.next().now_or_never() {
            last = change.unwrap();
        }
        let seen = shown(&last.snapshot)["a"] as usize;
        behind = puts.get(seen).map_or(Duration::ZERO, tokio::time::Instant::elapsed);
        age = last.freshness.age();
        assert!(
            age + Duration::from_secs(1) >= behind,
            "it shows {seen} of {weight}, which is {behind:?} old, and says {age:?}"
        );
    }
    assert!(behind > Duration::from_secs(60), "it lags: {behind:?}");
    assert!(age < behind + Duration::from_secs(15), "{age:?} for {behind:?}");
    assert_eq!(etcd.counters().get(Counter::AuditRepairs), 0, "what is late is not lost");
    fake.slow_down(Duration::ZERO);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(last.freshness.age() <= Duration::from_secs(10), "{:?}", last.freshness);
}

/// Earlier releases answer a progress request before they have delivered the preceding events. The audit then bounds
/// the age of a quiet service in a busy store.
#[tokio::test(start_paused = true)]
async fn early_progress_of_old_releases_proves_nothing() {
    let fake = FakeEtcd::start();
    fake.set_version("3.4.23");
    put(&fake, "a", 1);
    let etcd = client(&fake);
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let freshness = soon("a list", watcher.next()).await.unwrap().freshness;
    watched(&fake, 1).await;
    let quiet = oldest(&freshness, |_| {}).await;
    let elsewhere = oldest(&freshness, |second| fake.put("elsewhere", second.to_string())).await;
    println!("{quiet:?} in a quiet store, {elsewhere:?} in a busy one");
    assert!(quiet <= Duration::from_secs(10), "{quiet:?}");
    assert!(elsewhere > Duration::from_secs(10) && elsewhere <= AUDIT + GRACE, "{elsewhere:?}");
    // The change is lost after a response that claims its delivery.
    fake.misbehave(Misbehavior::EarlyAnswer);
    fake.slow_down(Duration::from_secs(4));
    put(&fake, "a", 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = freshness.proven();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(freshness.proven().since(before).is_zero(), "the answer came, the change did not");
}

/// Some releases tell their version to root only. All of them report progress in order, so a view of another user is as
/// fresh as one of root.
#[tokio::test(start_paused = true)]
async fn a_hidden_version_makes_no_view_older() {
    let fake = FakeEtcd::start();
    fake.hide_version();
    put(&fake, "a", 1);
    let etcd = client(&fake);
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let freshness = soon("a list", watcher.next()).await.unwrap().freshness;
    let elsewhere = oldest(&freshness, |second| fake.put("elsewhere", second.to_string())).await;
    assert!(elsewhere <= Duration::from_secs(10), "{elsewhere:?}");
    assert_eq!(fake.requests().versions, 1, "it is asked for once on a connection");
}

#[tokio::test(start_paused = true)]
async fn probes_are_sent_while_there_are_views_only() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let minute = async || {
        let before = fake.requests().ranges;
        tokio::time::sleep(Duration::from_secs(60)).await;
        fake.requests().ranges - before
    };
    // Without its own audit, which may fall into one of the minutes.
    let options = RegisterOptions::new().audit(None);
    let instance = Instance::new(InstanceId::parse("i0").unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
    let _registration = soon("registered", etcd.register(&service(), instance, options)).await.unwrap();
    let none = minute().await;
    let mut watchers = Vec::new();
    for number in 0..10 {
        let mut watcher = etcd.watch(&ServiceRef::parse(format!("svc{number}")).unwrap()).await.unwrap();
        soon("a list", watcher.next()).await.unwrap();
        watchers.push(watcher);
    }
    let with_views = minute().await;
    // An audit of each view, and one probe for all of them every five seconds.
    assert!(none <= 2 && (12..=14 + 20).contains(&with_views), "{none} without views, {with_views} with ten");
    drop(watchers);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let again = minute().await;
    assert!(again <= 2, "{again} after the last view");
}

#[tokio::test(start_paused = true)]
async fn own_keys_of_many_services_share_their_watches() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let mut registrations = Vec::new();
    for number in 0..200 {
        let service = ServiceRef::parse(format!("svc{number}")).unwrap();
        let instance =
            Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
        registrations
            .push(soon("registered", etcd.register(&service, instance, RegisterOptions::new())).await.unwrap());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(fake.requests().watches <= 66, "{} watches", fake.requests().watches);
    fake.delete(b"enlist/services/default/svc199/a");
    fake.delete(b"enlist/services/default/svc3/a");
    while fake.under(b"enlist/services/").len() != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(registrations);
}

/// Without terms, and under one lease, two registrations of a process can write the same bytes.
#[tokio::test(start_paused = true)]
async fn dropping_an_older_registration_leaves_the_newer_alone() {
    let fake = FakeEtcd::start();
    let builder = builder(&fake);
    let etcd = builder.layout(enlist_etcd::Kratos::default()).build().unwrap();
    let options = || RegisterOptions::new().on_conflict(OnConflict::TakeOver);
    let instance = || Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("grpc://h:1").unwrap()]).unwrap();
    let older = soon("registered", etcd.register(&service(), instance(), options())).await.unwrap();
    let newer = soon("registered", etcd.register(&service(), instance(), options())).await.unwrap();
    let before = (fake.under(b""), fake.revision());
    drop(older);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((fake.under(b""), fake.revision()), before);
    assert_eq!(soon("deregistered", newer.deregister()).await.unwrap(), Deregistered::Removed);
    assert!(fake.under(b"").is_empty());
}

/// A panic in a user's layer fails only the wrapped request; renewals, which the layer wraps as well, continue.
#[tokio::test(start_paused = true)]
async fn a_panicking_layer_fails_only_its_request() {
    let fake = FakeEtcd::start();
    let panics = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&panics);
    let layer = tower::layer::layer_fn(move |inner: enlist_etcd::Requests| {
        let asked = Arc::clone(&asked);
        inner.map_request(move |request: http::Request<tonic::body::Body>| {
            let reads = request.uri().path().ends_with("/Range");
            assert!(!(reads && asked.load(Ordering::Relaxed)), "on purpose");
            request
        })
    });
    let etcd = builder(&fake).layer(layer).build().unwrap();
    let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
    let registration = etcd.register(&service(), instance, RegisterOptions::new()).await.unwrap();
    panics.store(true, Ordering::Relaxed);
    let failed = etcd.resolve(&service()).await.unwrap_err();
    assert!(format!("{failed:?}").contains("a layer around the requests panicked"), "{failed:?}");
    // Longer than the TTL of a lease.
    tokio::time::sleep(Duration::from_secs(60)).await;
    panics.store(false, Ordering::Relaxed);
    assert_eq!(etcd.resolve(&service()).await.unwrap().len(), 1);
    assert_eq!(etcd.counters().get(Counter::LeaseLosses), 0);
    registration.deregister().await.unwrap();
    etcd.close().await.unwrap();
}

/// Body that panics at its first frame if `panics` is set.
struct PanickingBody {
    inner: tonic::body::Body,
    panics: bool,
}

impl http_body::Body for PanickingBody {
    type Data = <tonic::body::Body as http_body::Body>::Data;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        assert!(!self.panics, "on purpose");
        Pin::new(&mut self.inner).poll_frame(context)
    }
}

/// A panic in a response body wrapped by a user's layer fails the request that it answers. Renewals and watches, whose
/// bodies panic as well, resume as soon as possible.
#[tokio::test(start_paused = true)]
async fn a_panicking_response_body_fails_only_its_request() {
    let fake = FakeEtcd::start();
    let panics = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&panics);
    let layer = tower::layer::layer_fn(move |inner: enlist_etcd::Requests| {
        let asked = Arc::clone(&asked);
        inner.map_response(move |answer: http::Response<tonic::body::Body>| {
            let panics = asked.load(Ordering::Relaxed);
            answer.map(|inner| PanickingBody { inner, panics })
        })
    });
    let etcd = builder(&fake).layer(layer).build().unwrap();
    let instance = |id| Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
    panics.store(true, Ordering::Relaxed);
    let failed = soon("an error", etcd.resolve(&service())).await.unwrap_err();
    assert!(format!("{failed:?}").contains("the body of a layer around the requests panicked"), "{failed:?}");
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let options = RegisterOptions::new().start(Start::Background);
    let registration = etcd.register(&service(), instance("a"), options).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    panics.store(false, Ordering::Relaxed);
    let mut listed = 0;
    while listed != 1 {
        if let Ok(change) = soon("a change", watcher.next()).await {
            listed = change.snapshot.len();
        }
    }
    put(&fake, "b", 2);
    while listed != 2 {
        listed = soon("a change", watcher.next()).await.unwrap().snapshot.len();
    }
    assert_eq!(soon("deregistered", registration.deregister()).await.unwrap(), Deregistered::Removed);
    etcd.close().await.unwrap();
}

/// Returns a client that shows a single member's state if the quorum has not answered within `after`.
fn client_without_a_quorum(fake: &FakeEtcd, after: Duration) -> Etcd {
    let builder = builder(fake);
    builder.serializable_first_list(Some(after)).build().unwrap()
}

/// The member reports that there is no leader, or does not answer. In both cases its state is shown once, with the
/// maximum age, and the difference is delivered when there is a quorum again.
#[tokio::test(start_paused = true)]
async fn a_serializable_start_works_without_a_quorum() {
    const AFTER: Duration = Duration::from_secs(2);
    for minority in [Minority::Leaderless, Minority::Silent] {
        let fake = FakeEtcd::start();
        put(&fake, "a", 1);
        put(&fake, "b", 1);
        fake.set_minority(Some(minority));
        let (etcd, control) = (client_without_a_quorum(&fake, AFTER), client(&fake));
        let mut unknown = control.watch(&service()).await.unwrap();
        let begun = tokio::time::Instant::now();
        let directory = Directory::with_options(Arc::new(etcd.clone()), DirectoryOptions::new().max_age(AUDIT));
        let view = directory.view(&service());
        let mut watcher = etcd.watch(&service()).await.unwrap();
        let first = soon("what the member knows", watcher.next()).await.unwrap();
        assert!(begun.elapsed() <= AFTER + Duration::from_secs(1), "{minority:?}: {:?}", begun.elapsed());
        assert_eq!(shown(&first.snapshot), stored(&fake), "{minority:?}");
        assert!(!first.freshness.is_live(), "{minority:?}");
        assert!(first.freshness.age() >= Duration::from_secs(365 * 24 * 3600), "{minority:?}: {:?}", first.freshness);
        // The instances are shown but not picked.
        eventually("the view shows it", || async {
            let shows = view.snapshot().map(|snapshot| snapshot.len());
            if shows == Some(2) { Ok(()) } else { Err(shows) }
        })
        .await;
        assert!(view.too_old().is_some() && view.picker(PickPolicy::Random).pick().is_err());
        // Later changes of this member are not requested: they would be of no use, and each answer may come from a
        // different member.
        put(&fake, "c", 1);
        fake.delete(format!("{PREFIX}a").as_bytes());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(watcher.next().now_or_never().is_none(), "{minority:?}");
        assert_eq!(fake.requests().serializable, 1, "{minority:?}");
        assert!(unknown.next().now_or_never().is_none(), "{minority:?}: without the option nothing is known");
        assert!(matches!(etcd.resolve(&service()).await, Err(Error::Unavailable(_))), "{minority:?}");
        fake.set_minority(None);
        let next = soon("what the quorum knows", watcher.next()).await.unwrap();
        assert_eq!(shown(&next.snapshot), stored(&fake), "{minority:?}");
        assert_eq!(next.events, next.snapshot.diff(&first.snapshot), "{minority:?}");
        assert_eq!(next.events.len(), 2, "{minority:?}: {:?}", next.events);
        assert!(next.freshness.is_live() && next.freshness.age() < AUDIT, "{minority:?}: {:?}", next.freshness);
        assert_eq!(next.snapshot.epoch(), first.snapshot.epoch(), "{minority:?}");
        assert_eq!(shown(&soon("the control", unknown.next()).await.unwrap().snapshot), stored(&fake));
        assert_eq!((etcd.counters().get(Counter::WatchRelists), etcd.counters().get(Counter::StoreWentBack)), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn with_a_quorum_no_member_is_asked_alone() {
    let fake = FakeEtcd::start();
    put(&fake, "a", 1);
    let etcd = client_without_a_quorum(&fake, Duration::from_secs(1));
    let mut watcher = etcd.watch(&service()).await.unwrap();
    assert!(soon("a list", watcher.next()).await.unwrap().freshness.is_live());
    tokio::time::sleep(AUDIT).await;
    // A state that was read with a quorum is kept.
    fake.set_minority(Some(Minority::Leaderless));
    fake.revoke_all();
    tokio::time::sleep(AUDIT).await;
    assert_eq!(fake.requests().serializable, 0);
}

/// The member belonged to a cluster that was lost, and the new cluster has another history.
#[tokio::test(start_paused = true)]
async fn a_store_behind_a_serializable_start_went_back() {
    let fake = FakeEtcd::start();
    for weight in 1..9 {
        put(&fake, "a", weight);
    }
    fake.set_minority(Some(Minority::Leaderless));
    let etcd = client_without_a_quorum(&fake, Duration::from_secs(1));
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let first = soon("what the member knows", watcher.next()).await.unwrap();
    fake.wipe();
    put(&fake, "b", 1);
    fake.set_minority(None);
    let next = soon("what the quorum knows", watcher.next()).await.unwrap();
    assert_eq!(shown(&next.snapshot), stored(&fake));
    assert!(next.snapshot.revision() < first.snapshot.revision() && next.snapshot.epoch() > first.snapshot.epoch());
    assert_eq!(etcd.counters().get(Counter::StoreWentBack), 1);
}

/// The revision of a list is that of its first page; the single member may be asked after that page was read.
#[tokio::test(start_paused = true)]
async fn a_list_before_a_serializable_start_proves_nothing() {
    let fake = FakeEtcd::start();
    put(&fake, "a", 1);
    // The response to the first list is delayed on its way.
    let (listed, arrives) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (first, asked, gate) = (Arc::new(AtomicBool::new(true)), Arc::clone(&listed), Arc::clone(&arrives));
    let layer = tower::layer::layer_fn(move |inner: enlist_etcd::Requests| {
        let (first, asked, gate) = (Arc::clone(&first), Arc::clone(&asked), Arc::clone(&gate));
        tower::service_fn(move |request: http::Request<tonic::body::Body>| {
            let held = request.uri().path().ends_with("/Range") && first.swap(false, Ordering::SeqCst);
            let (asked, gate, answer) = (Arc::clone(&asked), Arc::clone(&gate), inner.clone().oneshot(request));
            async move {
                let answer = answer.await;
                if held {
                    asked.notify_one();
                    gate.notified().await;
                }
                answer
            }
        })
    });
    let builder = builder(&fake).layer(layer);
    let etcd = builder.serializable_first_list(Some(Duration::from_secs(1))).build().unwrap();
    let mut watcher = etcd.watch(&service()).await.unwrap();
    soon("a list", listed.notified()).await;
    put(&fake, "b", 1);
    let first = soon("what the member knows", watcher.next()).await.unwrap();
    assert!(!first.freshness.is_live(), "{:?}", first.freshness);
    assert_eq!(shown(&first.snapshot), stored(&fake));
    arrives.notify_one();
    let next = soon("what the quorum knows", watcher.next()).await.unwrap();
    assert!(next.freshness.is_live(), "{:?}", next.freshness);
    assert_eq!(shown(&next.snapshot), stored(&fake));
    assert_eq!(next.snapshot.epoch(), first.snapshot.epoch());
    assert_eq!((etcd.counters().get(Counter::WatchRelists), etcd.counters().get(Counter::StoreWentBack)), (0, 0));
}

/// An observed election reports, with the maximum age, a leader known to only one member.
#[tokio::test(start_paused = true)]
async fn a_serializable_leader_has_the_maximum_age() {
    let fake = FakeEtcd::start();
    let name = LockName::parse("office").unwrap();
    let _leads = client(&fake).campaign(&name, "a", LockOptions::new()).await.unwrap();
    fake.set_minority(Some(Minority::Leaderless));
    let etcd = client_without_a_quorum(&fake, Duration::from_secs(1));
    let mut observer = etcd.observe(&name).await.unwrap();
    let first = soon("what the member knows", observer.next()).await.unwrap();
    assert_eq!(first.leader.map(|leader| leader.value).as_deref(), Some("a"));
    assert!(!first.freshness.is_live() && first.freshness.age() > AUDIT, "{:?}", first.freshness);
}
