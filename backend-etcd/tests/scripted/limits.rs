//! Ranges above their size limit. Under a paused clock, with a scripted etcd.

use std::time::Duration;

use enlist::{
    Change, Endpoint, Error, Event, Freshness, Instance, InstanceId, RangeUnit, RegisterOptions, Registry, Resolver,
    Watcher,
};
use enlist_etcd::EtcdBuilder;
use enlist_testkit::{FakeEtcd, eventually, soon};

use crate::support::{
    scripted::{builder, watched},
    service,
};

const KEY: &str = "enlist/services/default/svc/";

/// Interval of the reads of an oversized range.
const RETRY: Duration = Duration::from_secs(60);

/// Returns a client whose only requests are those for the range itself.
fn quiet(fake: &FakeEtcd) -> EtcdBuilder {
    builder(fake).audit(None).probe(None)
}

fn key(id: &str) -> String {
    format!("{KEY}{id}")
}

fn put(fake: &FakeEtcd, id: &str, text: &str) {
    fake.put(key(id), format!(r#"{{"v":1,"id":"{id}","endpoints":["h:1"],"metadata":{{"text":"{text}"}}}}"#));
}

fn ids(change: &Change) -> Vec<String> {
    change.snapshot.entries().map(|entry| entry.instance().id().to_string()).collect()
}

async fn next(watcher: &mut Box<dyn Watcher>) -> Change {
    tokio::time::timeout(2 * RETRY, watcher.next()).await.expect("a change in time").unwrap()
}

/// Checks that the last known state stays, with the limit as the cause of its age, and that the difference follows once
/// the range is small enough.
async fn outgrows(limit: impl FnOnce(EtcdBuilder) -> EtcdBuilder, expected: (RangeUnit, usize), text: &str) {
    let fake = FakeEtcd::start();
    for id in ["a", "b", "c"] {
        put(&fake, id, "");
    }
    let etcd = limit(quiet(&fake)).build().unwrap();
    let mut watcher = etcd.watch(&service()).await.unwrap();
    assert_eq!(ids(&next(&mut watcher).await), ["a", "b", "c"]);
    watched(&fake, 1).await;
    put(&fake, "d", text);
    let change = next(&mut watcher).await;
    assert_eq!((ids(&change), change.events.len()), (vec!["a".to_owned(), "b".to_owned(), "c".to_owned()], 0));
    match &change.freshness {
        Freshness::Stale { cause: Error::RangeTooLarge { range, limit, unit }, .. } => {
            assert_eq!((*unit, *limit), expected);
            assert!(range.contains(KEY), "{range}");
        }
        freshness => panic!("{freshness:?}"),
    }
    let error = etcd.resolve(&service()).await.unwrap_err();
    assert!(matches!(error, Error::RangeTooLarge { .. }) && !error.is_retryable(), "{error:?}");
    // It costs one list per minute.
    fake.reset_requests();
    tokio::time::sleep(10 * RETRY).await;
    let ranges = fake.requests().ranges;
    assert!((8..=12).contains(&ranges), "{ranges} reads in ten minutes");
    fake.delete(key("a").as_bytes());
    fake.delete(key("d").as_bytes());
    let change = next(&mut watcher).await;
    assert!(change.freshness.is_live(), "{:?}", change.freshness);
    assert_eq!(ids(&change), ["b", "c"]);
    assert!(matches!(&change.events[..], [Event::Removed(_)]), "{:?}", change.events);
    // A watch delivers the changes after that.
    put(&fake, "e", "");
    assert_eq!(ids(&soon("a change", watcher.next()).await.unwrap()), ["b", "c", "e"]);
}

/// For each page etcd counts the rest of the range.
#[tokio::test(start_paused = true)]
async fn large_services_are_listed_in_large_pages() {
    let fake = FakeEtcd::start();
    let value = |id| format!(r#"{{"v":1,"id":"{id}","endpoints":["h:1"]}}"#);
    fake.put_all((0..15_000).map(|number| (key(&format!("i{number}")), value(format!("i{number}")))));
    let etcd = quiet(&fake).build().unwrap();
    let mut watcher = etcd.watch(&service()).await.unwrap();
    assert_eq!(next(&mut watcher).await.snapshot.len(), 15_000);
    assert_eq!(fake.requests().ranges, 1 + 4);
}

#[tokio::test(start_paused = true)]
async fn a_service_above_its_key_limit_keeps_state() {
    outgrows(|builder| builder.max_range_keys(Some(3)), (RangeUnit::Keys, 3), "").await;
}

#[tokio::test(start_paused = true)]
async fn a_service_above_its_byte_limit_keeps_state() {
    let text = "x".repeat(1000);
    outgrows(|builder| builder.max_range_bytes(Some(1000)), (RangeUnit::Bytes, 1000), &text).await;
}

/// Only one page of the service is read, regardless of its size.
#[tokio::test(start_paused = true)]
async fn an_initially_too_large_service_is_an_error() {
    let fake = FakeEtcd::start();
    fake.put_all((0..5000).map(|number| (key(&format!("i{number}")), "")));
    let etcd = quiet(&fake).max_range_keys(Some(4000)).build().unwrap();
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let error = soon("an error", watcher.next()).await.unwrap_err();
    assert!(matches!(error, Error::RangeTooLarge { limit: 4000, unit: RangeUnit::Keys, .. }), "{error:?}");
    assert_eq!(fake.requests().ranges, 1);
    let error = etcd.resolve(&service()).await.unwrap_err();
    assert!(matches!(error, Error::RangeTooLarge { .. }), "{error:?}");
    assert_eq!(fake.requests().ranges, 2);
    for number in 0..5000 {
        fake.delete(key(&format!("i{number}")).as_bytes());
    }
    put(&fake, "a", "");
    assert_eq!(ids(&next(&mut watcher).await), ["a"]);
    let unlimited = quiet(&fake).max_range_keys(None).max_range_bytes(None).build().unwrap();
    assert_eq!(unlimited.resolve(&service()).await.unwrap().len(), 1);
}

/// Own keys that share a watch with a service that other clients have made too large get separate watches.
#[tokio::test(start_paused = true)]
async fn own_keys_of_too_large_services_are_restored() {
    const COUNT: usize = 12;
    let fake = FakeEtcd::start();
    let etcd = quiet(&fake).max_range_keys(Some(20)).build().unwrap();
    let mut registrations = Vec::new();
    for number in 0..COUNT {
        let id = InstanceId::parse(format!("own{number}")).unwrap();
        let instance = Instance::new(id, [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
        let options = RegisterOptions::new().audit(None);
        registrations.push(soon("registered", etcd.register(&service(), instance, options)).await.unwrap());
    }
    eventually("a shared watch is open", || async {
        let watches = fake.requests().watches;
        if watches == 9 { Ok(()) } else { Err(watches) }
    })
    .await;
    fake.put_all((0..10).map(|number| (key(&format!("foreign{number}")), "")));
    for number in 0..COUNT {
        fake.delete(key(&format!("own{number}")).as_bytes());
    }
    eventually("all own keys are back", || async {
        let own = fake.under(key("own").as_bytes()).len();
        if own == COUNT { Ok(()) } else { Err(own) }
    })
    .await;
}
