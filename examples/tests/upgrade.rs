//! A rolling upgrade of an etcd cluster, 3.5 → 3.6 → 3.7, under registrations, watches, locks and gRPC calls, judged by
//! the history checkers. `cargo xtask matrix --upgrade` builds the three releases and runs this. A record of a failed
//! run is saved, and judged again by `cargo xtask nemesis --replay FILE`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::backend::{MutexExt as _, sleep_until_elapsed};
use enlist::{
    Counter, Deregistered, Directory, Endpoint, Fence, Instance, InstanceId, Lock, LockGuard, LockMode, LockName,
    LockOptions, Moment, RegisterOptions, Registration, Registry, Resolver, ServiceRef,
};
use enlist_etcd::Etcd;
use enlist_examples::greeter::{self, GreeterClient, HelloRequest};
use enlist_grpc::Channel;
use enlist_testkit::{
    BackgroundTask, EtcdCluster, LIMIT, Provider, ServerOptions, eventually,
    history::{History, Record, Version, Versions, WatchRecorder},
    lock_history::{LockViolation, Step},
    soon,
};
use tokio::task::JoinSet;
use tonic::{Request, transport::server::TcpIncoming};

/// Releases in the order of the upgrades: the variable with the path of the `etcd`, and the release line.
const RELEASES: [(&str, &str); 3] =
    [("ENLIST_ETCD_3_5_BIN", "3.5"), ("ENLIST_ETCD_3_6_BIN", "3.6"), ("ENLIST_ETCD_3_7_BIN", "3.7")];

const MEMBERS: usize = 3;

/// Sessions. Each has instances, a view, a recorded watch and contenders.
const SESSIONS: usize = 3;
const INSTANCES_EACH: usize = 4;
const CONTENDERS_EACH: usize = 2;

const SERVERS: usize = 3;
const CALLERS: usize = 4;

/// Lets the members write snapshots often. etcd 3.7.3 ends with "unmarshal should never fail" if its log since the last
/// snapshot has an entry of a member of 3.5: these publish their addresses by requests of the v2 API, which 3.7 cannot
/// read. With the default, 10,000 entries, a cluster that is upgraded twice on one day may still have them.
const SNAPSHOTS: &str = "--snapshot-count=500";

/// TTL of all leases.
const TTL: Duration = Duration::from_secs(5);

const SERVICES: &str = "enlist/services/default/";
const QUEUE: &str = "enlist/locks/default/upgrade/";

fn service() -> ServiceRef {
    ServiceRef::parse("svc").unwrap()
}

/// Returns the path of an `etcd` that the environment names.
fn binary((variable, line): (&str, &str)) -> PathBuf {
    let Some(path) = env::var_os(variable).map(PathBuf::from) else {
        panic!("{variable} has to be the path of an etcd {line}: `cargo xtask matrix --upgrade` builds one and sets it")
    };
    assert!(path.is_file(), "{variable}: there is no file {}", path.display());
    path
}

/// Observations that the checkers do not judge.
#[derive(Clone, Debug, Default)]
struct Tally {
    /// Ids of instances whose deregistration was requested.
    leaving: BTreeSet<String>,
    /// Keys of instances that were deleted without that request.
    lost: Vec<String>,
    /// Changes of the views, and empty ones among them.
    views: usize,
    empty_views: usize,
    /// Writes of registrations that succeeded, those that failed, and the longest duration.
    writes: usize,
    failed_writes: Vec<String>,
    slowest_write: Duration,
    failed_acquisitions: Vec<String>,
    lost_locks: usize,
    /// Number of deregistrations and releases that etcd had not confirmed after 3 s. They continue in the background.
    unconfirmed: usize,
    calls: BTreeMap<String, usize>,
    failed_calls: Vec<String>,
}

/// Record of a run, shared by all tasks.
#[derive(Clone)]
struct Recorder {
    record: Arc<Mutex<Record>>,
    tally: Arc<Mutex<Tally>>,
    begun: Moment,
    stop: Arc<AtomicBool>,
}

impl Recorder {
    fn new() -> Self {
        let record = Record { instances: History::new(SESSIONS), ..Record::default() };
        let (tally, stop) = (Arc::default(), Arc::default());
        Self { record: Arc::new(Mutex::new(record)), tally, begun: Moment::now(), stop }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.locked()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.locked()
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap()
    }

    /// Prints a line with the time since the beginning, which is shown when the test fails.
    fn log(&self, line: &str) {
        println!("{:6.2} s  {line}", self.begun.elapsed().as_secs_f64());
    }

    fn step(&self, contender: usize, step: Step) {
        let now = self.micros();
        self.record().locks.step(now, contender, step);
    }

    /// Records the check of a lock. The time is that before the check.
    fn check_held(&self, contender: usize, guard: &LockGuard) -> bool {
        let (asked, token) = (self.micros(), guard.fencing_token().get());
        let held = guard.is_held();
        let step = if held { Step::Believed { token } } else { Step::Ended { token } };
        self.record().locks.step(asked, contender, step);
        held
    }

    /// Records the result of a write, and returns its value.
    fn written<T>(&self, what: &str, begun: Moment, result: Result<T, enlist::Error>) -> Option<T> {
        let took = begun.elapsed();
        let mut tally = self.tally();
        tally.slowest_write = tally.slowest_write.max(took);
        match result {
            Ok(value) => {
                tally.writes += 1;
                Some(value)
            }
            Err(error) => {
                let at = self.begun.elapsed();
                tally.failed_writes.push(format!("{what} at {at:?} after {took:?}: {error:?}"));
                None
            }
        }
    }

    /// Records a deletion that was read from etcd.
    fn deleted(&self, key: &str) {
        let id = key.rsplit('/').next().unwrap_or(key);
        let mut tally = self.tally();
        if !tally.leaving.contains(id) {
            let at = self.begun.elapsed();
            tally.lost.push(format!("{key} at {at:?}"));
        }
    }

    /// Returns numbers that increase while everything works: grants, writes, changes of views, calls of each server.
    fn progress(&self) -> Vec<usize> {
        let grants = self.record().locks.grants(LockMode::Exclusive);
        let tally = self.tally();
        [grants, tally.writes, tally.views].into_iter().chain(tally.calls.values().copied()).collect()
    }
}

/// Saves the record if the test fails.
struct SavedOnFailure(Recorder);

impl Drop for SavedOnFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("upgrade.json");
            match self.0.record().save(&path) {
                Ok(()) => println!("saved: cargo xtask nemesis --replay {}", path.display()),
                Err(error) => println!("the record could not be saved: {error}"),
            }
            println!("{:#?}", self.0.tally());
        }
    }
}

/// Reads all changes from etcd itself, without gaps. The checkers compare everything else with them.
async fn read_changes(urls: Vec<String>, recorder: Recorder) {
    let mut read = 0;
    loop {
        let options = etcd_client::WatchOptions::new().with_prefix().with_start_revision(read + 1);
        let opened = async {
            let pings =
                etcd_client::ConnectOptions::new().with_keep_alive(Duration::from_secs(6), Duration::from_secs(2));
            let mut raw = etcd_client::Client::connect(&urls, Some(pings)).await?;
            raw.watch("enlist/", Some(options)).await
        };
        let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_secs(5), opened).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while let Ok(Some(message)) = stream.message().await {
            for event in message.events() {
                let (put, pair) = (event.event_type() == etcd_client::EventType::Put, event.kv().unwrap());
                record_change(&recorder, put.then_some(pair), pair);
                read = read.max(pair.mod_revision());
            }
        }
    }
}

fn record_change(recorder: &Recorder, put: Option<&etcd_client::KeyValue>, pair: &etcd_client::KeyValue) {
    let number = |revision: i64| u64::try_from(revision).unwrap();
    let (now, key) = (recorder.micros(), pair.key_str().unwrap());
    if let Some(id) = key.strip_prefix(SERVICES).and_then(|rest| rest.strip_prefix("svc/")) {
        let version =
            put.map(|pair| Version { created: number(pair.create_revision()), modified: number(pair.mod_revision()) });
        recorder.record().instances.changed(now, number(pair.mod_revision()), id, version);
    }
    if put.is_none() && key.starts_with(SERVICES) {
        recorder.deleted(key);
    }
    if let (Some(pair), true) = (put, key.starts_with(QUEUE)) {
        recorder.record().locks.queued(number(pair.create_revision()), pair.lease());
    }
}

/// Records every change of a watch.
async fn watch(etcd: Etcd, watcher: usize, recorder: Recorder) {
    let mut watch = etcd.watch(&service()).await.unwrap();
    let mut folded = WatchRecorder::default();
    while let Ok(change) = watch.next().await {
        folded.record(&mut recorder.record().instances, watcher, &change);
    }
}

/// Counts the changes of a view.
async fn view(etcd: Etcd, recorder: Recorder) {
    let mut changes = Directory::new(Arc::new(etcd)).view(&service()).changes();
    while let Ok(change) = changes.next().await {
        let mut tally = recorder.tally();
        tally.views += 1;
        tally.empty_views += usize::from(change.snapshot.is_empty());
    }
}

fn instance(id: &str) -> Instance {
    Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap()
}

fn options() -> RegisterOptions {
    RegisterOptions::new().ttl(TTL)
}

/// Updates the instances of a session in turn, and registers and deregisters others in between. Returns the
/// registrations.
async fn change(etcd: Etcd, session: usize, registrations: Vec<Registration>, recorder: Recorder) -> Vec<Registration> {
    let mut weight = 0;
    while recorder.goes_on() {
        for registration in &registrations {
            weight += 1;
            let begun = Moment::now();
            let update = registration.update(move |update| {
                update.weight(weight);
            });
            recorder.written("update", begun, update.await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (id, begun) = (format!("s{session}-late-{weight}"), Moment::now());
        let registered = etcd.register(&service(), instance(&id), options()).await;
        let Some(late) = recorder.written("register", begun, registered) else { continue };
        recorder.tally().leaving.insert(id.clone());
        let begun = Moment::now();
        let left = recorder.written("deregister", begun, late.deregister().await);
        match left {
            Some(Deregistered::LeftBehind) => recorder.tally().unconfirmed += 1,
            Some(Deregistered::Removed) => {
                if let Ok(after) = etcd.resolve(&service()).await {
                    recorder.record().instances.deregistered(id, after.revision().get());
                }
            }
            other => recorder.log(&format!("{id}: {other:?}")),
        }
    }
    registrations
}

/// Number behind a fence.
#[derive(Default)]
struct Resource {
    fence: Fence,
    value: u64,
}

/// Acquires the lock again and again, and increases the number under it.
async fn contend(etcd: Etcd, contender: usize, resource: Arc<Mutex<Resource>>, recorder: Recorder) {
    let name = LockName::parse("upgrade").unwrap();
    while recorder.goes_on() {
        recorder.step(contender, Step::Asked);
        let guard = match etcd.acquire(&name, LockOptions::new().ttl(TTL)).await {
            Ok(guard) => guard,
            Err(error) => {
                recorder.step(contender, Step::GaveUp);
                recorder.tally().failed_acquisitions.push(format!("{error:?}"));
                continue;
            }
        };
        let token = guard.fencing_token().get();
        recorder.step(contender, Step::Granted { token, shared: false });
        for _ in 0..3 {
            if !recorder.check_held(contender, &guard) {
                recorder.tally().lost_locks += 1;
                break;
            }
            let read = resource.locked().value;
            tokio::time::sleep(Duration::from_millis(10)).await;
            let mut resource = resource.locked();
            if resource.fence.admit(guard.fencing_token()).is_ok() {
                resource.value = read + 1;
                recorder.step(contender, Step::Wrote { token });
            }
        }
        recorder.check_held(contender, &guard);
        let released = guard.release().await;
        recorder.step(contender, Step::Ended { token });
        if let Err(error) = released {
            // The request was lost in a change of the leader. The next contender waits for its repetition.
            assert!(matches!(error, enlist::Error::Timeout { .. }), "{error:?}");
            recorder.tally().unconfirmed += 1;
        }
    }
}

/// Starts a gRPC server, and registers it.
async fn serve(etcd: &Etcd, greeter: &ServiceRef, id: String) -> (BackgroundTask<()>, Registration) {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = Endpoint::try_from(incoming.local_addr().unwrap()).unwrap();
    let serve = greeter::router(&id, Duration::from_millis(2)).serve_with_incoming(incoming);
    let serving = BackgroundTask::run(async move { serve.await.unwrap() });
    let instance = Instance::new(InstanceId::parse(id).unwrap(), [endpoint]).unwrap();
    (serving, soon("registered", etcd.register(greeter, instance, options())).await.unwrap())
}

/// Makes one call, and records its outcome.
async fn call(channel: &Channel, recorder: &Recorder) {
    let mut request = Request::new(HelloRequest { name: "world".to_owned() });
    request.set_timeout(Duration::from_secs(5));
    let answer = GreeterClient::new(channel.clone()).hello(request).await;
    let mut tally = recorder.tally();
    match answer {
        Ok(reply) => *tally.calls.entry(reply.into_inner().from).or_default() += 1,
        Err(status) => tally.failed_calls.push(format!("at {:?}: {status}", recorder.begun.elapsed())),
    }
}

async fn call_until_stopped(channel: Channel, recorder: Recorder) {
    while recorder.goes_on() {
        call(&channel, &recorder).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until every part of the traffic has made progress.
async fn traffic_goes_on(recorder: &Recorder) {
    let before = recorder.progress();
    eventually("everything goes on", || async {
        let now = recorder.progress();
        let all = now.len() == before.len() && now.iter().zip(&before).all(|(now, before)| now > before);
        if all { Ok(()) } else { Err((before.clone(), now)) }
    })
    .await;
}

/// Upgrades all members, one after the other, and waits until the cluster as a whole has the new version.
async fn upgrade_all(cluster: &mut EtcdCluster, line: &str, binary: &Path, recorder: &Recorder) {
    for number in 0..MEMBERS {
        let (leader, begun) = (cluster.leader().await, Moment::now());
        cluster.upgrade(number, binary).await;
        let (version, _) = cluster.member(number).versions().await.unwrap();
        assert!(version.starts_with(&format!("{line}.")), "member {number} has {version}");
        let role = if leader == number { "the leader" } else { "a follower" };
        recorder.log(&format!("member {number}, {role}, has {version} after {:?}", begun.elapsed()));
        // Longer than the TTL of a lease without renewals.
        sleep_until_elapsed(Moment::now(), TTL + Duration::from_secs(1)).await;
        traffic_goes_on(recorder).await;
    }
    for number in 0..MEMBERS {
        eventually("the cluster has the version of its members", || async {
            let versions = cluster.member(number).versions().await;
            match &versions {
                Some((_, cluster)) if *cluster == format!("{line}.0") => Ok(()),
                _ => Err(versions),
            }
        })
        .await;
    }
    recorder.log(&format!("the cluster has {line}"));
}

/// Waits until the queue is empty, and records the end.
async fn end_locks(raw: &etcd_client::Client, resource: &Mutex<Resource>, recorder: &Recorder) {
    eventually("the queue is empty", || async {
        let queue = etcd_client::GetOptions::new().with_prefix().with_keys_only();
        let entries = raw.clone().get(QUEUE, Some(queue)).await.unwrap();
        if entries.kvs().is_empty() { Ok(()) } else { Err(entries) }
    })
    .await;
    let value = resource.locked().value;
    recorder.record().locks.ended(value, Vec::new());
}

/// Shows that each check can fail: spoils a copy of the record, and causes a real loss, empty views and a failed call.
async fn controls(
    raw: &mut etcd_client::Client,
    channel: &Channel,
    running: Vec<(BackgroundTask<()>, Registration)>,
    registrations: Vec<Registration>,
    recorder: &Recorder,
) {
    let mut spoiled = recorder.record().clone();
    spoiled.instances.shown(0, u64::MAX - 1, Versions::new());
    spoiled.locks.step(recorder.micros(), 0, Step::Wrote { token: 1 });
    spoiled.locks.step(recorder.micros(), 0, Step::Granted { token: u64::MAX - 1, shared: false });
    spoiled.locks.step(recorder.micros() + 1, 1, Step::Granted { token: u64::MAX, shared: false });
    spoiled.locks.step(recorder.micros() + 2, 0, Step::Believed { token: u64::MAX - 1 });
    let violations = spoiled.check();
    for kind in ["Empty", "FenceBroken", "LostUpdates", "Overlap"] {
        assert!(violations.iter().any(|violation| violation.starts_with(kind)), "{kind}: {violations:?}");
    }

    let id = registrations[0].instance().id().to_string();
    let key = raw.get(format!("{SERVICES}svc/{id}"), None).await.unwrap();
    raw.lease_revoke(key.kvs()[0].lease()).await.unwrap();
    eventually("lost instances are counted", || async {
        let lost = recorder.tally().lost.clone();
        if lost.iter().any(|lost| lost.contains(&id)) { Ok(()) } else { Err(lost) }
    })
    .await;

    for registration in registrations {
        soon("deregistered", registration.deregister()).await.unwrap();
    }
    eventually("empty views are counted", || async {
        let empty = recorder.tally().empty_views;
        if empty >= SESSIONS { Ok(()) } else { Err(empty) }
    })
    .await;

    for (serving, registration) in running {
        soon("deregistered", registration.deregister()).await.unwrap();
        serving.abort().await;
    }
    eventually("failed calls are counted", || async {
        call(channel, recorder).await;
        let tally = recorder.tally();
        if tally.failed_calls.is_empty() { Err(tally.calls.clone()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs three releases of etcd: `cargo xtask matrix --upgrade` builds them and runs this"]
#[expect(clippy::too_many_lines, reason = "one run from its beginning to its end, as a reader has to follow it")]
async fn a_rolling_upgrade_loses_nothing() {
    // All of them first, so that a missing one is reported at once.
    let [first, upgrades @ ..] = RELEASES.map(|release| (release.1, binary(release)));
    let options_of_first = ServerOptions::new().binary(first.1).arguments([SNAPSHOTS]);
    let mut cluster = EtcdCluster::start_with(Provider::Process, options_of_first).await;
    let recorder = Recorder::new();
    let _saved = SavedOnFailure(recorder.clone());
    let _changes = BackgroundTask::run(read_changes(cluster.urls(), recorder.clone()));
    let client = async |number: usize| {
        // Each session prefers a different member.
        let mut urls = cluster.urls();
        urls.rotate_left(number % MEMBERS);
        Etcd::builder(urls).connect().await.unwrap()
    };

    let (mut sessions, mut registered) = (Vec::new(), Vec::new());
    for session in 0..SESSIONS {
        let (etcd, mut own) = (client(session).await, Vec::new());
        for number in 0..INSTANCES_EACH {
            let (service, instance) = (service(), instance(&format!("s{session}-{number}")));
            own.push(soon("registered", etcd.register(&service, instance, options())).await.unwrap());
        }
        sessions.push(etcd);
        registered.push(own);
    }
    let greeter = ServiceRef::parse("greeter").unwrap();
    let mut running = Vec::new();
    for number in 0..SERVERS {
        running.push(serve(&client(number).await, &greeter, format!("greeter-{number}")).await);
    }
    let caller = client(1).await;
    let channel = Channel::new(&Directory::new(Arc::new(caller.clone())).view(&greeter)).unwrap();
    channel.ready(LIMIT).await.unwrap();

    let resource = Arc::new(Mutex::new(Resource::default()));
    let (mut observing, mut changing, mut traffic) = (Vec::new(), JoinSet::new(), JoinSet::new());
    for (session, (etcd, own)) in sessions.iter().zip(registered).enumerate() {
        observing.push(BackgroundTask::run(watch(etcd.clone(), session, recorder.clone())));
        observing.push(BackgroundTask::run(view(etcd.clone(), recorder.clone())));
        changing.spawn(change(etcd.clone(), session, own, recorder.clone()));
        for number in 0..CONTENDERS_EACH {
            let contender = session * CONTENDERS_EACH + number;
            traffic.spawn(contend(etcd.clone(), contender, Arc::clone(&resource), recorder.clone()));
        }
    }
    for _ in 0..CALLERS {
        traffic.spawn(call_until_stopped(channel.clone(), recorder.clone()));
    }
    eventually("every server has answered", || async {
        let answered = recorder.tally().calls.len();
        if answered == SERVERS { Ok(()) } else { Err(answered) }
    })
    .await;
    traffic_goes_on(&recorder).await;

    for (line, binary) in &upgrades {
        upgrade_all(&mut cluster, line, binary, &recorder).await;
    }
    let took = recorder.begun.elapsed();

    recorder.stop.store(true, Ordering::SeqCst);
    while let Some(ended) = soon("the traffic ends", traffic.join_next()).await {
        ended.unwrap();
    }
    let mut registrations = Vec::new();
    while let Some(own) = soon("the changes end", changing.join_next()).await {
        registrations.extend(own.unwrap());
    }
    let weights = |instances: &mut dyn Iterator<Item = (String, u32)>| instances.collect::<BTreeMap<_, _>>();
    let weight_of = |instance: &Instance| (instance.id().to_string(), instance.weight());
    let wanted = weights(&mut registrations.iter().map(|registration| weight_of(&registration.instance())));
    eventually("all instances are there with their last weights, and no others", || async {
        let found = sessions[0].resolve(&service()).await.unwrap();
        let found = weights(&mut found.entries().map(|entry| weight_of(entry.instance())));
        if found == wanted { Ok(()) } else { Err((found, wanted.clone())) }
    })
    .await;
    let mut raw = etcd_client::Client::connect(cluster.urls(), None).await.unwrap();
    end_locks(&raw, &resource, &recorder).await;
    // A last change, after which all must agree.
    let last = registrations[0].update(|update| {
        update.weight(1_000_000);
    });
    soon("updated", last).await.unwrap();
    eventually("nothing is violated", || async {
        let violations = recorder.record().check();
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    })
    .await;

    let tally = recorder.tally().clone();
    let (grants, writes, overlaps) = {
        let locks = &recorder.record().locks;
        let overlaps = locks.check().into_iter().filter(|one| matches!(one, LockViolation::Overlap { .. })).count();
        (locks.grants(LockMode::Exclusive), locks.writes(), overlaps)
    };
    let clients = sessions.iter().chain([&caller]);
    let lease_losses: u64 = clients.map(|etcd| etcd.counters().get(Counter::LeaseLosses)).sum();
    println!(
        "upgrades={} in {:.0} s; instances={} lost={} lease_losses={lease_losses}; views={} empty={}; registration \
         writes={} failed={} slowest={:.1?}; grants={grants} failed={} overlaps={overlaps} lost_locks={} guarded \
         writes={writes}; unconfirmed removals={}; calls={} failed={}",
        upgrades.len() * MEMBERS,
        took.as_secs_f64(),
        registrations.len() + running.len(),
        tally.lost.len(),
        tally.views,
        tally.empty_views,
        tally.writes,
        tally.failed_writes.len(),
        tally.slowest_write,
        tally.failed_acquisitions.len(),
        tally.lost_locks,
        tally.unconfirmed,
        tally.calls.values().sum::<usize>(),
        tally.failed_calls.len(),
    );
    assert_eq!(tally.lost, Vec::<String>::new(), "no instance is lost");
    assert_eq!(lease_losses, 0);
    assert_eq!(tally.empty_views, 0, "no view is empty");
    assert_eq!((overlaps, tally.lost_locks), (0, 0), "one holder at a time, which keeps its lock");
    assert_eq!(tally.failed_calls, Vec::<String>::new(), "every call is answered");
    assert_eq!(tally.failed_writes, Vec::<String>::new(), "every write of a registration succeeds");
    assert_eq!(tally.failed_acquisitions, Vec::<String>::new(), "every contender gets its turn");
    controls(&mut raw, &channel, running, registrations, &recorder).await;
}
