//! Faults of a cluster of three: a frozen leader, a lost member, a minority, no quorum.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{collections::HashMap, sync::Arc, time::Duration};

use enlist::{
    Counter, Directory, Error, Event, Freshness, Lock, LockName, LockOptions, Moment, Registry, Resolver, TaskOwner,
    backend::sleep_until_elapsed,
};
use enlist_etcd::Etcd;
use enlist_testkit::{EtcdCluster, Mode, Proxy, eventually, soon};
use futures::FutureExt;
use support::{TTL, instance, listed, pass, register, register_many, service};
use tokio::sync::Mutex;

const COUNT: usize = 20;

/// Duration of each instance's absence, as seen by a raw watch over the member `url`.
#[derive(Debug, Default)]
struct Missing {
    since: HashMap<Vec<u8>, Moment>,
    total: HashMap<Vec<u8>, Duration>,
    deletions: usize,
}

async fn oracle(url: String, prefix: &'static str) -> (Arc<Mutex<Missing>>, TaskOwner) {
    let missing = Arc::new(Mutex::new(Missing::default()));
    let tasks = TaskOwner::new();
    let recorded = Arc::clone(&missing);
    let mut raw = etcd_client::Client::connect([url], None).await.unwrap();
    let mut stream = raw.watch(prefix, Some(etcd_client::WatchOptions::new().with_prefix())).await.unwrap();
    let stop = tasks.stop_signal();
    let reading = async move {
        while let Ok(Some(message)) = stream.message().await {
            let mut missing = recorded.lock().await;
            for event in message.events() {
                let key = event.kv().unwrap().key().to_vec();
                if event.event_type() == etcd_client::EventType::Delete {
                    missing.deletions += 1;
                    missing.since.insert(key, Moment::now());
                } else if let Some(since) = missing.since.remove(&key) {
                    *missing.total.entry(key).or_default() += since.elapsed();
                }
            }
        }
    };
    tasks
        .spawn("oracle", async move {
            stop.run_until_cancelled_owned(reading).await;
        })
        .unwrap();
    (missing, tasks)
}

/// Renews leases in the way of most clients: one long-lived stream on one member, waiting for each response. Returns
/// the leases.
async fn naive(url: &str, tasks: &TaskOwner) -> Vec<i64> {
    let mut leases = Vec::new();
    for _ in 0..COUNT {
        let mut raw = etcd_client::Client::connect([url], None).await.unwrap();
        let lease = raw.lease_grant(5, None).await.unwrap().id();
        leases.push(lease);
        let stop = tasks.stop_signal();
        let renew = async move {
            let Ok((mut keeper, mut answers)) = raw.lease_keep_alive(lease).await else { return };
            loop {
                // Short interval, so that a renewal is in progress when the leader freezes.
                pass(Duration::from_millis(300)).await;
                if keeper.keep_alive().await.is_err() || !matches!(answers.message().await, Ok(Some(_))) {
                    return;
                }
            }
        };
        tasks
            .spawn("naive", async move {
                stop.run_until_cancelled_owned(renew).await;
            })
            .unwrap();
    }
    leases
}

/// Row 4: the leader of three is frozen for at least 10 s and thawed. The control, one renewal stream per lease on a
/// follower as in most clients, loses its leases during the freeze.
#[tokio::test]
async fn a_frozen_leader_costs_no_instance() {
    let cluster = EtcdCluster::start().await;
    let etcd = Etcd::builder(cluster.urls()).connect().await.unwrap();
    let _registrations = register_many(&etcd, COUNT).await;
    // On a busy machine the leader may change by itself, and freezing a former leader proves nothing.
    let mut control = TaskOwner::new();
    let (leader, follower, naive) = loop {
        let leader = cluster.leader().await;
        let follower = (leader + 1) % 3;
        let naive = naive(&cluster.urls()[follower], &control).await;
        if cluster.leader().await == leader {
            break (leader, follower, naive);
        }
        control = TaskOwner::new();
    };
    let (missing, _oracle) = oracle(cluster.urls()[follower].clone(), "enlist/services/").await;

    cluster.member(leader).pause().await;
    let frozen = Moment::now();
    sleep_until_elapsed(frozen, Duration::from_secs(10)).await;
    assert_eq!(missing.lock().await.deletions, 0, "nothing is lost during the freeze");
    // A new leader resets leases to their full TTL, so the control's time to expiry depends on the election.
    let raw = etcd_client::Client::connect([cluster.urls()[follower].clone()], None).await.unwrap();
    let lost = eventually("the control shows that the freeze is one", || async {
        let mut raw = raw.clone();
        let mut lost = 0;
        for lease in &naive {
            lost += usize::from(raw.lease_time_to_live(*lease, None).await.unwrap().ttl() <= 0);
        }
        if lost > 0 { Ok(lost) } else { Err(lost) }
    })
    .await;
    assert_eq!(missing.lock().await.deletions, 0, "and nothing of ours is lost");

    cluster.member(leader).resume().await;
    // Longer than a TTL, so that the thawed leader has made its revocations.
    let slowest = slowest_write(&raw, 2 * TTL).await;
    listed(&etcd, COUNT).await;
    let missing = missing.lock().await;
    let longest = missing.total.values().max().copied().unwrap_or_default();
    let deletions = missing.deletions;
    println!(
        "{deletions} deletions, the longest absence {longest:?}, the slowest write {slowest:?}; control lost {lost}"
    );
    assert!(missing.since.is_empty(), "{missing:?}");
    // An instance is back after an answer about its lease, a grant, a look at its key, and its write. The repetition
    // after a permanent error comes after ten seconds.
    let limit = (Duration::from_secs(2) + 4 * slowest).min(Duration::from_millis(9_500));
    assert!(longest <= limit, "{limit:?}: {missing:?}");
}

/// Writes for this time, and returns the duration of the slowest write, which may fail.
async fn slowest_write(raw: &etcd_client::Client, time: Duration) -> Duration {
    let (begun, mut slowest) = (Moment::now(), Duration::ZERO);
    while begun.elapsed() < time {
        let asked = Moment::now();
        let _ = raw.clone().put("probe", "", None).await;
        slowest = slowest.max(asked.elapsed());
        pass(Duration::from_millis(50)).await;
    }
    slowest
}

/// Row 5: the follower in use is frozen, then killed.
#[tokio::test]
async fn a_silent_member_is_left_without_lease_loss() {
    let mut cluster = EtcdCluster::start().await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    // Both clients have the follower and the leader as endpoints.
    let urls = [cluster.urls()[follower].clone(), cluster.urls()[leader].clone()];
    let (missing, _oracle) = oracle(cluster.urls()[leader].clone(), "enlist/services/").await;
    let clients = [Etcd::builder(urls.clone()).connect().await.unwrap(), Etcd::builder(urls).connect().await.unwrap()];
    let mut registrations = Vec::new();
    let mut watchers = Vec::new();
    for (number, etcd) in clients.iter().enumerate() {
        registrations.push(register(etcd, &number.to_string()).await);
        let mut watcher = etcd.watch(&service()).await.unwrap();
        soon("a list", watcher.next()).await.unwrap();
        watchers.push(watcher);
    }
    cluster.member(follower).pause().await;
    let frozen = Moment::now();
    sleep_until_elapsed(frozen, 2 * TTL).await;
    assert_eq!(missing.lock().await.deletions, 0, "renewals went on through the other member");
    // Changes during the freeze of one member reach both watchers, regardless of their previous member.
    registrations.push(register(&clients[0], "2").await);
    for watcher in &mut watchers {
        while soon("the third", watcher.next()).await.unwrap().snapshot.len() < 3 {}
    }
    cluster.member(follower).resume().await;
    cluster.member_mut(follower).kill().await;
    let killed = Moment::now();
    registrations.push(register(&clients[1], "3").await);
    for watcher in &mut watchers {
        while soon("the fourth", watcher.next()).await.unwrap().snapshot.len() < 4 {}
    }
    assert!(killed.elapsed() < Duration::from_secs(4), "{:?}", killed.elapsed());
    sleep_until_elapsed(killed, TTL + Duration::from_secs(1)).await;
    assert_eq!(missing.lock().await.deletions, 0);
}

/// Row 6: the member in use is isolated from the others without noticing it; its clients still reach it.
#[tokio::test]
async fn a_minority_member_is_left_for_a_quorum() {
    let cluster = EtcdCluster::start().await;
    let leader = cluster.leader().await;
    let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let etcd = Etcd::builder(cluster.urls()).connect().await.unwrap();
    let registration = register(&etcd, "0").await;
    let mut watcher = etcd.watch(&service()).await.unwrap();
    soon("a list", watcher.next()).await.unwrap();
    for (weight, isolated) in [(1, follower), (2, other), (3, leader)] {
        cluster.heal();
        cluster.isolate(isolated);
        registration
            .update(move |update| {
                update.weight(weight);
            })
            .await
            .unwrap();
        let seen = async {
            loop {
                let change = watcher.next().await.unwrap();
                if change.snapshot.entries().all(|entry| entry.instance().weight() == weight) {
                    assert_eq!(change.snapshot.len(), 1);
                    return;
                }
            }
        };
        soon("the change is seen", seen).await;
    }
    cluster.heal();
    assert_eq!(etcd.counters().get(Counter::LeaseLosses), 0);
}

/// Row 7: two of three are frozen. Views keep their last state and report its age; new operations fail with a cause.
/// Afterwards all of them recover without intervention.
#[tokio::test]
async fn without_a_quorum_the_last_snapshot_stays() {
    let cluster = EtcdCluster::start().await;
    let etcd = Etcd::builder(cluster.urls()).connect().await.unwrap();
    let _registrations = register_many(&etcd, COUNT).await;
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let mut last = soon("a list", watcher.next()).await.unwrap();
    let one = cluster.leader().await;
    let two = (one + 1) % 3;
    cluster.member(one).pause().await;
    cluster.member(two).pause().await;
    let frozen = Moment::now();
    // Changes that were committed before the freeze may still arrive.
    while let Ok(change) = tokio::time::timeout(Duration::from_millis(500), watcher.next()).await {
        last = change.unwrap();
    }
    let known = last.snapshot.len();
    let mut noticed = None;
    while frozen.elapsed() < Duration::from_secs(30) {
        if let Ok(change) = tokio::time::timeout(Duration::from_secs(1), watcher.next()).await {
            last = change.unwrap();
            assert_eq!(last.snapshot.len(), known, "an outage removes nothing");
        }
        if matches!(last.freshness, Freshness::Stale { .. }) {
            noticed.get_or_insert_with(|| frozen.elapsed());
        }
    }
    let noticed = noticed.expect("the outage was noticed");
    assert!(noticed < Duration::from_secs(15), "{noticed:?}");
    assert!(last.freshness.age() >= Duration::from_secs(29), "{:?}", last.freshness);
    let name = LockName::parse("l").unwrap();
    let options = LockOptions::new().ttl(TTL).deadline(Duration::from_secs(2));
    assert!(matches!(etcd.acquire(&name, options.clone()).await, Err(Error::Timeout { .. })));
    cluster.member(one).resume().await;
    cluster.member(two).resume().await;
    let healed = Moment::now();
    // Leases that expired meanwhile, or are revoked late, are replaced.
    let settled = async {
        loop {
            let change = watcher.next().await.unwrap();
            // One that was deleted and created while nothing was received is an update, of another key.
            let in_place =
                |event: &Event| matches!(event, Event::Updated { old, new } if old.created() == new.created());
            assert!(!change.events.iter().any(in_place), "{:?}", change.events);
            if change.snapshot.len() == COUNT && change.freshness.is_live() {
                return;
            }
        }
    };
    soon("fresh again", settled).await;
    listed(&etcd, COUNT).await;
    println!("noticed after {noticed:?}, fresh again {:?} after the thaw", healed.elapsed());
    let guard = soon("acquired", etcd.acquire(&name, options.deadline(Duration::from_secs(20)))).await.unwrap();
    guard.release().await.unwrap();
}

/// A learner refuses every request but status, renewals included. The client starts with it, because no other member is
/// reachable at that time; the control is its refusal.
#[tokio::test]
async fn a_learner_is_left_for_a_voting_member() {
    let mut cluster = EtcdCluster::start().await;
    let learner = cluster.add_learner().await;
    let proxy = Proxy::start(cluster.member(0).address()).await.unwrap();
    proxy.set(Mode::Refuse);
    eventually("the member is out of reach", || async {
        let connected = tokio::net::TcpStream::connect(proxy.address()).await;
        if connected.is_err() { Ok(()) } else { Err(connected) }
    })
    .await;
    let etcd = Etcd::builder([learner, proxy.url()]).build().unwrap();
    let name = LockName::parse("l").unwrap();
    let refused = soon("refused", etcd.resolve(&service())).await.unwrap_err();
    assert!(format!("{refused:?}").contains("learner"), "{refused:?}");
    let refused = soon("refused", etcd.try_acquire(&name, LockOptions::new().ttl(TTL))).await.unwrap_err();
    assert!(format!("{refused:?}").contains("learner"), "{refused:?}");
    let mut watcher = etcd.watch(&service()).await.unwrap();
    proxy.heal();
    let _registration = register(&etcd, "a").await;
    while soon("the instance is seen", watcher.next()).await.unwrap().snapshot.is_empty() {}
    let guard = soon("acquired", etcd.acquire(&name, LockOptions::new().ttl(TTL))).await.unwrap();
    sleep_until_elapsed(Moment::now(), 2 * TTL).await;
    assert!(guard.is_held(), "renewals go to the member");
    assert_eq!(etcd.counters().get(Counter::LeaseLosses), 0);
}

/// Two of three are frozen when a client of the third one starts. With the option it finds the instances there, marked
/// as not live and with the maximum age; without it, it has no state.
#[tokio::test]
async fn without_a_quorum_new_clients_still_find_instances() {
    let cluster = EtcdCluster::start().await;
    let leader = cluster.leader().await;
    let left = (leader + 1) % 3;
    let etcd = Etcd::builder(cluster.urls()).connect().await.unwrap();
    for id in ["a", "b"] {
        soon("published", etcd.publish(&service(), instance(id))).await.unwrap();
    }
    let left_url = || Etcd::builder([cluster.urls()[left].clone()]);
    // It has the instances before it is isolated.
    listed(&left_url().connect().await.unwrap(), 2).await;
    cluster.member(leader).pause().await;
    cluster.member((leader + 2) % 3).pause().await;
    let asking = left_url().serializable_first_list(Some(Duration::from_secs(1))).build().unwrap();
    let control = left_url().build().unwrap();
    let mut unknown = control.watch(&service()).await.unwrap();
    let view = Directory::new(Arc::new(asking)).view(&service());
    let found = soon("what the member knows", view.ready()).await.unwrap();
    assert_eq!(found.len(), 2);
    let freshness = view.freshness().unwrap();
    assert!(!freshness.is_live(), "{freshness:?}");
    assert!(freshness.age() > Duration::from_secs(365 * 24 * 3600), "{freshness:?}");
    assert!(unknown.next().now_or_never().is_none(), "the control knows nothing");
    cluster.member(leader).resume().await;
    cluster.member((leader + 2) % 3).resume().await;
    eventually("the view is up to date", || async {
        let freshness = view.freshness().unwrap();
        if freshness.is_live() && freshness.age() < Duration::from_secs(60) { Ok(()) } else { Err(freshness) }
    })
    .await;
    assert_eq!(view.snapshot().unwrap().diff(&found), []);
    assert_eq!(soon("the control", unknown.next()).await.unwrap().snapshot.len(), 2);
}
