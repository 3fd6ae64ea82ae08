//! Watches and views during failures of etcd and of the network path to it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{
    Counter, Directory, Event, Freshness, Moment, Presence, Registration, Registry, Resolver, ServiceRef, ServiceView,
    Snapshot, Start, TaskOwner, Watcher,
};
use enlist_etcd::Etcd;
use enlist_testkit::{Direction, EtcdServer, Mode, Proxy, eventually, soon};
use http_body_util::BodyExt as _;
use support::{
    PREFIX, TTL,
    between::{send, serve},
    in_background, instance, listed, metrics, options, pass, raw, register, register_many, server,
};
use tonic::{Status, body::Body, transport::Endpoint};

/// Maximum duration of etcd's work on a hundred thousand keys, on a machine that also runs other tests.
const LARGE: Duration = Duration::from_secs(180);

/// Watches a view and counts how often it was empty.
fn watch_for_empty(tasks: &TaskOwner, view: &ServiceView) -> Arc<AtomicUsize> {
    let empty = Arc::<AtomicUsize>::default();
    let (count, mut changes) = (Arc::clone(&empty), view.changes());
    in_background(tasks, async move {
        while let Ok(change) = changes.next().await {
            if change.snapshot.is_empty() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    empty
}

/// Follows a raw watch and returns the smallest number of instances that it showed.
async fn fold(tasks: &TaskOwner, server: &EtcdServer, mut ids: BTreeSet<String>) -> Arc<AtomicUsize> {
    let fewest = Arc::new(AtomicUsize::new(ids.len()));
    let smallest = Arc::clone(&fewest);
    let options = etcd_client::WatchOptions::new().with_prefix();
    let mut stream = raw(server).await.watch(PREFIX, Some(options)).await.unwrap();
    in_background(tasks, async move {
        while let Ok(Some(message)) = stream.message().await {
            for event in message.events() {
                let id = String::from_utf8_lossy(&event.kv().unwrap().key()[PREFIX.len()..]).into_owned();
                if event.event_type() == etcd_client::EventType::Delete {
                    ids.remove(&id);
                } else {
                    ids.insert(id);
                }
                smallest.fetch_min(ids.len(), Ordering::Relaxed);
            }
        }
    });
    fewest
}

async fn set_weight(registration: &Registration, weight: u32) {
    let update = registration.update(move |update| {
        update.weight(weight);
    });
    soon("stored", update).await.unwrap();
}

async fn set_version(registration: &Registration, version: &'static str) {
    let update = registration.update(move |update| {
        update.version(version);
    });
    soon("stored", update).await.unwrap();
}

async fn shows(view: &ServiceView, fits: impl Fn(&Snapshot) -> bool) {
    eventually("the view shows it", || async {
        let snapshot = view.snapshot();
        if snapshot.as_ref().is_some_and(&fits) { Ok(()) } else { Err(snapshot) }
    })
    .await;
}

/// Otherwise etcd would keep a watch for each service that was ever followed, until the connection ends.
#[tokio::test]
async fn an_unused_watch_ends_in_etcd() {
    const SERVICES: usize = 20;
    let server = server().await;
    let until_there_are = async |count: usize| {
        let expected = format!("etcd_debugging_mvcc_watcher_total {count}");
        let check = async || {
            let text = metrics(&server).await;
            let line = text.lines().find(|line| line.starts_with("etcd_debugging_mvcc_watcher_total ")).unwrap();
            if line == expected { Ok(()) } else { Err(line.to_owned()) }
        };
        eventually("etcd has as many watches", check).await;
    };
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let mut followed = Vec::new();
    for number in 0..SERVICES {
        let mut watcher = etcd.watch(&ServiceRef::parse(format!("s{number}")).unwrap()).await.unwrap();
        soon("the service is listed", watcher.next()).await.unwrap();
        followed.push(watcher);
    }
    until_there_are(SERVICES).await;
    drop(followed);
    until_there_are(0).await;
}

/// Row 3: a single etcd frozen for three TTLs drops every lease when it thaws. The control, a raw watch, sees that no
/// instance is left then. The unit tests of the protection show that a view without a last known state becomes empty.
#[tokio::test]
async fn a_frozen_etcd_empties_no_view() {
    const COUNT: usize = 10;
    const MAX_ABSENCE: Duration = Duration::from_secs(2);
    let server = server().await;
    let (owner, user) = (Etcd::connect(server.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
    let _registrations = register_many(&owner, COUNT).await;
    let view = Directory::new(Arc::new(user.clone())).view(&support::service());
    shows(&view, |snapshot| snapshot.len() == COUNT).await;
    let tasks = TaskOwner::new();
    let empty = watch_for_empty(&tasks, &view);
    let ids = view.snapshot().unwrap().entries().map(|entry| entry.instance().id().to_string()).collect();
    let fewest = fold(&tasks, &server, ids).await;
    // Two of at most six freezes: on a busy machine, an answer may be late, and one that removed no instance had no
    // effect.
    let mut in_time = 0;
    for attempt in 1..=6 {
        fewest.store(COUNT, Ordering::Relaxed);
        server.pause().await;
        pass(3 * TTL).await;
        server.resume().await;
        let thawed = Moment::now();
        let lost = eventually("the loss, or that there is none", || async {
            let left = fewest.load(Ordering::Relaxed);
            if left == 0 || thawed.elapsed() > TTL { Ok(left == 0) } else { Err(left) }
        })
        .await;
        listed(&user, COUNT).await;
        let back = thawed.elapsed();
        println!("attempt {attempt}: lost: {lost}, all listed after {back:?}");
        in_time += u32::from(lost && back <= MAX_ABSENCE);
        if in_time == 2 {
            break;
        }
    }
    assert_eq!(in_time, 2, "freezes after which all were back within {MAX_ABSENCE:?}");
    shows(&view, |snapshot| {
        snapshot.len() == COUNT && snapshot.entries().all(|entry| entry.presence() == Presence::Live)
    })
    .await;
    assert_eq!(empty.load(Ordering::Relaxed), 0, "the view was never empty");
    assert_eq!(fewest.load(Ordering::Relaxed), 0, "the control shows that no instance was left");
}

/// Row 1: etcd is killed and restarted ten times while instances come and go.
#[tokio::test]
async fn an_etcd_killed_ten_times_removes_no_instance() {
    const COUNT: usize = 20;
    let mut server = server().await;
    let (owner, user) = (Etcd::connect(server.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
    let registrations = register_many(&owner, COUNT).await;
    let before = listed(&user, COUNT).await;
    let leases = raw(&server).await.leases().await.unwrap().leases().len();
    let tasks = TaskOwner::new();
    let removed = Arc::<AtomicUsize>::default();
    let (count, mut watcher) = (Arc::clone(&removed), user.watch(&support::service()).await.unwrap());
    soon("a list", watcher.next()).await.unwrap();
    in_background(&tasks, async move {
        while let Ok(change) = watcher.next().await {
            let gone = change.events.iter().filter(|event| matches!(event, Event::Removed(_)));
            count.fetch_add(gone.count(), Ordering::Relaxed);
        }
    });
    for round in 0..10u32 {
        // Under load: each instance has a pending change when etcd is killed.
        for registration in &registrations {
            drop(registration.update(move |update| {
                update.weight(round + 1);
            }));
        }
        server.kill().await;
        server.restart().await;
    }
    eventually("the last update of each is stored", || async {
        match user.resolve(&support::service()).await {
            Ok(now) if now.entries().filter(|entry| entry.instance().weight() == 10).count() == COUNT => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let after = listed(&user, COUNT).await;
    let created = |snapshot: &Snapshot| snapshot.entries().map(|entry| entry.created()).collect::<Vec<_>>();
    assert_eq!(created(&after), created(&before), "nobody was registered anew");
    assert_eq!(removed.load(Ordering::Relaxed), 0, "nobody was removed in between");
    assert_eq!(raw(&server).await.leases().await.unwrap().leases().len(), leases);
    assert_eq!(owner.counters().get(Counter::Reregistrations), 0);
}

/// Row 2: etcd's data is wiped. In the second case the new history has passed the old revision before the watch is
/// resumed, so the revision alone does not reveal the wipe. The control, a watch from the old revision on, never
/// receives an event.
#[tokio::test]
async fn a_wiped_etcd_stops_no_watcher() {
    let mut server = server().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (owner, user) = (Etcd::connect(server.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
    let away = Etcd::builder([proxy.url()]).audit(Some(Duration::from_secs(4))).connect().await.unwrap();
    let _registrations = register_many(&owner, 3).await;
    // A key that does not exist in the new history.
    let mut before = raw(&server).await;
    let value = r#"{"v":1,"id":"old","endpoints":["h:1"]}"#;
    before.put(format!("{PREFIX}old"), value, None).await.unwrap();
    let open = async |etcd: &Etcd| {
        let mut watcher = etcd.watch(&support::service()).await.unwrap();
        while soon("all", watcher.next()).await.unwrap().snapshot.len() < 4 {}
        watcher
    };
    let (mut near, mut far) = (open(&user).await, open(&away).await);
    proxy.set(Mode::BlackHole(Direction::Both));
    let old = before.get("\0", None).await.unwrap().header().unwrap().revision();
    server.wipe().await;
    let new = async |watcher: &mut Box<dyn Watcher>| loop {
        let change = watcher.next().await.unwrap();
        assert!(!change.snapshot.is_empty() || change.snapshot.epoch().get() > 0);
        if change.snapshot.len() == 3 && change.snapshot.epoch().get() > 0 {
            return;
        }
    };
    soon("the new history is seen", new(&mut near)).await;
    let mut raw = raw(&server).await;
    let control = etcd_client::WatchOptions::new().with_prefix().with_start_revision(old + 1);
    let mut control = raw.watch(PREFIX, Some(control)).await.unwrap();
    assert!(soon("created", control.message()).await.unwrap().unwrap().created());
    // Later registrations reach the watcher, but not the control.
    let late = register(&owner, "late").await;
    while soon("the late one", near.next()).await.unwrap().snapshot.len() < 4 {}
    assert!(tokio::time::timeout(Duration::from_secs(1), control.message()).await.is_err());
    // Advances the store to a revision above the old one.
    while raw.put("filler", "x", None).await.unwrap().header().unwrap().revision() <= old + 5 {}
    proxy.heal();
    while soon("the far one sees it too", far.next()).await.unwrap().snapshot.get(&"old".parse().unwrap()).is_some() {}
    soon("deregistered", late.deregister()).await.unwrap();
    let settled = async {
        loop {
            let change = far.next().await.unwrap();
            if change.snapshot.len() == 3 {
                return;
            }
        }
    };
    soon("and goes on", settled).await;
}

/// Row 8: a black hole without a reset, with one endpoint. The control, a watch without liveness checks, hangs.
#[tokio::test]
async fn a_black_hole_is_noticed_within_fifteen_seconds() {
    let server = server().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let owner = Etcd::connect(server.url()).await.unwrap();
    let a = register(&owner, "a").await;
    for direction in [Direction::ToClient, Direction::Both] {
        let user = Etcd::builder([proxy.url()]).connect().await.unwrap();
        let view = Directory::new(Arc::new(user.clone())).view(&support::service());
        shows(&view, |snapshot| snapshot.len() == 1).await;
        let mut naive = etcd_client::Client::connect([proxy.url()], None).await.unwrap();
        let mut control = naive.watch(PREFIX, Some(etcd_client::WatchOptions::new().with_prefix())).await.unwrap();
        soon("created", control.message()).await.unwrap().unwrap();
        // The last proof of freshness is this change.
        let weight = view.snapshot().unwrap().entries().next().unwrap().instance().weight() + 1;
        set_weight(&a, weight).await;
        shows(&view, |snapshot| snapshot.entries().all(|entry| entry.instance().weight() == weight)).await;
        soon("seen", control.message()).await.unwrap().unwrap();
        proxy.set(Mode::BlackHole(direction));
        let begun = Moment::now();
        // The view is out of date from here on, and its age must show that this is possible.
        set_version(&a, "2").await;
        let mut noticed = None;
        while begun.elapsed() < Duration::from_secs(17) {
            let freshness = view.freshness().unwrap();
            if matches!(freshness, Freshness::Stale { .. }) {
                noticed.get_or_insert_with(|| begun.elapsed());
            }
            let age = freshness.age();
            assert!(age + Duration::from_secs(1) >= begun.elapsed(), "{age:?} after {:?}", begun.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let noticed = noticed.expect("it was noticed");
        println!("{direction:?}: noticed after {noticed:?}");
        assert!(noticed <= Duration::from_secs(15), "{noticed:?}");
        assert_eq!(view.snapshot().unwrap().len(), 1, "the last picture stays");
        assert!(
            tokio::time::timeout(Duration::from_millis(100), control.message()).await.is_err(),
            "the control hangs"
        );
        proxy.heal();
        shows(&view, |snapshot| snapshot.entries().all(|entry| entry.instance().version() == Some("2"))).await;
        eventually("fresh again", || async {
            let freshness = view.freshness().unwrap();
            if freshness.is_live() { Ok(()) } else { Err(freshness) }
        })
        .await;
        set_version(&a, "1").await;
    }
}

/// Stores instances of a kilobyte each.
async fn store_large(raw: &mut etcd_client::Client, count: usize) {
    let filler = "x".repeat(1000);
    for id in 0..count {
        let value = format!(r#"{{"v":1,"id":"f{id}","endpoints":["h:1"],"metadata":{{"f":"{filler}"}}}}"#);
        raw.put(format!("{PREFIX}f{id}"), value, None).await.unwrap();
    }
}

/// Reaction of a proxy to an answer that is larger than its limit for reads.
#[derive(Clone, Copy, Debug)]
enum AboveLimit {
    /// A proxy in Go has a limit of 4 MiB by default, and reports it with the text for a request that is too large.
    Refused,
    /// A proxy that limits the time of an answer.
    TimedOut,
    /// It does not arrive.
    Stalled,
    /// The first one arrives, and the others do not.
    StalledAfterFirst,
}

/// Serves a proxy with a limit for answers to reads. Returns its address, and the number of answers above the limit.
async fn limited(
    tasks: &TaskOwner,
    server: &EtcdServer,
    limit: usize,
    above: AboveLimit,
) -> (String, Arc<AtomicUsize>) {
    let channel = Endpoint::from_shared(server.url()).unwrap().connect().await.unwrap();
    let exceeded = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&exceeded);
    let url = serve(tasks, move |request| {
        let (channel, count) = (channel.clone(), Arc::clone(&count));
        async move {
            if !request.uri().path().ends_with("/Range") {
                return Ok(send(channel, request).await.unwrap());
            }
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let read = || http::Request::from_parts(head.clone(), axum::body::Body::from(body.clone()));
            let answer = send(channel.clone(), read()).await.unwrap().into_body().collect().await;
            if answer.unwrap().to_bytes().len() <= limit {
                return Ok(send(channel, read()).await.unwrap());
            }
            let before = count.fetch_add(1, Ordering::Relaxed);
            match above {
                AboveLimit::Refused => {
                    Ok(Status::resource_exhausted("grpc: received message larger than max").into_http())
                }
                AboveLimit::StalledAfterFirst if before == 0 => Ok(send(channel, read()).await.unwrap()),
                AboveLimit::TimedOut => Ok(http::Response::builder().status(504).body(Body::empty()).unwrap()),
                AboveLimit::Stalled | AboveLimit::StalledAfterFirst => std::future::pending().await,
            }
        }
    });
    (url, exceeded)
}

#[tokio::test]
async fn a_list_keeps_to_a_proxys_limit() {
    const COUNT: usize = 300;
    let (server, tasks) = (server().await, TaskOwner::new());
    store_large(&mut raw(&server).await, COUNT).await;
    let (url, refused) = limited(&tasks, &server, 100_000, AboveLimit::Refused).await;
    let etcd = Etcd::connect(url).await.unwrap();
    let snapshot = soon("a list", etcd.resolve(&support::service())).await.unwrap();
    assert_eq!((snapshot.len(), refused.load(Ordering::Relaxed)), (COUNT, 2), "pages of 1,000, of 125 and of 15");
}

/// Pages of 1,000 instances have 1.1 MB, larger ones 2 MB. The next list has none of these.
#[tokio::test]
async fn a_list_survives_a_lost_large_page() {
    const COUNT: usize = 3000;
    let (server, tasks) = (server().await, TaskOwner::new());
    store_large(&mut raw(&server).await, COUNT).await;
    for above in [AboveLimit::TimedOut, AboveLimit::Stalled] {
        let (url, exceeded) = limited(&tasks, &server, 1_500_000, above).await;
        let etcd = Etcd::connect(url).await.unwrap();
        let list = || async { soon("a list", etcd.resolve(&support::service())).await.unwrap().len() };
        assert_eq!(list().await, COUNT, "{above:?}");
        let once = exceeded.load(Ordering::Relaxed);
        assert_eq!((list().await, exceeded.load(Ordering::Relaxed)), (COUNT, once), "{above:?}");
        assert!(once > 0, "{above:?}: no page was large");
    }
}

/// An etcd with a malformed value and large instances after it, behind a proxy with a limit.
struct Large {
    raw: etcd_client::Client,
    etcd: Etcd,
    exceeded: Arc<AtomicUsize>,
    _server: EtcdServer,
    _tasks: TaskOwner,
}

impl Large {
    const COUNT: usize = 3000;

    async fn behind(limit: usize, above: AboveLimit) -> Self {
        let (server, tasks) = (server().await, TaskOwner::new());
        let mut raw = raw(&server).await;
        store_large(&mut raw, Self::COUNT).await;
        raw.put(format!("{PREFIX}a"), "malformed", None).await.unwrap();
        let (url, exceeded) = limited(&tasks, &server, limit, above).await;
        Self { raw, etcd: Etcd::connect(url).await.unwrap(), exceeded, _server: server, _tasks: tasks }
    }

    fn malformed(&self) -> u64 {
        self.etcd.counters().get(Counter::MalformedValues)
    }

    /// Waits until watchers have skipped this many values, and the proxy had at least this many answers above its
    /// limit. The list of the watcher must not be complete before.
    async fn skips(&self, watcher: &mut dyn Watcher, values: u64, exceeded: usize) {
        let skipped = eventually("values are skipped", || async {
            let found = (self.malformed(), self.exceeded.load(Ordering::Relaxed));
            if found.0 == values && found.1 >= exceeded { Ok(()) } else { Err(found) }
        });
        tokio::select! {
            biased;
            change = watcher.next() => panic!("complete before: {}", change.unwrap().snapshot.len()),
            () = skipped => {}
        }
    }
}

/// The second page does not arrive until it is read again. The second watcher begins meanwhile.
#[tokio::test]
async fn a_page_is_decoded_before_the_next_arrives() {
    let large = Large::behind(1_500_000, AboveLimit::Stalled).await;
    let mut first = large.etcd.watch(&support::service()).await.unwrap();
    large.skips(&mut *first, 1, 1).await;
    let mut second = large.etcd.watch(&support::service()).await.unwrap();
    large.skips(&mut *second, 2, 1).await;
    for watcher in [&mut first, &mut second] {
        assert_eq!(soon("the list", watcher.next()).await.unwrap().snapshot.len(), Large::COUNT);
    }
    assert_eq!(large.malformed(), 2, "each watcher decodes a page once");
}

/// The second page is lost, also when it is read again, until pages are small. An instance of the first one disappears.
#[tokio::test]
async fn pages_of_a_failed_list_are_forgotten() {
    let mut large = Large::behind(500_000, AboveLimit::StalledAfterFirst).await;
    let mut watcher = large.etcd.watch(&support::service()).await.unwrap();
    large.skips(&mut *watcher, 1, 2).await;
    large.raw.delete(format!("{PREFIX}f0"), None).await.unwrap();
    while soon("the list", watcher.next()).await.unwrap().snapshot.len() != Large::COUNT - 1 {}
    assert_eq!(large.malformed(), 2, "the first page is decoded again");
}

/// The caller waits for less than the deadline of a request.
#[tokio::test]
async fn an_impatient_caller_gets_a_large_list_later() {
    const COUNT: usize = 3000;
    let (server, tasks) = (server().await, TaskOwner::new());
    store_large(&mut raw(&server).await, COUNT).await;
    let (url, stalled) = limited(&tasks, &server, 1_500_000, AboveLimit::Stalled).await;
    let etcd = Etcd::connect(url).await.unwrap();
    let service = support::service();
    let list = || tokio::time::timeout(Duration::from_secs(3), etcd.resolve(&service));
    assert!(list().await.is_err() && stalled.load(Ordering::Relaxed) == 1);
    assert_eq!(list().await.expect("in time").unwrap().len(), COUNT);
}

/// Row 10: a throttled connection over which a list takes long.
#[tokio::test]
async fn a_slow_connection_delays_no_renewal() {
    const COUNT: usize = 150;
    let server = server().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let mut raw = raw(&server).await;
    store_large(&mut raw, COUNT).await;
    let etcd = Etcd::builder([proxy.url()]).connect().await.unwrap();
    proxy.set(Mode::Throttle(20_000));
    let registration = register(&etcd, "a").await;
    let before = registration.state();
    let mut watcher = etcd.watch(&support::service()).await.unwrap();
    // 170 kB at 20 kB/s: longer than a request may take.
    let begun = Moment::now();
    let first = tokio::time::timeout(Duration::from_secs(60), watcher.next()).await.expect("the list arrives").unwrap();
    println!("listed over the slow connection in {:?}", begun.elapsed());
    assert_eq!(first.snapshot.len(), COUNT + 1);
    assert_eq!(etcd.counters().get(Counter::LeaseLosses), 0, "{before:?} {:?}", registration.state());
    // The watch delivers further changes.
    raw.delete(format!("{PREFIX}f0"), None).await.unwrap();
    while soon("a change", watcher.next()).await.unwrap().snapshot.len() > COUNT {}
}

/// Row 10: more is written than the connection carries, so the received events are increasingly old. The control, a raw
/// watch that bypasses the slow connection, measures their age.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_watch_reports_its_true_age() {
    const LASTS: Duration = Duration::from_secs(40);
    let server = server().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let user = Etcd::builder([proxy.url()]).connect().await.unwrap();
    let mut watcher = user.watch(&support::service()).await.unwrap();
    let mut last = soon("a list", watcher.next()).await.unwrap();
    let mut raw = raw(&server).await;
    // Time at which each revision was known.
    let known = Arc::<std::sync::Mutex<Vec<(u64, Moment)>>>::default();
    let tasks = TaskOwner::new();
    let (recorded, options) = (Arc::clone(&known), etcd_client::WatchOptions::new().with_prefix());
    let mut control = raw.watch(PREFIX, Some(options)).await.unwrap();
    in_background(&tasks, async move {
        while let Ok(Some(message)) = control.message().await {
            let now = Moment::now();
            let revisions = message.events().iter().map(|event| event.kv().unwrap().mod_revision());
            recorded.lock().unwrap().extend(revisions.map(|revision| (u64::try_from(revision).unwrap(), now)));
        }
    });
    // 100 kB/s into 20 kB/s.
    proxy.set(Mode::Throttle(20_000));
    let filler = "x".repeat(10_000);
    let begun = Moment::now();
    in_background(&tasks, async move {
        for version in 0.. {
            let value = format!(
                r#"{{"v":1,"id":"a","endpoints":["h:1"],"version":"{version}","metadata":{{"f":"{filler}"}}}}"#
            );
            raw.put(format!("{PREFIX}a"), value, None).await.unwrap();
            pass(Duration::from_millis(100)).await;
        }
    });
    let mut oldest = Duration::ZERO;
    while begun.elapsed() < LASTS {
        pass(Duration::from_millis(100)).await;
        while let Ok(change) = tokio::time::timeout(Duration::ZERO, watcher.next()).await {
            last = change.unwrap();
        }
        let age = last.freshness.age();
        let missing = {
            let known = known.lock().unwrap();
            known.iter().find(|(revision, _)| *revision > last.snapshot.revision().get()).map(|(_, since)| *since)
        };
        let behind = missing.map_or(Duration::ZERO, |since| since.elapsed());
        oldest = oldest.max(behind);
        assert!(age + Duration::from_secs(1) >= behind, "it is {behind:?} behind, and says {age:?}");
    }
    println!("at most {oldest:?} behind; {:?} at the end", last.freshness.age());
    assert!(oldest > Duration::from_secs(10), "it was slow: {oldest:?}");
    assert_eq!(user.counters().get(Counter::AuditRepairs), 0);
}

/// A watch without events does not learn the store's revision unless it asks. Releases before 3.4.25 and 3.5.8 respond
/// too early, so with them an audit provides the proof. The control is a client without audits and probes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_service_in_busy_stores_stays_fresh() {
    let server = server().await;
    let mut raw = raw(&server).await;
    let version = raw.status().await.unwrap().version().to_owned();
    let patch = |line: &str| version.strip_prefix(line).and_then(|patch| patch.parse::<u32>().ok());
    let old = patch("3.4.").is_some_and(|patch| patch < 25) || patch("3.5.").is_some_and(|patch| patch < 8);
    let user = Etcd::builder([server.url()]);
    let user = if old { user.audit(Some(Duration::from_secs(4))) } else { user.audit(None) };
    let user = user.connect().await.unwrap();
    let control = Etcd::builder([server.url()]).audit(None).probe(None).connect().await.unwrap();
    let open = async |etcd: &Etcd| {
        let mut watcher = etcd.watch(&support::service()).await.unwrap();
        let freshness = soon("a list", watcher.next()).await.unwrap().freshness;
        (watcher, freshness)
    };
    let (_watcher, freshness) = open(&user).await;
    let (_control, ages) = open(&control).await;
    let begun = Moment::now();
    let mut oldest = Duration::ZERO;
    let mut proofs = 0;
    while proofs < 3 || begun.elapsed() < Duration::from_secs(12) {
        let before = freshness.proven();
        raw.put("elsewhere", "x", None).await.unwrap();
        pass(Duration::from_millis(100)).await;
        oldest = oldest.max(freshness.age());
        proofs += usize::from(!freshness.proven().since(before).is_zero());
        assert!(oldest <= Duration::from_secs(10), "{oldest:?} on etcd {version}");
    }
    println!("etcd {version}: at most {oldest:?} old in {:?}", begun.elapsed());
    assert!(ages.age() >= Duration::from_secs(12), "the control ages: {ages:?}");
}

/// Row 9: a round trip takes half a second, plus or minus up to half a second.
#[tokio::test]
async fn varying_latency_costs_no_lease() {
    let server = server().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let etcd = Etcd::builder([proxy.url()]).connect().await.unwrap();
    let _registrations = register_many(&etcd, 5).await;
    let mut watcher = etcd.watch(&support::service()).await.unwrap();
    soon("a list", watcher.next()).await.unwrap();
    proxy.set(Mode::Delay { delay: Duration::ZERO, jitter: Duration::from_millis(500) });
    pass(3 * TTL).await;
    assert_eq!(etcd.counters().get(Counter::LeaseLosses), 0);
    let other = Etcd::connect(server.url()).await.unwrap();
    let _late = register(&other, "late").await;
    while soon("the late one", watcher.next()).await.unwrap().snapshot.len() < 6 {}
    assert_eq!(other.resolve(&support::service()).await.unwrap().len(), 6);
}

/// Row 21: ten thousand changes among a hundred thousand instances, as fast as etcd applies them.
async fn churn(raw: &mut etcd_client::Client, lease: i64, watcher: &mut Box<dyn Watcher>) {
    let begun = Moment::now();
    for chunk in (0..10_000).collect::<Vec<_>>().chunks(100) {
        let put = |id: &usize| {
            let value = format!(r#"{{"v":1,"id":"{id:06}","endpoints":["h:1"],"weight":7}}"#);
            let options = etcd_client::PutOptions::new().with_lease(lease);
            etcd_client::TxnOp::put(format!("{PREFIX}{id:06}"), value, Some(options))
        };
        raw.txn(etcd_client::Txn::new().and_then(chunk.iter().map(put).collect::<Vec<_>>())).await.unwrap();
    }
    let (mut changes, mut updates) = (0, 0);
    let caught_up = async {
        while updates < 10_000 {
            let change = watcher.next().await.unwrap();
            changes += 1;
            // Each instance changes once, so no update is delivered twice and none is omitted.
            updates += change.events.iter().filter(|event| matches!(event, Event::Updated { .. })).count();
        }
    };
    tokio::time::timeout(LARGE, caught_up).await.expect("it catches up");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    println!(
        "10,000 updates in {:?}, delivered in {changes} changes; {} MB resident",
        begun.elapsed(),
        resident / 1024
    );
    assert!(updates == 10_000 && resident < 1_500_000, "{updates} updates, {resident} kB");
}

/// Puts `count` instances under one lease and returns the lease.
async fn put_many(raw: &mut etcd_client::Client, count: usize) -> i64 {
    let lease = raw.lease_grant(600, None).await.unwrap().id();
    for chunk in (0..count).collect::<Vec<_>>().chunks(100) {
        let put = |id: &usize| {
            let value = format!(r#"{{"v":1,"id":"{id:06}","endpoints":["h:1"]}}"#);
            let options = etcd_client::PutOptions::new().with_lease(lease);
            etcd_client::TxnOp::put(format!("{PREFIX}{id:06}"), value, Some(options))
        };
        raw.txn(etcd_client::Txn::new().and_then(chunk.iter().map(put).collect::<Vec<_>>())).await.unwrap();
    }
    lease
}

/// On request, etcd splits a message into fragments, in quadratic time: this took 26 s then. The control, a raw watch,
/// shows etcd's own duration on a machine that may be busy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_thousand_lost_keys_disappear_within_three_seconds() {
    const COUNT: usize = 50_000;
    let server = server().await;
    let mut raw = raw(&server).await;
    let lease = put_many(&mut raw, COUNT).await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let mut watcher = etcd.watch(&support::service()).await.unwrap();
    let first = tokio::time::timeout(LARGE, watcher.next()).await.expect("the list arrives").unwrap();
    assert_eq!(first.snapshot.len(), COUNT);
    let options = etcd_client::WatchOptions::new().with_prefix();
    let mut control = raw.watch_client().max_decoding_message_size(64 << 20);
    let mut control = control.watch(PREFIX, Some(options)).await.unwrap();
    soon("created", control.message()).await.unwrap().unwrap();
    let begun = Moment::now();
    let raw_watch = async {
        let mut gone = 0;
        while gone < COUNT {
            gone += control.message().await.unwrap().unwrap().events().len();
        }
        begun.elapsed()
    };
    let gone = async {
        loop {
            let change = watcher.next().await.unwrap();
            assert!(matches!(change.snapshot.len(), 0 | COUNT), "one revision is one change");
            if change.snapshot.is_empty() {
                return begun.elapsed();
            }
        }
    };
    let both = async { tokio::join!(raw.lease_revoke(lease), raw_watch, gone) };
    let (revoked, raw_watch, gone) = tokio::time::timeout(LARGE, both).await.expect("the removal arrives");
    revoked.unwrap();
    println!("a raw watch shows the removal after {raw_watch:?}, the view shows it after {gone:?}");
    assert!(gone < raw_watch.max(Duration::from_secs(1)) * 3, "{gone:?}, and {raw_watch:?} for the control");
    assert_eq!(etcd.counters().get(Counter::WatchRelists) + etcd.counters().get(Counter::WatchResumes), 0);
}

/// A watch that catches up receives a thousand revisions at once. The control, a raw watch with the same limit, fails
/// at this message, and would fail at every resumption.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catching_up_above_the_limit_causes_one_list() {
    let server = server().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let user = Etcd::builder([proxy.url()]).connect().await.unwrap();
    let raw = raw(&server).await;
    let filler = "x".repeat(70_000);
    let put = |version: usize| {
        let mut raw = raw.clone();
        let value =
            format!(r#"{{"v":1,"id":"a","endpoints":["h:1"],"version":"{version}","metadata":{{"f":"{filler}"}}}}"#);
        async move { raw.put(format!("{PREFIX}a"), value, None).await.unwrap().header().unwrap().revision() }
    };
    let mut watcher = user.watch(&support::service()).await.unwrap();
    soon("a list", watcher.next()).await.unwrap();
    // A change delivered by the watch itself proves that the watch is open.
    let seen = put(0).await;
    while soon("a change", watcher.next()).await.unwrap().snapshot.is_empty() {}
    proxy.set(Mode::Refuse);
    let versions: Vec<usize> = (1..=1000).collect();
    for chunk in versions.chunks(50) {
        futures::future::join_all(chunk.iter().map(|version| put(*version))).await;
    }
    put(1001).await;
    let options = etcd_client::WatchOptions::new().with_prefix().with_start_revision(seen + 1);
    let mut control = raw.watch_client().max_decoding_message_size(64 << 20);
    let mut control = control.watch(PREFIX, Some(options)).await.unwrap();
    let failed = async {
        loop {
            if let Err(error) = control.message().await {
                return error.to_string();
            }
        }
    };
    let failed = soon("the control fails", failed).await;
    assert!(failed.contains("too large"), "{failed}");
    proxy.heal();
    let newest = |snapshot: &Snapshot| snapshot.entries().all(|entry| entry.instance().version() == Some("1001"));
    while !newest(&soon("the last version", watcher.next()).await.unwrap().snapshot) {}
    let (relists, resumes) = (user.counters().get(Counter::WatchRelists), user.counters().get(Counter::WatchResumes));
    assert_eq!((relists, resumes), (1, 1), "one attempt to go on, and one list");
}

/// Row 22: one lease with 100,000 keys is one revision of several megabytes when it is revoked. The control, a client
/// with default limits, fails at it and would at every resume.
#[tokio::test]
async fn a_hundred_thousand_deletions_keep_the_watch() {
    const COUNT: usize = 100_000;
    let server = server().await;
    let mut raw = raw(&server).await;
    let lease = put_many(&mut raw, COUNT).await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let mut watcher = etcd.watch(&support::service()).await.unwrap();
    let first = tokio::time::timeout(LARGE, watcher.next()).await.expect("the list arrives").unwrap();
    assert_eq!(first.snapshot.len(), COUNT);
    churn(&mut raw, lease, &mut watcher).await;
    let mut control = raw.watch(PREFIX, Some(etcd_client::WatchOptions::new().with_prefix())).await.unwrap();
    soon("created", control.message()).await.unwrap().unwrap();
    let begun = Moment::now();
    // A busy server may abort the response although it continues the work.
    eventually("the lease is revoked", || async {
        match raw.clone().lease_revoke(lease).await.map_err(|error| error.to_string()) {
            Err(error) if !error.contains("lease not found") => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    })
    .await;
    let gone = async {
        loop {
            let change = watcher.next().await.unwrap();
            assert!(
                matches!(change.snapshot.len(), 0 | COUNT),
                "one revision is one change: {}",
                change.snapshot.len()
            );
            if change.snapshot.is_empty() {
                return;
            }
        }
    };
    tokio::time::timeout(LARGE, gone).await.expect("the removal arrives");
    let resumes = etcd.counters().get(Counter::WatchResumes) + etcd.counters().get(Counter::WatchRelists);
    println!("removed after {:?} with {resumes} resumes", begun.elapsed());
    assert!(resumes <= 2, "{resumes}");
    let failed = soon("the control", control.message()).await.unwrap_err().to_string();
    assert!(failed.contains("too large"), "{failed}");
    // The watch continues.
    let _a = register(&etcd, "a").await;
    while soon("a change", watcher.next()).await.unwrap().snapshot.is_empty() {}
}

/// Row 11: the history is compacted while the client is in a black hole. The control, a raw watch from the last seen
/// revision, ends without an error.
#[tokio::test]
async fn what_was_compacted_meanwhile_becomes_the_exact_difference() {
    let server = server().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (owner, user) =
        (Etcd::connect(server.url()).await.unwrap(), Etcd::builder([proxy.url()]).connect().await.unwrap());
    let mut registrations = register_many(&owner, 5).await;
    let mut watcher = user.watch(&support::service()).await.unwrap();
    let mut seen = soon("a list", watcher.next()).await.unwrap().snapshot;
    assert_eq!(seen.len(), 5);
    proxy.set(Mode::BlackHole(Direction::Both));
    let since = seen.revision().get();
    soon("deregistered", registrations.remove(0).deregister()).await.unwrap();
    set_weight(&registrations[0], 7).await;
    registrations.push(register(&owner, "new").await);
    let mut raw = raw(&server).await;
    let now = raw.get("\0", None).await.unwrap().header().unwrap().revision();
    raw.compact(now, None).await.unwrap();
    let options = etcd_client::WatchOptions::new().with_prefix().with_start_revision(i64::try_from(since).unwrap() + 1);
    let mut control = raw.watch(PREFIX, Some(options)).await.unwrap();
    let mut messages = Vec::new();
    while messages.last().is_none_or(|(canceled, _)| !canceled) {
        let message = soon("a message", control.message()).await.unwrap().unwrap();
        messages.push((message.canceled(), message.events().len()));
    }
    while let Ok(Ok(Some(message))) = tokio::time::timeout(Duration::from_secs(1), control.message()).await {
        messages.push((message.canceled(), message.events().len()));
    }
    assert_eq!(messages, [(false, 0), (true, 0)], "the control is cancelled without events, and silent then");
    // The streams end, as they do when an intermediary drops their state.
    proxy.set(Mode::Reset);
    proxy.heal();
    let truth = owner.resolve(&support::service()).await.unwrap();
    let exact = async {
        loop {
            let change = watcher.next().await.unwrap();
            assert_eq!(change.events, change.snapshot.diff(&seen));
            assert!(!change.snapshot.is_empty());
            seen = change.snapshot;
            if seen.entries().eq(truth.entries()) {
                return change.events.len();
            }
        }
    };
    let events = soon("the difference", exact).await;
    assert_eq!(events, 3, "one removed, one updated, one added");
    assert!(user.counters().get(Counter::WatchRelists) >= 1);
}

/// Row 11: the one missed revision is a deletion, and the history is compacted to exactly that revision. Some releases
/// of etcd then omit it (etcd-io/etcd#18089, #19179; the control shows whether this one does), so a resumed watch
/// starts at the last seen revision.
#[tokio::test]
async fn a_deletion_at_the_compacted_revision_is_seen() {
    let server = server().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let user = Etcd::builder([proxy.url()]).connect().await.unwrap();
    let mut raw = raw(&server).await;
    let value = r#"{"v":1,"id":"a","endpoints":["h:1"]}"#;
    raw.put(format!("{PREFIX}a"), value, None).await.unwrap();
    let mut watcher = user.watch(&support::service()).await.unwrap();
    assert_eq!(soon("a list", watcher.next()).await.unwrap().snapshot.len(), 1);
    // A change delivered by the watch itself proves that the watch is open.
    let seen = raw.put(format!("{PREFIX}a"), value, None).await.unwrap().header().unwrap().revision();
    while soon("a change", watcher.next()).await.unwrap().snapshot.revision().get() < u64::try_from(seen).unwrap() {}
    proxy.set(Mode::Refuse);
    let gone = raw.delete(format!("{PREFIX}a"), None).await.unwrap().header().unwrap().revision();
    assert_eq!(gone, seen + 1);
    let physical = etcd_client::CompactionOptions::new().with_physical();
    raw.compact(gone, Some(physical)).await.unwrap();
    proxy.heal();
    let options = etcd_client::WatchOptions::new().with_prefix().with_start_revision(gone);
    let mut control = raw.watch(PREFIX, Some(options)).await.unwrap();
    raw.put(format!("{PREFIX}b"), "no instance", None).await.unwrap();
    let mut revisions = Vec::new();
    while revisions.is_empty() {
        let message = soon("the control hears of b", control.message()).await.unwrap().unwrap();
        revisions.extend(message.events().iter().map(|event| event.kv().unwrap().mod_revision()));
    }
    println!("the deletion at {gone}: a raw watch from there delivers {revisions:?}");
    while !soon("the deletion", watcher.next()).await.unwrap().snapshot.is_empty() {}
    assert_eq!(user.counters().get(Counter::AuditRepairs), 0, "the watch itself reports it");
}

/// Row 31: the first of several endpoints is dead or has no address; in the second case all of them.
#[tokio::test]
async fn dead_endpoints_cost_one_dial_each() {
    let server = server().await;
    let dead = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let nameless = "http://no-such-host.invalid:2379".to_owned();
    for _ in 0..5 {
        let urls = [dead.clone(), nameless.clone(), server.url()];
        let etcd = soon("connected", Etcd::builder(urls).connect()).await.unwrap();
        assert!(etcd.resolve(&support::service()).await.unwrap().is_empty());
    }
    let begun = Moment::now();
    let error = Etcd::builder([dead.clone(), nameless.clone()]).connect().await.unwrap_err();
    assert!(error.is_retryable() && begun.elapsed() < Duration::from_secs(8), "{error} after {:?}", begun.elapsed());
    let etcd = Etcd::builder([dead, nameless]).build().unwrap();
    let view = Directory::new(Arc::new(etcd.clone())).view(&support::service());
    assert!(tokio::time::timeout(Duration::from_secs(1), view.ready()).await.is_err(), "unknown is not empty");
    let service = support::service();
    let registered = etcd.register(&service, instance("a"), options().start(Start::FailFast));
    assert!(soon("refused", registered).await.unwrap_err().is_retryable());
}
