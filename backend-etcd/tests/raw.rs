//! Raw keys and values in etcd: values of other clients are visible, and registered ones are stored unchanged.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::time::Duration;

use enlist::{
    Counter, Endpoint, Error, Instance, InstanceId, OnDelete, RawEvent, RawValues, RegisterOptions, RegistrationState,
    Registry, Resolver, ServiceRef,
};
use enlist_etcd::{Etcd, GoKit, SessionRuntime};
use enlist_testkit::{EtcdServer, FakeEtcd, eventually, soon};
use support::{raw, scripted::client};

/// go-kit returns its users' values unchanged, and reads every registered one.
#[tokio::test]
async fn prefix_watches_show_keys_of_all_clients() {
    let server = EtcdServer::start().await;
    let mut raw = raw(&server).await;
    let etcd = Etcd::builder([server.url()]).layout(GoKit::default()).connect().await.unwrap();
    raw.put("/services/foosvc/v2/deep", "http://10.0.0.1:80/api", None).await.unwrap();
    let mut watcher = etcd.watch_prefix(b"/services/foosvc/").await.unwrap();
    let first = soon("the list", watcher.next()).await.unwrap();
    let entry = first.snapshot.get(b"/services/foosvc/v2/deep").unwrap();
    assert_eq!((&*entry.value, entry.lease), (&b"http://10.0.0.1:80/api"[..], None));

    let key = b"/services/foosvc/any";
    let value = [0, 159, 146, 150];
    let options = RegisterOptions::new();
    let any = soon("registered", etcd.register_value(key, value.to_vec(), options.clone())).await.unwrap();
    let found = raw.get(&key[..], None).await.unwrap();
    let [pair] = found.kvs() else { panic!("{found:?}") };
    assert_eq!((pair.value(), pair.lease()), (&value[..], any.lease().unwrap().get()));
    let added = soon("a change", watcher.next()).await.unwrap();
    assert!(matches!(&added.events[..], [RawEvent::Added(entry)] if *entry.value == value), "{added:?}");

    // An instance of the layout is listed as well, and a key deleted by another client is restored.
    let service = ServiceRef::parse("foosvc").unwrap();
    let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
    let registered = soon("registered", etcd.register(&service, instance, options.clone())).await.unwrap();
    raw.delete("/services/foosvc/v2/deep", None).await.unwrap();
    eventually("both are seen", || async {
        let listed = etcd.list_prefix(b"/services/foosvc/").await.unwrap();
        let keys: Vec<_> = listed.entries().map(|entry| entry.key.escape_ascii().to_string()).collect();
        if keys == ["/services/foosvc/a", "/services/foosvc/any"] { Ok(()) } else { Err(keys) }
    })
    .await;
    // The id is also taken within the same process.
    let taken = etcd.register_value(b"/services/foosvc/a", b"x".to_vec(), options).await;
    assert!(matches!(taken, Err(Error::AlreadyRegistered { .. })), "{taken:?}");
    assert_eq!(etcd.resolve(&service).await.unwrap().len(), 1, "what is no instance is skipped");
    soon("gone", registered.deregister()).await.unwrap();
    soon("gone", any.deregister()).await.unwrap();
    assert!(etcd.list_prefix(b"/services/").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_deleted_value_is_restored_or_ends() {
    let server = EtcdServer::start().await;
    let (mut raw, etcd) = (raw(&server).await, Etcd::connect(server.url()).await.unwrap());
    let options = RegisterOptions::new();
    let _restored = soon("registered", etcd.register_value(b"a/1", b"x".to_vec(), options.clone())).await.unwrap();
    let options = options.on_delete(OnDelete::Respect);
    let respects = soon("registered", etcd.register_value(b"a/2", b"y".to_vec(), options)).await.unwrap();
    let deleted = raw.delete("a/", Some(etcd_client::DeleteOptions::new().with_prefix())).await.unwrap();
    assert_eq!(deleted.deleted(), 2);
    eventually("one is back and one has ended", || async {
        let found = etcd.list_prefix(b"a/").await.unwrap();
        match (found.get(b"a/1"), found.get(b"a/2"), respects.state()) {
            (Some(_), None, RegistrationState::Ended) => Ok(()),
            (.., state) => Err((found, state)),
        }
    })
    .await;
}

/// A value that another client overwrites is reported and not written again.
#[tokio::test]
async fn an_overwritten_value_is_left_alone() {
    let server = EtcdServer::start().await;
    let (mut raw, etcd) = (raw(&server).await, Etcd::connect(server.url()).await.unwrap());
    let mine = etcd.register_value(b"a/1", b"mine".to_vec(), RegisterOptions::new()).await.unwrap();
    raw.put("a/1", "theirs", None).await.unwrap();
    eventually("it is superseded", || async {
        match mine.state() {
            RegistrationState::Superseded { .. } => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let found = etcd.list_prefix(b"a/").await.unwrap();
    assert_eq!(&*found.get(b"a/1").unwrap().value, b"theirs");
    raw.delete("a/1", None).await.unwrap();
    eventually("it is back when the key is free", || async {
        let found = etcd.list_prefix(b"a/").await.unwrap();
        if found.get(b"a/1").is_some_and(|entry| *entry.value == *b"mine") { Ok(()) } else { Err(found) }
    })
    .await;
}

/// Many values of one directory share a watch, as instances of one service do.
#[tokio::test(start_paused = true)]
async fn many_values_are_kept_by_few_watches() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let mut kept = Vec::new();
    for number in 0..100 {
        let key = format!("a/{number}").into_bytes();
        kept.push(etcd.register_value(&key, b"x".to_vec(), RegisterOptions::new()).await.unwrap());
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(fake.requests().watches <= 16, "{:?}", fake.requests());
    fake.delete(b"a/42");
    eventually("it is back", || async {
        let found = fake.under(b"a/42");
        if found.len() == 1 { Ok(()) } else { Err(found) }
    })
    .await;
    let stored = kept[42].set(*b"y");
    soon("stored", stored).await.unwrap();
    assert_eq!(fake.under(b"a/42"), [(b"a/42".to_vec(), b"y".to_vec())]);
}

/// The history since the list is gone, so the prefix is listed again, and nothing in it has changed.
#[tokio::test(start_paused = true)]
async fn a_list_without_changes_is_not_reported() {
    let fake = FakeEtcd::start();
    fake.put("cells/a", "x");
    let link = fake.link();
    let etcd = Etcd::from_channel(link.channel()).runtime(SessionRuntime::Caller).build().unwrap();
    let mut watcher = etcd.watch_prefix(b"cells/").await.unwrap();
    let mut live = soon("the list", watcher.next()).await.unwrap().freshness.is_live();
    for _ in 0..3 {
        fake.put("elsewhere", "x");
        fake.compact();
        link.cut();
        while let Ok(change) = tokio::time::timeout(Duration::from_secs(30), watcher.next()).await {
            let change = change.unwrap();
            assert!(change.events.is_empty() && change.freshness.is_live() != live, "{change:?}");
            live = change.freshness.is_live();
        }
    }
    assert_eq!((etcd.counters().get(Counter::WatchRelists), live), (3, true));
    fake.put("cells/b", "x");
    let change = soon("a change", watcher.next()).await.unwrap();
    assert!(matches!(&change.events[..], [RawEvent::Added(_)]), "{change:?}");
}
