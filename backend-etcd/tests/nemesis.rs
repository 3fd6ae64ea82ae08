//! Random faults against registrations and watchers, judged by the history checker. `ENLIST_SEED` repeats the choices of a run;
//! `ENLIST_SOAK_SECS` makes it longer (`cargo xtask soak`).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use enlist::{Counter, Entry, Instance, Moment, RegisterOptions, Registration, Registry, Resolver, TaskOwner};
use enlist_etcd::Etcd;
use enlist_testkit::{
    Direction, EtcdServer, Mode, Proxy, eventually,
    history::{History, Picture, Version, Violation},
    soon,
};
use support::{PREFIX, beside, instance, server};
use tokio::sync::Mutex;

const WATCHERS: usize = 4;
const OWNERS: usize = 5;
const EACH: usize = 4;

fn length() -> Duration {
    let given = std::env::var("ENLIST_SOAK_SECS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(given.unwrap_or(25))
}

fn number(revision: i64) -> u64 {
    u64::try_from(revision).unwrap()
}

/// Follows the store itself, without proxies and without end: the truth. It reconnects, and nothing is compacted before it was
/// read, so it misses nothing.
async fn truth(url: String, history: Arc<Mutex<History>>, read: Arc<std::sync::atomic::AtomicI64>) {
    use std::sync::atomic::Ordering;
    loop {
        let next = read.load(Ordering::SeqCst) + 1;
        let options = etcd_client::WatchOptions::new().with_prefix().with_start_revision(next).with_fragment();
        let opened = async {
            let keep =
                etcd_client::ConnectOptions::new().with_keep_alive(Duration::from_secs(6), Duration::from_secs(2));
            let mut raw = etcd_client::Client::connect([url.clone()], Some(keep)).await?;
            raw.watch(PREFIX, Some(options)).await
        };
        let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_secs(5), opened).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while let Ok(Some(message)) = stream.message().await {
            let mut history = history.lock().await;
            for event in message.events() {
                let pair = event.kv().unwrap();
                let id = String::from_utf8_lossy(&pair.key()[PREFIX.len()..]).into_owned();
                // What is no instance is shown to nobody.
                let is_instance =
                    pair.value().starts_with(b"{\"v\":1") || event.event_type() == etcd_client::EventType::Delete;
                let version = (event.event_type() == etcd_client::EventType::Put && is_instance).then(|| Version {
                    created: number(pair.create_revision()),
                    modified: number(pair.mod_revision()),
                });
                history.changed(number(pair.mod_revision()), id, version);
                // Not in the middle of a revision: the last event of a message ends one, unless it is a fragment.
                read.fetch_max(pair.mod_revision() - i64::from(message.0.fragment), Ordering::SeqCst);
            }
        }
    }
}

async fn raw(server: &EtcdServer) -> Option<etcd_client::Client> {
    let connect = etcd_client::Client::connect([server.url()], None);
    tokio::time::timeout(Duration::from_secs(3), connect).await.ok()?.ok()
}

/// One fault, and its end.
async fn fault(kind: usize, server: &mut EtcdServer, proxies: &[Proxy], random: &mut fastrand::Rng, read: i64) {
    let while_ = Duration::from_millis(random.u64(200..2500));
    let proxy = &proxies[random.usize(..proxies.len())];
    let quick = Duration::from_secs(3);
    match kind {
        0 => {
            server.kill().await;
            tokio::time::sleep(while_ / 4).await;
            server.restart().await;
        }
        1 => {
            server.pause().await;
            tokio::time::sleep(while_).await;
            server.resume().await;
        }
        2 | 3 => {
            let modes = [
                Mode::BlackHole(Direction::ToClient),
                Mode::BlackHole(Direction::ToServer),
                Mode::BlackHole(Direction::Both),
                Mode::Reset,
                Mode::Refuse,
                Mode::CutAfter(random.u64(0..3000)),
                Mode::Delay { delay: Duration::from_millis(100), jitter: Duration::from_millis(200) },
            ];
            proxy.set(modes[random.usize(..modes.len())]);
            tokio::time::sleep(while_).await;
            proxy.heal();
        }
        // Errors of the nemesis itself are of no interest: the store may just be away.
        4 => {
            if let Some(mut raw) = raw(server).await {
                let _ = tokio::time::timeout(quick, raw.compact(read, None)).await;
            }
        }
        5 => {
            if let Some(mut raw) = raw(server).await {
                let leases = tokio::time::timeout(quick, raw.leases()).await;
                let leases =
                    leases.ok().and_then(Result::ok).map(|leases| leases.leases().to_vec()).unwrap_or_default();
                if !leases.is_empty() {
                    let lease = leases[random.usize(..leases.len())].id();
                    let _ = tokio::time::timeout(quick, raw.lease_revoke(lease)).await;
                }
            }
        }
        6 => {
            if let Some(mut raw) = raw(server).await {
                let key = format!("{PREFIX}o{}-{}", random.usize(..OWNERS), random.usize(..EACH));
                let _ = tokio::time::timeout(quick, raw.delete(key, None)).await;
            }
        }
        _ => {
            if let Some(mut raw) = raw(server).await {
                let key = format!("{PREFIX}garbage-{}", random.u8(..4));
                let _ = tokio::time::timeout(quick, raw.put(key, "{\"v\":", None)).await;
            }
        }
    }
}

/// Notes everything that a watcher shows.
async fn record(tasks: &TaskOwner, etcd: &Etcd, watcher: usize, history: &Arc<Mutex<History>>) {
    let mut watch = etcd.watch(&support::service()).await.unwrap();
    let told = Arc::clone(history);
    beside(tasks, async move {
        while let Ok(change) = watch.next().await {
            let version = |entry: &Entry| {
                let version = Version { created: entry.created().get(), modified: entry.modified().get() };
                (entry.instance().id().to_string(), version)
            };
            let picture: Picture = change.snapshot.entries().map(|entry| version(entry)).collect();
            told.lock().await.shown(watcher, change.snapshot.revision().get(), picture);
        }
    });
}

fn weight_of(instance: &Instance) -> (String, u32) {
    (instance.id().to_string(), instance.weight())
}

/// Waits until the checker finds nothing. The truth is read over a stream itself, so it may come after a watcher; what cannot be
/// explained by that is a failure at once.
async fn agreed(history: &Mutex<History>) {
    eventually("all agree with the truth", || async {
        let violations = history.lock().await.check();
        let late =
            |violation: &Violation| matches!(violation, Violation::NotConverged { .. } | Violation::NeverSo { .. });
        assert!(violations.iter().all(late), "{violations:#?}");
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_wrong_watchers_show_only_what_was_so_and_everybody_is_back() {
    let mut random = support::seed();
    let mut server = server().await;
    let history = Arc::new(Mutex::new(History::new(WATCHERS)));
    let tasks = TaskOwner::new();
    let read = Arc::new(std::sync::atomic::AtomicI64::new(0));
    beside(&tasks, truth(server.url(), Arc::clone(&history), Arc::clone(&read)));

    let mut proxies = Vec::new();
    for _ in 0..3 {
        proxies.push(Proxy::start(server.address()).await.unwrap());
    }
    let client = async |number: usize| {
        let urls = [proxies[number % 3].url(), proxies[(number + 1) % 3].url()];
        Etcd::builder(urls).audit(Some(Duration::from_secs(5))).connect().await.unwrap()
    };
    let mut owners = Vec::new();
    let mut registrations: Vec<Registration> = Vec::new();
    for owner in 0..OWNERS {
        let etcd = client(owner).await;
        for id in 0..EACH {
            let options = RegisterOptions::new().ttl(Duration::from_secs(5));
            let service = support::service();
            let registering = etcd.register(&service, instance(&format!("o{owner}-{id}")), options);
            registrations.push(soon("registered", registering).await.unwrap());
        }
        owners.push(etcd);
    }
    let mut users = Vec::new();
    for watcher in 0..WATCHERS {
        let etcd = client(watcher).await;
        record(&tasks, &etcd, watcher, &history).await;
        users.push(etcd);
    }

    let begun = Moment::now();
    let mut weight = 1;
    let mut gone = 0;
    while begun.elapsed() < length() {
        let kind = random.usize(..8);
        fault(kind, &mut server, &proxies, &mut random, read.load(std::sync::atomic::Ordering::SeqCst)).await;
        weight += 1;
        drop(registrations[random.usize(..registrations.len())].update(move |draft| {
            draft.weight(weight);
        }));
        // One goes and another comes, now and then.
        if random.u8(..3) == 0 && registrations.len() > OWNERS {
            let leaving = registrations.swap_remove(random.usize(..registrations.len()));
            let id = leaving.instance().id().to_string();
            if let Ok(Ok(enlist::Deregistered::Removed)) =
                tokio::time::timeout(Duration::from_secs(5), leaving.deregister()).await
                && let Some(mut raw) = raw(&server).await
                && let Ok(Ok(now)) = tokio::time::timeout(Duration::from_secs(3), raw.get("\0", None)).await
            {
                history.lock().await.left(id, number(now.header().unwrap().revision()));
                gone += 1;
            }
            let owner = &owners[random.usize(..OWNERS)];
            let options = RegisterOptions::new().ttl(Duration::from_secs(5)).start(enlist::Start::Background);
            let id = format!("late-{weight}");
            registrations.push(owner.register(&support::service(), instance(&id), options).await.unwrap());
        }
    }
    proxies.iter().for_each(Proxy::heal);

    // Everybody is back, and nobody else.
    let wanted: BTreeMap<_, _> = registrations.iter().map(|registration| weight_of(&registration.instance())).collect();
    let quiet = Etcd::connect(server.url()).await.unwrap();
    eventually("everybody is back with the last value, and nobody else is there", || async {
        let now = quiet.resolve(&support::service()).await.unwrap();
        let now: BTreeMap<_, _> = now.entries().map(|entry| weight_of(entry.instance())).collect();
        if now == wanted { Ok(()) } else { Err((now, wanted.clone())) }
    })
    .await;
    // A last change, after which all must agree.
    let mut raw = raw(&server).await.unwrap();
    raw.put(format!("{PREFIX}last"), r#"{"v":1,"id":"last","endpoints":["h:1"]}"#, None).await.unwrap();
    agreed(&history).await;
    {
        // The checker saw something, and would have said so: a picture of nobody is flagged.
        let mut history = history.lock().await;
        let last = raw.get("\0", None).await.unwrap().header().unwrap().revision();
        history.shown(0, number(last), Picture::new());
        assert!(history.check().len() >= 2, "the control is flagged");
    }
    let repairs: u64 = users.iter().chain(&owners).map(|etcd| etcd.counters().get(Counter::AuditRepairs)).sum();
    let audits: u64 = users.iter().map(|etcd| etcd.counters().get(Counter::Audits)).sum();
    println!("{gone} left in order, {audits} audits, {repairs} repairs");
    assert_eq!(repairs, 0, "no watch missed anything");
}
