//! Locks and elections, beside etcd's package `concurrency`.

use std::time::Duration;

use enlist::Moment;
use etcd_client::{Client, GetOptions, KeyValue, SortOrder, SortTarget};

use super::{Plan, in_turns, library::Library, program::Program};
use crate::{
    measure::{Result, Spread},
    report::{Bound, Report},
    scenarios::lock::Others,
    world::World,
};

/// Puts per second of other clients, and the minimum ratios of the grants with them, by the number of sessions.
const BUSY: [(usize, f64); 4] = [(2, 5.0), (5, 3.0), (10, 2.0), (50, 1.1)];

/// Time in which contenders enter the queue.
const QUEUED: Duration = Duration::from_millis(500);

/// Pairs of puts whose median is the unit in which the time of a resignation is judged.
const PAIRS: u32 = 5;

/// Time before each pair.
const REST: Duration = Duration::from_millis(200);

/// Maximum time until a leader renews its lease, and the interval at which that is checked.
const RENEWED: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// The library with locks.
const PEER: Library = Library::Naming;

/// Its name in the report.
const NAME: &str = "concurrency";

pub(super) async fn contended(report: &mut Report, plan: &Plan) -> Result {
    let world = World::start().await;
    for busy in [false, true] {
        let others = if busy { Some(Others::start(&world).await?) } else { None };
        let meanwhile = if busy { ", 500 puts/s" } else { "" };
        for sessions in plan.sessions.iter().copied() {
            let [rate, requests, processor] = in_turns(plan, PEER, async |library, round| {
                let name = format!("contended-{sessions}{busy}{round}");
                let mut program =
                    Program::start(library, "contend", &world.url(), &[&name, &sessions.to_string()]).await?;
                program.say("go").await?;
                handovers(&world, &mut program, sessions, plan.contention, || others.as_ref().map_or(0, Others::puts))
                    .await
            })
            .await?;
            let least = BUSY.iter().find(|(count, _)| busy && *count == sessions).map(|bound| Bound::AtLeast(bound.1));
            let case = format!("{sessions} sessions{meanwhile}, beside {NAME}");
            report.turns("contended", &*case, "per s", &rate, plan.bound(least));
            let most = plan.bound(Bound::AtMost(1.0));
            report.turns("contended", format!("{case}: requests of a grant"), "", &requests, most);
            report.turns("contended", format!("{case}: processor of a grant"), "µs", &processor, None);
        }
    }
    Ok(())
}

/// Returns the handovers per second, and the requests and the processor time of each.
async fn handovers(
    world: &World,
    program: &mut Program,
    sessions: usize,
    length: Duration,
    others: impl Fn() -> u64,
) -> Result<[f64; 3]> {
    // Each has held the lock a few times.
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let enough = 3.0 * sessions as f64;
    let begun = Moment::now();
    while count(program).await?[0] < enough {
        if begun.elapsed() > Duration::from_secs(60) {
            return Err("the contenders do not get the lock".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let mut state = async || {
        let [grants, time, checks] = count(program).await?;
        let requests = world.requests().await? - checks - others() as f64;
        Result::Ok([grants, time, requests, program.processor_time().await?])
    };
    let before = state().await?;
    tokio::time::sleep(length).await;
    let after = state().await?;
    let [grants, time, requests, used] = std::array::from_fn(|at| after[at] - before[at]);
    let each = grants.max(1.0);
    Ok([grants / (time / 1e6), requests / each, used / each])
}

/// Returns the grants so far, the microseconds in which they happened, and the requests that belong to none.
async fn count(program: &mut Program) -> Result<[f64; 3]> {
    program.say("count").await?;
    program.three("count").await
}

pub(super) async fn alone(report: &mut Report, plan: &Plan) -> Result {
    let world = World::start().await;
    let [rate, processor] = in_turns(plan, PEER, async |library, round| {
        let arguments = [&*format!("alone-{round}"), &plan.acquisitions.to_string()];
        let mut program = Program::start(library, "lock", &world.url(), &arguments).await?;
        let (time, used) = (program.ask("go", "locked").await?, program.processor_time().await?);
        let count = f64::from(plan.acquisitions);
        Ok([count / (time / 1e6), used / count])
    })
    .await?;
    let case = format!("acquire and release, beside {NAME}");
    report.turns("lock", &*case, "per s", &rate, plan.bound(Bound::AtLeast(1.0)));
    report.turns("lock", format!("{case}: processor"), "µs", &processor, None);
    Ok(())
}

pub(super) async fn election(report: &mut Report, plan: &Plan) -> Result {
    let world = World::start().await;
    let mut writer = world.raw().await?;
    let [resigned, killed, round_trip] = in_turns(plan, PEER, async |library, round| {
        let (name, ttl) = (format!("led-{round}"), plan.ttl.to_string());
        let candidate = async |value: &str| {
            let mut program = Program::start(library, "campaign", &world.url(), &[&name, value, &ttl]).await?;
            program.say("go").await?;
            Result::Ok(program)
        };
        let mut first = candidate("first").await?;
        first.until("leads").await?;
        let mut second = candidate("second").await?;
        tokio::time::sleep(QUEUED).await;
        let begun = Moment::now();
        first.say("resign").await?;
        second.until("leads").await?;
        let resigned = begun.elapsed();
        first.until("resigned").await?;
        let round_trip = round_trip(&mut writer).await?;
        first.say("go").await?;
        tokio::time::sleep(QUEUED).await;
        renewed(&mut writer, &name).await?;
        let begun = Moment::now();
        second.kill().await?;
        first.until("leads").await?;
        Ok([resigned.as_secs_f64() * 1e3, begun.elapsed().as_secs_f64() * 1e3, round_trip])
    })
    .await?;
    report.turns("election", format!("resign to the next leader, beside {NAME}"), "ms", &resigned, None);
    let round_trips = resigned.ours.iter().zip(&round_trip.ours).map(|(resigned, round_trip)| resigned / round_trip);
    let most = plan.bound(Bound::AtMost(3.0));
    report.number("election", "resign to the next leader, in round trips", "", Spread::of(round_trips), most);
    let case = format!("SIGKILL after a renewal to the next leader, TTL {} s", plan.ttl);
    report.turns("election", format!("{case}, beside {NAME}"), "ms", &killed, None);
    let most = plan.bound(Bound::AtMost(f64::from(plan.ttl + 1) * 1e3));
    let latest = Spread::exactly(killed.ours.into_iter().fold(0.0, f64::max));
    report.number("election", format!("{case}, the latest of all rounds"), "ms", latest, most);
    Ok(())
}

/// Waits for a renewal of the leader's lease, so that it has its whole TTL left. etcd reports what is left in seconds.
async fn renewed(client: &mut Client, election: &str) -> Result {
    let oldest = GetOptions::new().with_all_keys().with_keys_only().with_sort(SortTarget::Create, SortOrder::Ascend);
    let keys = client.get("", Some(oldest)).await?;
    let is_leaders = |key: &&KeyValue| key.key_str().is_ok_and(|key| key.contains(election));
    let lease = keys.kvs().iter().find(is_leaders).ok_or("there is no leader")?.lease();
    let (begun, mut left) = (Moment::now(), i64::MAX);
    while begun.elapsed() < RENEWED {
        let now = client.lease_client().time_to_live(lease, None).await?.ttl();
        if now > left {
            return Ok(());
        }
        left = now;
        tokio::time::sleep(POLL).await;
    }
    Err("the leader's lease is not renewed".into())
}

/// Returns the milliseconds of a round trip: half of a pair of puts, the first of which follows a rest.
///
/// A resignation is two writes, the removal of the leader's queue entry and the confirmation of its successor. Only the
/// first one follows a rest, which makes it slower.
async fn round_trip(writer: &mut Client) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..PAIRS {
        tokio::time::sleep(REST).await;
        let begun = Moment::now();
        for _ in 0..2 {
            writer.put("round-trip", "value", None).await?;
        }
        times.push(begun.elapsed().as_secs_f64() * 1e3 / 2.0);
    }
    Ok(Spread::of(times).median)
}
