//! Changes of etcd's data while clients run: it is restored from a snapshot, defragmented, or lies on a slow disk.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{cell::Cell, collections::BTreeMap, convert::Infallible, pin::pin, time::Duration};

use enlist::{
    Counter, Event, Lock, LockGuard, LockName, LockOptions, Moment, RegisterOptions, Registration, Registry, Resolver,
    Snapshot, Watcher,
};
use enlist_etcd::Etcd;
use enlist_testkit::{EtcdServer, Mode, Provider, Proxy, ServerOptions, eventually, soon};
use futures::FutureExt;
use support::{TTL, instance, raw, register, service};

/// Interval of renewals: short against the faults, so that renewals meet them.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(1);

/// Revision of the restored store, compared with that of the lost one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restored {
    /// The snapshot's own revision.
    Lower,
    /// Other clients have written before the client reconnects. Only an audit can detect it.
    Equal,
    /// The result of `etcdutl snapshot restore --bump-revision … --mark-compacted`, which older tools lack.
    Bumped,
}

async fn revision(raw: &mut etcd_client::Client) -> i64 {
    raw.get("\0", None).await.unwrap().header().unwrap().revision()
}

async fn saved(server: &EtcdServer) -> tempfile::NamedTempFile {
    use std::io::Write;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut stream = raw(server).await.snapshot().await.unwrap();
    while let Some(part) = stream.message().await.unwrap() {
        file.write_all(part.blob()).unwrap();
    }
    file
}

fn weights(snapshot: &Snapshot) -> BTreeMap<String, u32> {
    let instances = snapshot.entries().map(|entry| entry.instance());
    instances.map(|instance| (instance.id().to_string(), instance.weight())).collect()
}

async fn weigh(registration: &Registration, weight: u32) {
    let update = registration.update(move |update| {
        update.weight(weight);
    });
    soon("stored", update).await.unwrap();
}

async fn acquire(etcd: &Etcd, name: &str) -> LockGuard {
    let name = LockName::parse(name).unwrap();
    soon("acquired", etcd.acquire(&name, LockOptions::new().ttl(TTL))).await.unwrap()
}

/// etcd is restored from a snapshot that is older than its clients' last operations: since then one instance was
/// changed, one added and one removed, one lock was acquired and one released.
async fn restored(how: Restored) {
    let mut server = EtcdServer::start_with(Provider::Process, ServerOptions::new()).await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let builder = || Etcd::builder([proxy.url()]).audit(Some(Duration::from_secs(2)));
    let (etcd, other) = (builder().connect().await.unwrap(), builder().connect().await.unwrap());
    let changed = register(&etcd, "changed").await;
    let leaves = register(&etcd, "leaves").await;
    let (kept, released) = (acquire(&etcd, "kept").await, acquire(&etcd, "released").await);
    let mut watcher = other.watch(&service()).await.unwrap();
    let mut last = soon("a list", watcher.next()).await.unwrap().snapshot;

    let snapshot = saved(&server).await;
    weigh(&changed, 2).await;
    soon("deregistered", leaves.deregister()).await.unwrap();
    let _comes = register(&etcd, "comes").await;
    let later = acquire(&etcd, "later").await;
    soon("released", released.release()).await.unwrap();
    while last.len() != 2 || !weights(&last).contains_key("comes") {
        last = soon("a change", watcher.next()).await.unwrap().snapshot;
    }
    let before = revision(&mut raw(&server).await).await;
    proxy.set(Mode::Refuse);
    server.restore(snapshot.path()).await;
    let mut direct = raw(&server).await;
    let mut now = revision(&mut direct).await;
    assert!(now < before, "the control: {now} is not before {before}");
    let wanted = match how {
        Restored::Lower => now,
        Restored::Equal => before,
        Restored::Bumped => before + 100,
    };
    while now < wanted {
        now = direct.put("elsewhere", "x", None).await.unwrap().header().unwrap().revision();
    }
    if how == Restored::Bumped {
        direct.compact(now, None).await.unwrap();
    }
    proxy.heal();

    let wanted = BTreeMap::from([("changed".to_owned(), 2), ("comes".to_owned(), 100)]);
    let direct = Etcd::connect(server.url()).await.unwrap();
    eventually("etcd has what is wanted, and nothing else", || async {
        let now = weights(&direct.resolve(&service()).await.unwrap());
        if now == wanted { Ok(()) } else { Err(now) }
    })
    .await;
    let shown = async {
        while weights(&last) != wanted {
            last = watcher.next().await.unwrap().snapshot;
        }
    };
    soon("the watcher shows it", shown).await;
    // The released lock is free, and no guard is considered held.
    for guard in [&later, &kept] {
        soon("a guard of the lost history is lost", guard.lost()).await;
        assert!(!guard.is_held());
    }
    for name in ["released", "later", "kept"] {
        drop(acquire(&other, name).await);
    }
    weigh(&changed, 3).await;
    soon("the change is seen", async { while weights(&watcher.next().await.unwrap().snapshot)["changed"] != 3 {} })
        .await;
}

#[tokio::test]
async fn a_store_restored_at_lower_revisions_is_repaired() {
    restored(Restored::Lower).await;
}

#[tokio::test]
async fn a_store_restored_at_equal_revisions_is_repaired() {
    restored(Restored::Equal).await;
}

#[tokio::test]
async fn a_store_restored_at_bumped_revisions_is_repaired() {
    restored(Restored::Bumped).await;
}

/// Stops the server repeatedly and without end, for `stopped` of each `stopped + running`. Its work slows down in
/// proportion, as on a slow disk.
async fn slowed(server: &EtcdServer, stopped: Duration, running: Duration) -> Infallible {
    loop {
        server.pause().await;
        tokio::time::sleep(stopped).await;
        server.resume().await;
        tokio::time::sleep(running).await;
    }
}

/// Otherwise the signal of a dropped `pause` could arrive after that of the next `resume`.
#[tokio::test]
async fn freezing_a_server_needs_no_second_poll() {
    let server = EtcdServer::start_with(Provider::Process, ServerOptions::new()).await;
    for _ in 0..20 {
        assert!(server.pause().now_or_never().is_some());
        assert!(server.resume().now_or_never().is_some());
    }
    soon("it answers", raw(&server).await.get("\0", None)).await.unwrap();
}

/// A client with an instance, a watcher and a lock, which must not lose anything.
struct User {
    etcd: Etcd,
    registration: Registration,
    watcher: Box<dyn Watcher>,
    guard: LockGuard,
}

impl User {
    async fn new(server: &EtcdServer, ttl: Duration) -> Self {
        let etcd = Etcd::connect(server.url()).await.unwrap();
        let options = RegisterOptions::new().ttl(ttl).renewal_interval(RENEWAL_INTERVAL);
        let service = service();
        let registration = soon("registered", etcd.register(&service, instance("a"), options)).await.unwrap();
        let mut watcher = etcd.watch(&service).await.unwrap();
        soon("a list", watcher.next()).await.unwrap();
        let (name, options) = (LockName::parse("l").unwrap(), LockOptions::new().ttl(ttl));
        let options = options.renewal_interval(RENEWAL_INTERVAL);
        let guard = soon("acquired", etcd.acquire(&name, options)).await.unwrap();
        Self { etcd, registration, watcher, guard }
    }

    /// Changes its instance, sees the change, and checks that nothing was lost.
    async fn works(&mut self, weight: u32) {
        weigh(&self.registration, weight).await;
        let seen = async {
            loop {
                let change = self.watcher.next().await.unwrap();
                assert!(!change.events.iter().any(|event| matches!(event, Event::Removed(_))), "{:?}", change.events);
                if weights(&change.snapshot).get("a") == Some(&weight) {
                    return;
                }
            }
        };
        soon("the change is seen", seen).await;
        assert!(self.guard.is_held());
        assert_eq!(self.etcd.counters().get(Counter::LeaseLosses), 0);
    }
}

/// Duration of a raw write, or of its failure in etcd.
async fn write(raw: &mut etcd_client::Client) -> Duration {
    let begun = Moment::now();
    let _ = soon("an answer", raw.put("elsewhere", "x", None)).await;
    begun.elapsed()
}

/// Returns the longest time without a successful raw write until `over`.
async fn longest_outage(raw: &mut etcd_client::Client, over: &Cell<bool>) -> Duration {
    let (mut longest, mut succeeded) = (Duration::ZERO, Moment::now());
    while !over.get() {
        if soon("an answer", raw.put("elsewhere", "x", None)).await.is_ok() {
            longest = longest.max(succeeded.elapsed());
            succeeded = Moment::now();
        }
    }
    longest.max(succeeded.elapsed())
}

/// Defragments a server that is slowed. Returns the longest time without a successful write.
async fn defragment(server: &EtcdServer, raw: &mut etcd_client::Client) -> Duration {
    /// Maximum time for which the server is slowed. The defragmentation then finishes at full speed.
    const SLOWED: Duration = Duration::from_secs(10);
    let (mut writer, begun, over) = (raw.clone(), Moment::now(), Cell::new(false));
    let defragment = async {
        raw.defragment().await.unwrap();
        over.set(true);
    };
    let mut both = pin!(async { tokio::join!(defragment, longest_outage(&mut writer, &over)).1 });
    let finished = tokio::select! {
        longest = both.as_mut() => Some(longest),
        () = tokio::time::sleep(SLOWED) => None,
        never = slowed(server, Duration::from_millis(297), Duration::from_millis(3)) => match never {},
    };
    server.resume().await;
    let longest = match finished {
        Some(longest) => longest,
        None => both.await,
    };
    println!("defragmented in {:?}, no write for {longest:?}", begun.elapsed());
    longest
}

/// The only etcd is defragmented. This takes it at least 8 s, in which it serves almost nothing, but less than a TTL.
/// Control: no raw write succeeds for as long.
#[tokio::test]
async fn a_defragmentation_of_several_seconds_costs_nothing() {
    const MEGABYTES: usize = 48;
    const LEAST: Duration = Duration::from_secs(8);
    let server = EtcdServer::start_with(Provider::Process, ServerOptions::new()).await;
    let mut user = User::new(&server, Duration::from_secs(30)).await;
    let mut raw = raw(&server).await;
    for number in 0..MEGABYTES {
        soon("written", raw.put(format!("blob/{number}"), vec![b'x'; 1 << 20], None)).await.unwrap();
    }
    let mut longest = Duration::ZERO;
    // On a busy machine, the server may run longer between its stops.
    for _ in 0..3 {
        longest = longest.max(defragment(&server, &mut raw).await);
        if longest > LEAST {
            break;
        }
    }
    assert!(longest > LEAST, "the control: no write for {longest:?}");
    user.works(2).await;
}

/// The only etcd is stopped for most of the time, 400 ms at a time, for longer than a TTL. Control: some raw writes
/// take that long.
#[tokio::test]
async fn a_slow_disk_costs_no_lease_or_lock() {
    const SHORT: Duration = Duration::from_secs(8);
    let server = EtcdServer::start_with(Provider::Process, ServerOptions::new()).await;
    let mut user = User::new(&server, SHORT).await;
    let mut raw = raw(&server).await;
    let work = async {
        let begun = Moment::now();
        let (mut slow, mut weight) = (0, 1);
        while begun.elapsed() < SHORT + Duration::from_secs(2) {
            slow += usize::from(write(&mut raw).await > Duration::from_millis(300));
            weight += 1;
            user.works(weight).await;
        }
        slow
    };
    let slow = tokio::select! {
        done = work => done,
        never = slowed(&server, Duration::from_millis(400), Duration::from_millis(60)) => match never {},
    };
    server.resume().await;
    assert!(slow > 0, "the control: no write was slow");
    user.works(1000).await;
}
