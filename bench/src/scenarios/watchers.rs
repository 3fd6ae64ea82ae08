//! etcd's cost of a change that many processes watch. Each process is a session with a connection of its own.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{
    Directory, DirectoryOptions, Moment, ServiceRef, ServiceView, TaskOwner, ViewChanges, backend::MutexExt as _,
};
use enlist_etcd::Etcd;
use etcd_client::{Client, Txn};
use tokio::{sync::watch, time::Instant};

use crate::{
    measure::{Result, Spread, processor_time, quantile},
    report::Report,
    world::{World, instance, micros, put},
};

/// Instances of the watched service.
const INSTANCES: usize = 100_000;

/// Numbers of sessions at the first rate.
const SESSIONS: [u32; 3] = [1, 8, 64];

/// Changes per second with the largest number of sessions.
const RATES: [u32; 5] = [10, 50, 100, 200, 400];

/// Changes per second with each number of sessions, so many that their cost is above the resolution of etcd's clock.
const USUAL: u32 = 100;

/// Length of a measurement.
const LENGTH: Duration = Duration::from_secs(10);

/// Time after which watches are open and buffers are freed.
const REST: Duration = Duration::from_secs(10);

/// Maximum time until a view is complete, and until all have seen the last change of a measurement.
const LIMIT: Duration = Duration::from_secs(60);

/// Weight of the changing instance before its first change. Each change adds one.
const FIRST_WEIGHT: u32 = 1000;

/// Times at which the changes were due. One that is sent later, because etcd has not answered the one before, counts
/// from then, too.
type Due = Arc<Mutex<Vec<Instant>>>;

pub(crate) async fn run(report: &mut Report) -> Result {
    let (world, service) = (World::start().await, ServiceRef::parse("watched")?);
    world.fill(&service, INSTANCES).await?;
    let mut writer = Writer { client: world.raw().await?, service: service.clone(), due: Due::default() };
    let (mut sessions, mut costs) = (Vec::new(), Vec::new());
    for count in SESSIONS {
        for _ in sessions.len()..usize::try_from(count)? {
            sessions.push(Session::start(&world, &service, &writer.due).await?);
        }
        tokio::time::sleep(REST).await;
        // etcd still works on the instances, and later on the first lists.
        writer.load(&world, &mut sessions, USUAL).await?;
        let before = idle(&world).await?;
        let load = writer.load(&world, &mut sessions, USUAL).await?;
        let idle = f64::midpoint(before, idle(&world).await?);
        let each = (load.server - idle) / load.rate;
        costs.push(each);
        let case = format!("etcd's processor time of a change, {count} sessions, {USUAL} changes per second");
        report.number("watchers", case, "µs", Spread::exactly(each), None);
    }
    if let (Some(one), Some(all), [few, .., many]) = (costs.first(), costs.last(), SESSIONS) {
        let each = (all - one) / f64::from(many - few);
        report.number("watchers", "the same for each further session", "µs", Spread::exactly(each), None);
    }
    knee(report, &world, &mut writer, &mut sessions).await
}

/// Raises the rate until the latency doubles, and reports the last one before.
async fn knee(report: &mut Report, world: &World, writer: &mut Writer, sessions: &mut [Session]) -> Result {
    let (mut usual, mut knee, mut is_beyond) = (f64::INFINITY, 0.0, true);
    for rate in RATES {
        let load = writer.load(world, sessions, rate).await?;
        let (late, reached) = (quantile(&load.latencies, 0.99), load.rate);
        if rate == RATES[0] {
            usual = late;
        }
        let case = format!("{} sessions, {rate} changes per second", sessions.len());
        let mut add = |what: &str, unit, number| {
            report.number("watchers", format!("{case}: {what}"), unit, Spread::exactly(number), None);
        };
        add("written", "per s", reached);
        add("median until a view has it", "ms", quantile(&load.latencies, 0.5));
        add("99 %", "ms", late);
        add("etcd's processor, of one core", "%", load.server / 1e4);
        add("processor of the sessions and the writer, of one core", "%", load.own / 1e4);
        if late > 2.0 * usual {
            is_beyond = false;
            break;
        }
        knee = reached;
    }
    let least = if is_beyond { ", at least" } else { "" };
    let case = format!("{} sessions: changes per second before 99 % doubles{least}", sessions.len());
    report.number("watchers", case, "per s", Spread::exactly(knee), None);
    Ok(())
}

/// Returns etcd's processor time per second without changes, in microseconds.
async fn idle(world: &World) -> Result<f64> {
    let (begun, used) = (Moment::now(), world.processor_time().await?);
    tokio::time::sleep(LENGTH).await;
    Ok((world.processor_time().await? - used) / begun.elapsed().as_secs_f64())
}

/// Writes changes at a rate.
struct Writer {
    client: Client,
    service: ServiceRef,
    due: Due,
}

/// Result of a measurement.
struct Load {
    /// Changes per second that were reached.
    rate: f64,
    /// Sorted times from when a change was due to its publication by a view, in milliseconds.
    latencies: Vec<f64>,
    /// Processor time of etcd and of this process per second, in microseconds.
    server: f64,
    own: f64,
}

impl Writer {
    async fn load(&mut self, world: &World, sessions: &mut [Session], rate: u32) -> Result<Load> {
        for session in &*sessions {
            session.latencies.locked().clear();
        }
        let (server, own) = (world.processor_time().await?, processor_time());
        let (begun, mut due) = (Moment::now(), tokio::time::interval(Duration::from_secs(1) / rate));
        let mut changes = 0;
        while begun.elapsed() < LENGTH {
            let due = due.tick().await;
            self.change(due).await?;
            changes += 1;
        }
        let time = begun.elapsed().as_secs_f64();
        let (server, own) = ((world.processor_time().await? - server) / time, (processor_time() - own) / time);
        let last = self.due.locked().len();
        for session in &mut *sessions {
            let complete = session.seen.wait_for(|seen| *seen == last);
            tokio::time::timeout(LIMIT, complete).await.map_err(|_| "a session does not see the last change")??;
        }
        let mut latencies: Vec<f64> =
            sessions.iter().flat_map(|session| std::mem::take(&mut *session.latencies.locked())).collect();
        latencies.sort_unstable_by(f64::total_cmp);
        Ok(Load { rate: f64::from(changes) / time, latencies, server, own })
    }

    async fn change(&mut self, due: Instant) -> Result {
        let number = {
            let mut all = self.due.locked();
            all.push(due);
            u32::try_from(all.len())?
        };
        let change = put(&self.service, 0, FIRST_WEIGHT + number, None)?;
        self.client.txn(Txn::new().and_then([change])).await?;
        Ok(())
    }
}

/// A session that watches the service.
struct Session {
    _etcd: Etcd,
    _view: ServiceView,
    /// Number of the changes that the view has shown.
    seen: watch::Receiver<usize>,
    latencies: Arc<Mutex<Vec<f64>>>,
    _task: TaskOwner,
}

impl Session {
    async fn start(world: &World, service: &ServiceRef, due: &Due) -> Result<Self> {
        // An audit costs etcd more than many changes, and happens every five minutes only.
        let etcd = world.without_audits().await?;
        // Each change is published at once: a wait would be the same at all rates, and hide what they cost.
        let options = DirectoryOptions::new().debounce(Duration::ZERO);
        let view = Directory::with_options(Arc::new(etcd.clone()), options).view(service);
        tokio::time::timeout(LIMIT, view.ready()).await.map_err(|_| "a view is not complete")??;
        let (latencies, task) = (Arc::<Mutex<Vec<f64>>>::default(), TaskOwner::new());
        let (shown, seen) = watch::channel(due.locked().len());
        let following = follow(view.changes(), Arc::clone(due), shown, Arc::clone(&latencies));
        task.spawn_until_stopped("session", async move {
            // Its end is seen by the receiver of `seen`.
            let _ = following.await;
        })?;
        Ok(Self { _etcd: etcd, _view: view, seen, latencies, _task: task })
    }
}

/// Records the time of each change until a view has shown it, or a later one.
async fn follow(
    mut changes: ViewChanges,
    due: Due,
    shown: watch::Sender<usize>,
    latencies: Arc<Mutex<Vec<f64>>>,
) -> Result {
    let changing = instance(0)?.id().clone();
    loop {
        let snapshot = changes.next().await?.snapshot;
        let weight = snapshot.get(&changing).map_or(0, |entry| entry.instance().weight());
        let (before, now) = (*shown.borrow(), usize::try_from(weight.saturating_sub(FIRST_WEIGHT))?);
        if now > before {
            let times: Vec<f64> = due.locked()[before..now].iter().map(|due| micros(due.elapsed()) / 1e3).collect();
            latencies.locked().extend(times);
            shown.send_replace(now);
        }
    }
}
