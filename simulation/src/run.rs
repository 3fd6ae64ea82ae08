//! One run: its parts, and the conditions that have to hold at its end. `judge.rs` completes the verdicts.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{Counter, Resolver};
use enlist_etcd::Etcd;
use enlist_testkit::losses::RECOVERY;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    configs,
    counts::Counts,
    faults::{is_garbage, late_transactions, nemesis, set_known_defect},
    judge::{content, judge},
    kinds::{Observed, Operation},
    lockers::{Locker, Resource},
    owners::{InstanceOwner, watcher},
    panics,
    verdicts::{Invariant, Verdict},
    world::{Delivery, INSTANCES, LOCK_QUEUE, Logs, World, between, service},
};

/// Seconds of processor time after which a run is killed. Most take less than a tenth of a second.
pub(crate) const PROCESSOR_LIMIT: u32 = 20;

/// Seconds of real time after which a run is killed, if it waits without using the processor.
pub(crate) const REAL_LIMIT: u32 = 600;

/// Time of the run's clock after which it counts as hung. The longest that ends takes about ten minutes.
const CLOCK_LIMIT: Duration = Duration::from_secs(1800);

/// Maximum time after the last fault until the store has the desired state.
const HEALING: Duration = Duration::from_secs(150);

/// The same in a run in which no watch lost an event, so that nobody needs the next audit.
const WATCH_HEALING: Duration = Duration::from_secs(25);

/// Time after the last late transaction in which clients undo it: one or two seconds, once they have noticed it.
const UNDOING: Duration = Duration::from_micros(RECOVERY);

/// Maximum TTL of a lease in a run, plus the interval at which the fake looks for expired leases.
const LONGEST_TTL: Duration = Duration::from_secs(12);

/// TTL of registrations that share leases.
const SHARED_TTL: Duration = Duration::from_secs(5);

/// Interval of checks of a condition.
const CONDITION_POLL: Duration = Duration::from_millis(500);

/// Interval in which requests are counted, and the maximum number of those of all clients. The most in 2,000 runs were
/// 84, after a freeze, whose requests arrive together.
const REQUEST_INTERVAL: Duration = Duration::from_secs(1);
const MAX_REQUESTS: usize = 160;

/// Outcome of a run.
pub(crate) struct RunOutcome {
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) counts: Counts,
}

/// Runs the scenario of `seed`.
pub(crate) fn run(seed: u64, logs: Logs) -> RunOutcome {
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without input and output needs nothing of the system");
    let run = async { tokio::time::timeout(CLOCK_LIMIT, play(fastrand::Rng::with_seed(seed), logs)).await };
    let mut outcome = runtime.block_on(run).unwrap_or_else(|_| RunOutcome {
        verdicts: vec![Verdict::of(Invariant::Ends, format!("it has not ended after {CLOCK_LIMIT:?} of its clock"))],
        counts: Counts::default(),
    });
    outcome.verdicts.extend(panics::recorded());
    outcome
}

/// Tasks of a run.
#[derive(Default)]
struct Tasks {
    /// Owners and watchers, which last until the end.
    lasting: JoinSet<()>,
    owners: usize,
    lockers: usize,
    /// Contenders for the lock, and writers of the configuration, which end when the run stops.
    ending: JoinSet<()>,
}

async fn play(mut random: fastrand::Rng, logs: Logs) -> RunOutcome {
    let clients = random.usize(2..=3);
    let watchers = random.usize(1..=2);
    let world = World::new(watchers, logs);
    set_known_defect(&world, &mut random);
    let (etcds, links): (Vec<_>, Vec<_>) = (0..clients).map(|_| world.client()).unzip();
    let mut tasks = start(&world, &etcds, watchers, &mut random);
    tasks.lasting.spawn(check_requests(world.clone()));
    let end = between(&mut random, 4_000, 30_000);
    nemesis(world.clone(), links, end, random.fork()).await;
    world.shared().stopping = true;
    finish(&world, &mut tasks).await;
    check_counters(&world, &etcds);
    tasks.lasting.abort_all();
    // A panic was recorded when it happened.
    while tasks.lasting.join_next().await.is_some() {}
    // Watchers do not see the changes of the end, so they do not belong to the journal that is checked.
    let journal = world.fake.journal();
    let verdicts = judge(&world, &journal);
    close(&world, &etcds, tasks.owners).await;
    let closed: Vec<_> = world.shared().broken.iter().filter(|late| !verdicts.contains(late)).cloned().collect();
    let counts = world.shared().counts.clone();
    RunOutcome { verdicts: verdicts.into_iter().chain(closed).collect(), counts }
}

/// Starts the owners, watchers, contenders and writers of a run.
fn start(world: &World, etcds: &[Etcd], watchers: usize, random: &mut fastrand::Rng) -> Tasks {
    let mut tasks = Tasks::default();
    let of = |number: usize| etcds[number % etcds.len()].clone();
    // Two thirds of the runs have either locks or instances only.
    let (about_locks, about_instances) = [(true, true), (true, false), (false, true)][random.usize(..3)];
    if about_instances {
        tasks.owners = random.usize(1..=3);
        // In half of the runs they share leases: a late write under a lease of its own is refused with the lease.
        let share = random.bool();
        let ttl = share.then_some(SHARED_TTL);
        for number in 0..tasks.owners {
            let (world, etcd) = (world.clone(), of(if share { 0 } else { number }));
            tasks.lasting.spawn(InstanceOwner { world, etcd, number, ttl, random: random.fork() }.run());
        }
    }
    for number in 0..watchers {
        tasks.lasting.spawn(watcher(world.clone(), of(number + 1), number));
    }
    if about_locks {
        let resource = Arc::<Mutex<Resource>>::default();
        tasks.lockers = random.usize(2..=4);
        for number in 0..tasks.lockers {
            let (world, etcd, resource) = (world.clone(), of(number), Arc::clone(&resource));
            tasks.ending.spawn(Locker { world, etcd, number, resource, random: random.fork() }.run());
        }
    }
    if random.u8(..4) == 0 {
        tasks.lasting.spawn(configs::watcher(world.clone(), of(0), 0));
        for number in 0..random.usize(1..=2) {
            tasks.ending.spawn(configs::writer(world.clone(), of(number), random.fork()));
        }
    }
    tasks
}

/// Waits for a condition. Records a violation if it does not hold within `limit`. It counts as checked if `subjects`,
/// the number of what it is about, is not zero.
async fn heals<F: Future<Output = Result<(), String>>>(
    world: &World,
    limit: Duration,
    (what, subjects): (Invariant, usize),
    mut check: impl FnMut() -> F,
) {
    if subjects > 0 {
        world.count(what);
    }
    let begun = Instant::now();
    while let Err(seen) = check().await {
        if begun.elapsed() >= limit {
            return world.broken(what, format!("not within {limit:?}; last seen: {seen}"));
        }
        tokio::time::sleep(CONDITION_POLL).await;
    }
    world.log(|| format!("{what:?}, after {:?}", begun.elapsed()));
}

/// Returns the stored instances of the service, with their weights, without garbage.
fn stored(world: &World) -> BTreeMap<String, u32> {
    let pairs = world.fake.under(INSTANCES.as_bytes());
    let parse = |(_, value): &(Vec<u8>, Vec<u8>)| {
        let value: serde_json::Value = serde_json::from_slice(value).ok()?;
        let weight = value["weight"].as_u64().unwrap_or(1);
        Some((value["id"].as_str()?.to_owned(), u32::try_from(weight).ok()?))
    };
    pairs.iter().filter_map(parse).collect()
}

/// Waits, after the last fault, until the store and the watchers have the desired state.
async fn finish(world: &World, tasks: &mut Tasks) {
    let owners = tasks.owners;
    let misses = world.shared().delivery == Delivery::Lossy;
    let limit = if misses { HEALING } else { WATCH_HEALING };
    await_late_transactions(world).await;
    heals(world, HEALING, (Invariant::OwnersFinish, owners), || async {
        let have = world.shared().wanted.len();
        if have == owners { Ok(()) } else { Err(format!("{have} of {owners}")) }
    })
    .await;
    heals(world, limit, (Invariant::StoreConverges, owners), || async {
        let (now, wanted) = (stored(world), world.shared().wanted.clone());
        if now == wanted { Ok(()) } else { Err(format!("{now:?} instead of {wanted:?}")) }
    })
    .await;
    let all = async { while tasks.ending.join_next().await.is_some() {} };
    if tokio::time::timeout(HEALING, all).await.is_err() {
        let detail = format!("not within {HEALING:?}: all contenders have had their turn");
        world.broken(Invariant::ContendersServed, detail);
        tasks.ending.shutdown().await;
    }
    heals(world, limit, (Invariant::QueueEmpties, tasks.lockers), || async {
        let queue = world.fake.under(LOCK_QUEUE.as_bytes());
        let entries = queue.iter().filter(|(key, _)| !is_garbage(key));
        let entries: Vec<_> = entries.map(|(key, _)| String::from_utf8_lossy(key)).collect();
        if entries.is_empty() { Ok(()) } else { Err(format!("{entries:?}")) }
    })
    .await;
    // A last change, which all watchers have to show.
    world.fake.put(format!("{INSTANCES}last"), r#"{"v":1,"id":"last","endpoints":["h:1"],"weight":1}"#);
    let watchers = world.shared().record.instances.watchers();
    heals(world, limit, (Invariant::WatchersConverge, watchers), || async {
        let (revision, instances) = (world.fake.revision(), content(&world.fake.journal()));
        let missing = world.shared().record.instances.behind(u64::try_from(revision).unwrap_or(0), &instances);
        if missing.is_empty() { Ok(()) } else { Err(format!("watchers {missing:?} do not")) }
    })
    .await;
    let watchers = world.shared().config.watchers;
    heals(world, limit, (Invariant::ConfigConverges, watchers), || async {
        let behind = configs::behind(world);
        if behind.is_empty() { Ok(()) } else { Err(format!("watchers {behind:?} do not")) }
    })
    .await;
    check_resolve(world).await;
}

/// Waits until all late transactions are done, and what undoes them has had its time. None is delayed once the faults
/// have ended.
async fn await_late_transactions(world: &World) {
    let Some((done, number)) = late_transactions(world) else { return };
    tokio::time::sleep_until(done + UNDOING).await;
    heals(world, Duration::ZERO, (Invariant::LateTransactionsEnd, number), || async {
        let ended = world.fake.late_writes().len();
        if ended == number { Ok(()) } else { Err(format!("{ended} of {number}")) }
    })
    .await;
}

/// Checks that a new client resolves the stored instances.
async fn check_resolve(world: &World) {
    world.count(Operation::Resolve);
    world.count(Invariant::ResolveAgrees);
    let (etcd, _) = world.client();
    match etcd.resolve(&service()).await {
        Ok(snapshot) => {
            let now: BTreeMap<_, _> = snapshot
                .entries()
                .map(|entry| (entry.instance().id().to_string(), entry.instance().weight()))
                .collect();
            if now != stored(world) {
                let detail = format!("resolved {now:?}, but stored is {:?}", stored(world));
                world.broken(Invariant::ResolveAgrees, detail);
            }
        }
        Err(error) => world.broken(Invariant::ResolveAgrees, error),
    }
}

/// Checks the number of requests in each second, until it is dropped.
async fn check_requests(world: World) {
    let (mut before, mut most) = (0, 0);
    loop {
        tokio::time::sleep(REQUEST_INTERVAL).await;
        let mut requests = world.fake.requests();
        let all = requests.all();
        if all > before {
            world.count(Invariant::RequestRate);
        }
        if all - before > most {
            most = all - before;
            world.log(|| format!("{most} requests in {REQUEST_INTERVAL:?}, more than before"));
        }
        if all - before > MAX_REQUESTS {
            // They would fill the line.
            requests.txn_times.clear();
            let detail = format!("{} requests in {REQUEST_INTERVAL:?}; so far {requests:?}", all - before);
            world.broken(Invariant::RequestRate, detail);
        }
        before = all;
    }
}

/// Closes the clients, and checks that neither leases nor instances remain.
async fn close(world: &World, etcds: &[Etcd], owners: usize) {
    for etcd in etcds {
        world.count(Operation::Close);
        world.count(Invariant::ClosesInOrder);
        if let Err(error) = etcd.close().await {
            world.broken(Invariant::ClosesInOrder, error);
        }
    }
    // A lease that was granted after its caller had gone, and not revoked because etcd did not answer, has to expire.
    let calm = world.shared().calm;
    let limit = if calm { Duration::ZERO } else { LONGEST_TTL };
    let granted = world.fake.requests().grants;
    heals(world, limit, (Invariant::LeasesRevoked, granted), || async {
        let leases = world.fake.lease_ids();
        if leases.is_empty() { Ok(()) } else { Err(format!("{leases:?}")) }
    })
    .await;
    if owners > 0 {
        world.count(Invariant::InstancesRemoved);
    }
    let remaining = stored(world);
    if remaining.keys().any(|id| id != "last") {
        world.broken(Invariant::InstancesRemoved, format!("{remaining:?}"));
    }
}

/// Checks the counters of the clients. It counts as a check where there were leases, or audits.
fn check_counters(world: &World, etcds: &[Etcd]) {
    let sum = |counter| etcds.iter().map(|etcd| etcd.counters().get(counter)).sum::<u64>();
    let (losses, repairs) = (sum(Counter::LeaseLosses), sum(Counter::AuditRepairs));
    let (calm, honest) = {
        let shared = world.shared();
        (shared.calm, shared.delivery == Delivery::Complete)
    };
    if calm {
        if world.fake.requests().grants > 0 {
            world.count(Invariant::LeasesKept);
        }
        if losses > 0 {
            world.broken(Invariant::LeasesKept, format!("{losses} leases were lost without a cause"));
        }
    }
    if honest {
        if sum(Counter::Audits) > 0 {
            world.count(Invariant::NothingRepaired);
        }
        if repairs > 0 {
            world.broken(Invariant::NothingRepaired, format!("{repairs} keys were repaired by audits"));
        }
    }
    for (counter, observed) in [
        (Counter::Renewals, Observed::LeaseRenewed),
        (Counter::LeaseLosses, Observed::LeaseLost),
        (Counter::Reregistrations, Observed::InstanceRegisteredAgain),
        (Counter::WatchResumes, Observed::WatchResumed),
        (Counter::WatchRelists, Observed::WatchListedAgain),
        (Counter::WatchChecks, Observed::WatchChecked),
        (Counter::WatchRepeats, Observed::RepeatedEventDropped),
        (Counter::MalformedValues, Observed::MalformedValueSkipped),
        (Counter::Audits, Observed::Audited),
        (Counter::AuditRepairs, Observed::RepairedByAudit),
    ] {
        world.shared().counts.add(observed, sum(counter));
    }
}

#[cfg(test)]
mod tests {
    use enlist_testkit::Misbehavior;
    use etcd_client::{Channel, Client, Txn, TxnOp};

    use super::*;

    /// Sends a write that is made 20 s later, when its caller is gone.
    async fn put_late(world: &World, key: String, value: &str) {
        world.fake.misbehave(Misbehavior::LateTxn(Duration::from_secs(20)));
        let mut client = Client::from_channel(Channel::Tonic(world.fake.channel()), None).await.unwrap();
        let write = client.txn(Txn::new().and_then([TxnOp::put(key, value, None)]));
        tokio::time::timeout(Duration::from_secs(1), write).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn late_writes_are_done_before_the_end() {
        let world = World::new(0, Logs::Omitted);
        put_late(&world, format!("{INSTANCES}left"), r#"{"v":1,"id":"left","endpoints":["h:1"],"weight":1}"#).await;
        put_late(&world, format!("{LOCK_QUEUE}left"), "").await;
        assert_eq!(world.fake.revision(), 1, "nothing is left behind yet");
        finish(&world, &mut Tasks::default()).await;
        let broken: Vec<_> = world.shared().broken.iter().filter_map(|verdict| verdict.invariant).collect();
        assert_eq!(broken, [Invariant::StoreConverges, Invariant::QueueEmpties]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_exists_is_checked() {
        let world = World::new(0, Logs::Omitted);
        finish(&world, &mut Tasks::default()).await;
        close(&world, &[], 0).await;
        let missing = world.shared().counts.missing();
        let is_missing = |check: &Invariant| missing.contains(&format!("check {check:?}"));
        for check in [
            Invariant::LateTransactionsEnd,
            Invariant::OwnersFinish,
            Invariant::StoreConverges,
            Invariant::QueueEmpties,
            Invariant::WatchersConverge,
            Invariant::ConfigConverges,
            Invariant::LeasesRevoked,
            Invariant::InstancesRemoved,
        ] {
            assert!(is_missing(&check), "{check:?}");
        }
        assert!(!is_missing(&Invariant::ResolveAgrees), "the last instance is resolved");
    }
}
