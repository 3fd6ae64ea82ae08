//! One run: what takes part in it, and what has to be so at its end.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{Counter, Resolver};
use enlist_etcd::Etcd;
use enlist_testkit::{
    Written,
    history::{Version, Violation},
    lock_history::LockViolation,
};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    faults::nemesis,
    lockers::{Resource, locker},
    owners::{owner, watcher},
    world::{INSTANCES, LINE, Told, World, between, service},
};

/// Real seconds after which a run is killed.
pub(crate) const REAL_LIMIT: u32 = 60;

/// Time after the last fault within which everything has to be as it is wanted.
const HEALING: Duration = Duration::from_secs(150);

/// The same for watches that lost no event: they need no audit, which comes once a minute.
const WATCH_HEALING: Duration = Duration::from_secs(25);

/// The longest time for which a lease is granted in a run, and what looking for those that are over takes.
const LONGEST_TTL: Duration = Duration::from_secs(12);

/// Interval at which it is looked whether it is.
const LOOK: Duration = Duration::from_millis(500);

/// Requests for each second and client, on average, that nothing needs more of.
const BUSY: u64 = 60;

/// Runs everything that `seed` decides, and returns what was broken.
pub(crate) fn run(seed: u64, logs: bool) -> Vec<String> {
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without input and output needs nothing of the system");
    runtime.block_on(play(fastrand::Rng::with_seed(seed), logs))
}

async fn play(mut random: fastrand::Rng, logs: bool) -> Vec<String> {
    let clients = random.usize(2..=3);
    let watchers = random.usize(1..=2);
    let world = World::new(watchers, logs);
    let mut tasks = JoinSet::new();
    let mut lockers = JoinSet::new();
    let (etcds, links): (Vec<_>, Vec<_>) = (0..clients).map(|_| world.client()).unzip();
    let of = |number: usize| etcds[number % clients].clone();
    // Some runs are about one thing only.
    let (about_locks, about_instances) = [(true, true), (true, false), (false, true)][random.usize(..3)];
    if about_instances {
        for number in 0..random.usize(1..=3) {
            tasks.spawn(owner(world.clone(), of(number), number, random.fork()));
        }
    }
    for number in 0..watchers {
        tasks.spawn(watcher(world.clone(), of(number + 1), number));
    }
    if about_locks {
        let resource = Arc::<Mutex<Resource>>::default();
        for number in 0..random.usize(2..=4) {
            lockers.spawn(locker(world.clone(), of(number), number, Arc::clone(&resource), random.fork()));
        }
    }
    let end = between(&mut random, 4_000, 30_000);
    nemesis(world.clone(), links, end, random.fork()).await;
    world.shared().stopping = true;
    finish(&world, &mut tasks, &mut lockers, clients).await;
    count(&world, &etcds);
    tasks.shutdown().await;
    // What the end changes is shown to nobody any more.
    let journal = world.fake.journal();
    close(&world, &etcds).await;
    judge(&world, &journal)
}

/// Waits for a condition.
async fn heals<F: Future<Output = Result<(), String>>>(
    world: &World,
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> F,
) {
    let begun = Instant::now();
    while let Err(seen) = look().await {
        if begun.elapsed() >= limit {
            return world.broken(format!("not within {limit:?}: {what}; last seen: {seen}"));
        }
        tokio::time::sleep(LOOK).await;
    }
    world.log(|| format!("{what}, after {:?}", begun.elapsed()));
}

/// Instances that are stored under the service: identities and weights, without garbage.
fn stored(world: &World) -> BTreeMap<String, u32> {
    let pairs = world.fake.under(INSTANCES.as_bytes());
    let parse = |(_, value): &(Vec<u8>, Vec<u8>)| {
        let value: serde_json::Value = serde_json::from_slice(value).ok()?;
        let weight = value["weight"].as_u64().unwrap_or(1);
        Some((value["id"].as_str()?.to_owned(), u32::try_from(weight).ok()?))
    };
    pairs.iter().filter_map(parse).collect()
}

/// After the last fault: everything becomes as it is wanted.
async fn finish(world: &World, tasks: &mut JoinSet<()>, lockers: &mut JoinSet<()>, clients: usize) {
    let owners = tasks.len() - world.shared().record.instances.watchers();
    heals(world, HEALING, "every owner has its last instance", || async {
        let have = world.shared().wanted.len();
        if have == owners { Ok(()) } else { Err(format!("{have} of {owners}")) }
    })
    .await;
    heals(world, HEALING, "everybody is there with the last value, and nobody else", || async {
        let (now, wanted) = (stored(world), world.shared().wanted.clone());
        if now == wanted { Ok(()) } else { Err(format!("{now:?} instead of {wanted:?}")) }
    })
    .await;
    let all = async { while lockers.join_next().await.is_some() {} };
    if tokio::time::timeout(HEALING, all).await.is_err() {
        world.broken(format!("not within {HEALING:?}: all lockers have had their turn"));
        lockers.shutdown().await;
    }
    heals(world, HEALING, "nobody is in line", || async {
        let line = world.fake.under(LINE.as_bytes());
        let keys = line.iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned());
        let left: Vec<String> = keys.filter(|key| !key.contains("garbage")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    // A last change, after which all must agree.
    world.fake.put(format!("{INSTANCES}last"), r#"{"v":1,"id":"last","endpoints":["h:1"],"weight":1}"#);
    let misses = world.shared().told == Told::Less;
    heals(world, if misses { HEALING } else { WATCH_HEALING }, "all watchers show the end", || async {
        let missing = world.shared().record.instances.behind(u64::try_from(world.fake.revision()).unwrap_or(0));
        if missing.is_empty() { Ok(()) } else { Err(format!("watchers {missing:?} do not")) }
    })
    .await;
    let (quiet, _) = world.client();
    match quiet.resolve(&service()).await {
        Ok(snapshot) => {
            let now: BTreeMap<_, _> = snapshot
                .entries()
                .map(|entry| (entry.instance().id().to_string(), entry.instance().weight()))
                .collect();
            if now != stored(world) {
                world.broken(format!("resolved {now:?}, and stored is {:?}", stored(world)));
            }
        }
        Err(error) => world.broken(format!("a healthy etcd does not resolve: {error}")),
    }
    drop(quiet);
    let requests = world.fake.requests();
    let count = requests.ranges + requests.txns + requests.grants + requests.renewals + requests.lease_questions;
    let count = u64::try_from(count + requests.watches).unwrap_or(u64::MAX);
    let seconds = world.micros() / 1_000_000 + 1;
    let clients = u64::try_from(clients).unwrap_or(u64::MAX);
    if count > BUSY * seconds * clients {
        world.broken(format!("{count} requests in {seconds} s: {requests:?}"));
    }
}

/// The clients end in order, and leave nothing behind.
async fn close(world: &World, etcds: &[Etcd]) {
    for etcd in etcds {
        if let Err(error) = etcd.close().await {
            world.broken(format!("a client did not end in order: {error}"));
        }
    }
    // One that was granted late, for a caller that was gone, and not revoked because etcd was silent then, runs out.
    let calm = world.shared().calm;
    let limit = if calm { Duration::ZERO } else { LONGEST_TTL };
    heals(world, limit, "no lease is left", || async {
        let leases = world.fake.lease_ids();
        if leases.is_empty() { Ok(()) } else { Err(format!("{leases:?}")) }
    })
    .await;
    let left = stored(world);
    if left.keys().any(|id| id != "last") {
        world.broken(format!("after the end there is {left:?}"));
    }
}

/// Events that the clients counted and that must not have happened.
fn count(world: &World, etcds: &[Etcd]) {
    let sum = |counter| etcds.iter().map(|etcd| etcd.counters().get(counter)).sum::<u64>();
    let (losses, repairs) = (sum(Counter::LeaseLosses), sum(Counter::AuditRepairs));
    let (calm, honest) = {
        let shared = world.shared();
        (shared.calm, shared.told == Told::Everything)
    };
    if calm && losses > 0 {
        world.broken(format!("{losses} leases were lost for no reason"));
    }
    if honest && repairs > 0 {
        world.broken(format!("{repairs} keys were repaired by audits although no event was lost"));
    }
}

/// Findings of the checkers of histories, after those of the run.
fn judge(world: &World, journal: &[Written]) -> Vec<String> {
    let mut shared = world.shared();
    let number = |revision: i64| u64::try_from(revision).unwrap_or(0);
    for written in journal {
        let micros = world.micros_at(written.at);
        let key = String::from_utf8_lossy(&written.key);
        if let Some(id) = key.strip_prefix(INSTANCES) {
            // What is no instance is shown to nobody.
            let is_one = written.value.as_ref().is_some_and(|value| value.starts_with(b"{\"v\":1"));
            let version =
                is_one.then(|| Version { created: number(written.created), modified: number(written.revision) });
            shared.record.instances.changed(micros, number(written.revision), id, version);
        } else if key.starts_with(LINE) && written.value.is_some() {
            shared.record.locks.placed(number(written.created), written.lease);
            if shared.revoked.contains(&written.lease) {
                shared.deleted.insert(number(written.created));
            }
        }
    }
    let value = shared.value;
    shared.record.locks.ended(value, Vec::new());
    let mut broken: Vec<String> = shared.broken.iter().cloned().collect();
    let about_instances = shared.record.instances.check().into_iter().filter(|violation| {
        use Violation::{CameBack, NotConverged, Torn};
        shared.told != Told::Less || matches!(violation, CameBack { .. } | NotConverged { .. } | Torn { .. })
    });
    broken.extend(about_instances.map(|violation| violation.to_string()));
    // Who is cut off hears of a robbery when it is back, or when the lease is over by its own clock.
    let about_locks = shared.record.locks.check().into_iter().filter(|violation| {
        let robbed = match violation {
            LockViolation::Overlap { token, .. } | LockViolation::OutOfOrder { token, .. } => {
                shared.deleted.contains(token)
            }
            _ => false,
        };
        !(robbed && shared.cut_off)
    });
    broken.extend(about_locks.map(|violation| violation.to_string()));
    broken
}
