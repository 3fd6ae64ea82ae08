//! The limit on logs of broken values. A single test in a separate program, because the interest in an event is decided
//! once per process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::time::Duration;

use enlist::{Counter, Resolver, ServiceRef};
use enlist_testkit::{FakeEtcd, eventually, soon};
use support::{logged::Logged, scripted::client};
use tracing_subscriber::filter::LevelFilter;

/// Each broken value is counted for each watcher, and ten per minute are logged, over all watchers.
#[tokio::test(start_paused = true)]
async fn malformed_values_are_rarely_logged() {
    let (logged, _logging) = Logged::from(LevelFilter::WARN);
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let service = ServiceRef::parse("svc").unwrap();
    let garbage = |from: usize, to: usize| {
        fake.put_all((from..to).map(|number| (format!("enlist/services/default/svc/i{number}"), "garbage")));
    };
    garbage(0, 500);
    let mut watchers = Vec::new();
    for _ in 0..2 {
        let mut watcher = etcd.watch(&service).await.unwrap();
        soon("listed", watcher.next()).await.unwrap();
        watchers.push(watcher);
    }
    let counted = |expected| {
        let now = etcd.counters().get(Counter::MalformedValues);
        async move { if now == expected { Ok(()) } else { Err(now) } }
    };
    eventually("all are counted", || counted(1000)).await;
    let warnings = logged.lines("malformed value skipped");
    assert_eq!(warnings.len(), 10, "{warnings:#?}");
    assert!(warnings[0].contains("service=default/svc") && warnings[0].contains("i0 "), "{}", warnings[0]);
    // A minute later the next one reports the number of omitted logs.
    tokio::time::sleep(Duration::from_secs(61)).await;
    garbage(500, 501);
    fake.put("enlist/services/default/svc/a", r#"{"v":1,"id":"a","endpoints":["10.0.0.1:80"]}"#);
    soon("a change", watchers[0].next()).await.unwrap();
    let warnings = logged.lines("malformed value skipped");
    assert_eq!(warnings.len(), 11, "{warnings:#?}");
    assert!(warnings[10].contains("unlogged=990"), "{}", warnings[10]);
}
