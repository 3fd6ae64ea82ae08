//! Registrations during failures of etcd, of the network path to it, or of the own process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    future::Future,
    pin::{Pin, pin},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use enlist::{
    Counter, Deregistered, Election, Error, InstanceId, LeaseChoice, Lock, LockName, LockOptions, Moment, Owner,
    RegisterOptions, RegistrationState, Registry, Resolver, Start,
};
use enlist_etcd::Etcd;
use enlist_testkit::{BackgroundTask, EtcdServer, Mode, Proxy, eventually, soon};
use etcd_client::PutOptions;
use support::{
    CHILD, PREFIX, Renewal, TTL,
    between::{Between, Fault, Victim},
    enable_authentication, instance, is_registered, leases, listed, no_lease_is_left, options, pass, raw, register,
    register_many, renew_without_permission, server, server_with, state,
};

/// TTL that outlives each wait of these tests, so that what disappears was removed.
const LONG_TTL: Duration = Duration::from_secs(300);

async fn keys(server: &EtcdServer) -> Vec<String> {
    let all = etcd_client::GetOptions::new().with_prefix().with_keys_only();
    let found = raw(server).await.get("enlist/", Some(all)).await.unwrap();
    found.kvs().iter().map(|pair| pair.key_str().unwrap().to_owned()).collect()
}

/// Row 13: a registration's key that another client deleted is restored. A live lease alone does not prove that the key
/// exists: the control only renews its lease, and its key is never restored.
#[tokio::test]
async fn a_key_deleted_under_a_live_lease_returns() {
    let server = server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let registration = register(&etcd, "a").await;
    let mut raw = raw(&server).await;
    let lease = raw.lease_grant(5, None).await.unwrap().id();
    raw.put(format!("{PREFIX}control"), "{}", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    let (mut keeper, mut answers) = raw.lease_keep_alive(lease).await.unwrap();
    for key in ["a", "control"] {
        raw.delete(format!("{PREFIX}{key}"), None).await.unwrap();
    }
    let deleted = Moment::now();
    listed(&etcd, 1).await;
    assert!(deleted.elapsed() < Duration::from_secs(2), "{:?}", deleted.elapsed());
    state(&registration, is_registered).await;
    for _ in 0..5 {
        keeper.keep_alive().await.unwrap();
        assert!(answers.message().await.unwrap().unwrap().ttl() > 0);
        pass(Duration::from_secs(1)).await;
    }
    assert_eq!(keys(&server).await, [format!("{PREFIX}a")], "the control never came back");
}

/// Concurrent registrations are written together. One whose id is taken is refused and does not affect the others.
#[tokio::test]
async fn a_taken_id_blocks_no_other_registration() {
    let server = server().await;
    let (etcd, other) = (Etcd::connect(server.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
    let _theirs = register(&other, "i7").await;
    let revision = async || raw(&server).await.get("\0", None).await.unwrap().header().unwrap().revision();
    let before = revision().await;
    let service = support::service();
    let all = (0..40).map(|number| etcd.register(&service, instance(&format!("i{number}")), options()));
    let all = soon("all have an answer", futures::future::join_all(all)).await;
    let refused = |outcome: &Result<_, Error>| matches!(outcome, Err(Error::AlreadyRegistered { .. }));
    let positions: Vec<_> = (0..all.len()).filter(|at| refused(&all[*at])).collect();
    assert_eq!(positions, [7], "{all:?}");
    assert_eq!(all.iter().filter(|outcome| outcome.is_ok()).count(), 39);
    assert_eq!(keys(&server).await.len(), 40);
    let transactions = revision().await - before;
    assert!(transactions <= 10, "{transactions} transactions for 39 instances");
}

/// Row 13: a key overwritten by another client is reported, left alone, and written again once the foreign key is gone.
#[tokio::test]
async fn an_overwritten_key_is_reported_not_fought_for() {
    let server = server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let registration = register(&etcd, "a").await;
    let mut raw = raw(&server).await;
    let theirs = r#"{"v":1,"id":"a","endpoints":["10.9.9.9:1"],"owner":"them"}"#;
    raw.put(format!("{PREFIX}a"), theirs, None).await.unwrap();
    let superseded = state(&registration, |state| matches!(state, RegistrationState::Superseded { .. })).await;
    let RegistrationState::Superseded { cause: Error::NotOwner { owner, .. } } = superseded else {
        panic!("{superseded:?}");
    };
    assert_eq!(owner, Owner::Other);
    let before = raw.get("\0", None).await.unwrap().header().unwrap().revision();
    pass(Duration::from_secs(12)).await;
    let after = raw.get("\0", None).await.unwrap().header().unwrap().revision();
    assert_eq!(before, after, "nobody wrote anything");
    raw.delete(format!("{PREFIX}a"), None).await.unwrap();
    state(&registration, is_registered).await;
    assert!(keys(&server).await.contains(&format!("{PREFIX}a")));
}

/// Row 15: the role is revoked. A new instance is refused and retried only at a slow pace. A registered one stays where
/// etcd lets any client renew. Elsewhere it is refused as well once its lease has expired, and returns with the role.
#[tokio::test]
async fn a_lost_permission_is_retried_slowly() {
    let server = server().await;
    let mut raw = raw(&server).await;
    enable_authentication(&mut raw, &["enlist/"]).await;
    let etcd = Etcd::builder([server.url()]).user("u", "p".to_owned()).connect().await.unwrap();
    let kept = register(&etcd, "kept").await;
    let as_root = Some(etcd_client::ConnectOptions::new().with_user("root", "p"));
    let mut root = etcd_client::Client::connect([server.url()], as_root).await.unwrap();
    let lease = root.get(format!("{PREFIX}kept"), None).await.unwrap().kvs()[0].lease();
    root.user_revoke_role("u", "r").await.unwrap();
    let as_user = Some(etcd_client::ConnectOptions::new().with_user("u", "p"));
    let mut user = etcd_client::Client::connect([server.url()], as_user).await.unwrap();
    let renewal = renew_without_permission(&mut user, lease).await;
    println!("renewals without permission: {renewal:?}");
    let refused = soon("refused", etcd.register(&support::service(), instance("new"), options())).await.unwrap_err();
    assert!(matches!(refused, Error::PermissionDenied { .. }), "{refused:?}");
    let background = options().start(Start::Background);
    let waiting = etcd.register(&support::service(), instance("new"), background).await.unwrap();
    state(&waiting, |state| matches!(state, RegistrationState::Refused { .. })).await;
    if renewal == Renewal::Refused {
        eventually("its lease has expired", || {
            let mut root = root.clone();
            async move {
                let found = root.get(format!("{PREFIX}kept"), None).await.unwrap().count();
                if found == 0 { Ok(()) } else { Err(found) }
            }
        })
        .await;
        let denied = |state: &RegistrationState| {
            matches!(state, RegistrationState::Suspect { cause: Error::PermissionDenied { .. } })
        };
        state(&kept, denied).await;
    }
    let before = denied(&server).await;
    pass(Duration::from_secs(22)).await;
    let asked = denied(&server).await - before;
    let limit = if renewal == Renewal::Refused { 6 } else { 3 };
    assert!((1..=limit).contains(&asked), "{asked} attempts in 22 s");
    if renewal == Renewal::Unchecked {
        assert!(is_registered(&kept.state()), "{:?}", kept.state());
    }
    root.user_grant_role("u", "r").await.unwrap();
    for registration in [&kept, &waiting] {
        state(registration, is_registered).await;
    }
    assert_eq!(etcd.resolve(&support::service()).await.unwrap().len(), 2);
}

/// Number of requests that etcd refused for lack of a permission, by its own count.
async fn denied(server: &EtcdServer) -> u64 {
    let text = support::metrics(server).await;
    let lines =
        text.lines().filter(|line| line.starts_with("grpc_server_handled_total") && line.contains("PermissionDenied"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Row 17: the store is full. Existing instances stay and can be removed. New ones receive the error, and are published
/// once there is space.
#[tokio::test]
async fn a_full_store_keeps_registered_instances() {
    let server = server_with(&["--quota-backend-bytes=8388608"]).await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let registrations = register_many(&etcd, 2).await;
    let mut raw = raw(&server).await;
    let mut filler = 0;
    while raw.put(format!("filler{filler}"), vec![b'x'; 900_000], None).await.is_ok() {
        filler += 1;
        assert!(filler < 100, "the quota is reached");
    }
    let refused = soon("refused", etcd.register(&support::service(), instance("new"), options())).await.unwrap_err();
    assert!(matches!(refused, Error::StorageFull), "{refused:?}");
    let waiting = options().start(Start::Background);
    let waiting = etcd.register(&support::service(), instance("new"), waiting).await.unwrap();
    state(&waiting, |state| matches!(state, RegistrationState::Refused { cause: Error::StorageFull })).await;
    pass(2 * TTL).await;
    assert_eq!(etcd.counters().get(Counter::LeaseLosses), 0, "renewals need no room");
    let mut registrations = registrations.into_iter();
    let leaving = registrations.next().unwrap();
    // etcd 3.4.23 accepts a guarded removal, 3.5.1 refuses every transaction. An unguarded removal could hit a
    // successor, so there the instance is left behind until there is space, and the result reports it.
    let there = match soon("deregistered", leaving.deregister()).await.unwrap() {
        Deregistered::Removed => 1,
        Deregistered::LeftBehind => 2,
        other => panic!("{other:?}"),
    };
    println!("{there} of 2 are listed after one has left a full store");
    assert_eq!(etcd.resolve(&support::service()).await.unwrap().len(), there);
    // Frees space and disarms the alarm by hand, as an operator has to.
    raw.delete("filler", Some(etcd_client::DeleteOptions::new().with_prefix())).await.unwrap();
    let now = raw.get("\0", None).await.unwrap().header().unwrap().revision();
    raw.compact(now, Some(etcd_client::CompactionOptions::new().with_physical())).await.unwrap();
    raw.defragment().await.unwrap();
    let alarms = raw.alarm(etcd_client::AlarmAction::Get, etcd_client::AlarmType::Nospace, None).await.unwrap();
    let member = alarms.alarms()[0].member_id();
    let mut disarm = etcd_client::AlarmOptions::new();
    disarm.with_member(member);
    raw.alarm(etcd_client::AlarmAction::Deactivate, etcd_client::AlarmType::Nospace, Some(disarm)).await.unwrap();
    state(&waiting, is_registered).await;
    let now = listed(&etcd, 2).await;
    assert!(now.get(waiting.instance().id()).is_some());
    drop(registrations);
}

/// 500 interleavings of a deregistration with the repair of a key that another client deleted.
#[tokio::test]
async fn an_instance_deregistered_during_repair_stays_gone() {
    const RACES: usize = 500;
    let server = server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let mut random = support::seed();
    let raw = raw(&server).await;
    for batch in 0..RACES / 50 {
        let registrations: Vec<_> = (0..50).map(|race| format!("r{batch}-{race}")).collect();
        let service = support::service();
        let registering = registrations.iter().map(|id| etcd.register(&service, instance(id), options()));
        let registered = soon("registered", futures::future::try_join_all(registering)).await.unwrap();
        let races = registered.into_iter().map(|registration| {
            let (mut raw, id) = (raw.clone(), registration.instance().id().clone());
            // Between a time before the deletion and one after the repair.
            let wait = Duration::from_micros(random.u64(0..700_000));
            async move {
                raw.delete(format!("{PREFIX}{id}"), None).await.unwrap();
                tokio::time::sleep(wait).await;
                registration.deregister().await.unwrap()
            }
        });
        let outcomes = soon("deregistered", futures::future::join_all(races)).await;
        assert!(outcomes.iter().all(|outcome| *outcome != Deregistered::LeftBehind));
        assert_eq!(keys(&server).await, Vec::<String>::new());
    }
    pass(Duration::from_secs(2)).await;
    assert_eq!(keys(&server).await, Vec::<String>::new(), "nothing came back later");
}

/// One write of a removal reaches etcd after a successor has registered: the mark that it is draining, or the deletion.
/// The control, an equally late deletion without a guard, removes the successor.
#[tokio::test]
async fn a_late_removal_leaves_the_successor_alone() {
    for late in 0..2 {
        let server = server().await;
        let between = Between::start(&server).await;
        let (old, new) =
            (Etcd::builder([&between.url]).connect().await.unwrap(), Etcd::connect(server.url()).await.unwrap());
        let owned = || options().owner("o");
        let first = soon("registered", old.register(&support::service(), instance("a"), owned())).await.unwrap();
        between.spoil(Victim { method: "Txn", after: late, fault: Fault::Held });
        let mut removal = BackgroundTask::run(async move { first.deregister().await.unwrap() });
        between.spoilt("the write of the removal").await;
        let second = soon("registered", new.register(&support::service(), instance("a"), owned())).await.unwrap();
        let before = listed(&new, 1).await;
        between.release().await;
        removal.done("deregistered").await;
        let created = |listed: &enlist::Snapshot| listed.entries().map(|entry| entry.created()).collect::<Vec<_>>();
        let after = listed(&new, 1).await;
        assert_eq!((created(&after), after.revision()), (created(&before), before.revision()));
        assert!(is_registered(&second.state()));

        let unguarded = Between::start(&server).await;
        unguarded.spoil(Victim { method: "Txn", after: 0, fault: Fault::Held });
        let mut client = etcd_client::Client::connect([&unguarded.url], None).await.unwrap();
        let deletion = etcd_client::Txn::new().and_then([etcd_client::TxnOp::delete(format!("{PREFIX}a"), None)]);
        let _deleting = BackgroundTask::run(async move { client.txn(deletion).await.map(|_| ()) });
        unguarded.spoilt("the control").await;
        unguarded.release().await;
        eventually("the control takes the successor away", || async {
            let again = new.counters().get(Counter::Reregistrations);
            if again == 1 { Ok(()) } else { Err(again) }
        })
        .await;
    }
}

/// Row 8: a black hole without a reset. With a second endpoint, renewals and watches continue over that one and nothing
/// is lost.
#[tokio::test]
async fn a_black_hole_costs_nothing_with_two_endpoints() {
    let server = server().await;
    let (first, second) =
        (Proxy::start(server.address()).await.unwrap(), Proxy::start(server.address()).await.unwrap());
    let etcd = Etcd::builder([first.url(), second.url()]).connect().await.unwrap();
    let registration = register(&etcd, "a").await;
    let before = listed(&Etcd::connect(server.url()).await.unwrap(), 1).await;
    for (hole, other) in [(&first, &second), (&second, &first)] {
        other.heal();
        hole.set(Mode::BlackHole(enlist_testkit::Direction::Both));
        pass(2 * TTL).await;
        // Requests in the meantime complete within two deadlines: that of a renewal or request, and that of a dial.
        let begun = Moment::now();
        let update = registration.update(|update| {
            update.weight(7);
        });
        soon("stored", update).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
    let after = Etcd::connect(server.url()).await.unwrap().resolve(&support::service()).await.unwrap();
    let created = |snapshot: &enlist::Snapshot| snapshot.entries().map(|entry| entry.created()).collect::<Vec<_>>();
    assert_eq!(created(&after), created(&before));
    assert_eq!(etcd.counters().get(Counter::LeaseLosses), 0);
}

/// Row 8: with one endpoint the failure is reported, the instance expires, and it is back after the black hole.
#[tokio::test]
async fn a_black_hole_at_the_only_endpoint_heals() {
    let server = server().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let etcd = Etcd::builder([proxy.url()]).connect().await.unwrap();
    let registration = register(&etcd, "a").await;
    proxy.set(Mode::BlackHole(enlist_testkit::Direction::Both));
    let begun = Moment::now();
    state(&registration, |state| matches!(state, RegistrationState::Suspect { .. })).await;
    assert!(begun.elapsed() < TTL, "reported before the lease runs out: {:?}", begun.elapsed());
    let other = Etcd::connect(server.url()).await.unwrap();
    listed(&other, 0).await;
    proxy.heal();
    let healed = Moment::now();
    listed(&other, 1).await;
    assert!(healed.elapsed() < Duration::from_secs(5), "{:?}", healed.elapsed());
    state(&registration, is_registered).await;
}

/// Row 30: the connection is reset after a random number of response bytes, so that responses are lost at every point.
/// There is exactly one key, with the last value, and one lease.
#[tokio::test]
async fn answers_lost_at_any_byte_leave_one_key() {
    let server = server().await;
    let mut random = support::seed();
    for round in 0..40u32 {
        let proxy = Proxy::start(server.address()).await.unwrap();
        let etcd = Etcd::builder([proxy.url()]).build().unwrap();
        proxy.set(Mode::CutAfter(random.u64(0..1200)));
        let background = options().start(Start::Background).lease(LeaseChoice::Own);
        let registration = etcd.register(&support::service(), instance("a"), background).await.unwrap();
        for weight in 1..4 {
            drop(registration.update(move |update| {
                update.weight(round * 10 + weight);
            }));
            tokio::time::sleep(Duration::from_millis(random.u64(0..30))).await;
            proxy.set(Mode::CutAfter(random.u64(0..1200)));
        }
        proxy.heal();
        state(&registration, |state| is_registered(state) && registration.instance().weight() == round * 10 + 3).await;
        let other = Etcd::connect(server.url()).await.unwrap();
        eventually("the last value is stored, once", || async {
            let now = other.resolve(&support::service()).await.unwrap();
            let weights: Vec<_> = now.entries().map(|entry| entry.instance().weight()).collect();
            if weights == [round * 10 + 3] { Ok(()) } else { Err(weights) }
        })
        .await;
        soon("deregistered", registration.deregister()).await.unwrap();
        assert_eq!(keys(&server).await, Vec::<String>::new());
        etcd.close().await.unwrap();
    }
    eventually("no lease is left once the longest has run out", || async {
        match leases(&server).await {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
}

/// Polls `future` at most `polls` times, each after a possible wake-up. Returns the output if it completed.
async fn polled<T>(mut future: Pin<&mut impl Future<Output = T>>, polls: usize) -> Option<T> {
    for _ in 0..polls {
        let mut woken = false;
        let ready = std::future::poll_fn(|cx| {
            if std::mem::replace(&mut woken, true) {
                return Poll::Ready(None);
            }
            match future.as_mut().poll(cx) {
                Poll::Ready(done) => Poll::Ready(Some(Some(done))),
                Poll::Pending => Poll::Pending,
            }
        });
        // A wake-up, or a moment in which the session's thread makes progress.
        if let Ok(Some(done)) = tokio::time::timeout(Duration::from_millis(2), ready).await {
            return done;
        }
    }
    None
}

/// The point at which each future is dropped.
#[derive(Clone, Copy)]
struct DropPoint<'a> {
    /// Number of polls with a healthy etcd.
    healthy: usize,
    /// Fault between etcd and the client after these polls, and the number of polls from then on.
    fault: Option<(&'a Proxy, Mode, usize)>,
    /// Number of futures that had sent a request before the fault.
    interrupted: &'a AtomicUsize,
}

impl DropPoint<'_> {
    /// Polls `future` until this point, then drops it. Returns the output if it completed.
    async fn reach<T>(self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let sent =
            || self.fault.map_or(0, |(proxy, ..)| proxy.connections().iter().map(|it| it.to_server).sum::<u64>());
        if let Some((proxy, ..)) = self.fault {
            proxy.heal();
        }
        let before = sent();
        let done = polled(future.as_mut(), self.healthy).await;
        match self.fault {
            Some((proxy, mode, polls)) if done.is_none() => {
                proxy.set(mode);
                self.interrupted.fetch_add(usize::from(self.healthy > 0 && sent() > before), Ordering::Relaxed);
                polled(future, polls).await
            }
            _ => done,
        }
    }
}

/// Starts every operation of a client and drops each at this point.
async fn begin_and_drop(etcd: &Etcd, point: DropPoint<'_>) {
    let service = support::service();
    let (held, free, office) =
        (LockName::parse("l").unwrap(), LockName::parse("free").unwrap(), LockName::parse("e").unwrap());
    let lock = || LockOptions::new().ttl(LONG_TTL);
    let options = || RegisterOptions::new().ttl(LONG_TTL);
    point.reach(etcd.register(&service, instance("a"), options())).await;
    point.reach(etcd.register(&service, instance("b"), options().lease(LeaseChoice::Own))).await;
    point.reach(etcd.publish(&service, instance("fixed"))).await;
    point.reach(etcd.remove(&service, &InstanceId::parse("fixed").unwrap())).await;
    point.reach(etcd.resolve(&service)).await;
    point.reach(etcd.services(service.namespace())).await;
    if let Some(Ok(mut watcher)) = point.reach(etcd.watch(&service)).await {
        point.reach(watcher.next()).await;
    }
    // One waits behind the holder, the other finds the queue empty.
    point.reach(etcd.acquire(&held, lock())).await;
    point.reach(etcd.try_acquire(&free, lock())).await;
    point.reach(etcd.campaign(&office, "me", lock())).await;
    if let Some(Ok(mut leaders)) = point.reach(etcd.observe(&office)).await {
        point.reach(leaders.next()).await;
    }
    point.reach(etcd.leader(&office)).await;
}

async fn nothing_is_left(server: &EtcdServer, at: &str) {
    eventually(&format!("nothing is left after {at}"), || async {
        let left = keys(server).await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

/// Row 26: each public async function, dropped after any number of polls, leaves nothing behind in etcd.
#[tokio::test]
async fn a_future_dropped_at_any_await_leaves_nothing() {
    let server = server().await;
    for polls in 0..12 {
        let (etcd, holder) = (Etcd::connect(server.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
        let point = DropPoint { healthy: polls, fault: None, interrupted: &AtomicUsize::new(0) };
        drop_everything(&server, &etcd, &holder, point).await;
        point.reach(Etcd::connect(server.url())).await;
        nothing_is_left(&server, &format!("{polls} polls")).await;
        point.reach(etcd.close()).await;
        soon("closed", etcd.close()).await.unwrap();
        soon("closed", holder.close()).await.unwrap();
    }
    no_lease_is_left(&server).await;
    // Outside a task, polling any of them does not panic.
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let service = support::service();
    let registering = pin!(etcd.register(&service, instance("a"), options()));
    let _ = registering.poll(&mut Context::from_waker(Waker::noop()));
}

/// Row 26 together with 8 and 9: the same while etcd receives nothing, while its replies are lost, and while
/// connections break, from the beginning or from the middle of each call. A lease without keys may remain, if the grant
/// was not answered, and runs out.
#[tokio::test]
async fn a_future_dropped_during_an_outage_leaves_nothing() {
    let server = server().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let away = [
        Mode::BlackHole(enlist_testkit::Direction::ToServer),
        Mode::BlackHole(enlist_testkit::Direction::ToClient),
        Mode::Reset,
        Mode::Delay { delay: Duration::from_millis(5), jitter: Duration::from_millis(5) },
    ];
    let polls = [(0, 1), (0, 6), (0, 20), (1, 3), (2, 3), (3, 6), (5, 6)];
    for mode in away {
        let interrupted = AtomicUsize::new(0);
        for (healthy, polls) in polls {
            let (etcd, holder) =
                (Etcd::connect(proxy.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
            let point = DropPoint { healthy, fault: Some((&proxy, mode, polls)), interrupted: &interrupted };
            drop_everything(&server, &etcd, &holder, point).await;
            proxy.heal();
            nothing_is_left(&server, &format!("{healthy} polls and {polls} with {mode:?}")).await;
            soon("closed", etcd.close()).await.unwrap();
            soon("closed", holder.close()).await.unwrap();
        }
        println!("{interrupted:?} calls had sent a request before {mode:?}");
        assert!(interrupted.into_inner() > 0, "the control: calls are interrupted by {mode:?}");
    }
}

/// Starts operations, and those that end others, and drops each at this point.
async fn drop_everything(server: &EtcdServer, etcd: &Etcd, holder: &Etcd, point: DropPoint<'_>) {
    let lock = || LockOptions::new().ttl(LONG_TTL);
    let (name, own, office) =
        (LockName::parse("l").unwrap(), LockName::parse("own").unwrap(), LockName::parse("own-office").unwrap());
    let held = soon("acquired", holder.acquire(&name, lock())).await.unwrap();
    let options = RegisterOptions::new().ttl(LONG_TTL);
    let kept = soon("registered", etcd.register(&support::service(), instance("kept"), options)).await.unwrap();
    let guard = soon("acquired", etcd.acquire(&own, lock())).await.unwrap();
    let leading = soon("elected", etcd.campaign(&office, "me", lock())).await.unwrap();
    assert_eq!(keys(server).await.len(), 4, "there is something to leave behind");
    let update = kept.update(|update| {
        update.weight(1);
    });
    point.reach(update).await;
    point.reach(leading.proclaim("still me")).await;
    begin_and_drop(etcd, point).await;
    // Ends in the background the operations that were started.
    point.reach(leading.resign()).await;
    point.reach(guard.release()).await;
    point.reach(kept.deregister()).await;
    point.reach(held.release()).await;
    // A fixed instance has no lease; its publication depends on the progress of the dropped call.
    let _ = holder.remove(&support::service(), &InstanceId::parse("fixed").unwrap()).await;
}

/// The child process: it registers, then panics or waits.
#[tokio::test]
#[ignore = "no test of its own: other tests run it as a process of its own"]
async fn child() {
    let task = std::env::var(CHILD).expect("started by another test");
    let (url, panics) = task.split_once(' ').unwrap();
    let etcd = Etcd::connect(url).await.unwrap();
    let short = RegisterOptions::new().ttl(Duration::from_secs(2));
    let registration = etcd.register(&support::service(), instance("child"), short).await.unwrap();
    let guard = etcd.acquire(&LockName::parse("child").unwrap(), LockOptions::new().ttl(Duration::from_secs(2))).await;
    let guard = guard.unwrap();
    assert!(panics != "panics", "as asked");
    // Waits until it is killed; the fate of its lock is not tested here.
    let _ = guard.lost().await;
    std::future::pending::<()>().await;
    drop(registration);
}

fn spawn_child(server: &EtcdServer, panics: &str) -> std::process::Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["child", "--exact", "--ignored"]).env(CHILD, format!("{} {panics}", server.url()));
    child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn signal(child: &std::process::Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// Row 18: a process that is frozen for three TTLs loses its instance, and registers it again when it resumes.
#[tokio::test]
async fn a_frozen_process_is_back_when_it_thaws() {
    let server = server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let mut child = spawn_child(&server, "waits");
    listed(&etcd, 1).await;
    signal(&child, "-STOP");
    listed(&etcd, 0).await;
    pass(Duration::from_secs(4)).await;
    signal(&child, "-CONT");
    let thawed = Moment::now();
    listed(&etcd, 1).await;
    assert!(thawed.elapsed() < Duration::from_secs(3), "{:?}", thawed.elapsed());
    signal(&child, "-KILL");
    child.wait().unwrap();
    listed(&etcd, 0).await;
}

/// Row 28: the instance of a process that panics while it holds, or is killed, is gone after its TTL.
#[tokio::test]
async fn a_panicked_process_leaves_nothing_after_its_ttl() {
    let server = server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let mut child = spawn_child(&server, "panics");
    assert!(!child.wait().unwrap().success(), "it panicked");
    let dead = Moment::now();
    eventually("nothing is left", || async {
        let left = keys(&server).await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    assert!(dead.elapsed() < Duration::from_secs(4), "{:?}", dead.elapsed());
    drop(etcd);
}

/// Row 28: the runtime is shut down while handles live, and they are dropped outside of any runtime.
#[test]
fn an_ended_runtime_ends_its_instances_without_panic() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = other.block_on(server());
    let name = LockName::parse("l").unwrap();
    let (etcd, registration, guard) = runtime.block_on(async {
        let etcd = Etcd::connect(server.url()).await.unwrap();
        let registration = register(&etcd, "a").await;
        let guard = soon("acquired", etcd.acquire(&name, LockOptions::new().ttl(TTL))).await.unwrap();
        (etcd, registration, guard)
    });
    runtime.shutdown_background();
    assert!(guard.is_held() && is_registered(&registration.state()), "the session has a thread of its own");
    drop((guard, registration, etcd));
    other.block_on(async {
        eventually("nothing is left", || async {
            let left = keys(&server).await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    });
}
