//! The pool, on the memory backend and a paused clock.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use enlist::{
    Change, Directory, DirectoryOptions, Ejection, Endpoint, Entry, Epoch, Error, Filter, Freshness, Instance,
    InstanceId, Moment, Namespace, PickError, PickPolicy, Pool, PoolError, PoolOptions, Proof, RegisterOptions,
    Registration, Registry, Resolver, Retry, Revision, ServiceName, ServiceRef, Snapshot, Watcher,
    backend::{ProofWriter, SnapshotBuilder},
};
use enlist_memory::MemoryStore;
use support::{instance, service};

/// A client that counts its live instances.
struct Client {
    id: String,
    alive: Arc<AtomicUsize>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Case {
    store: MemoryStore,
    pool: Pool<Client>,
    alive: Arc<AtomicUsize>,
    registrations: Vec<Registration>,
}

impl Case {
    async fn new(ids: &[&str]) -> Self {
        Self::of(ids.iter().map(|id| instance(id)).collect(), PoolOptions::new()).await
    }

    async fn of(instances: Vec<Instance>, options: PoolOptions) -> Self {
        let pool_options = options;
        let store = MemoryStore::new();
        let options = DirectoryOptions::new().hold(Duration::ZERO);
        let view = Directory::with_options(Arc::new(store.client()), options).view(&service());
        let alive = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&alive);
        let pool = Pool::with_options(view, pool_options, move |entry| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(Client { id: entry.instance().id().to_string(), alive: Arc::clone(&counted) })
        });
        let mut case = Self { store, pool: pool.unwrap(), alive, registrations: Vec::new() };
        let count = instances.len();
        for instance in instances {
            case.register_as(instance).await;
        }
        case.until_listed(count).await;
        case
    }

    async fn until_listed(&self, count: usize) {
        let mut changes = self.pool.view().changes();
        while changes.next().await.unwrap().snapshot.len() != count {}
    }

    /// Counts the calls of each instance among a hundred, none of which fails.
    async fn shares(&self, policy: PickPolicy) -> BTreeMap<String, u32> {
        let (never, mut shares) = (Retry::<&str>::never(), BTreeMap::new());
        for _ in 0..100 {
            let id = self.pool.call(policy, &never, |client| async move { Ok(client.id.clone()) });
            *shares.entry(id.await.unwrap()).or_default() += 1;
        }
        shares
    }

    /// Returns the instance that receives a call with this key; the call does not fail.
    async fn of_key(&self, key: u32) -> String {
        let (never, key) = (Retry::<&str>::never(), key.to_le_bytes());
        let id = self.pool.call_for(&key, &never, |client| async move { Ok(client.id.clone()) });
        id.await.unwrap()
    }

    /// Makes `calls` round-robin calls, which fail at `bad` instances. Returns the number of calls of each instance.
    async fn fail(&self, bad: &[&str], calls: usize) -> BTreeMap<String, u32> {
        let called = Mutex::new(BTreeMap::new());
        let retry = Retry::new(|_: &&str| true).attempts(1);
        for _ in 0..calls {
            let call = self.pool.call(PickPolicy::RoundRobin, &retry, |client| {
                *called.lock().unwrap().entry(client.id.clone()).or_default() += 1;
                async move { if bad.contains(&&*client.id) { Err("broken") } else { Ok(()) } }
            });
            let _ = call.await;
        }
        called.into_inner().unwrap()
    }

    async fn register(&mut self, id: &str) {
        self.register_as(instance(id)).await;
    }

    async fn register_as(&mut self, instance: Instance) {
        let registered = self.store.client().register(&service(), instance, RegisterOptions::new()).await;
        self.registrations.push(registered.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_tries_each_instance_once() {
    let case = Case::new(&["a", "b", "c"]).await;
    let tried = Mutex::new(Vec::new());
    let retry = Retry::new(|_: &&str| true).attempts(3);
    let failed = case.pool.call(PickPolicy::Random, &retry, |client| {
        tried.lock().unwrap().push(client.id.clone());
        async { Err::<(), _>("broken") }
    });
    assert!(matches!(failed.await, Err(PoolError::Failed { attempts: 3, cause: "broken", .. })));
    let mut tried = tried.into_inner().unwrap();
    tried.sort();
    assert_eq!(tried, ["a", "b", "c"]);
    assert_eq!(case.alive.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_repeated_is_not() {
    let case = Case::new(&["a", "b"]).await;
    let calls = AtomicUsize::new(0);
    let retry = Retry::new(|error: &&str| *error == "never sent").attempts(5);
    let failed = case.pool.call(PickPolicy::RoundRobin, &retry, |_| {
        calls.fetch_add(1, Ordering::SeqCst);
        async { Err::<(), _>("maybe done") }
    });
    assert!(matches!(failed.await, Err(PoolError::Failed { attempts: 1, .. })));
    assert_eq!(calls.into_inner(), 1);
}

#[tokio::test(start_paused = true)]
async fn only_what_passes_the_filter_is_called() {
    let versions = ["1", "2", "2"];
    let instances = versions.iter().zip(["a", "b", "c"]).map(|(version, id)| instance(id).with_version(version));
    let case = Case::of(instances.collect(), PoolOptions::new().filter(Filter::new().version("2"))).await;
    for policy in [PickPolicy::Random, PickPolicy::RoundRobin, PickPolicy::Weighted] {
        let shares = case.shares(policy).await;
        assert_eq!(shares.keys().collect::<Vec<_>>(), ["b", "c"], "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_stay_in_a_zone_that_has_instances() {
    let zones = [("a", "here"), ("b", "here"), ("c", "there")];
    let instances = zones.iter().map(|(id, zone)| instance(id).with_zone(zone)).collect();
    let mut case = Case::of(instances, PoolOptions::new().prefer_zone("here")).await;
    assert_eq!(case.shares(PickPolicy::Weighted).await.keys().collect::<Vec<_>>(), ["a", "b"]);
    // One of two is ejected: 30 of 100 calls go to the other zone.
    let failures = case.fail(&["a"], 100).await;
    assert_eq!(failures["a"], 5, "{failures:?}");
    let shares = case.shares(PickPolicy::Weighted).await;
    assert!(!shares.contains_key("a") && (5..60).contains(&shares["c"]), "{shares:?}");
    for registration in case.registrations.drain(..2) {
        registration.deregister().await.unwrap();
    }
    case.until_listed(1).await;
    assert_eq!(case.shares(PickPolicy::Weighted).await["c"], 100);
}

#[tokio::test(start_paused = true)]
async fn a_key_stays_with_its_instance() {
    let mut case = Case::new(&["a", "b", "c"]).await;
    let mut before = Vec::new();
    for key in 0..100 {
        before.push(case.of_key(key).await);
        assert_eq!(case.of_key(key).await, before[before.len() - 1]);
    }
    // Meanwhile a retryable call goes to another instance.
    let retry = Retry::new(|_: &String| true).attempts(2);
    let tried = Mutex::new(Vec::new());
    let key = 7_u32.to_le_bytes();
    let failed = case.pool.call_for(&key, &retry, |client| {
        tried.lock().unwrap().push(client.id.clone());
        async { Err::<(), _>("broken".to_owned()) }
    });
    assert!(matches!(failed.await, Err(PoolError::Failed { attempts: 2, .. })));
    let tried = tried.into_inner().unwrap();
    assert!(tried[0] == before[7] && tried[1] != before[7], "{tried:?}");

    case.registrations.remove(0).deregister().await.unwrap();
    case.until_listed(2).await;
    for (key, before) in (0..).zip(before) {
        let after = case.of_key(key).await;
        assert!(after == before || before == "a", "{before} {after}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_instance_is_ejected_for_a_while() {
    let case = Case::new(&["a", "b", "c"]).await;
    let first = case.fail(&["a"], 30).await;
    assert_eq!(first["a"], 5, "{first:?}");
    assert_eq!(case.shares(PickPolicy::Random).await.get("a"), None);
    assert_eq!(case.pool.len(), 3, "its client is kept");
    // The ejection lasts between 5 and 10 s.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(case.shares(PickPolicy::Random).await.get("a"), None);
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(case.shares(PickPolicy::Random).await.contains_key("a"));
    // A success in between ends a series of failures.
    let retry = Retry::new(|_: &&str| true).attempts(1);
    for call in 0..100 {
        let failed = case.pool.call(PickPolicy::RoundRobin, &retry, |client| async move {
            if client.id == "a" && call % 10 != 0 { Err("broken") } else { Ok(()) }
        });
        let _ = failed.await;
    }
    assert!(case.shares(PickPolicy::Random).await.contains_key("b"));
}

#[tokio::test(start_paused = true)]
async fn ejection_never_removes_all_failing_instances() {
    let case = Case::new(&["a", "b", "c"]).await;
    let called = case.fail(&["a", "b", "c"], 90).await;
    assert_eq!(called.values().filter(|calls| **calls == 5).count(), 1, "{called:?}");
    assert_eq!(called.values().sum::<u32>(), 90);
    let alone = Case::new(&["a"]).await;
    assert_eq!(alone.fail(&["a"], 90).await["a"], 90);
    let all = PoolOptions::new().ejection(Some(Ejection::new().share(1.0)));
    let all = Case::of(vec![instance("a"), instance("b")], all).await;
    assert_eq!(all.fail(&["a", "b"], 90).await.values().sum::<u32>(), 90, "better than nobody");
}

#[tokio::test(start_paused = true)]
async fn deadlines_eject_unlike_application_errors() {
    let case = Case::new(&["a", "b"]).await;
    // The call is not retried, so it does not count against the instance.
    let never = Retry::never();
    for _ in 0..100 {
        let refused = case.pool.call(PickPolicy::RoundRobin, &never, |_| async { Err::<(), _>("not found") });
        assert!(refused.await.is_err());
    }
    assert_eq!(case.shares(PickPolicy::RoundRobin).await.len(), 2);
    // The call is retried, but does not count against the instance.
    let busy = || Retry::new(|_: &&str| true).attempts(1);
    let no_fault = busy().against(|_| false);
    for _ in 0..100 {
        let refused = case.pool.call(PickPolicy::RoundRobin, &no_fault, |client| async move {
            if client.id == "a" { Err("busy") } else { Ok(()) }
        });
        let _ = refused.await;
    }
    assert_eq!(case.shares(PickPolicy::RoundRobin).await.len(), 2);
    let short = busy().deadline(Duration::from_millis(10));
    for _ in 0..12 {
        let stuck = case.pool.call(PickPolicy::RoundRobin, &short, |client| async move {
            if client.id == "a" { std::future::pending().await } else { Ok(()) }
        });
        let _ = stuck.await;
    }
    assert_eq!(case.shares(PickPolicy::RoundRobin).await.keys().collect::<Vec<_>>(), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_was_restarted_is_not_ejected() {
    let mut case = Case::new(&["a", "b"]).await;
    case.fail(&["a"], 30).await;
    assert_eq!(case.shares(PickPolicy::Random).await.get("a"), None);
    case.registrations.remove(0).deregister().await.unwrap();
    case.until_listed(1).await;
    case.register("a").await;
    case.until_listed(2).await;
    assert!(case.shares(PickPolicy::Random).await.contains_key("a"));
    // Its ejection no longer counts, so the other instance may be ejected.
    assert_eq!(case.fail(&["b"], 30).await["b"], 5);
}

#[tokio::test(start_paused = true)]
async fn a_successor_by_owner_is_not_ejected() {
    let case = Case::new(&["b"]).await;
    let owned = async || {
        let options = RegisterOptions::new().owner("me");
        case.store.client().register(&service(), instance("a"), options).await.unwrap()
    };
    let _first = owned().await;
    case.until_listed(2).await;
    case.fail(&["a"], 30).await;
    assert_eq!(case.shares(PickPolicy::Random).await.get("a"), None);
    let mut changes = case.pool.view().changes();
    let before = changes.next().await.unwrap().snapshot;
    let _second = owned().await;
    while changes.next().await.unwrap().snapshot.diff(&before).is_empty() {}
    assert!(case.shares(PickPolicy::Random).await.contains_key("a"));
}

#[tokio::test(start_paused = true)]
async fn a_client_ends_after_its_last_call() {
    let mut case = Case::new(&["a"]).await;
    let never = Retry::<&str>::never();
    let begun = case.pool.call(PickPolicy::Weighted, &never, |client| async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(client.id.clone())
    });
    let ended = async {
        case.registrations.remove(0).deregister().await.unwrap();
        while !case.pool.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(case.alive.load(Ordering::SeqCst), 1, "the call is under way");
    };
    let (answer, ()) = tokio::join!(begun, ended);
    assert_eq!(answer.unwrap(), "a");
    assert_eq!(case.alive.load(Ordering::SeqCst), 0);
    let nobody = case.pool.call(PickPolicy::Weighted, &never, |_| async { Ok(()) }).await;
    assert!(matches!(nobody, Err(PoolError::PickError { cause: PickError::Empty { listed: 0, .. }, .. })));
}

#[tokio::test(start_paused = true)]
async fn a_moved_instance_gets_a_new_client() {
    let case = Case::new(&["a"]).await;
    let never = Retry::<&str>::never();
    let begun = case.pool.call(PickPolicy::Weighted, &never, |client| async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(client.id.clone())
    });
    let moved = async {
        let update =
            case.registrations[0].update(|update| _ = update.endpoints([Endpoint::parse("10.0.0.2:80").unwrap()]));
        update.await.unwrap();
        while case.alive.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            case.pool.call(PickPolicy::Weighted, &never, |_| async { Ok(()) }).await.unwrap();
        }
    };
    let (answer, ()) = tokio::join!(begun, moved);
    assert_eq!(answer.unwrap(), "a");
    assert_eq!(case.alive.load(Ordering::SeqCst), 1, "the client of the new endpoint");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_covers_all_attempts_of_a_pool() {
    let case = Case::new(&["a"]).await;
    let begun = tokio::time::Instant::now();
    let retry = Retry::new(|_: &&str| true).attempts(1000).deadline(Duration::from_secs(5));
    let failed = case.pool.call(PickPolicy::Random, &retry, |_| async { Err::<(), _>("broken") }).await;
    assert!(matches!(failed, Err(PoolError::Failed { attempts, .. }) if attempts < 20), "{failed:?}");
    assert!(begun.elapsed() <= Duration::from_secs(5));
    let stuck = case.pool.call(PickPolicy::Random, &retry, |_| std::future::pending::<Result<(), &str>>()).await;
    assert!(matches!(stuck, Err(PoolError::Deadline { attempts: 1, .. })));
}

/// Retries every failure, waits for an instance, and has a deadline of 3 s.
fn waiting() -> Retry<&'static str> {
    Retry::new(|_: &&str| true).deadline(Duration::from_secs(3)).wait_for_ready()
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_an_instance_if_asked() {
    let mut case = Case::new(&[]).await;
    let retry = Retry::new(|_: &&str| true).deadline(Duration::from_secs(3));
    let at_once = case.pool.call(PickPolicy::RoundRobin, &retry, |_| async { Ok(()) }).await;
    assert!(matches!(at_once, Err(PoolError::PickError { cause: PickError::Empty { listed: 0, .. }, .. })));
    let begun = tokio::time::Instant::now();
    let registered = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let registered = case.store.client().register(&service(), instance("a"), RegisterOptions::new()).await;
        registered.unwrap()
    };
    let retry = waiting().attempts(1);
    let call = case.pool.call(PickPolicy::RoundRobin, &retry, |client| async move { Ok(client.id.clone()) });
    let (answer, registered) = tokio::join!(call, registered);
    assert_eq!(answer.unwrap(), "a", "the wait is no attempt");
    let waited = begun.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(3)).contains(&waited), "{waited:?}");
    case.registrations.push(registered);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_ends_at_its_deadline() {
    let case = Case::new(&[]).await;
    let begun = tokio::time::Instant::now();
    let nobody = case.pool.call(PickPolicy::Random, &waiting(), |_| async { Ok(()) }).await.unwrap_err();
    assert!(matches!(nobody, PoolError::PickError { cause: PickError::Empty { .. }, .. }), "{nobody:?}");
    let waited = begun.elapsed();
    assert!((Duration::from_secs(3)..Duration::from_millis(3100)).contains(&waited), "{waited:?}");
    // The drained instance is the only one; its failure is listed.
    let mut case = Case::new(&["a"]).await;
    let (retry, registration) = (waiting(), Mutex::new(case.registrations.pop()));
    let nobody = case.pool.call(PickPolicy::Random, &retry, |_| {
        let leaving = registration.lock().unwrap().take();
        async {
            leaving.unwrap().deregister().await.unwrap();
            case.until_listed(0).await;
            Err::<(), _>("leaving")
        }
    });
    let nobody = nobody.await.unwrap_err();
    assert!(matches!(nobody, PoolError::PickError { cause: PickError::Empty { .. }, .. }), "{nobody:?}");
    assert_eq!(
        nobody.previous().iter().map(|one| (one.id.as_str(), one.cause)).collect::<Vec<_>>(),
        [("a", "leaving")]
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_past_its_deadline_makes_no_attempt() {
    let mut case = Case::new(&[]).await;
    let (retry, made) = (waiting(), AtomicUsize::new(0));
    let mut call = Box::pin(case.pool.call(PickPolicy::Random, &retry, |_| {
        made.fetch_add(1, Ordering::Relaxed);
        async { Ok(()) }
    }));
    assert!(futures::poll!(&mut call).is_pending());
    let registered = case.store.client().register(&service(), instance("a"), RegisterOptions::new()).await;
    case.until_listed(1).await;
    tokio::time::advance(Duration::from_secs(4)).await;
    let nobody = call.await.unwrap_err();
    assert!(matches!(nobody, PoolError::PickError { cause: PickError::Empty { .. }, .. }), "{nobody:?}");
    assert_eq!(made.load(Ordering::Relaxed), 0);
    case.registrations.push(registered.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_call_without_time_makes_no_attempt() {
    let case = Case::new(&["a"]).await;
    let (retry, made) = (waiting().deadline(Duration::ZERO), AtomicUsize::new(0));
    let late = case.pool.call(PickPolicy::Random, &retry, |_| {
        made.fetch_add(1, Ordering::Relaxed);
        async { Ok(()) }
    });
    let late = late.await.unwrap_err();
    assert!(matches!(late, PoolError::Deadline { attempts: 0, .. }), "{late:?}");
    assert_eq!(made.load(Ordering::Relaxed), 0);
}

/// An attempt with little time left does not count against the instance.
#[tokio::test(start_paused = true)]
async fn a_deadline_while_waiting_counts_against_no_instance() {
    let options = PoolOptions::new().ejection(Some(Ejection::new().failures(1).share(1.0)));
    let mut case = Case::of(Vec::new(), options).await;
    let retry = waiting();
    let mut call = Box::pin(case.pool.call(PickPolicy::Random, &retry, |_| std::future::pending::<Result<(), &str>>()));
    assert!(futures::poll!(&mut call).is_pending());
    tokio::time::advance(Duration::from_millis(2900)).await;
    let client = case.store.client();
    let mut registered = Vec::new();
    for id in ["a", "b"] {
        registered.push(client.register(&service(), instance(id), RegisterOptions::new()).await.unwrap());
    }
    case.until_listed(2).await;
    let stuck = call.await.unwrap_err();
    assert!(matches!(stuck, PoolError::Deadline { attempts: 1, .. }), "{stuck:?}");
    let shares = case.shares(PickPolicy::RoundRobin).await;
    assert_eq!(shares, BTreeMap::from([("a".to_owned(), 50), ("b".to_owned(), 50)]));
    case.registrations.append(&mut registered);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_can_be_dropped() {
    let mut case = Case::new(&[]).await;
    let retry = waiting();
    let call = || case.pool.call(PickPolicy::Random, &retry, |client| async move { Ok(client.id.clone()) });
    assert!(tokio::time::timeout(Duration::from_secs(1), call()).await.is_err());
    let registered = case.store.client().register(&service(), instance("a"), RegisterOptions::new()).await;
    assert_eq!(call().await.unwrap(), "a");
    case.registrations.push(registered.unwrap());
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_fresh_views_of_open_directories() {
    let store = MemoryStore::new();
    let _registered = store.client().register(&service(), instance("a"), RegisterOptions::new()).await.unwrap();
    let client = store.client();
    client.cut();
    let options = DirectoryOptions::new().hold(Duration::ZERO).max_age(Duration::from_secs(15));
    let directory = Directory::with_options(Arc::new(client.clone()), options);
    let pool = Pool::new(directory.view(&service()), |entry| Ok(entry.instance().id().clone())).unwrap();
    let retry = waiting().deadline(Duration::from_secs(60));
    let call = || pool.call(PickPolicy::Random, &retry, |id| async move { Ok(id.to_string()) });
    let healed = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        client.heal();
    };
    assert_eq!(tokio::join!(call(), healed).0.unwrap(), "a");

    client.cut();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let at_once = retry_at_once(&pool).await.unwrap_err();
    assert!(matches!(at_once, PoolError::PickError { cause: PickError::TooOld { .. }, .. }), "{at_once:?}");
    let healed = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        client.heal();
    };
    assert_eq!(tokio::join!(call(), healed).0.unwrap(), "a");

    client.cut();
    tokio::time::sleep(Duration::from_secs(20)).await;
    directory.close(Duration::from_secs(5)).await.unwrap();
    let begun = tokio::time::Instant::now();
    let closed = call().await.unwrap_err();
    assert!(matches!(closed, PoolError::PickError { cause: PickError::TooOld { .. }, .. }), "{closed:?}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// Resolver that finds one instance and reports no further changes.
#[derive(Debug)]
struct Quiet {
    proof: Proof,
}

#[async_trait]
impl Resolver for Quiet {
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
        let mut snapshot = SnapshotBuilder::new(service.clone(), Revision::new(1), Epoch::default());
        snapshot.insert(Arc::new(Entry::new(instance("a"), Revision::new(1), Revision::new(1))));
        Ok(snapshot.build())
    }

    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        let snapshot = self.resolve(service).await?;
        let freshness = Freshness::Live { proof: self.proof.clone() };
        Ok(Box::new(Once(Some(Change { events: snapshot.as_added(), snapshot, freshness }))))
    }

    async fn services(&self, _: &Namespace) -> Result<Vec<ServiceName>, Error> {
        Ok(Vec::new())
    }
}

#[derive(Debug)]
struct Once(Option<Change>);

#[async_trait]
impl Watcher for Once {
    async fn next(&mut self) -> Result<Change, Error> {
        match self.0.take() {
            Some(change) => Ok(change),
            None => std::future::pending().await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_notices_a_proof_without_change() {
    tokio::time::sleep(Duration::from_secs(60)).await;
    let writer = ProofWriter::new(Moment::ago(Duration::from_secs(60)));
    let options = DirectoryOptions::new().max_age(Duration::from_secs(15));
    let directory = Directory::with_options(Arc::new(Quiet { proof: writer.proof() }), options);
    let pool = Pool::new(directory.view(&service()), |entry| Ok(entry.instance().id().clone())).unwrap();
    let begun = tokio::time::Instant::now();
    let (retry, proven) = (waiting(), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        writer.renew(Moment::now());
    });
    let call = pool.call(PickPolicy::Random, &retry, |id| async move { Ok(id.to_string()) });
    assert_eq!(tokio::join!(call, proven).0.unwrap(), "a");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

/// Makes a call that neither waits nor fails.
async fn retry_at_once(pool: &Pool<InstanceId>) -> Result<(), PoolError<&'static str>> {
    pool.call(PickPolicy::Random, &Retry::never(), |_| async { Ok(()) }).await
}

#[tokio::test(start_paused = true)]
async fn the_error_lists_all_attempts_in_order() {
    let case = Case::new(&["a", "b", "c"]).await;
    let tried = Mutex::new(Vec::new());
    let retry = Retry::new(|_: &String| true).attempts(3);
    let failed = case.pool.call(PickPolicy::Random, &retry, |client| {
        tried.lock().unwrap().push(client.id.clone());
        async move { Err::<(), _>(format!("{} is broken", client.id)) }
    });
    let failed = failed.await.unwrap_err();
    let previous: Vec<_> = failed.previous().iter().map(|one| (one.id.to_string(), one.cause.clone())).collect();
    let PoolError::Failed { attempts: 3, id, cause, .. } = failed else { panic!("{failed:?}") };
    let all: Vec<_> = previous.into_iter().chain([(id.to_string(), cause)]).collect();
    let tried = tried.into_inner().unwrap();
    assert_eq!(all, tried.into_iter().map(|id| (id.clone(), format!("{id} is broken"))).collect::<Vec<_>>());

    // The deadline passes during the second attempt.
    let calls = AtomicUsize::new(0);
    let retry = Retry::new(|_: &&str| true).deadline(Duration::from_secs(1));
    let late = case.pool.call(PickPolicy::Random, &retry, |_| {
        let first = calls.fetch_add(1, Ordering::SeqCst) == 0;
        async move { if first { Err::<(), _>("broken") } else { std::future::pending().await } }
    });
    let late = late.await.unwrap_err();
    let PoolError::Deadline { attempts: 2, id, previous } = late else { panic!("{late:?}") };
    assert!(previous.len() == 1 && previous[0].cause == "broken" && previous[0].id != id, "{previous:?}");
}

/// Runs `test` on a separate thread and runtime, so that a deadlock fails the test instead of blocking it.
fn in_time<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let (done, outcome) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(test());
        done.send(())
    });
    outcome.recv_timeout(Duration::from_secs(10)).expect("in time");
}

/// A client that accesses its pool when it is created and when it is dropped.
struct Nosy(Weak<OnceLock<Pool<Nosy>>>);

impl Nosy {
    fn new(pool: &Weak<OnceLock<Pool<Self>>>) -> Self {
        let nosy = Self(Weak::clone(pool));
        nosy.look();
        nosy
    }

    fn look(&self) {
        if let Some(pool) = self.0.upgrade()
            && let Some(pool) = pool.get()
        {
            let _ = pool.len();
        }
    }
}

impl Drop for Nosy {
    fn drop(&mut self) {
        self.look();
    }
}

#[test]
fn clients_may_use_their_pool() {
    in_time(|| async {
        let store = MemoryStore::new();
        let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]);
        let registered = store.client().register(&service(), instance.unwrap(), RegisterOptions::new()).await.unwrap();
        let options = DirectoryOptions::new().hold(Duration::ZERO);
        let view = Directory::with_options(Arc::new(store.client()), options).view(&service());
        view.ready().await.unwrap();
        let pool = Arc::<OnceLock<_>>::default();
        let weak = Arc::downgrade(&pool);
        assert!(pool.set(Pool::new(view, move |_| Ok(Nosy::new(&weak))).unwrap()).is_ok());
        let pool = pool.get().unwrap();
        pool.call(PickPolicy::Random, &Retry::<&str>::never(), |_| async { Ok(()) }).await.unwrap();
        assert_eq!(pool.len(), 1);
        registered.deregister().await.unwrap();
        while !pool.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}
