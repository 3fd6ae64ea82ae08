//! Contenders of a scripted etcd under a paused clock: silence, refusals and late responses, which a real server cannot
//! be made to produce at the right moment.

use std::time::Duration;

use enlist::{
    Deregistered, Election, Endpoint, Error, Instance, InstanceId, Leadership, Lock, LockGuard, LockOptions,
    RegisterOptions, Registry, Released, ServiceRef, Start,
};
use enlist_etcd::{Etcd, EtcdConcurrency};
use enlist_testkit::{BackgroundTask, FakeEtcd, Minority, Misbehavior, Requests, eventually, soon};
use tokio::{task::JoinSet, time::Instant};

use crate::support::{
    lock_name,
    scripted::{acquire, builder, client, contend, live_tasks},
};

/// Delay of a transaction, beyond the deadline of its caller.
const LATE: Duration = Duration::from_secs(20);

/// Delay after which a caller gives up early.
const IMPATIENT: Duration = Duration::from_millis(100);

/// Maximum duration of a request; a grant is sent at most twice.
const REQUEST: Duration = Duration::from_secs(5);

/// Acquires the lock and waits until the holder's own key is watched; the next watch is that of a contender.
async fn watched_holder(fake: &FakeEtcd, etcd: &Etcd) -> LockGuard {
    let holder = acquire(etcd).await;
    eventually("the holder's own key is watched", || async {
        if fake.requests().watches > 0 { Ok(()) } else { Err("no watch") }
    })
    .await;
    holder
}

/// Runs ready tasks until a watch is requested.
async fn watch_asked_for(fake: &FakeEtcd) {
    while fake.requests().watches == 0 {
        tokio::task::yield_now().await;
    }
}

/// Runs a thousand callers in turn, each of which gives up before etcd responds. Returns the maximum number of tasks.
async fn a_thousand_give_up(etcd: &Etcd, options: &LockOptions) -> usize {
    let mut most = 0;
    for _ in 0..1000 {
        let late = etcd.acquire(&lock_name(), options.clone().deadline(IMPATIENT)).await;
        assert!(matches!(late, Err(Error::Timeout { .. })), "{late:?}");
        most = most.max(live_tasks());
    }
    most
}

#[tokio::test(start_paused = true)]
async fn abandoned_acquisitions_leave_no_work() {
    // Without a lease, with one from before the silence, and with a lease per caller.
    for (own, known) in [(false, false), (false, true), (true, false)] {
        let fake = FakeEtcd::start();
        let etcd = client(&fake);
        let options = if own { LockOptions::new().own_lease() } else { LockOptions::new() };
        if known {
            soon("acquired", etcd.acquire(&lock_name(), options.clone())).await.unwrap().release().await.unwrap();
        }
        fake.freeze();
        fake.reset_requests();
        let before = live_tasks();
        let most = a_thousand_give_up(&etcd, &options).await;
        fake.thaw();
        // A marker: pending writes are applied before it.
        let guard = soon("the lock", etcd.acquire(&lock_name(), options)).await.unwrap();
        let Requests { txns, grants, .. } = fake.requests();
        println!("own lease {own}, known {known}: {} tasks, {txns} transactions, {grants} grants", most - before);
        assert!(most - before <= 100, "{} tasks for a thousand callers that gave up", most - before);
        assert_eq!(txns, 1, "that of the marker");
        assert!(grants <= if own { 20 } else { 2 }, "{grants} grants");
        drop(guard);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_during_an_outage_names_its_cause() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let late = async || {
        let late = etcd.acquire(&lock_name(), LockOptions::new().deadline(3 * REQUEST)).await;
        let Err(Error::Timeout { op: "acquire", cause, .. }) = late else { panic!("a timeout: {late:?}") };
        cause.map(|cause| cause.source().map(ToString::to_string).unwrap_or_default())
    };
    fake.freeze();
    let cause = late().await.expect("the last trouble");
    assert!(cause.contains("no answer within 5 s"), "{cause}");
    fake.thaw();
    let _holder = acquire(&etcd).await;
    assert_eq!(late().await, None, "it is in the queue, and waits for its turn");
}

#[tokio::test(start_paused = true)]
async fn a_release_that_etcd_refuses_names_its_cause() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let guard = acquire(&etcd).await;
    fake.deny_access();
    let late = soon("given up waiting", guard.release()).await.unwrap_err();
    let Error::Timeout { op: "release", cause: Some(cause), .. } = &late else { panic!("with a cause: {late:?}") };
    assert_eq!(cause.to_string(), "permission denied for the lock default/l");
    fake.permit_access();
    let _next = acquire(&etcd).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_grant_fails_all_waiting_callers() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    fake.freeze();
    let begun = Instant::now();
    let mut trying = JoinSet::new();
    for _ in 0..100 {
        let etcd = etcd.clone();
        trying.spawn(async move { etcd.try_acquire(&lock_name(), LockOptions::new()).await });
    }
    while let Some(tried) = trying.join_next().await {
        let tried = tried.unwrap();
        assert!(matches!(tried, Err(Error::Unavailable(_))), "{tried:?}");
        assert!(begun.elapsed() <= 2 * REQUEST + IMPATIENT, "{:?}", begun.elapsed());
    }
    fake.thaw();
    let guard = soon("the lock", etcd.try_acquire(&lock_name(), LockOptions::new())).await.unwrap();
    assert!(guard.is_some() && fake.leases() <= 2, "{} leases", fake.leases());
}

#[tokio::test(start_paused = true)]
async fn a_registration_without_lease_deregisters_at_once() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    fake.freeze();
    let service = ServiceRef::parse("svc").unwrap();
    let mut registrations = Vec::new();
    for id in 0..20 {
        let id = InstanceId::parse(format!("i{id}")).unwrap();
        let instance = Instance::new(id, [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
        let options = RegisterOptions::new().start(Start::Background);
        registrations.push(etcd.register(&service, instance, options).await.unwrap());
    }
    tokio::time::sleep(IMPATIENT).await;
    let begun = Instant::now();
    let last = registrations.pop().unwrap();
    assert_eq!(last.deregister().await.unwrap(), Deregistered::AlreadyGone);
    assert!(begun.elapsed() < Duration::from_secs(3) + REQUEST, "{:?}", begun.elapsed());
    fake.thaw();
}

/// A role is revoked for a moment, or a token cannot be renewed.
#[tokio::test(start_paused = true)]
async fn a_contender_without_a_watch_takes_its_turn() {
    let fake = FakeEtcd::start();
    let (one, two) = (client(&fake), client(&fake));
    let holder = watched_holder(&fake, &one).await;
    // The watch of the predecessor, that of its own key, and again that of the predecessor.
    for _ in 0..3 {
        fake.misbehave(Misbehavior::Refuse("rpc error: code = PermissionDenied desc = etcdserver: permission denied"));
    }
    let mut next = contend(&two);
    eventually("all are refused", || async { if fake.has_misbehaved() { Ok(()) } else { Err(fake.requests()) } }).await;
    next.assert_running();
    holder.release().await.unwrap();
    let guard = next.done("its turn").await;
    assert!(guard.is_held());
    // No contender is blocked by it.
    guard.release().await.unwrap();
    assert!(acquire(&one).await.is_held());
}

/// A watch that starts in the past is served up to 100 ms later; with constant writes of other clients every watch
/// would be.
#[tokio::test(start_paused = true)]
async fn a_handover_does_not_wait_for_unsynced_watches() {
    const LATE: Duration = Duration::from_millis(10);
    let fake = FakeEtcd::start();
    fake.delay_unsynced_watches();
    let (one, two) = (client(&fake), client(&fake));
    let holder = watched_holder(&fake, &one).await;
    fake.reset_requests();
    fake.misbehave(Misbehavior::LateWatch(LATE));
    let mut next = contend(&two);
    watch_asked_for(&fake).await;
    fake.put("somebody's", "write");
    let begun = Instant::now();
    holder.release().await.unwrap();
    assert!(next.done("its turn").await.is_held());
    assert!(begun.elapsed() <= 3 * LATE, "{:?}", begun.elapsed());
    // Requests: joining the queue, the watch, the read after it, the confirmation, and the release of the predecessor.
    let Requests { txns, ranges, watches, .. } = fake.requests();
    assert!(txns + ranges + watches <= 5, "{txns} transactions, {ranges} reads, {watches} watches");
}

/// A watch does not deliver changes between the read of the queue and the start of the watch.
#[tokio::test(start_paused = true)]
async fn a_departure_before_the_watch_is_noticed() {
    let fake = FakeEtcd::start();
    let (one, two) = (client(&fake), client(&fake));
    let holder = watched_holder(&fake, &one).await;
    let entry = fake.under(b"enlist/locks/").remove(0).0;
    fake.reset_requests();
    fake.misbehave(Misbehavior::LateWatch(Duration::from_secs(1)));
    let mut next = contend(&two);
    watch_asked_for(&fake).await;
    fake.delete(&entry);
    let begun = Instant::now();
    assert!(next.done("its turn").await.is_held());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(!holder.is_held());
}

async fn led_by(etcd: &Etcd) -> Option<String> {
    soon("the leader", etcd.leader(&lock_name())).await.unwrap().map(|leader| leader.value)
}

/// Waits until the delayed transaction is applied.
async fn late_is_done(fake: &FakeEtcd) {
    let before = fake.requests().txns;
    tokio::time::sleep(LATE).await;
    assert_eq!(fake.requests().txns, before + 1, "it was done");
}

#[tokio::test(start_paused = true)]
async fn an_older_proclamation_does_not_revert_a_newer() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let leadership = soon("elected", etcd.campaign(&lock_name(), "first", LockOptions::new())).await.unwrap();
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let lost = soon("given up", leadership.proclaim("lost")).await;
    assert!(matches!(lost, Err(Error::Unavailable(_))), "{lost:?}");
    soon("proclaimed", leadership.proclaim("acknowledged")).await.unwrap();
    late_is_done(&fake).await;
    assert_eq!(led_by(&etcd).await.as_deref(), Some("acknowledged"));
    // A proclamation that was applied although its response was lost does not block the next one.
    soon("proclaimed", leadership.proclaim("last")).await.unwrap();
    assert_eq!(led_by(&etcd).await.as_deref(), Some("last"));
}

#[tokio::test(start_paused = true)]
async fn a_late_confirmation_does_not_revert_a_proclamation() {
    let fake = FakeEtcd::start();
    let (one, two) = (client(&fake), client(&fake));
    let _first = soon("elected", one.campaign(&lock_name(), "one", LockOptions::new())).await.unwrap();
    let mut next: BackgroundTask<Leadership> = {
        let two = two.clone();
        BackgroundTask::run(async move { two.campaign(&lock_name(), "two", LockOptions::new()).await.unwrap() })
    };
    eventually("both are in the queue, and each key is watched", || async {
        let now = (fake.under(b"enlist/elections/").len(), fake.requests().watches);
        if now == (2, 3) { Ok(()) } else { Err(now) }
    })
    .await;
    // The end of the first session is no transaction, so the next transaction is the confirmation.
    fake.misbehave(Misbehavior::LateTxn(LATE));
    one.close().await.unwrap();
    let leadership = next.done("elected").await;
    soon("proclaimed", leadership.proclaim("acknowledged")).await.unwrap();
    late_is_done(&fake).await;
    assert_eq!(led_by(&two).await.as_deref(), Some("acknowledged"));
    soon("proclaimed", leadership.proclaim("last")).await.unwrap();
    assert!(leadership.is_held());
}

#[tokio::test(start_paused = true)]
async fn renewals_count_while_a_proclamation_is_under_way() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let options = LockOptions::new().ttl(Duration::from_secs(3));
    let leadership = soon("elected", etcd.campaign(&lock_name(), "first", options)).await.unwrap();
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let lost = soon("given up", leadership.proclaim("lost")).await;
    assert!(matches!(lost, Err(Error::Unavailable(_))), "{lost:?}");
    assert!(leadership.is_held(), "{:?}", leadership.lost().await);
}

#[tokio::test(start_paused = true)]
async fn a_removal_without_permission_retries_slowly() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let guard = acquire(&etcd).await;
    fake.deny_access();
    let late = soon("given up waiting", guard.release()).await;
    assert!(matches!(late, Err(Error::Timeout { op: "release", .. })), "{late:?}");
    fake.reset_requests();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let Requests { denied, .. } = fake.requests();
    assert!((30..=65).contains(&denied), "{denied} requests in ten minutes");
    fake.permit_access();
    eventually("the queue is empty", || async {
        let entries = fake.under(b"enlist/locks/");
        if entries.is_empty() { Ok(()) } else { Err(entries) }
    })
    .await;
}

/// Waits until etcd holds no key, marks included.
async fn nothing_is_left(fake: &FakeEtcd) {
    eventually("nothing is left", || async {
        let left = fake.under(b"enlist/");
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_release_removes_the_mark_of_its_holder() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let delayed = LockOptions::new().lock_delay(Duration::from_secs(3600));
    let guard = soon("acquired", etcd.acquire(&lock_name(), delayed.clone())).await.unwrap();
    assert_eq!(fake.under(b"enlist/lock-marks/default/l/").len(), 1);
    let mut next = {
        let (etcd, delayed) = (etcd.clone(), delayed.clone());
        BackgroundTask::run(async move { etcd.acquire(&lock_name(), delayed).await.unwrap() })
    };
    eventually("two are in the queue", || async {
        let now = fake.under(b"enlist/locks/").len();
        if now == 2 { Ok(()) } else { Err(now) }
    })
    .await;
    guard.release().await.unwrap();
    let guard = next.done("its turn").await;
    assert_eq!(fake.under(b"enlist/lock-marks/").len(), 1);
    guard.release().await.unwrap();
    assert_eq!(fake.under(b"enlist/"), []);
    fake.reset_requests();
    let guard = soon("acquired", etcd.acquire(&lock_name(), delayed)).await.unwrap();
    guard.release().await.unwrap();
    let Requests { txns, ranges, .. } = fake.requests();
    assert_eq!((txns, ranges), (3, 0), "to join the queue, to mark the holder, to leave");
}

/// The acquisition is given up while it joins the queue or while its holder is marked, and that transaction is applied
/// after the caller has gone; in the last case only its response was lost.
#[tokio::test(start_paused = true)]
async fn an_abandoned_acquisition_with_delay_leaves_no_mark() {
    let (soon_done, at_once) = (Misbehavior::LateTxn(Duration::from_secs(3)), Misbehavior::LateTxn(Duration::ZERO));
    let delayed = || LockOptions::new().lock_delay(Duration::from_secs(3600));
    for sequence in [vec![soon_done], vec![at_once, soon_done]] {
        let fake = FakeEtcd::start();
        let etcd = client(&fake);
        for misbehavior in sequence {
            fake.misbehave(misbehavior);
        }
        let late = soon("given up", etcd.acquire(&lock_name(), delayed().deadline(Duration::from_secs(1)))).await;
        assert!(matches!(late, Err(Error::Timeout { .. })), "{late:?}");
        assert!(fake.has_misbehaved());
        tokio::time::sleep(LATE).await;
        nothing_is_left(&fake).await;
        let guard = soon("no delay after it", etcd.acquire(&lock_name(), delayed())).await.unwrap();
        guard.release().await.unwrap();
        nothing_is_left(&fake).await;
    }
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    fake.misbehave(at_once);
    fake.misbehave(Misbehavior::LateTxn(LATE));
    let guard = soon("acquired, marked by the second attempt", etcd.acquire(&lock_name(), delayed())).await.unwrap();
    guard.release().await.unwrap();
    late_is_done(&fake).await;
    nothing_is_left(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_layout_without_marks_refuses_a_lock_delay() {
    let fake = FakeEtcd::start();
    let builder = builder(&fake);
    let etcd = builder.lock_layout(EtcdConcurrency).build().unwrap();
    let refused = etcd.acquire(&lock_name(), LockOptions::new().lock_delay(IMPATIENT)).await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    assert!(soon("acquired", etcd.acquire(&lock_name(), LockOptions::new())).await.is_ok());
}

/// The contender reaches the head of the queue while etcd refuses requests: first the confirmation of the entry, then
/// the mark of its holder.
#[tokio::test(start_paused = true)]
async fn a_deadline_at_the_turn_names_its_cause() {
    let deadline = Duration::from_secs(20);
    let delayed = LockOptions::new().lock_delay(Duration::from_secs(10));
    for (options, outage_from) in [(LockOptions::new(), Duration::ZERO), (delayed, Duration::from_secs(5))] {
        let fake = FakeEtcd::start();
        let (first, second) = (client(&fake), client(&fake));
        let _holder = soon("acquired", first.acquire(&lock_name(), options.clone())).await.unwrap();
        let entry = fake.under(b"enlist/locks/").remove(0).0;
        let mut waits = {
            let (etcd, options) = (second.clone(), options.deadline(deadline));
            BackgroundTask::run(async move { etcd.acquire(&lock_name(), options).await })
        };
        eventually("two are in the queue", || async {
            let now = fake.under(b"enlist/locks/").len();
            if now == 2 { Ok(()) } else { Err(now) }
        })
        .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        if outage_from.is_zero() {
            fake.set_minority(Some(Minority::Leaderless));
        }
        fake.delete(&entry);
        tokio::time::sleep(outage_from).await;
        fake.set_minority(Some(Minority::Leaderless));
        let late = waits.done("given up").await;
        let Err(Error::Timeout { op: "acquire", cause, .. }) = late else { panic!("a timeout: {late:?}") };
        assert!(cause.is_some(), "{outage_from:?}");
    }
}

/// Two shared holders wait for the delay of an exclusive one whose key was deleted. One of them reuses the suffix of
/// that key, and thus its mark.
#[tokio::test(start_paused = true)]
async fn a_shared_holder_keeps_its_mark_beside_others() {
    let fake = FakeEtcd::start();
    let (first, second) = (client(&fake), client(&fake));
    let delayed = |seconds| LockOptions::new().lock_delay(Duration::from_secs(seconds));
    let shared = |seconds| delayed(seconds).shared();
    let lost = soon("acquired", first.acquire(&lock_name(), delayed(60))).await.unwrap();
    let entry = fake.under(b"enlist/locks/").remove(0).0;
    let acquiring = |etcd: &Etcd, seconds| {
        let (etcd, options) = (etcd.clone(), shared(seconds));
        BackgroundTask::run(async move { etcd.acquire(&lock_name(), options).await.unwrap() })
    };
    let mut slow = acquiring(&second, 20);
    eventually("two are in the queue", || async {
        let now = fake.under(b"enlist/locks/").len();
        if now == 2 { Ok(()) } else { Err(now) }
    })
    .await;
    fake.delete(&entry);
    soon("lost", lost.lost()).await;
    // Answered at the end of its task, which gives the suffix back.
    assert_eq!(soon("the end of its task", lost.release()).await.unwrap(), Released::AlreadyLost);
    let mut quick = acquiring(&first, 5);
    let _quick = quick.done("its delay has passed").await;
    let _slow = slow.done("its delay has passed").await;
    assert_eq!(fake.under(b"enlist/lock-marks/").len(), 2, "one for each holder");
}
