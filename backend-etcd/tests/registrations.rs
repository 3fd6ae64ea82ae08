//! Registrations during failures of etcd, of the network path to it, or of the own process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    future::Future,
    pin::{Pin, pin},
    process::{Command, Stdio},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use enlist::{
    Counter, Deregistered, Election, Error, InstanceId, LeaseChoice, Lock, LockGuard, LockName, LockOptions, Moment,
    Once, Owner, RawValues, RegisterOptions, RegistrationState, Registry, Resolver, Semaphore, SemaphoreOptions, Start,
};
use enlist_etcd::Etcd;
use enlist_testkit::{BackgroundTask, Direction, EtcdServer, Mode, Proxy, eventually, soon};
use etcd_client::PutOptions;
use futures::{StreamExt, stream};
use support::{
    CHILD, PREFIX, Renewal, TTL,
    between::{Between, Fault, Victim},
    enable_authentication, instance, is_registered, leases, listed, mostly_within, no_lease_is_left, options, pass,
    raw, register, register_many, renew_without_permission, server, server_with, state,
};

/// TTL that outlives each wait of these tests, so that what disappears was removed.
const LONG_TTL: Duration = Duration::from_secs(300);

/// Keys, except those that stay until they are deleted: numbers of permits, and records of jobs.
async fn keys(server: &EtcdServer) -> Vec<String> {
    stored(raw(server).await).await
}

async fn stored(mut raw: etcd_client::Client) -> Vec<String> {
    let all = etcd_client::GetOptions::new().with_prefix().with_keys_only();
    let found = raw.get("enlist/", Some(all)).await.unwrap();
    let stays = |key: &&str| ["enlist/semaphore-permits/", "enlist/config/once:"].iter().any(|it| key.starts_with(it));
    let keys = found.kvs().iter().map(|pair| pair.key_str().unwrap());
    keys.filter(|key| !stays(key)).map(str::to_owned).collect()
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
    mostly_within(Duration::from_secs(2), async || {
        for key in ["a", "control"] {
            raw.delete(format!("{PREFIX}{key}"), None).await.unwrap();
        }
        let deleted = Moment::now();
        listed(&etcd, 1).await;
        let absent = deleted.elapsed();
        state(&registration, is_registered).await;
        absent
    })
    .await;
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
    let renewal = renew_without_permission(&server, &mut user, lease).await;
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
        hole.set(Mode::BlackHole(Direction::Both));
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
    proxy.set(Mode::BlackHole(Direction::Both));
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
}

impl DropPoint<'_> {
    /// Polls `future` until this point, then drops it. Returns the output if it completed.
    async fn reach<T>(self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        if let Some((proxy, ..)) = self.fault {
            proxy.heal();
        }
        let done = polled(future.as_mut(), self.healthy).await;
        match self.fault {
            Some((proxy, mode, polls)) if done.is_none() => {
                proxy.set(mode);
                polled(future, polls).await
            }
            _ => done,
        }
    }
}

/// Starts operations of a client and drops each at this point: those that write keys or grant leases, and reads.
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
    begin_and_drop_more(etcd, point).await;
}

async fn begin_and_drop_more(etcd: &Etcd, point: DropPoint<'_>) {
    let service = support::service();
    let (permits, job) = (LockName::parse("permits").unwrap(), LockName::parse("job").unwrap());
    let options = || RegisterOptions::new().ttl(LONG_TTL);
    let semaphore = || SemaphoreOptions::new().ttl(LONG_TTL);
    point.reach(etcd.register_value(b"enlist/value", b"x".to_vec(), options())).await;
    if let Some(Ok(lease)) = point.reach(etcd.grant_lease(LONG_TTL)).await {
        point.reach(etcd.register(&service, instance("c"), options().lease(&lease))).await;
        point.reach(lease.revoke()).await;
    }
    point.reach(etcd.acquire_permits(&permits, semaphore())).await;
    point.reach(etcd.try_acquire_permits(&permits, semaphore().own_lease())).await;
    point.reach(once(etcd).run(&job, LockOptions::new().ttl(LONG_TTL), async |_| Ok::<_, Error>(()))).await;
}

fn once(etcd: &Etcd) -> Once {
    Once::new(Arc::new(etcd.clone()), Arc::new(etcd.clone()))
}

async fn nothing_is_left(server: &EtcdServer, at: &str) {
    eventually(&format!("nothing is left after {at}"), || async {
        let left = keys(server).await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

/// Row 26: calls of registrations, leases, discovery, locks, elections, semaphores and jobs leave nothing behind in
/// etcd, dropped after any number of polls.
#[tokio::test]
async fn a_future_dropped_at_any_await_leaves_nothing() {
    let server = server().await;
    for polls in 0..12 {
        let (etcd, holder) = (Etcd::connect(server.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
        let point = DropPoint { healthy: polls, fault: None };
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
/// connections break, from the beginning of each call or after a few polls. A lease without keys may remain, if the
/// grant was not answered, and runs out.
#[tokio::test]
async fn a_future_dropped_during_an_outage_leaves_nothing() {
    let server = server().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let away = [
        Mode::BlackHole(Direction::ToServer),
        Mode::BlackHole(Direction::ToClient),
        Mode::Reset,
        Mode::Delay { delay: Duration::from_millis(5), jitter: Duration::from_millis(5) },
    ];
    for mode in away {
        for (healthy, polls) in [(0, 1), (0, 6), (0, 20), (3, 6)] {
            let (etcd, holder) =
                (Etcd::connect(proxy.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
            let point = DropPoint { healthy, fault: Some((&proxy, mode, polls)) };
            drop_everything(&server, &etcd, &holder, point).await;
            proxy.heal();
            nothing_is_left(&server, &format!("{healthy} polls and {polls} with {mode:?}")).await;
            soon("closed", etcd.close()).await.unwrap();
            soon("closed", holder.close()).await.unwrap();
        }
    }
}

/// Starts operations, and those that end others, and drops each at this point.
async fn drop_everything(server: &EtcdServer, etcd: &Etcd, holder: &Etcd, point: DropPoint<'_>) {
    let lock = || LockOptions::new().ttl(LONG_TTL);
    let (name, own, office) =
        (LockName::parse("l").unwrap(), LockName::parse("own").unwrap(), LockName::parse("own-office").unwrap());
    soon("set", holder.set_permits(&LockName::parse("permits").unwrap(), 1)).await.unwrap();
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

/// A call that writes keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Register,
    RegisterWithOwnLease,
    RegisterWithGivenLease,
    RegisterValue,
    Publish,
    Update,
    Remove,
    Deregister,
    Acquire,
    /// An acquisition behind another holder.
    Wait,
    TryAcquire,
    Release,
    Campaign,
    Proclaim,
    Resign,
    AcquirePermits,
    TryAcquirePermits,
    ReleasePermits,
    RunOnce,
}

/// Calls, and their kinds of requests that write.
const CALLS: [(Call, &[&str]); 19] = [
    (Call::Register, &["LeaseGrant", "Txn"]),
    (Call::RegisterWithOwnLease, &["LeaseGrant", "Txn"]),
    (Call::RegisterWithGivenLease, &["Txn"]),
    (Call::RegisterValue, &["LeaseGrant", "Txn"]),
    (Call::Publish, &["LeaseGrant", "Txn"]),
    (Call::Update, &["Txn"]),
    (Call::Remove, &["Txn"]),
    (Call::Deregister, &["Txn"]),
    (Call::Acquire, &["LeaseGrant", "Txn"]),
    (Call::Wait, &["LeaseGrant", "Txn"]),
    (Call::TryAcquire, &["LeaseGrant", "Txn"]),
    (Call::Release, &["Txn"]),
    (Call::Campaign, &["LeaseGrant", "Txn"]),
    (Call::Proclaim, &["Txn"]),
    (Call::Resign, &["Txn"]),
    (Call::AcquirePermits, &["LeaseGrant", "Txn"]),
    (Call::TryAcquirePermits, &["LeaseGrant", "Txn"]),
    (Call::ReleasePermits, &["Txn"]),
    (Call::RunOnce, &["LeaseGrant", "Txn"]),
];

/// Outages by name: their mode, and the fate of the request that is under way when they begin. A held one reaches etcd
/// after the outage.
const OUTAGES: [(&str, Mode, Fault); 3] = [
    ("to-server", Mode::BlackHole(Direction::ToServer), Fault::Held),
    ("to-client", Mode::BlackHole(Direction::ToClient), Fault::Silent),
    ("reset", Mode::Reset, Fault::Silent),
];

/// An outage that begins while one request of a call is under way.
struct Outage<'a> {
    /// Name of the instance or lock of the call, which no other call uses.
    name: &'a str,
    between: Between,
    /// Between the client and `between`.
    proxy: Proxy,
    mode: Mode,
    victim: Victim,
}

impl Outage<'_> {
    /// Polls `call` until the request is under way, begins the outage, and drops the call in it. Returns `false` if the
    /// call succeeded before it sent this request.
    async fn interrupts<T>(&self, call: impl Future<Output = Result<T, Error>>) -> bool {
        let Self { name, between, proxy, mode, victim } = self;
        if victim.method == "LeaseGrant" {
            // A grant contains no key, but the client has no other use for a lease meanwhile.
            between.spoil(*victim);
        } else {
            between.spoil_naming(*victim, name);
        }
        let mut call = Box::pin(call);
        let completed = tokio::select! {
            biased;
            done = call.as_mut() => Some(done),
            () = between.under_way(name) => None,
        };
        if completed.is_none() {
            proxy.set(*mode);
            polled(call.as_mut(), 4).await;
        }
        drop(call);
        proxy.heal();
        if between.spare() && victim.fault == Fault::Held {
            between.release().await;
        }
        if let Some(Err(error)) = &completed {
            panic!("{name}: {error}");
        }
        completed.is_none()
    }

    /// Makes a call through `etcd`, and returns `true` if this interrupted it. `other` has an undisturbed connection.
    async fn meets(&self, call: Call, etcd: &Etcd, other: &Etcd) -> bool {
        let (service, id) = (support::service(), InstanceId::parse(self.name).unwrap());
        let options = || RegisterOptions::new().ttl(LONG_TTL);
        let register = |options| etcd.register(&service, instance(self.name), options);
        match call {
            Call::Register => self.interrupts(register(options())).await,
            Call::RegisterWithOwnLease => self.interrupts(register(options().lease(LeaseChoice::Own))).await,
            Call::RegisterWithGivenLease => {
                let lease = soon("granted", etcd.grant_lease(LONG_TTL)).await.unwrap();
                self.interrupts(register(options().lease(&lease))).await
            }
            Call::RegisterValue => {
                let key = format!("enlist/{}", self.name);
                self.interrupts(etcd.register_value(key.as_bytes(), b"x".to_vec(), options())).await
            }
            Call::Publish => self.interrupts(etcd.publish(&service, instance(self.name))).await,
            Call::Remove => {
                soon("published", other.publish(&service, instance(self.name))).await.unwrap();
                self.interrupts(etcd.remove(&service, &id)).await
            }
            Call::Update => {
                let registration = soon("registered", register(options())).await.unwrap();
                let update = registration.update(|update| {
                    update.weight(1);
                });
                self.interrupts(update).await
            }
            Call::Deregister => {
                let registration = soon("registered", register(options())).await.unwrap();
                self.interrupts(registration.deregister()).await
            }
            _ => self.meets_contender(call, etcd, other).await,
        }
    }

    async fn meets_contender(&self, call: Call, etcd: &Etcd, other: &Etcd) -> bool {
        let name = LockName::parse(self.name).unwrap();
        let options = || LockOptions::new().ttl(LONG_TTL);
        let semaphore = || SemaphoreOptions::new().ttl(LONG_TTL).permits_if_unset(1);
        let elected = async || soon("elected", etcd.campaign(&name, "me", options())).await.unwrap();
        match call {
            Call::Wait => {
                let _held = soon("acquired", other.acquire(&name, options())).await.unwrap();
                self.interrupts(etcd.acquire(&name, options())).await
            }
            Call::Acquire => self.interrupts(etcd.acquire(&name, options())).await,
            Call::TryAcquire => self.interrupts(etcd.try_acquire(&name, options())).await,
            Call::Release => {
                let guard = soon("acquired", etcd.acquire(&name, options())).await.unwrap();
                self.interrupts(guard.release()).await
            }
            Call::Campaign => self.interrupts(etcd.campaign(&name, "me", options())).await,
            Call::Proclaim => {
                let leading = elected().await;
                self.interrupts(leading.proclaim("still me")).await
            }
            Call::Resign => self.interrupts(elected().await.resign()).await,
            Call::AcquirePermits => self.interrupts(etcd.acquire_permits(&name, semaphore())).await,
            Call::TryAcquirePermits => self.interrupts(etcd.try_acquire_permits(&name, semaphore())).await,
            Call::ReleasePermits => {
                let guard = soon("acquired", etcd.acquire_permits(&name, semaphore())).await.unwrap();
                self.interrupts(guard.release()).await
            }
            Call::RunOnce => {
                let job = async |_: &LockGuard| Ok::<_, Error>(());
                self.interrupts(once(etcd).run(&name, options(), job)).await
            }
            other => unreachable!("{other:?} is no call of a contender"),
        }
    }
}

/// Interrupts a call at each of its requests of one kind, each in a call of its own. Returns the number of requests.
async fn interrupt_each(
    server: &EtcdServer,
    other: &Etcd,
    call: Call,
    method: &'static str,
    (outage, mode, fault): (&str, Mode, Fault),
) -> usize {
    // A contender that waits sends nothing more, and does not end.
    let limit = if call == Call::Wait { 1 } else { usize::MAX };
    for after in 0..limit {
        let name = format!("in-{call:?}-{method}-{outage}-{after}").to_lowercase();
        let between = Between::start(server).await;
        let proxy = Proxy::start(between.url.trim_start_matches("http://").parse().unwrap()).await.unwrap();
        let etcd = Etcd::connect(proxy.url()).await.unwrap();
        let victim = Victim { method, after, fault };
        let outage = Outage { name: &name, between, proxy, mode, victim };
        let interrupted = outage.meets(call, &etcd, other).await;
        let raw = raw(server).await;
        eventually(&format!("nothing is left of {name}"), || async {
            if matches!(call, Call::Publish | Call::Remove) {
                // A fixed instance has no lease; it depends on the progress of the dropped call.
                let _ = other.remove(&support::service(), &InstanceId::parse(&name).unwrap()).await;
            }
            let left: Vec<_> = stored(raw.clone()).await.into_iter().filter(|key| key.contains(&name)).collect();
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        soon("closed", etcd.close()).await.unwrap();
        if !interrupted {
            return after;
        }
    }
    limit
}

/// Row 26 together with 8 and 9: an outage begins while a request of the call itself is under way, and the call is
/// dropped in it. Each request that writes is interrupted, of each call, in each kind of outage: it reaches etcd only
/// afterwards, or was executed and its reply is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_cut_inside_any_write_leaves_nothing() {
    let server = server().await;
    let other = Etcd::connect(server.url()).await.unwrap();
    let (to, by) = (&server, &other);
    let each = CALLS.iter().flat_map(|(call, methods)| methods.iter().map(move |method| (*call, *method)));
    let each = each.flat_map(|(call, method)| OUTAGES.map(|outage| (call, method, outage)));
    let runs = each.map(|(call, method, outage)| async move {
        (call, method, outage.0, interrupt_each(to, by, call, method, outage).await)
    });
    let interrupted: Vec<_> = stream::iter(runs).buffer_unordered(12).collect().await;
    println!("requests that an outage interrupted: {interrupted:?}");
    let missed: Vec<_> = interrupted.iter().filter(|(.., requests)| *requests == 0).collect();
    assert!(missed.is_empty(), "calls that no outage interrupted: {missed:?}");
    assert_eq!(keys(&server).await, Vec::<String>::new(), "nothing came back later");
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
    // Its TTL of 2 s, and time for a busy machine.
    assert!(dead.elapsed() < Duration::from_secs(6), "{:?}", dead.elapsed());
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
