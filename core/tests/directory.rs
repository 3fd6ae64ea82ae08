//! The directory, on the memory backend and a paused clock.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use enlist::{
    Change, Directory, DirectoryOptions, Endpoint, Entry, Epoch, Error, Event, Health, Instance, InstanceId, Moment,
    Namespace, PickError, PickPolicy, Picker, Presence, Resolver, Revision, ServiceName, ServiceRef, ServiceView,
    Snapshot, Watcher,
    backend::{LONGEST, Publisher, ServiceWatcher, SnapshotBuilder},
};
use enlist_memory::MemoryStore;
use support::{register, service};

const LIMIT: Duration = Duration::from_secs(5);

async fn until(view: &ServiceView, count: usize) {
    let mut changes = view.changes();
    while tokio::time::timeout(LIMIT, changes.next()).await.expect("in time").expect("open").snapshot.len() != count {}
}

/// Waits until a view was written to `directory`.
async fn until_written(directory: &std::path::Path) {
    let is_view = |file: std::fs::DirEntry| file.path().extension().is_some_and(|extension| extension == "view");
    let wait = async {
        while !std::fs::read_dir(directory).is_ok_and(|mut files| files.any(|file| file.is_ok_and(is_view))) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("written in time");
}

/// Waits for the end of the changes of `view`.
async fn until_closed(view: &ServiceView) {
    let mut changes = view.changes();
    let ended = async { while changes.next().await.is_ok() {} };
    tokio::time::timeout(LIMIT, ended).await.expect("in time");
    assert!(matches!(changes.next().await, Err(Error::Closed)), "it stays so");
}

/// Waits until `picker` has `count` candidates.
async fn until_candidates(picker: &mut Picker, count: usize) {
    let wait = async {
        while picker.candidates().map_or(0, <[_]>::len) != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("in time");
}

/// A resolver without a task: its watches show the snapshots published here. The next `panics` of them panic.
#[derive(Debug, Default)]
struct Published {
    publisher: Publisher<Snapshot>,
    panics: Arc<AtomicU32>,
}

impl Published {
    fn publish(&self, ids: &[&str]) {
        self.publisher.publish(self.next(ids), Moment::now());
    }

    /// Publishes a snapshot that was last proven at `proven` and is not kept current.
    fn publish_stale(&self, ids: &[&str], proven: Moment) {
        self.publisher.publish_stale(self.next(ids), proven, Error::unavailable("no quorum"));
    }

    /// Returns a snapshot at a later revision than the latest one.
    fn next(&self, ids: &[&str]) -> Snapshot {
        let revision =
            Revision::new(self.publisher.latest().map_or(1, |snapshot: Snapshot| snapshot.revision().get() + 1));
        let entry = |id: &&str| {
            let endpoint = Endpoint::parse("10.0.0.1:80").expect("a valid address");
            let instance = Instance::new(InstanceId::parse(id).expect("a valid id"), [endpoint]).expect("one endpoint");
            Arc::new(Entry::new(instance, revision, revision))
        };
        let mut snapshot = SnapshotBuilder::new(service(), revision, Epoch::default());
        snapshot.patch(ids.iter().map(entry));
        snapshot.build()
    }
}

#[async_trait]
impl Resolver for Published {
    async fn resolve(&self, _: &ServiceRef) -> Result<Snapshot, Error> {
        Err(Error::Unsupported { what: "resolving".to_owned() })
    }

    async fn watch(&self, _: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        let watcher = ServiceWatcher::new(self.publisher.reader(Arc::new(())));
        Ok(Box::new(Panicking { watcher, panics: Arc::clone(&self.panics) }))
    }

    async fn services(&self, _: &Namespace) -> Result<Vec<ServiceName>, Error> {
        Err(Error::Unsupported { what: "listing services".to_owned() })
    }
}

#[derive(Debug)]
struct Panicking {
    watcher: ServiceWatcher,
    panics: Arc<AtomicU32>,
}

#[async_trait]
impl Watcher for Panicking {
    async fn next(&mut self) -> Result<Change, Error> {
        let change = self.watcher.next().await?;
        let panics = self.panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |panics| panics.checked_sub(1));
        assert!(panics.is_err(), "on purpose");
        Ok(change)
    }
}

#[tokio::test(start_paused = true)]
async fn a_picker_keeps_its_view_alive() {
    let resolver = Arc::new(Published::default());
    resolver.publish(&["a"]);
    let directory = Directory::new(Arc::<Published>::clone(&resolver));
    let mut picker = directory.view(&service()).picker(PickPolicy::Random);
    until_candidates(&mut picker, 1).await;
    // Longer than a watch continues without a view.
    tokio::time::sleep(Duration::from_secs(60)).await;
    resolver.publish(&["a", "b"]);
    until_candidates(&mut picker, 2).await;
    drop(picker);
    tokio::time::timeout(Duration::from_secs(60), resolver.publisher.unread()).await.expect("the watch ends");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime")
}

/// Returns a view and a picker that were created on a runtime that has ended.
fn left_over(directory: &Directory) -> (ServiceView, Picker) {
    let gone = runtime();
    let left = gone.block_on(async {
        let view = directory.view(&service());
        view.ready().await.expect("ready");
        assert!(view.freshness().is_some_and(|freshness| freshness.is_live()));
        let picker = view.picker(PickPolicy::Random);
        (view, picker)
    });
    drop(gone);
    left
}

#[test]
fn a_view_on_an_ended_runtime_is_restarted() {
    let resolver = Arc::new(Published::default());
    resolver.publish(&["a"]);
    let directory = Directory::new(Arc::<Published>::clone(&resolver));
    let (old, mut picker) = left_over(&directory);
    assert!(!old.freshness().unwrap().is_live(), "nobody follows the watch");
    assert_eq!(old.snapshot().map(|snapshot| snapshot.len()), Some(1), "what was known stays");
    resolver.publish(&["a", "b"]);
    runtime().block_on(async {
        let new = directory.view(&service());
        until(&new, 2).await;
        assert!(old.freshness().unwrap().is_live(), "older views follow again");
        until(&old, 2).await;
        until_candidates(&mut picker, 2).await;
    });
}

#[test]
fn waiting_restarts_a_view_on_an_ended_runtime() {
    let resolver = Arc::new(Published::default());
    resolver.publish(&["a"]);
    let directory = Directory::new(Arc::<Published>::clone(&resolver));
    let (old, mut picker) = left_over(&directory);
    resolver.publish(&["a", "b"]);
    runtime().block_on(async {
        until(&old, 2).await;
        until_candidates(&mut picker, 2).await;
        directory.close(LIMIT).await.unwrap();
        until_closed(&old).await;
        assert!(!old.freshness().unwrap().is_live());
    });
}

#[tokio::test(start_paused = true)]
async fn a_panicking_resolver_makes_a_view_briefly_stale() {
    let resolver = Arc::new(Published::default());
    resolver.publish(&["a"]);
    let view = Directory::new(Arc::<Published>::clone(&resolver)).view(&service());
    let mut changes = view.changes();
    assert!(changes.next().await.unwrap().freshness.is_live());
    resolver.panics.store(1, Ordering::SeqCst);
    resolver.publish(&["a", "b"]);
    let mut stale = false;
    let back = async {
        while view.snapshot().is_some_and(|snapshot| snapshot.len() == 1) {
            stale |= !changes.next().await.unwrap().freshness.is_live();
        }
    };
    tokio::time::timeout(LIMIT, back).await.expect("in time");
    assert!(stale && view.freshness().unwrap().is_live());
}

#[tokio::test(start_paused = true)]
async fn an_initially_panicking_resolver_is_an_error() {
    let resolver = Arc::new(Published::default());
    resolver.publish(&["a"]);
    resolver.panics.store(1, Ordering::SeqCst);
    let view = Directory::new(Arc::<Published>::clone(&resolver)).view(&service());
    let ready = tokio::time::timeout(Duration::from_millis(50), view.ready()).await.expect("at once");
    assert!(matches!(&ready, Err(Error::Unavailable(cause)) if cause.to_string().contains("on purpose")), "{ready:?}");
    until_candidates(&mut view.picker(PickPolicy::Random), 1).await;
}

#[tokio::test(start_paused = true)]
async fn options_without_end_do_not_end_a_view() {
    let store = MemoryStore::new();
    let client = store.client();
    let _a = register(&client, "a").await;
    let options = DirectoryOptions::new().hold(Duration::MAX).idle(Duration::MAX).max_age(Duration::MAX);
    let view = Directory::with_options(Arc::new(store.client()), options.clone()).view(&service());
    let rare = Directory::with_options(Arc::new(store.client()), options.debounce(Duration::MAX)).view(&service());
    until(&view, 1).await;
    until(&rare, 1).await;
    client.crash().await.unwrap();
    let mut changes = view.changes();
    while changes.next().await.unwrap().snapshot.entries().any(|entry| entry.presence() == Presence::Live) {}
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let _b = register(&store.client(), "b").await;
    until(&view, 2).await;
    // A view that is published once does not end.
    let mut changes = rare.changes();
    changes.next().await.unwrap();
    assert!(tokio::time::timeout(LIMIT, changes.next()).await.is_err());
    assert!(rare.freshness().unwrap().is_live() && rare.snapshot().unwrap().len() == 1);
}

#[tokio::test(start_paused = true)]
async fn a_view_outlives_its_directory() {
    let store = MemoryStore::new();
    let view = Directory::new(Arc::new(store.client())).view(&service());
    assert!(view.ready().await.unwrap().is_empty());
    let _a = register(&store.client(), "a").await;
    until(&view, 1).await;
}

#[tokio::test(start_paused = true)]
async fn unknown_is_not_empty() {
    let store = MemoryStore::new();
    let client = store.client();
    client.cut();
    let view = Directory::new(Arc::new(client.clone())).view(&service());
    let mut picker = view.picker(PickPolicy::Random);
    assert_eq!(picker.pick().unwrap_err(), PickError::Unknown);
    assert!(view.snapshot().is_none() && view.freshness().is_none());
    client.heal();
    until(&view, 0).await;
    assert_eq!(picker.pick().unwrap_err(), PickError::Empty { listed: 0, left_out: 0 });
}

#[tokio::test(start_paused = true)]
async fn each_reader_gets_the_snapshot_then_differences() {
    let store = MemoryStore::new();
    let client = store.client();
    let a = register(&store.client(), "a").await;
    let view = Directory::new(Arc::new(client.clone())).view(&service());
    let text = |change: &Change| {
        let events = change.events.iter().map(|event| match event {
            Event::Added(entry) => format!("+{}", entry.instance().id()),
            Event::Updated { new, .. } => format!("~{}", new.instance().id()),
            Event::Removed(entry) => format!("-{}", entry.instance().id()),
        });
        events.collect::<Vec<_>>().join(" ")
    };
    let mut slow = view.changes();
    assert_eq!(text(&slow.next().await.unwrap()), "+a");
    let _b = register(&store.client(), "b").await;
    until(&view, 2).await;
    a.deregister().await.unwrap();
    until(&view, 1).await;
    assert_eq!(text(&slow.next().await.unwrap()), "-a +b");
    assert_eq!(text(&view.changes().next().await.unwrap()), "+b", "another one begins anew");
    client.cut();
    let stale = slow.next().await.unwrap();
    assert!(stale.events.is_empty() && !stale.freshness.is_live());
    client.heal();
    assert!(slow.next().await.unwrap().freshness.is_live());
    assert!(tokio::time::timeout(Duration::from_secs(60), slow.next()).await.is_err(), "nothing is delivered twice");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_drains_is_no_longer_picked() {
    let store = MemoryStore::new();
    let a = register(&store.client(), "a").await;
    let view = Directory::new(Arc::new(store.client())).view(&service());
    view.ready().await.unwrap();
    let mut picker = view.picker(PickPolicy::Weighted);
    assert!(picker.pick().is_ok());
    a.update(|update| {
        update.health(Health::Draining);
    })
    .await
    .unwrap();
    let mut changes = view.changes();
    while picker.pick().is_ok() {
        tokio::time::timeout(LIMIT, changes.next()).await.expect("in time").expect("open");
    }
    assert_eq!(picker.pick().unwrap_err(), PickError::Empty { listed: 1, left_out: 0 });
}

#[tokio::test(start_paused = true)]
async fn an_unused_watch_ends_after_the_idle_time() {
    let store = MemoryStore::new();
    let client = store.client();
    let idle = Duration::from_secs(60);
    let directory = Directory::with_options(Arc::new(client.clone()), DirectoryOptions::new().idle(idle));
    let view = directory.view(&service());
    view.ready().await.unwrap();
    drop(view);
    // Within the idle time the snapshot is kept, although the link is cut.
    client.cut();
    tokio::time::sleep(idle / 2).await;
    assert!(directory.view(&service()).snapshot().is_some());
    tokio::time::sleep(idle * 2).await;
    let anew = directory.view(&service());
    assert!(anew.snapshot().is_none(), "the watch had ended");
}

#[tokio::test(start_paused = true)]
async fn a_closed_directory_keeps_the_last_snapshot() {
    let store = MemoryStore::new();
    let _a = register(&store.client(), "a").await;
    let directory = Directory::new(Arc::new(store.client()));
    let view = directory.view(&service());
    view.ready().await.unwrap();
    directory.close(LIMIT).await.unwrap();
    until_closed(&view).await;
    assert_eq!(view.snapshot().map(|snapshot| snapshot.len()), Some(1));
    let late = directory.view(&ServiceRef::parse("other").unwrap());
    assert!(matches!(late.ready().await, Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn only_losses_are_held() {
    let store = MemoryStore::new();
    let client = store.client();
    let options = DirectoryOptions::new().hold(Duration::from_secs(15));
    let view = Directory::with_options(Arc::new(store.client()), options).view(&service());
    let _a = register(&client, "a").await;
    let _b = register(&client, "b").await;
    until(&view, 2).await;
    // The process crashes: its lease expires, and the instance does not return.
    client.crash().await.unwrap();
    let mut held = false;
    let begun = tokio::time::Instant::now();
    let mut changes = view.changes();
    while view.snapshot().is_some_and(|snapshot| !snapshot.is_empty()) {
        let snapshot = changes.next().await.unwrap().snapshot;
        held |= snapshot.len() == 2 && snapshot.entries().all(|entry| entry.presence() == Presence::Held);
    }
    assert!(held && begun.elapsed() >= Duration::from_secs(15), "{:?}", begun.elapsed());

    let c = register(&store.client(), "c").await;
    until(&view, 1).await;
    c.deregister().await.unwrap();
    let deregistered = tokio::time::Instant::now();
    until(&view, 0).await;
    assert!(deregistered.elapsed() < Duration::from_secs(1), "a deregistered instance is gone at once");
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_published_every_fifty_milliseconds() {
    let store = MemoryStore::new();
    let a = register(&store.client(), "a").await;
    let view = Directory::new(Arc::new(store.client())).view(&service());
    view.ready().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut changes = view.changes();
    changes.next().await.unwrap();
    let begun = tokio::time::Instant::now();
    let burst = async {
        for weight in 0..200 {
            drop(a.update(move |update| {
                update.weight(weight);
            }));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let watching = async {
        let mut published = Vec::new();
        loop {
            let change = changes.next().await.unwrap();
            published.push(begun.elapsed());
            if change.snapshot.entries().all(|entry| entry.instance().weight() == 199) {
                return published;
            }
        }
    };
    let ((), published) = tokio::join!(burst, watching);
    assert!(published[0] < Duration::from_millis(5), "{published:?}");
    assert!((15..=25).contains(&published.len()), "{published:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outdated_view_is_not_picked() {
    let store = MemoryStore::new();
    let _a = register(&store.client(), "a").await;
    let client = store.client();
    let options = DirectoryOptions::new().max_age(Duration::from_secs(30));
    let view = Directory::with_options(Arc::new(client.clone()), options).view(&service());
    view.ready().await.unwrap();
    let mut picker = view.picker(PickPolicy::Random);
    // Nothing changes, but the view is proven repeatedly.
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(picker.pick().is_ok());
    client.cut();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(picker.pick().is_ok() && view.freshness().unwrap().age() >= Duration::from_secs(19));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(matches!(picker.pick(), Err(PickError::TooOld { age }) if age >= Duration::from_secs(30)));
    assert_eq!(view.snapshot().unwrap().len(), 1);
    assert!(tokio::time::timeout(Duration::from_secs(60), view.ready()).await.is_err());
    client.heal();
    tokio::time::timeout(LIMIT, view.ready()).await.expect("in time").unwrap();
    assert!(picker.pick().is_ok());
}

#[tokio::test]
async fn a_start_without_the_store_shows_the_disk() {
    let disk = tempfile::tempdir().unwrap();
    let options = DirectoryOptions::new().disk(disk.path());
    let store = MemoryStore::new();
    let _a = register(&store.client(), "a").await;
    let first = Directory::with_options(Arc::new(store.client()), options.clone());
    first.view(&service()).ready().await.unwrap();
    until_written(disk.path()).await;
    first.close(LIMIT).await.unwrap();

    let client = store.client();
    client.cut();
    let second = Directory::with_options(Arc::new(client.clone()), options.clone());
    let view = second.view(&service());
    let snapshot = tokio::time::timeout(LIMIT, view.ready()).await.expect("in time").unwrap();
    assert_eq!(snapshot.entries().map(|entry| entry.presence()).collect::<Vec<_>>(), [Presence::Held]);
    assert!(!view.freshness().unwrap().is_live());
    assert!(view.picker(PickPolicy::Random).pick().is_ok());
    client.heal();
    let mut changes = view.changes();
    while view.snapshot().unwrap().entries().any(|entry| entry.presence() == Presence::Held) {
        tokio::time::timeout(LIMIT, changes.next()).await.expect("in time").unwrap();
    }
    assert!(view.freshness().unwrap().is_live());

    // A damaged file is treated as a missing one.
    let damaged = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(disk.path()).unwrap() {
        std::fs::write(damaged.path().join(file.unwrap().file_name()), b"garbage").unwrap();
    }
    let client = store.client();
    client.cut();
    let third = Directory::with_options(Arc::new(client), options.disk(damaged.path())).view(&service());
    assert!(tokio::time::timeout(Duration::from_secs(2), third.ready()).await.is_err());
}

/// Creates the half-written file of a process that crashed yesterday while it wrote the files in `directory`.
fn leave_half_written(directory: &std::path::Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    let view = files.into_iter().next().expect("a file");
    let half = view.with_extension("999-a.tmp");
    std::fs::write(&half, b"half").unwrap();
    let yesterday = std::time::SystemTime::now() - Duration::from_secs(86_400);
    std::fs::File::options().append(true).open(&half).unwrap().set_modified(yesterday).unwrap();
    half
}

#[tokio::test]
async fn a_view_removes_half_written_files() {
    let disk = tempfile::tempdir().unwrap();
    let options = DirectoryOptions::new().disk(disk.path());
    let store = MemoryStore::new();
    let _a = register(&store.client(), "a").await;
    let follow = || Directory::with_options(Arc::new(store.client()), options.clone());
    let first = follow();
    first.view(&service()).ready().await.unwrap();
    until_written(disk.path()).await;
    first.close(LIMIT).await.unwrap();

    let half = leave_half_written(disk.path());
    let second = follow();
    second.view(&service()).ready().await.unwrap();
    let removed = async {
        while half.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, removed).await.expect("removed in time");
    until_written(disk.path()).await;
    second.close(LIMIT).await.unwrap();
}

/// A watch may start with an unproven snapshot of the maximum age: the one on disk is newer.
#[tokio::test]
async fn an_old_first_snapshot_leaves_the_disk_unchanged() {
    let (disk, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let shows =
        |snapshot: &Snapshot| snapshot.entries().map(|entry| entry.instance().id().to_string()).collect::<Vec<_>>();
    let ready =
        async |view: &ServiceView| shows(&tokio::time::timeout(LIMIT, view.ready()).await.expect("in time").unwrap());
    let options = |disk: &tempfile::TempDir| DirectoryOptions::new().disk(disk.path());
    let follow =
        |resolver: &Arc<Published>, disk| Directory::with_options(Arc::<Published>::clone(resolver), options(disk));
    let before = Arc::new(Published::default());
    before.publish(&["a"]);
    let first = follow(&before, &disk);
    assert_eq!(ready(&first.view(&service())).await, ["a"]);
    until_written(disk.path()).await;
    first.close(LIMIT).await.unwrap();

    let old = Arc::new(Published::default());
    old.publish_stale(&["b"], Moment::ago(LONGEST));
    // Without a file on disk it is shown but not written: the next start would take it for a proven snapshot.
    let view = follow(&old, &empty).view(&service());
    assert_eq!(ready(&view).await, ["b"]);
    assert!(tokio::time::timeout(Duration::from_secs(1), until_written(empty.path())).await.is_err());
    let view = follow(&old, &disk).view(&service());
    assert_eq!(ready(&view).await, ["a"]);
    let age = view.freshness().unwrap().age();
    assert!(age < Duration::from_secs(3600), "{age:?}");
    old.publish(&["c", "d"]);
    until(&view, 2).await;
    assert!(view.freshness().unwrap().is_live());

    // Proven after the snapshot on disk.
    let young = Arc::new(Published::default());
    young.publish_stale(&["e"], Moment::now());
    assert_eq!(ready(&follow(&young, &disk).view(&service())).await, ["e"]);
}

/// Replaces the files of views in `directory` with pipes, whose readers wait for a writer for ever.
#[cfg(unix)]
fn make_pipes(directory: &std::path::Path) {
    for file in std::fs::read_dir(directory).expect("a directory") {
        let path = file.expect("a file").path();
        std::fs::remove_file(&path).expect("removed");
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
        assert!(made.success(), "a pipe is made");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn an_endless_file_does_not_delay_a_view() {
    let disk = tempfile::tempdir().unwrap();
    let options = DirectoryOptions::new().disk(disk.path());
    let store = MemoryStore::new();
    let _a = register(&store.client(), "a").await;
    let first = Directory::with_options(Arc::new(store.client()), options.clone());
    first.view(&service()).ready().await.unwrap();
    until_written(disk.path()).await;
    first.close(LIMIT).await.unwrap();
    make_pipes(disk.path());

    let client = store.client();
    client.cut();
    let view = Directory::with_options(Arc::new(client.clone()), options).view(&service());
    // Waits until the view has tried to read from disk.
    assert!(tokio::time::timeout(Duration::from_secs(2), view.ready()).await.is_err());
    client.heal();
    let ready = tokio::time::timeout(LIMIT, view.ready()).await.expect("the store answers");
    assert_eq!(ready.unwrap().len(), 1);
}
