//! Random faults against registrations, watchers, lockers and users of a semaphore, judged by the history checkers.
//! `ENLIST_SEED` repeats the choices of a run; `ENLIST_SOAK_SECS` extends it (`cargo xtask nemesis`, with `--members 3`
//! on a cluster). The record of a failed run is saved; `cargo xtask nemesis --replay FILE` judges it again.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use enlist::{
    Change, Counter, Fence, Instance, Lock, LockGuard, LockMode, LockName, LockOptions, Moment, RegisterOptions,
    Registration, Registry, Resolver, Semaphore, SemaphoreOptions, TaskOwner, backend::MutexExt as _,
};
use enlist_etcd::Etcd;
use enlist_testkit::{
    Direction, EtcdCluster, EtcdServer, Mode, Proxy, eventually,
    history::{History, Record, Version, Versions, WatchRecorder},
    lock_history::Step,
    semaphore_history::{PermitStep, StoredChange},
    soon,
};
use etcd_client::EventType;
use futures::FutureExt;
use support::{PREFIX, in_background, instance, server};
use tokio::task::JoinSet;

const WATCHERS: usize = 4;
const OWNERS: usize = 5;
const EACH: usize = 4;
const LOCKERS: usize = 10;

/// Prefix of the lockers' queue entries.
const QUEUE: &str = "enlist/locks/default/nemesis/";

/// Processes with contenders of the semaphore, contenders in each, and their permits.
const PERMIT_PROCESSES: usize = 10;
const PERMIT_CONTENDERS: usize = 20;
const PERMITS: u32 = 5;

/// Prefix of the queue entries of the semaphore, and the key of its number of permits.
const PERMIT_QUEUE: &str = "enlist/semaphores/default/nemesis/";
const PERMIT_NUMBER: &str = "enlist/semaphore-permits/default/nemesis";

/// Time after a pause in which ages are not judged, on releases that answer stale reads then.
const SETTLING: Duration = Duration::from_secs(5);

/// Time after the thaw of a member of a cluster in which it may revoke leases that are renewed elsewhere: etcd looks
/// for expired leases twice a second, and gives a revocation 7 s. The rest is a reserve.
const REVOKED_AFTER_THAW: Duration = Duration::from_secs(10);

/// Time within which all threads of a process have stopped. On a busy machine the first one to notice SIGSTOP waits for
/// a processor, and the others still answer requests.
const STOPPING: Duration = Duration::from_millis(500);

/// Minimum time without an answer in a freeze that counts as silent. The shortest freeze takes 200 ms.
const SILENCE: Duration = Duration::from_millis(100);

/// Prefix of the reference watch, which records the store's actual history.
const ROOT: &str = "enlist/";

fn length() -> Duration {
    let given = std::env::var("ENLIST_SOAK_SECS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(given.unwrap_or(60))
}

fn number(revision: i64) -> u64 {
    u64::try_from(revision).unwrap()
}

/// Record of a run, shared by all participants.
#[derive(Clone)]
struct Recorder {
    record: Arc<Mutex<Record>>,
    begun: Moment,
    seed: u64,
    /// Time in microseconds until which reads may be stale.
    stale_until: Arc<AtomicU64>,
    /// Number of ages that were reported before that time, and are not judged.
    unjudged_ages: Arc<AtomicU64>,
    /// Number of freezes in which a connected client got no answer.
    silent_freezes: Arc<AtomicU64>,
    /// Longest of these times without an answer, in seconds.
    longest_silence: Arc<AtomicU64>,
}

impl Recorder {
    fn new(seed: u64) -> Self {
        let record = Record { instances: History::new(WATCHERS), ..Record::default() };
        let (begun, record) = (Moment::now(), Arc::new(Mutex::new(record)));
        Self {
            record,
            begun,
            seed,
            stale_until: Arc::default(),
            unjudged_ages: Arc::default(),
            silent_freezes: Arc::default(),
            longest_silence: Arc::default(),
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.locked()
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap()
    }

    fn step(&self, locker: usize, step: Step) {
        let now = self.micros();
        self.record().locks.step(now, locker, step);
    }

    fn permit_step(&self, contender: usize, step: PermitStep) {
        let now = self.micros();
        self.record().semaphore.step(now, contender, step);
    }

    /// Records an age, unless reads may have been stale then.
    fn aged(&self, watcher: usize, now: u64, revision: u64, age: u64) {
        if now > self.stale_until.load(Ordering::SeqCst) {
            self.record().instances.aged(watcher, now, revision, age);
        } else {
            self.unjudged_ages.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn revokes(&self, lease: i64) {
        let now = self.micros();
        let mut record = self.record();
        record.locks.revoked(now, lease);
        record.semaphore.revoked(now, lease);
    }

    /// Records that a member that thawed at `thawed` may revoke `lease`.
    fn may_be_revoked(&self, thawed: u64, lease: i64) {
        let until = self.micros() + u64::try_from(REVOKED_AFTER_THAW.as_micros()).unwrap();
        let mut record = self.record();
        record.locks.may_be_revoked(thawed, until, lease);
        record.semaphore.may_be_revoked(thawed, until, lease);
    }

    /// Records a change of the semaphore in the store.
    fn semaphore_changed(&self, event: EventType, pair: &etcd_client::KeyValue) {
        let (revision, key) = (number(pair.mod_revision()), String::from_utf8_lossy(pair.key()).into_owned());
        let value = serde_json::from_slice(pair.value()).unwrap_or(serde_json::Value::Null);
        let permits = u32::try_from(value["permits"].as_u64().unwrap_or(0)).unwrap();
        let semaphore = &mut self.record().semaphore;
        if key == PERMIT_NUMBER {
            semaphore.changed(revision, StoredChange::Number(permits));
        } else if event == EventType::Delete {
            semaphore.changed(revision, StoredChange::Gone { key });
        } else if !key.contains(GARBAGE) {
            let (token, granted) = (number(pair.create_revision()), value["granted"] == true);
            semaphore.queued(token, pair.lease());
            semaphore.changed(revision, StoredChange::Entry { key, token, permits, granted });
        }
    }

    /// Queries `is_held` and records the result with the time of the query.
    fn believes(&self, locker: usize, guard: &LockGuard) -> bool {
        let (asked, token) = (self.micros(), guard.fencing_token().get());
        let held = guard.is_held();
        let step = if held { Step::Believed { token } } else { Step::Ended { token } };
        self.record().locks.step(asked, locker, step);
        held
    }
}

/// Saves the record if the test fails.
struct SavedOnFailure(Recorder);

impl Drop for SavedOnFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("nemesis-{}.json", self.0.seed));
            match self.0.record().save(&path) {
                Ok(()) => println!("saved: cargo xtask nemesis --replay {}", path.display()),
                Err(error) => println!("the record could not be saved: {error}"),
            }
        }
    }
}

/// The etcd under test.
enum Store {
    One(EtcdServer),
    Three(Box<EtcdCluster>),
}

impl Store {
    fn member(&self, number: usize) -> &EtcdServer {
        match self {
            Self::One(server) => server,
            Self::Three(cluster) => cluster.member(number % 3),
        }
    }

    fn member_mut(&mut self, number: usize) -> &mut EtcdServer {
        match self {
            Self::One(server) => server,
            Self::Three(cluster) => cluster.member_mut(number),
        }
    }

    fn urls(&self) -> Vec<String> {
        match self {
            Self::One(server) => vec![server.url()],
            Self::Three(cluster) => cluster.urls(),
        }
    }

    /// A leader that thaws may revoke leases that are renewed elsewhere, for a while: their holders lose their keys
    /// then. A release with etcd-io/etcd#20418 may answer stale reads.
    async fn freeze(&self, number: usize, length: Duration, recorder: &Recorder) {
        let member = self.member(number);
        let version = member.versions().await.map(|(version, _)| version);
        let is_stale = version.is_none_or(|version| reads_are_stale_after_a_pause(&version));
        if is_stale {
            recorder.stale_until.store(u64::MAX, Ordering::SeqCst);
        }
        let connected = raw(member).await;
        member.pause().await;
        match connected {
            Some(raw) => nothing_is_answered(raw, length, recorder).await,
            None => tokio::time::sleep(length).await,
        }
        let mut revocable = Vec::new();
        if let Self::Three(_) = self
            && let Some(mut raw) = raw(self.member(number + 1)).await
            && let Ok(Ok(leases)) = tokio::time::timeout(Duration::from_secs(3), raw.leases()).await
        {
            revocable.extend(leases.leases().iter().map(etcd_client::LeaseStatus::id));
        }
        let thawed = recorder.micros();
        member.resume().await;
        for lease in revocable {
            recorder.may_be_revoked(thawed, lease);
        }
        if is_stale {
            let settled = recorder.micros() + u64::try_from(SETTLING.as_micros()).unwrap();
            recorder.stale_until.store(settled, Ordering::SeqCst);
        }
    }
}

/// Asks a frozen member for that long. Fails if it answers once all of its threads have had time to stop. The freeze
/// counts as silent if the last question was long without an answer.
async fn nothing_is_answered(mut raw: etcd_client::Client, length: Duration, recorder: &Recorder) {
    let begun = Moment::now();
    let mut asked = begun;
    while let Ok(answer) = tokio::time::timeout(length.saturating_sub(begun.elapsed()), raw.get("\0", None)).await {
        assert!(begun.elapsed() < STOPPING, "a frozen member answers: {answer:?}");
        asked = Moment::now();
    }
    let silence = asked.elapsed();
    if silence >= SILENCE {
        recorder.silent_freezes.fetch_add(1, Ordering::SeqCst);
        recorder.longest_silence.fetch_max(silence.as_secs(), Ordering::SeqCst);
    }
}

/// Returns `true` for releases of etcd with the defect etcd-io/etcd#20418, see docs/faults.md.
fn reads_are_stale_after_a_pause(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let [_, minor, patch] = std::array::from_fn(|_| numbers.next().unwrap_or(0));
    matches!((minor, patch), (4, 20..42) | (5, ..28) | (6, ..9))
}

/// Schedule of freezes that outlast leases, one per minute: of 10 s, in long runs alternating with 30 s.
struct LongFreezes {
    begun: Moment,
    count: u32,
    /// Number of those of 30 s.
    longest: u32,
}

impl LongFreezes {
    fn start() -> Self {
        Self { begun: Moment::now(), count: 0, longest: 0 }
    }

    fn due(&mut self) -> Option<Duration> {
        if self.begun.elapsed() < Duration::from_secs(20) + self.count * Duration::from_secs(60) {
            return None;
        }
        self.count += 1;
        let is_longest = Self::with_longest() && self.count.is_multiple_of(2);
        self.longest += u32::from(is_longest);
        Some(Duration::from_secs(if is_longest { 30 } else { 10 }))
    }

    fn with_longest() -> bool {
        length() >= Duration::from_secs(300)
    }

    /// Prints how many there were; fails if a run of a minute had none, or no client noticed one of the longest kind.
    fn report(&self, recorder: &Recorder) {
        let silent = recorder.silent_freezes.load(Ordering::SeqCst);
        println!("{} freezes of 10 s, {} of 30 s", self.count - self.longest, self.longest);
        let longest = recorder.longest_silence.load(Ordering::SeqCst);
        println!("a connected client got no answer in {silent} freezes, short ones included, for up to {longest} s");
        let wanted = if self.longest > 0 { 29 } else { 9 };
        assert!(self.count == 0 || longest >= wanted, "no client noticed a long freeze: {longest} s");
        assert!(self.count > 0 || length() < Duration::from_secs(60), "no freeze was due");
        assert!(self.longest > 0 || !Self::with_longest(), "no long freeze was due");
    }
}

/// Follows the store itself, directly and until the run ends, as the reference. It reconnects, and the history is
/// compacted only up to the revision it has read, so it misses nothing.
async fn truth(urls: Vec<String>, recorder: Recorder, read: Arc<AtomicI64>) {
    loop {
        let next = read.load(Ordering::SeqCst) + 1;
        let options = etcd_client::WatchOptions::new().with_prefix().with_start_revision(next).with_fragment();
        let opened = async {
            let keep =
                etcd_client::ConnectOptions::new().with_keep_alive(Duration::from_secs(6), Duration::from_secs(2));
            let mut raw = etcd_client::Client::connect(&urls, Some(keep)).await?;
            raw.watch(ROOT, Some(options)).await
        };
        let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_secs(5), opened).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while let Ok(Some(message)) = stream.message().await {
            let now = recorder.micros();
            for event in message.events() {
                let pair = event.kv().unwrap();
                let put = event.event_type() == EventType::Put;
                if pair.key().starts_with(PERMIT_QUEUE.as_bytes()) || pair.key() == PERMIT_NUMBER.as_bytes() {
                    recorder.semaphore_changed(event.event_type(), pair);
                    continue_after(&read, pair, &message);
                    continue;
                }
                let mut record = recorder.record();
                if let Some(id) = pair.key().strip_prefix(PREFIX.as_bytes()) {
                    let id = String::from_utf8_lossy(id).into_owned();
                    // A value that is no instance is never shown.
                    let version = (put && pair.value().starts_with(b"{\"v\":1")).then(|| Version {
                        created: number(pair.create_revision()),
                        modified: number(pair.mod_revision()),
                    });
                    record.instances.changed(now, number(pair.mod_revision()), id, version);
                } else if put && pair.key().starts_with(QUEUE.as_bytes()) {
                    record.locks.queued(number(pair.create_revision()), pair.lease());
                }
                drop(record);
                continue_after(&read, pair, &message);
            }
        }
    }
}

/// Records the revision of an event of `message` as read. Only the end of a revision counts: the last event of a
/// message ends one, unless it is a fragment.
fn continue_after(read: &AtomicI64, pair: &etcd_client::KeyValue, message: &etcd_client::WatchResponse) {
    read.fetch_max(pair.mod_revision() - i64::from(message.0.fragment), Ordering::SeqCst);
}

async fn raw(server: &EtcdServer) -> Option<etcd_client::Client> {
    let connect = etcd_client::Client::connect([server.url()], None);
    tokio::time::timeout(Duration::from_secs(3), connect).await.ok()?.ok()
}

/// Part of the keys without a meaning.
const GARBAGE: &str = "garbage";

/// Kind of a short fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FaultKind {
    Kill,
    Freeze,
    Network,
    Compaction,
    Revocation,
    InstanceDeletion,
    EntryDeletion,
    Garbage,
}

/// Kinds to choose from, with the same probability each.
const KINDS: [FaultKind; 9] = [
    FaultKind::Kill,
    FaultKind::Freeze,
    FaultKind::Network,
    FaultKind::Network,
    FaultKind::Compaction,
    FaultKind::Revocation,
    FaultKind::InstanceDeletion,
    FaultKind::EntryDeletion,
    FaultKind::Garbage,
];

/// Number of short faults that took effect.
#[derive(Default)]
struct FaultCounts(BTreeMap<FaultKind, u32>);

impl FaultCounts {
    /// Counts a fault. Of requests to etcd only those count that it acknowledged.
    fn add(&mut self, kind: FaultKind, effect: Option<()>) {
        *self.0.entry(kind).or_default() += u32::from(effect.is_some());
    }

    /// Prints the numbers; fails if a long run had none of a kind, except for `impossible`.
    fn report(&self, impossible: Option<FaultKind>) {
        println!("faults that took effect: {:?}", self.0);
        for kind in KINDS.into_iter().filter(|kind| LongFreezes::with_longest() && Some(*kind) != impossible) {
            assert!(self.0.get(&kind).is_some_and(|count| *count > 0), "{kind:?} had no effect: {:?}", self.0);
        }
    }
}

/// Applies one fault and ends it. `None` if it had no effect.
async fn fault(
    kind: FaultKind,
    store: &mut Store,
    proxies: &[Proxy],
    random: &mut fastrand::Rng,
    recorder: &Recorder,
    read: i64,
) -> Option<()> {
    let while_ = Duration::from_millis(random.u64(200..2500));
    let proxy = &proxies[random.usize(..proxies.len())];
    let member = random.usize(..store.urls().len());
    match kind {
        FaultKind::Kill => {
            let server = store.member_mut(member);
            server.kill().await;
            tokio::time::sleep(while_ / 4).await;
            server.restart().await;
        }
        FaultKind::Freeze => store.freeze(member, while_, recorder).await,
        FaultKind::Network => {
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
        other => return raw_fault(other, &mut raw(store.member(member)).await?, random, recorder, read).await,
    }
    Some(())
}

/// Returns the response to a request of the nemesis itself. There may be none: the store may be unavailable.
async fn acknowledged<T>(request: impl Future<Output = Result<T, etcd_client::Error>>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(3), request).await.ok()?.ok()
}

/// Returns the keys below a prefix that are no garbage.
async fn keys(raw: &mut etcd_client::Client, prefix: &str) -> Option<Vec<etcd_client::KeyValue>> {
    let mut listed = acknowledged(raw.get(prefix, Some(etcd_client::GetOptions::new().with_prefix()))).await?;
    let keys = listed.take_kvs().into_iter();
    Some(keys.filter(|pair| !String::from_utf8_lossy(pair.key()).contains(GARBAGE)).collect())
}

/// Applies a fault that is a request to etcd. `None` if it had no effect, as far as etcd has answered.
async fn raw_fault(
    kind: FaultKind,
    raw: &mut etcd_client::Client,
    random: &mut fastrand::Rng,
    recorder: &Recorder,
    read: i64,
) -> Option<()> {
    match kind {
        FaultKind::Compaction => {
            acknowledged(raw.compact(read, None)).await?;
        }
        FaultKind::Revocation => {
            let leases = acknowledged(raw.leases()).await?;
            let lease = random.choice(leases.leases())?.id();
            recorder.revokes(lease);
            acknowledged(raw.lease_revoke(lease)).await?;
        }
        FaultKind::InstanceDeletion => {
            let key = random.choice(keys(raw, PREFIX).await?)?.key().to_vec();
            return (acknowledged(raw.delete(key, None)).await?.deleted() > 0).then_some(());
        }
        FaultKind::EntryDeletion => {
            let queue = if random.bool() { QUEUE } else { PERMIT_QUEUE };
            let entry = random.choice(keys(raw, queue).await?)?;
            let (now, token) = (recorder.micros(), number(entry.create_revision()));
            // Tokens of both are revisions of one store.
            recorder.record().locks.deleted(now, token);
            recorder.record().semaphore.deleted(now, token);
            return (acknowledged(raw.delete(entry.key(), None)).await?.deleted() > 0).then_some(());
        }
        FaultKind::Garbage => {
            let prefix = [PREFIX, QUEUE, PERMIT_QUEUE][random.usize(..3)];
            let key = format!("{prefix}{GARBAGE}-{}", random.u8(..4));
            acknowledged(raw.put(key, "{\"v\":", None)).await?;
        }
        FaultKind::Kill | FaultKind::Freeze | FaultKind::Network => unreachable!("no request to etcd"),
    }
    Some(())
}

/// Applies a long freeze, of the leader in a cluster; then wipes a member of the cluster and adds it again.
async fn long_fault(length: Duration, store: &mut Store, random: &mut fastrand::Rng, recorder: &Recorder) {
    let number = match store {
        Store::One(_) => 0,
        Store::Three(cluster) => cluster.leader().await,
    };
    store.freeze(number, length, recorder).await;
    if let Store::Three(cluster) = store {
        cluster.replace(random.usize(..3)).await;
    }
}

/// Records every view and age that a watcher reports.
async fn watch(tasks: &TaskOwner, etcd: &Etcd, watcher: usize, recorder: &Recorder) {
    let mut watch = etcd.watch(&support::service()).await.unwrap();
    let recorder = recorder.clone();
    in_background(tasks, async move {
        let mut folded = WatchRecorder::default();
        let mut last: Option<Change> = None;
        loop {
            let mut next = tokio::time::timeout(Duration::from_millis(500), watch.next()).await.ok();
            if let (None, Some(Change { snapshot, freshness, .. })) = (&next, &last) {
                let age = u64::try_from(freshness.age().as_micros()).unwrap();
                let now = recorder.micros();
                // The age includes the changes that have arrived since, so those are recorded first.
                next = watch.next().now_or_never();
                if next.is_none() {
                    recorder.aged(watcher, now, snapshot.revision().get(), age);
                }
            }
            let Some(next) = next else { continue };
            let Ok(change) = next else { return };
            folded.record(&mut recorder.record().instances, watcher, &change);
            last = Some(change);
        }
    });
}

/// Number behind a fence.
#[derive(Default)]
struct Resource {
    fence: Fence,
    value: u64,
}

/// Acquires the lock again and again, as writer or reader, with or without a deadline, until it is stopped.
async fn locker(
    etcd: Etcd,
    locker: usize,
    recorder: Recorder,
    resource: Arc<Mutex<Resource>>,
    stop: Arc<AtomicBool>,
    mut random: fastrand::Rng,
) {
    let name = LockName::parse("nemesis").unwrap();
    while !stop.load(Ordering::SeqCst) {
        let mut options = LockOptions::new().ttl(Duration::from_secs(random.u64(2..6)));
        options.own_lease = random.u8(..4) == 0;
        options.deadline = (random.u8(..4) == 0).then(|| Duration::from_millis(random.u64(0..2000)));
        if random.u8(..3) == 0 {
            options.mode = LockMode::Shared;
        }
        let shared = options.mode == LockMode::Shared;
        recorder.step(locker, Step::Asked);
        let asked = etcd.acquire(&name, options);
        let granted = if random.u8(..8) == 0 {
            // The call is dropped at an arbitrary point.
            tokio::time::timeout(Duration::from_millis(random.u64(0..500)), asked).await.ok()
        } else {
            Some(asked.await)
        };
        let Some(Ok(guard)) = granted else {
            recorder.step(locker, Step::GaveUp);
            continue;
        };
        let token = guard.fencing_token().get();
        recorder.step(locker, Step::Granted { token, shared });
        for _ in 0..random.u8(1..6) {
            if !recorder.believes(locker, &guard) {
                break;
            }
            let pause = Duration::from_millis(random.u64(0..80));
            if shared {
                tokio::time::sleep(pause).await;
                continue;
            }
            let read = {
                let mut resource = resource.lock().unwrap();
                resource.fence.admit(guard.fencing_token()).map(|()| resource.value)
            };
            tokio::time::sleep(pause).await;
            if let Ok(value) = read {
                let mut resource = resource.lock().unwrap();
                if resource.fence.admit(guard.fencing_token()).is_ok() {
                    resource.value = value + 1;
                    recorder.step(locker, Step::Wrote { token });
                }
            }
        }
        // Released, or just dropped.
        recorder.believes(locker, &guard);
        if random.bool() {
            let _ = guard.release().await;
        } else {
            drop(guard);
        }
        recorder.step(locker, Step::Ended { token });
    }
}

fn weight_of(instance: &Instance) -> (String, u32) {
    (instance.id().to_string(), instance.weight())
}

/// Waits until the checkers find nothing. The reference history arrives over a stream as well, possibly after a
/// watcher's.
async fn nothing_is_broken(recorder: &Recorder) {
    eventually("nothing is broken", || async {
        let violations = recorder.record().check();
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    })
    .await;
}

/// Acquires permits again and again, one or more, with or without a deadline, until it is stopped.
async fn permit_contender(
    etcd: Etcd,
    contender: usize,
    recorder: Recorder,
    stop: Arc<AtomicBool>,
    mut random: fastrand::Rng,
) {
    let name = LockName::parse("nemesis").unwrap();
    while !stop.load(Ordering::SeqCst) {
        let mut options = SemaphoreOptions::new().ttl(Duration::from_secs(random.u64(2..6)));
        options.permits = [1, 1, 1, 2, PERMITS][random.usize(..5)];
        options.own_lease = random.u8(..8) == 0;
        options.deadline = (random.u8(..4) == 0).then(|| Duration::from_millis(random.u64(0..2000)));
        recorder.permit_step(contender, PermitStep::Asked);
        let asked = etcd.acquire_permits(&name, options);
        let granted = if random.u8(..8) == 0 {
            // The call is dropped at an arbitrary point.
            tokio::time::timeout(Duration::from_millis(random.u64(0..500)), asked).await.ok()
        } else {
            Some(asked.await)
        };
        let Some(Ok(guard)) = granted else {
            recorder.permit_step(contender, PermitStep::GaveUp);
            continue;
        };
        let token = guard.fencing_token().get();
        recorder.permit_step(contender, PermitStep::Granted { token });
        for _ in 0..random.u8(1..4) {
            let asked = recorder.micros();
            if !guard.is_held() {
                break;
            }
            recorder.record().semaphore.step(asked, contender, PermitStep::Believed { token });
            tokio::time::sleep(Duration::from_millis(random.u64(0..20))).await;
        }
        // Released, or just dropped.
        if random.bool() {
            let _ = guard.release().await;
        } else {
            drop(guard);
        }
        recorder.permit_step(contender, PermitStep::Ended { token });
    }
}

/// Waits until all lockers have had their turn and the queue holds only garbage keys.
async fn queue_empties(lockers: &mut JoinSet<()>, raw: &etcd_client::Client, queue: &str) {
    let all = async { while lockers.join_next().await.transpose().unwrap().is_some() {} };
    soon("all lockers have had their turn", all).await;
    eventually("the queue is empty", || async {
        let found = raw.clone().get(queue, Some(etcd_client::GetOptions::new().with_prefix())).await.unwrap();
        let keys = found.kvs().iter().map(|pair| String::from_utf8_lossy(pair.key()).into_owned());
        let left: Vec<String> = keys.filter(|key| !key.contains(GARBAGE)).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

/// Starts the lockers, two in each process.
fn lock_and_unlock(
    etcds: &[Etcd],
    recorder: &Recorder,
    resource: &Arc<Mutex<Resource>>,
    stop: &Arc<AtomicBool>,
    random: &mut fastrand::Rng,
) -> JoinSet<()> {
    let mut lockers = JoinSet::new();
    for number in 0..LOCKERS {
        let etcd = etcds[number / 2].clone();
        let (recorder, resource, stop) = (recorder.clone(), Arc::clone(resource), Arc::clone(stop));
        lockers.spawn(locker(etcd, number, recorder, resource, stop, random.fork()));
    }
    lockers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_break_no_guarantee() {
    run(Store::One(server().await)).await;
}

/// 200 contenders in ten processes for up to five permits, whose number changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_exceed_no_permits() {
    run_semaphore(Store::One(server().await)).await;
}

/// The same on three members, each of which is wiped and added again now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "for long runs: `cargo xtask nemesis --members 3`"]
async fn on_a_cluster_whose_members_change_as_well() {
    run(Store::Three(Box::new(EtcdCluster::start().await))).await;
}

#[expect(clippy::too_many_lines, reason = "one run from its beginning to its end, as a reader has to follow it")]
async fn run(mut store: Store) {
    let mut random = support::seed();
    let recorder = Recorder::new(random.get_seed());
    let _saved = SavedOnFailure(recorder.clone());
    let tasks = TaskOwner::new();
    let read = Arc::new(AtomicI64::new(0));
    in_background(&tasks, truth(store.urls(), recorder.clone(), Arc::clone(&read)));

    let mut proxies = Vec::new();
    for number in 0..3 {
        proxies.push(Proxy::start(store.member(number).address()).await.unwrap());
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
        watch(&tasks, &etcd, watcher, &recorder).await;
        users.push(etcd);
    }
    let (stop, resource) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Resource::default())));
    let mut etcds = Vec::new();
    for pair in 0..LOCKERS / 2 {
        etcds.push(client(pair).await);
    }
    let mut lockers = lock_and_unlock(&etcds, &recorder, &resource, &stop, &mut random);

    let (mut freezes, mut counts) = (LongFreezes::start(), FaultCounts::default());
    let mut weight = 1;
    let mut gone = 0;
    while freezes.begun.elapsed() < length() {
        let read = read.load(Ordering::SeqCst);
        if let Some(length) = freezes.due() {
            long_fault(length, &mut store, &mut random, &recorder).await;
        } else {
            let kind = KINDS[random.usize(..KINDS.len())];
            counts.add(kind, fault(kind, &mut store, &proxies, &mut random, &recorder, read).await);
        }
        weight += 1;
        drop(registrations[random.usize(..registrations.len())].update(move |update| {
            update.weight(weight);
        }));
        // Now and then one instance leaves and another one registers.
        if random.u8(..3) == 0 && registrations.len() > OWNERS {
            let leaving = registrations.swap_remove(random.usize(..registrations.len()));
            let id = leaving.instance().id().to_string();
            if let Ok(Ok(enlist::Deregistered::Removed)) =
                tokio::time::timeout(Duration::from_secs(5), leaving.deregister()).await
                && let Some(mut raw) = raw(store.member(0)).await
                && let Ok(Ok(now)) = tokio::time::timeout(Duration::from_secs(3), raw.get("\0", None)).await
            {
                recorder.record().instances.deregistered(id, number(now.header().unwrap().revision()));
                gone += 1;
            }
            let owner = &owners[random.usize(..OWNERS)];
            let options = RegisterOptions::new().ttl(Duration::from_secs(5)).start(enlist::Start::Background);
            let id = format!("late-{weight}");
            registrations.push(owner.register(&support::service(), instance(&id), options).await.unwrap());
        }
    }
    proxies.iter().for_each(Proxy::heal);

    // All registered instances are back, and no others.
    let wanted: BTreeMap<_, _> = registrations.iter().map(|registration| weight_of(&registration.instance())).collect();
    let quiet = Etcd::builder(store.urls()).connect().await.unwrap();
    eventually("exactly these instances are back, with the last value", || async {
        let now = quiet.resolve(&support::service()).await;
        let now = now.map(|now| now.entries().map(|entry| weight_of(entry.instance())).collect::<BTreeMap<_, _>>());
        if now.as_ref().is_ok_and(|now| *now == wanted) { Ok(()) } else { Err((now, wanted.clone())) }
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    let mut raw = raw(store.member(0)).await.unwrap();
    queue_empties(&mut lockers, &raw, QUEUE).await;
    recorder.record().locks.ended(resource.lock().unwrap().value, Vec::new());
    // A last change, after which all participants must agree.
    raw.put(format!("{PREFIX}last"), r#"{"v":1,"id":"last","endpoints":["h:1"]}"#, None).await.unwrap();
    nothing_is_broken(&recorder).await;
    let (grants, reads, writes) = {
        let locks = &recorder.record().locks;
        (locks.grants(LockMode::Exclusive), locks.grants(LockMode::Shared), locks.writes())
    };
    assert!(grants > 10 && reads > 10 && writes > 10, "the lock was in use: {grants}, {reads}, {writes}");
    {
        // The checkers do detect violations: an empty snapshot is flagged, and so is one write too many.
        let mut record = recorder.record().clone();
        let last = raw.get("\0", None).await.unwrap().header().unwrap().revision();
        record.instances.shown(0, number(last), Versions::new());
        record.locks.step(recorder.micros(), 0, Step::Wrote { token: 1 });
        assert!(record.check().len() >= 4, "the controls are flagged: {:?}", record.check());
    }
    let repairs: u64 = users.iter().chain(&owners).map(|etcd| etcd.counters().get(Counter::AuditRepairs)).sum();
    let audits: u64 = users.iter().map(|etcd| etcd.counters().get(Counter::Audits)).sum();
    println!(
        "{gone} left in order, {audits} audits, {repairs} repairs; {grants} exclusive grants, {reads} shared, {writes} \
         writes"
    );
    freezes.report(&recorder);
    counts.report(None);
    if let Store::Three(_) = store {
        println!("{} times a member was wiped and added again", freezes.count);
    }
    let (excused, unjudged) = (recorder.record().locks.excused(), recorder.unjudged_ages.load(Ordering::SeqCst));
    println!("excused: {excused} holders whose entry others may have ended; not judged: {unjudged} ages after a pause");
    assert_eq!(repairs, 0, "no watch missed anything");
}

async fn run_semaphore(mut store: Store) {
    let mut random = support::seed();
    let recorder = Recorder::new(random.get_seed());
    // There are no watchers.
    recorder.record().instances = History::new(0);
    let _saved = SavedOnFailure(recorder.clone());
    let tasks = TaskOwner::new();
    let read = Arc::new(AtomicI64::new(0));
    in_background(&tasks, truth(store.urls(), recorder.clone(), Arc::clone(&read)));

    let mut proxies = Vec::new();
    for number in 0..3 {
        proxies.push(Proxy::start(store.member(number).address()).await.unwrap());
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut contenders = JoinSet::new();
    let name = LockName::parse("nemesis").unwrap();
    let operator = Etcd::builder(store.urls()).connect().await.unwrap();
    operator.set_permits(&name, PERMITS).await.unwrap();
    for process in 0..PERMIT_PROCESSES {
        let urls = [proxies[process % 3].url(), proxies[(process + 1) % 3].url()];
        let etcd = Etcd::builder(urls).connect().await.unwrap();
        for contender in process * PERMIT_CONTENDERS..(process + 1) * PERMIT_CONTENDERS {
            let (etcd, recorder, stop) = (etcd.clone(), recorder.clone(), Arc::clone(&stop));
            contenders.spawn(permit_contender(etcd, contender, recorder, stop, random.fork()));
        }
    }
    let (mut freezes, mut counts) = (LongFreezes::start(), FaultCounts::default());
    while freezes.begun.elapsed() < length() {
        let read = read.load(Ordering::SeqCst);
        if let Some(length) = freezes.due() {
            store.freeze(0, length, &recorder).await;
        } else {
            let kind = KINDS[random.usize(..KINDS.len())];
            counts.add(kind, fault(kind, &mut store, &proxies, &mut random, &recorder, read).await);
        }
        // An operator changes the number now and then, also below what is in use.
        if random.u8(..3) == 0 {
            let changed = operator.set_permits(&name, random.u32(1..=PERMITS));
            // The store may be unavailable.
            let _ = tokio::time::timeout(Duration::from_secs(3), changed).await;
        }
    }
    proxies.iter().for_each(Proxy::heal);
    eventually("all permits exist again", || operator.set_permits(&name, PERMITS)).await;
    stop.store(true, Ordering::SeqCst);
    let raw = raw(store.member(0)).await.unwrap();
    queue_empties(&mut contenders, &raw, PERMIT_QUEUE).await;
    nothing_is_broken(&recorder).await;
    freezes.report(&recorder);
    // There are no instances.
    counts.report(Some(FaultKind::InstanceDeletion));
    let grants = recorder.record().semaphore.grants();
    let excused = recorder.record().semaphore.excused();
    println!("{grants} grants; excused: {excused}, because others may have ended the entries of earlier holders");
    assert!(grants > 10 * PERMIT_PROCESSES, "the semaphore was in use: {grants} grants");
    // The checker does detect violations: a grant that is not in the store is flagged.
    let mut record = recorder.record().clone();
    record.semaphore.step(recorder.micros(), 0, PermitStep::Granted { token: 1 });
    assert_eq!(record.semaphore.check().len(), 1, "the control is flagged: {:?}", record.semaphore.check());
}
