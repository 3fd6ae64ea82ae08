//! Reads of queues and of lists on a scripted etcd: their revision, their requests and their limits.

use std::{future::poll_fn, task::Poll};

use enlist::{Error, LockName, LockQueue, Namespace, Queues, Resolver};
use enlist_testkit::{BackgroundTask, FakeEtcd};
use tracing_subscriber::filter::LevelFilter;

use crate::support::{
    logged::Logged,
    scripted::{builder, client},
};

const ENTRY: &str = "0000000000000001-0000000000000001";

const VALUE: &str = r#"{"v":1,"mode":"exclusive","holder":"host:1"}"#;

fn entry(lock: &str) -> String {
    format!("enlist/locks/default/{lock}/{ENTRY}")
}

fn mark(lock: &str) -> String {
    format!("enlist/lock-marks/default/{lock}/{ENTRY}")
}

/// Reads the queue of `l`. Makes `change` once etcd has answered its first list, before the next one.
async fn read_with_change_after_first_list(
    fake: FakeEtcd,
    change: impl FnOnce(&FakeEtcd) + Send + 'static,
) -> Result<LockQueue, Error> {
    let (etcd, name) = (client(&fake), LockName::parse("l").unwrap());
    fake.reset_requests();
    // A task of its own takes turns with those of the connection. Other than `yield_now`, this waker does not wait
    // until those have nothing to do.
    let mut reading = BackgroundTask::run(async move {
        let answered = poll_fn(|context| {
            if fake.requests().ranges > 0 {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        });
        let changed = async {
            answered.await;
            assert_eq!(fake.requests().ranges, 1);
            change(&fake);
        };
        tokio::join!(etcd.lock_queue(&name), changed).0
    });
    reading.done("read").await
}

/// The holder loses its key and its delay begins right after the entries were read.
#[tokio::test(start_paused = true)]
async fn a_queue_is_read_at_one_revision() {
    let fake = FakeEtcd::start();
    fake.put(entry("l"), VALUE);
    let queue = read_with_change_after_first_list(fake, |fake| {
        fake.delete(entry("l").as_bytes());
        fake.put_under(mark("l"), VALUE, 7);
    });
    let queue = queue.await.unwrap();
    assert_eq!((queue.holders().len(), queue.delayed), (1, false), "{queue:?}");
}

/// A role without permission for the marks sees the queue without its delay, with one warning for each call. The only
/// test of this program that reads logs.
#[tokio::test(start_paused = true)]
async fn denied_marks_are_warned_about_once() {
    let (logged, _logging) = Logged::from(LevelFilter::WARN);
    let fake = FakeEtcd::start();
    fake.put(entry("l"), VALUE);
    fake.put_under(mark("l"), VALUE, 7);
    let queue = read_with_change_after_first_list(fake, FakeEtcd::deny_access).await.unwrap();
    assert_eq!((queue.entries.len(), queue.delayed), (1, false), "{queue:?}");
    let warnings = logged.lines("no permission to read the marks");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
}

/// More keys of no namespace than a page has are read in growing pages, up to the end of the store's keys.
#[tokio::test(start_paused = true)]
async fn foreign_keys_are_read_in_growing_pages() {
    let fake = FakeEtcd::start();
    fake.put_all((0..1000).map(|number| (format!("enlist/services/%zz{number:04}"), "")));
    fake.put("enlist/services/a/svc/i", "");
    fake.put("enlist/services/z/svc/i", "");
    let etcd = client(&fake);
    assert_eq!(etcd.namespaces().await.unwrap().len(), 2);
    fake.reset_requests();
    etcd.namespaces().await.unwrap();
    let requests = fake.requests().keys_only;
    assert!(requests <= 10, "{requests}");
    let limited = builder(&fake).max_range_keys(Some(100)).build().unwrap();
    let error = limited.namespaces().await.unwrap_err();
    assert!(matches!(error, Error::RangeTooLarge { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn services_are_listed_without_values() {
    let (fake, namespace) = (FakeEtcd::start(), Namespace::default());
    fake.put_all((0..1500).map(|number| (format!("enlist/services/default/s{}/i{number}", number % 3), "garbage")));
    let etcd = client(&fake);
    fake.reset_requests();
    assert_eq!(etcd.services(&namespace).await.unwrap().len(), 3);
    assert_eq!((fake.requests().ranges, fake.requests().keys_only), (2, 2));
}

/// A list of queues costs two lists, one of the entries and one of the marks. Each mark delays its own lock.
#[tokio::test(start_paused = true)]
async fn a_namespace_is_read_with_two_lists() {
    let (fake, namespace) = (FakeEtcd::start(), Namespace::default());
    let etcd = client(&fake);
    assert_eq!(etcd.lock_queues(&namespace).await.unwrap(), []);
    for (number, folder) in (0..100).zip(["lock", "election"].into_iter().cycle()) {
        fake.put(format!("enlist/{folder}s/default/l{number:02}/{ENTRY}"), VALUE);
        if number >= 98 {
            fake.put_under(format!("enlist/{folder}-marks/default/l{number:02}/{ENTRY}"), VALUE, 7);
        }
    }
    fake.put_under(mark("l"), VALUE, 7);
    fake.reset_requests();
    let locks = etcd.lock_queues(&namespace).await.unwrap();
    assert_eq!((locks.len(), fake.requests().ranges), (50, 2));
    let delayed: Vec<_> = locks.iter().filter(|queue| queue.delayed).map(|queue| queue.name.name()).collect();
    assert_eq!(delayed, ["l98"]);
    let elections = etcd.election_queues(&namespace).await.unwrap();
    assert_eq!((elections.len(), fake.requests().ranges), (50, 4));
    let delayed: Vec<_> = elections.iter().filter(|queue| queue.delayed).map(|queue| queue.name.name()).collect();
    assert_eq!(delayed, ["l99"]);
}
