//! The lease query for an instance that is gone, under a paused clock: its condition, and its cost without a response.

use std::time::Duration;

use enlist::{Change, Endpoint, Instance, InstanceId, RegisterOptions, Registry, Resolver, ServiceRef, Watcher};
use enlist_etcd::{Etcd, EtcdBuilder, EtcdNaming};
use enlist_testkit::{FakeEtcd, soon};
use tokio::time::Instant;

use crate::support::scripted::{builder, watched};

fn service() -> ServiceRef {
    ServiceRef::parse("s").unwrap()
}

fn id(name: &str) -> InstanceId {
    InstanceId::parse(name).unwrap()
}

struct Watching {
    fake: FakeEtcd,
    _etcd: Etcd,
    watcher: Box<dyn Watcher>,
}

impl Watching {
    /// Returns a watch that has shown instances of a layout without health. Their lease is renewed, but no task
    /// maintains their keys.
    async fn of(names: &[&str]) -> Self {
        Self::with(names, |builder| builder).await
    }

    /// As [`of`](Self::of), with other options of the client.
    async fn with(names: &[&str], options: impl FnOnce(EtcdBuilder) -> EtcdBuilder) -> Self {
        let fake = FakeEtcd::start();
        let builder = options(builder(&fake));
        let (etcd, service) = (builder.layout(EtcdNaming::default()).build().unwrap(), service());
        for (name, port) in names.iter().zip(1..) {
            let instance = Instance::new(id(name), [Endpoint::new("10.0.0.1", port).unwrap()]).unwrap();
            let registered = etcd.register(&service, instance, RegisterOptions::new());
            soon("registered", registered).await.unwrap().abandon();
        }
        let mut watcher = etcd.watch(&service).await.unwrap();
        while soon("a list", watcher.next()).await.unwrap().snapshot.len() < names.len() {}
        watched(&fake, 1).await;
        Self { fake, _etcd: etcd, watcher }
    }

    fn delete(&self, name: &str) {
        self.fake.delete(format!("s/{name}").as_bytes());
    }

    async fn next(&mut self) -> Change {
        soon("a change", self.watcher.next()).await.unwrap()
    }

    /// Reads the next change with futures that are dropped after `bit`. Returns the number of dropped futures as well.
    async fn next_by_bits(&mut self, bit: Duration) -> (Change, usize) {
        let mut dropped = 0;
        let read = async {
            loop {
                match tokio::time::timeout(bit, self.watcher.next()).await {
                    Ok(change) => return change.unwrap(),
                    Err(_) => dropped += 1,
                }
            }
        };
        let change = soon("a change", read).await;
        (change, dropped)
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_queried_only_when_views_empty() {
    let mut watching = Watching::of(&["a", "b", "c"]).await;
    for (name, left) in [("a", 2), ("b", 1)] {
        watching.delete(name);
        assert_eq!(watching.next().await.snapshot.len(), left);
    }
    assert_eq!(watching.fake.requests().lease_questions, 0);
    watching.delete("c");
    let change = watching.next().await;
    assert!(change.snapshot.is_empty());
    assert!(["a", "b", "c"].iter().all(|name| change.snapshot.departed(&id(name))), "one lease tells of all");
    // The lease is queried once more, in case its revocation was under way.
    assert_eq!(watching.fake.requests().lease_questions, 2);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_next_continues_the_same_query() {
    let mut watching = Watching::of(&["a"]).await;
    watching.delete("a");
    let (change, dropped) = watching.next_by_bits(Duration::from_millis(1)).await;
    assert!(change.snapshot.is_empty() && change.snapshot.departed(&id("a")));
    assert!(dropped >= 50, "the answers take a tenth of a second: {dropped}");
    assert_eq!(watching.fake.requests().lease_questions, 2);
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_an_instance_counts_as_dead() {
    for bit in [Duration::from_millis(10), Duration::from_secs(60)] {
        let mut watching = Watching::of(&["a"]).await;
        watching.fake.hold_lease_queries();
        watching.delete("a");
        let begun = Instant::now();
        let (change, _) = watching.next_by_bits(bit).await;
        assert!(change.snapshot.is_empty() && !change.snapshot.departed(&id("a")));
        assert!((900..1200).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
        assert_eq!(watching.fake.requests().lease_questions, 1);
    }
}

/// The watch has reached later probes, while the change that it reported waits for the lease.
#[tokio::test(start_paused = true)]
async fn a_change_that_waits_ends_the_former_proof() {
    let probe = Duration::from_millis(100);
    let mut watching = Watching::with(&["a"], |builder| builder.probe(Some(probe))).await;
    watching.fake.put("s/b", r#"{"Op":0,"Addr":"10.0.0.1:2","Metadata":null}"#);
    watching.next().await;
    watching.delete("b");
    let before = watching.next().await.freshness;
    watching.fake.hold_lease_queries();
    assert!(tokio::time::timeout(probe * 5, watching.watcher.next()).await.is_err(), "nothing has changed");
    assert!(before.age() <= probe, "{:?}", before.age());
    watching.delete("a");
    let deleted = Instant::now();
    let waiting = async {
        loop {
            match tokio::time::timeout(probe, watching.watcher.next()).await {
                Ok(change) => return change.unwrap().freshness,
                Err(_) => assert!(before.age() >= deleted.elapsed(), "{:?}, {:?}", before.age(), deleted.elapsed()),
            }
        }
    };
    let after = soon("the change", waiting).await;
    assert!(deleted.elapsed() >= probe * 5, "it waited: {:?}", deleted.elapsed());
    assert!(before.age() <= deleted.elapsed() + probe, "it was known until the deletion: {:?}", before.age());
    assert!(after.age() <= probe, "{:?}", after.age());
}

#[tokio::test(start_paused = true)]
async fn losses_are_no_departures() {
    let mut watching = Watching::of(&["a"]).await;
    watching.fake.revoke_all();
    let change = watching.next().await;
    assert!(change.snapshot.is_empty() && !change.snapshot.departed(&id("a")));
    let mut watching = Watching::of(&["a"]).await;
    watching.fake.put("s/b", r#"{"Op":0,"Addr":"10.0.0.1:2","Metadata":null}"#);
    assert_eq!(watching.next().await.snapshot.len(), 2);
    watching.fake.wipe();
    // The view becomes stale first.
    let change = loop {
        let change = watching.next().await;
        if change.snapshot.is_empty() {
            break change;
        }
    };
    assert_eq!(change.snapshot.epoch().get(), 1);
    assert!(!change.snapshot.departed(&id("a")) && !change.snapshot.departed(&id("b")));
}

/// The snapshot has the lease but not the instance. Other clients have written since, so only an audit detects it.
#[tokio::test(start_paused = true)]
async fn an_instance_missing_in_audits_has_not_departed() {
    let mut watching = Watching::of(&["a"]).await;
    watching.delete("a");
    assert!(watching.next().await.snapshot.is_empty());
    let snapshot = watching.fake.snapshot();
    let (lease, value) = (watching.fake.lease_ids()[0], r#"{"Op":0,"Addr":"10.0.0.1:2","Metadata":null}"#);
    watching.fake.put_under("s/b", value, lease);
    assert_eq!(watching.next().await.snapshot.len(), 1);
    let before = watching.fake.revision();
    watching.fake.restore(&snapshot);
    while watching.fake.revision() < before {
        watching.fake.put("elsewhere", "x");
    }
    let change = loop {
        let change = watching.next().await;
        if change.snapshot.is_empty() {
            break change;
        }
    };
    assert!(!change.snapshot.departed(&id("b")));
}
