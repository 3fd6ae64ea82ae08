//! One run: its parts, and the conditions that have to hold at its end.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{Counter, Resolver};
use enlist_etcd::Etcd;
use enlist_testkit::{
    KeyChange,
    history::{Version, Violation},
    lock_history::LockViolation,
};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    faults::nemesis,
    lockers::{Locker, Resource},
    owners::{InstanceOwner, watcher},
    world::{Delivery, INSTANCES, LOCK_QUEUE, Logs, World, between, service},
};

/// Real seconds after which a run is killed.
pub(crate) const REAL_LIMIT: u32 = 60;

/// Maximum time after the last fault until the store has the desired state.
const HEALING: Duration = Duration::from_secs(150);

/// The same for watches that lost no event, and therefore do not need the next audit.
const WATCH_HEALING: Duration = Duration::from_secs(25);

/// Maximum TTL of a lease in a run, plus the interval at which the fake looks for expired leases.
const LONGEST_TTL: Duration = Duration::from_secs(12);

/// Interval of checks of a condition.
const CONDITION_POLL: Duration = Duration::from_millis(500);

/// Maximum average number of requests per second and client.
const MAX_REQUEST_RATE: u64 = 60;

/// Runs the scenario of `seed`. Returns the violations.
pub(crate) fn run(seed: u64, logs: Logs) -> Vec<String> {
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without input and output needs nothing of the system");
    runtime.block_on(play(fastrand::Rng::with_seed(seed), logs))
}

async fn play(mut random: fastrand::Rng, logs: Logs) -> Vec<String> {
    let clients = random.usize(2..=3);
    let watchers = random.usize(1..=2);
    let world = World::new(watchers, logs);
    let mut tasks = JoinSet::new();
    let mut lockers = JoinSet::new();
    let (etcds, links): (Vec<_>, Vec<_>) = (0..clients).map(|_| world.client()).unzip();
    let of = |number: usize| etcds[number % clients].clone();
    // Two thirds of the runs have either locks or instances only.
    let (about_locks, about_instances) = [(true, true), (true, false), (false, true)][random.usize(..3)];
    if about_instances {
        for number in 0..random.usize(1..=3) {
            let (world, etcd) = (world.clone(), of(number));
            tasks.spawn(InstanceOwner { world, etcd, number, random: random.fork() }.run());
        }
    }
    for number in 0..watchers {
        tasks.spawn(watcher(world.clone(), of(number + 1), number));
    }
    if about_locks {
        let resource = Arc::<Mutex<Resource>>::default();
        for number in 0..random.usize(2..=4) {
            let (world, etcd, resource) = (world.clone(), of(number), Arc::clone(&resource));
            lockers.spawn(Locker { world, etcd, number, resource, random: random.fork() }.run());
        }
    }
    let end = between(&mut random, 4_000, 30_000);
    nemesis(world.clone(), links, end, random.fork()).await;
    world.shared().stopping = true;
    finish(&world, &mut tasks, &mut lockers, clients).await;
    check_counters(&world, &etcds);
    tasks.shutdown().await;
    // Watchers do not see the changes of the end, so they do not belong to the journal that is checked.
    let journal = world.fake.journal();
    close(&world, &etcds).await;
    judge(&world, &journal)
}

/// Waits for a condition. Records a violation if it does not hold within `limit`.
async fn heals<F: Future<Output = Result<(), String>>>(
    world: &World,
    limit: Duration,
    what: &str,
    mut check: impl FnMut() -> F,
) {
    let begun = Instant::now();
    while let Err(seen) = check().await {
        if begun.elapsed() >= limit {
            return world.broken(format!("not within {limit:?}: {what}; last seen: {seen}"));
        }
        tokio::time::sleep(CONDITION_POLL).await;
    }
    world.log(|| format!("{what}, after {:?}", begun.elapsed()));
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
async fn finish(world: &World, tasks: &mut JoinSet<()>, lockers: &mut JoinSet<()>, clients: usize) {
    let owners = tasks.len() - world.shared().record.instances.watchers();
    heals(world, HEALING, "every owner has its last instance", || async {
        let have = world.shared().wanted.len();
        if have == owners { Ok(()) } else { Err(format!("{have} of {owners}")) }
    })
    .await;
    heals(world, HEALING, "exactly the wanted instances are stored, with their last weights", || async {
        let (now, wanted) = (stored(world), world.shared().wanted.clone());
        if now == wanted { Ok(()) } else { Err(format!("{now:?} instead of {wanted:?}")) }
    })
    .await;
    let all = async { while lockers.join_next().await.is_some() {} };
    if tokio::time::timeout(HEALING, all).await.is_err() {
        world.broken(format!("not within {HEALING:?}: all lockers have had their turn"));
        lockers.shutdown().await;
    }
    heals(world, HEALING, "the lock's queue is empty", || async {
        let queue = world.fake.under(LOCK_QUEUE.as_bytes());
        let keys = queue.iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned());
        let entries: Vec<String> = keys.filter(|key| !key.contains("garbage")).collect();
        if entries.is_empty() { Ok(()) } else { Err(format!("{entries:?}")) }
    })
    .await;
    // A last change, which all watchers have to show.
    world.fake.put(format!("{INSTANCES}last"), r#"{"v":1,"id":"last","endpoints":["h:1"],"weight":1}"#);
    let misses = world.shared().delivery == Delivery::Lossy;
    heals(world, if misses { HEALING } else { WATCH_HEALING }, "all watchers show the last change", || async {
        let missing = world.shared().record.instances.behind(u64::try_from(world.fake.revision()).unwrap_or(0));
        if missing.is_empty() { Ok(()) } else { Err(format!("watchers {missing:?} do not")) }
    })
    .await;
    check_resolve(world).await;
    check_request_rate(world, clients);
}

/// Checks that a new client resolves the stored instances.
async fn check_resolve(world: &World) {
    let (etcd, _) = world.client();
    match etcd.resolve(&service()).await {
        Ok(snapshot) => {
            let now: BTreeMap<_, _> = snapshot
                .entries()
                .map(|entry| (entry.instance().id().to_string(), entry.instance().weight()))
                .collect();
            if now != stored(world) {
                world.broken(format!("resolved {now:?}, but stored is {:?}", stored(world)));
            }
        }
        Err(error) => world.broken(format!("a healthy etcd does not resolve: {error}")),
    }
}

fn check_request_rate(world: &World, clients: usize) {
    let requests = world.fake.requests();
    let count = requests.ranges + requests.txns + requests.grants + requests.renewals + requests.lease_questions;
    let count = u64::try_from(count + requests.watches).unwrap_or(u64::MAX);
    let seconds = world.micros() / 1_000_000 + 1;
    let clients = u64::try_from(clients).unwrap_or(u64::MAX);
    if count > MAX_REQUEST_RATE * seconds * clients {
        world.broken(format!("{count} requests in {seconds} s: {requests:?}"));
    }
}

/// Closes the clients, and checks that neither leases nor instances remain.
async fn close(world: &World, etcds: &[Etcd]) {
    for etcd in etcds {
        if let Err(error) = etcd.close().await {
            world.broken(format!("a client did not end in order: {error}"));
        }
    }
    // A lease that was granted after its caller had gone, and not revoked because etcd did not answer, has to expire.
    let calm = world.shared().calm;
    let limit = if calm { Duration::ZERO } else { LONGEST_TTL };
    heals(world, limit, "no lease remains", || async {
        let leases = world.fake.lease_ids();
        if leases.is_empty() { Ok(()) } else { Err(format!("{leases:?}")) }
    })
    .await;
    let remaining = stored(world);
    if remaining.keys().any(|id| id != "last") {
        world.broken(format!("after the end these remain: {remaining:?}"));
    }
}

/// Checks the counters of the clients.
fn check_counters(world: &World, etcds: &[Etcd]) {
    let sum = |counter| etcds.iter().map(|etcd| etcd.counters().get(counter)).sum::<u64>();
    let (losses, repairs) = (sum(Counter::LeaseLosses), sum(Counter::AuditRepairs));
    let (calm, honest) = {
        let shared = world.shared();
        (shared.calm, shared.delivery == Delivery::Complete)
    };
    if calm && losses > 0 {
        world.broken(format!("{losses} leases were lost without a cause"));
    }
    if honest && repairs > 0 {
        world.broken(format!("{repairs} keys were repaired by audits although no event was lost"));
    }
}

/// Returns the violations of the run, followed by those that the checkers of histories find.
fn judge(world: &World, journal: &[KeyChange]) -> Vec<String> {
    let mut shared = world.shared();
    let number = |revision: i64| u64::try_from(revision).unwrap_or(0);
    for change in journal {
        let micros = world.micros_at(change.at);
        let key = String::from_utf8_lossy(&change.key);
        if let Some(id) = key.strip_prefix(INSTANCES) {
            // Watchers do not show values that are no instances.
            let is_one = change.value.as_ref().is_some_and(|value| value.starts_with(b"{\"v\":1"));
            let version =
                is_one.then(|| Version { created: number(change.created), modified: number(change.revision) });
            shared.record.instances.changed(micros, number(change.revision), id, version);
        } else if key.starts_with(LOCK_QUEUE) && change.value.is_some() {
            shared.record.locks.queued(number(change.created), change.lease);
            if shared.revoked.contains(&change.lease) {
                shared.deleted.insert(number(change.created));
            }
        }
    }
    let value = shared.value;
    shared.record.locks.ended(value, Vec::new());
    let mut broken: Vec<String> = shared.broken.iter().cloned().collect();
    let about_instances = shared.record.instances.check().into_iter().filter(|violation| {
        use Violation::{CameBack, NotConverged, Torn};
        shared.delivery != Delivery::Lossy || matches!(violation, CameBack { .. } | NotConverged { .. } | Torn { .. })
    });
    broken.extend(about_instances.map(|violation| violation.to_string()));
    // A client without a connection notices a deletion when it is connected again, or when its lock validity ends.
    let about_locks = shared.record.locks.check().into_iter().filter(|violation| {
        let was_deleted = match violation {
            LockViolation::Overlap { token, .. } | LockViolation::OutOfOrder { token, .. } => {
                shared.deleted.contains(token)
            }
            _ => false,
        };
        !(was_deleted && shared.cut_off)
    });
    broken.extend(about_locks.map(|violation| violation.to_string()));
    broken
}
