//! Row 30: the reply to each request of locks and elections is lost in turn, after etcd has executed the request; also
//! those to renewals and to requests about leases, of registrations too. The client sees a broken connection, or no
//! response. Whichever reply is lost, there is one key per queue entry and one lease per session, and each caller
//! receives the true outcome. Of a watch, the reply is its creation. Permits, the configuration, fixed instances,
//! tokens, versions and lists of members are not part of it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::time::Duration;

use enlist::{
    Counter, Election, Error, Lock, LockName, LockOptions, OnDelete, RegisterOptions, RegistrationState, Registry,
    Released, Start,
};
use enlist_etcd::Etcd;
use enlist_testkit::{BackgroundTask, EtcdServer, eventually, soon};
use etcd_client::{GetOptions, PutOptions};
use futures::{StreamExt, stream};
use support::{
    PREFIX,
    between::{Between, Fault, Victim},
    instance, leases, raw, server, service,
};

const QUEUE: &str = "enlist/locks/default/l/";

async fn count(server: &EtcdServer, prefix: &str) -> usize {
    let options = GetOptions::new().with_prefix().with_count_only();
    usize::try_from(raw(server).await.get(prefix, Some(options)).await.unwrap().count()).unwrap()
}

async fn becomes(what: &str, wanted: usize, now: impl AsyncFn() -> usize) {
    let now = &now;
    eventually(what, || async move {
        let now = now().await;
        if now == wanted { Ok(()) } else { Err(now) }
    })
    .await;
}

/// Waits until a release is confirmed, or continues in the background for lack of a response.
async fn released(releasing: impl Future<Output = Result<Released, Error>>, between: &Between) {
    match soon("released", releasing).await {
        Ok(Released::Released) => {}
        Err(Error::Timeout { .. }) if between.is_silent() => {}
        other => panic!("a release that etcd has done: {other:?}"),
    }
}

/// Returns the result of an operation, or `None` if the reply to one of its own requests was lost.
async fn unless_lost<T>(operation: impl Future<Output = Result<T, Error>>, between: &Between) -> Option<T> {
    let before = between.has_spoilt();
    match soon("done", operation).await {
        Ok(done) => Some(done),
        Err(Error::Unavailable(_) | Error::Timeout { .. }) if between.has_spoilt() && !before => None,
        Err(other) => panic!("no reply to it was lost: {other:?}"),
    }
}

/// A long TTL, so that no state is repaired by expiry.
fn options() -> LockOptions {
    LockOptions::new().ttl(Duration::from_secs(60))
}

/// Runs every operation of the protocol with two processes, all through `between`.
async fn everything(server: &EtcdServer, between: &Between) {
    let (one, two) = (Etcd::builder([&between.url]).build().unwrap(), Etcd::builder([&between.url]).build().unwrap());
    let name = LockName::parse("l").unwrap();
    let waits = |etcd: &Etcd, options: LockOptions| {
        let (etcd, name) = (etcd.clone(), name.clone());
        BackgroundTask::run(async move { etcd.acquire(&name, options).await.unwrap() })
    };
    let first = soon("acquired", one.acquire(&name, options())).await.unwrap();
    assert_eq!((count(server, QUEUE).await, leases(server).await), (1, 1));
    let mut second = waits(&two, options());
    becomes("the second is in the queue", 2, || count(server, QUEUE)).await;
    let mut third = waits(&two, options());
    becomes("the third is in the queue", 3, || count(server, QUEUE)).await;
    assert_eq!(leases(server).await, 2, "one for each process");
    // Handover to another process, within one process, and without a successor.
    let mut token = first.fencing_token();
    released(first.release(), between).await;
    for (next, left) in [(&mut second, 2), (&mut third, 1)] {
        let guard = next.done("its turn").await;
        assert!(guard.is_held() && guard.fencing_token() > token);
        token = guard.fencing_token();
        assert_eq!(count(server, QUEUE).await, left);
        released(guard.release(), between).await;
    }
    becomes("the queue is empty", 0, || count(server, QUEUE)).await;

    // A shared contender needs to know which of the entries before it are exclusive.
    let writer = soon("acquired", one.acquire(&name, options())).await.unwrap();
    let mut reader = waits(&two, options().shared());
    becomes("the reader is in the queue", 2, || count(server, QUEUE)).await;
    released(writer.release(), between).await;
    let guard = reader.done("its turn").await;
    assert!(guard.is_held());
    released(guard.release(), between).await;
    becomes("the queue is empty", 0, || count(server, QUEUE)).await;

    // A failed attempt gives up at once and leaves nothing in either case.
    let held = soon("acquired", one.acquire(&name, options().own_lease())).await.unwrap();
    let tried = unless_lost(two.try_acquire(&name, options()), between).await.flatten();
    assert!(tried.is_none(), "another one holds it: {tried:?}");
    becomes("only the holder is in the queue", 1, || count(server, QUEUE)).await;
    assert_eq!(leases(server).await, 3);
    released(held.release(), between).await;
    becomes("its own lease is gone", 2, || leases(server)).await;

    // With a delay each holder has a mark, which its release removes.
    let delayed = || options().lock_delay(Duration::from_secs(3600));
    let first = soon("acquired", one.acquire(&name, delayed())).await.unwrap();
    assert_eq!(count(server, "enlist/lock-marks/").await, 1);
    let mut second = waits(&two, delayed());
    becomes("the second is in the queue", 2, || count(server, QUEUE)).await;
    released(first.release(), between).await;
    let guard = second.done("its turn, without a delay").await;
    assert_eq!(count(server, "enlist/lock-marks/").await, 1);
    released(guard.release(), between).await;
    becomes("the queue is empty", 0, || count(server, QUEUE)).await;
    assert_eq!(count(server, "enlist/lock-marks/").await, 0);

    let leading = soon("elected", one.campaign(&name, "one", options())).await.unwrap();
    let proclaimed = unless_lost(leading.proclaim("still one"), between).await;
    let candidates = raw(server).await.get("enlist/elections/", Some(GetOptions::new().with_prefix())).await.unwrap();
    assert_eq!(candidates.kvs().len(), 1);
    let value = candidates.kvs()[0].value_str().unwrap();
    assert!(proclaimed.is_none() || value.contains("still one"), "{value}");
    released(leading.resign(), between).await;
    becomes("no candidate", 0, || count(server, "enlist/elections/")).await;
    one.close().await.unwrap();
    two.close().await.unwrap();
    // A revocation whose reply was lost has been applied.
    becomes("no lease", 0, || leases(server)).await;
}

/// Renewals of a registration and of a lock.
async fn renewals(server: &EtcdServer, between: &Between) {
    let etcd = Etcd::builder([&between.url]).build().unwrap();
    // A lost reply costs a second, and the connection.
    let (short, often) = (Duration::from_secs(6), Duration::from_secs(1));
    let name = LockName::parse("l").unwrap();
    let options = LockOptions::new().ttl(short).renewal_interval(often);
    let guard = soon("acquired", etcd.acquire(&name, options)).await.unwrap();
    let options = RegisterOptions::new().ttl(short).renewal_interval(often);
    let registration = soon("registered", etcd.register(&service(), instance("a"), options)).await.unwrap();
    // Two leases, each renewed every second, for longer than an unrenewed lease lives.
    eventually("both are renewed", || async {
        let renewals = etcd.counters().get(Counter::Renewals);
        if renewals >= 14 { Ok(()) } else { Err(renewals) }
    })
    .await;
    assert!(guard.is_held());
    eventually("it is registered", || async {
        match registration.state() {
            RegistrationState::Registered { .. } => Ok(()),
            other => Err(other),
        }
    })
    .await;
    // Locks have a separate lease.
    assert_eq!(leases(server).await, 2);
    assert_eq!((etcd.counters().get(Counter::LeaseLosses), etcd.counters().get(Counter::Reregistrations)), (0, 0));
    released(guard.release(), between).await;
    soon("deregistered", registration.deregister()).await.unwrap();
    etcd.close().await.unwrap();
    becomes("no lease", 0, || leases(server)).await;
}

/// Lease queries: for a leftover lease that is not renewed, and for a registration whose key was deleted.
async fn questions(server: &EtcdServer, between: &Between) {
    let etcd = Etcd::builder([&between.url]).build().unwrap();
    let mut raw = raw(server).await;
    let leftover = raw.lease_grant(2, None).await.unwrap().id();
    let value = r#"{"endpoints":["10.0.0.9:80"]}"#;
    raw.put(format!("{PREFIX}a"), value, Some(PutOptions::new().with_lease(leftover))).await.unwrap();
    let options = RegisterOptions::new().ttl(Duration::from_secs(60)).on_delete(OnDelete::Respect);
    // A lost answer about the leftover costs half of the default limit.
    let options = options.start(Start::Wait(Duration::from_secs(25)));
    let registration = soon("registered", etcd.register(&service(), instance("a"), options)).await.unwrap();
    let found = raw.get(format!("{PREFIX}a"), None).await.unwrap();
    assert_ne!(found.kvs()[0].lease(), leftover);
    raw.delete(format!("{PREFIX}a"), None).await.unwrap();
    eventually("the deletion is respected", || async {
        match registration.state() {
            RegistrationState::Ended => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(count(server, PREFIX).await, 0);
    etcd.close().await.unwrap();
    becomes("no lease", 0, || leases(server)).await;
}

/// Loses replies, each in a separate run: the first after `start`, then every `step`. Returns the number of lost
/// replies.
async fn lose_each(method: &'static str, fault: Fault, start: usize, step: usize) -> usize {
    let server = server().await;
    for (lost, after) in (start..).step_by(step).enumerate() {
        let victim = Victim { method, after, fault };
        println!("losing {victim:?}");
        let between = Between::start(&server).await;
        between.spoil(victim);
        match method {
            "LeaseKeepAlive" => renewals(&server, &between).await,
            "LeaseTimeToLive" => questions(&server, &between).await,
            _ => everything(&server, &between).await,
        }
        if !between.has_spoilt() {
            return lost;
        }
    }
    unreachable!("the loop ends with the last reply")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_lost_reply_leaves_one_leased_key() {
    let methods = ["Txn", "Range", "LeaseGrant", "LeaseRevoke", "Watch", "LeaseKeepAlive", "LeaseTimeToLive"];
    let each = |(method, fault)| {
        // Waiting for responses takes time: several runs in parallel.
        let step = if matches!((method, fault), ("Txn", Fault::Silent) | ("LeaseKeepAlive" | "LeaseTimeToLive", _)) {
            4
        } else {
            1
        };
        (0..step).map(move |start| (method, fault, start, step))
    };
    let runs = methods.into_iter().flat_map(|method| [(method, Fault::Broken), (method, Fault::Silent)]).flat_map(each);
    let runs = runs.map(|(method, fault, start, step)| async move {
        (method, fault, start, lose_each(method, fault, start, step).await)
    });
    let losses: Vec<_> = stream::iter(runs).buffer_unordered(24).collect().await;
    println!("replies lost, one at a time: {losses:?}");
    assert!(losses.iter().all(|(_, _, _, lost)| *lost > 0), "{losses:?}");
}
