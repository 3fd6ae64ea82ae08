//! The agent under load, beside a control plane on Envoy's go-control-plane. Both serve the same keys of the same etcd,
//! in turns, each to new clients. Begin with `changes.rs`.

mod ads;
mod changes;
mod events;

use std::{ops::Range, sync::Arc, time::Duration};

use enlist::{Moment, ServiceRef};
use etcd_client::Client;
use tokio::{sync::mpsc, task::JoinSet};

use self::changes::{Changes, service};
use super::{Plan, in_turns, library::Library, plan::Load, program::Program};
use crate::{
    measure::{Result, Spread, Turns, quantile},
    report::{Bound, Report},
    world::{World, micros, most_files, range},
};

/// Time after which servers are at rest.
const REST: Duration = Duration::from_secs(2);

/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;

/// A server with its clients.
struct Loaded {
    program: Program,
    clients: JoinSet<Result>,
    changes: Arc<Changes>,
    /// Number of clients of each service.
    followers: Vec<usize>,
}

/// Etcd with the services, and numbers for changes.
struct Store {
    world: World,
    writer: Client,
    /// Number of the next change.
    next: usize,
}

impl Store {
    async fn start(load: &Load) -> Result<Self> {
        most_files()?;
        let world = World::start().await;
        let mut writer = world.raw().await?;
        for number in 0..load.services {
            Library::Ours.fill(&mut writer, &service(number), load.instances).await?;
        }
        Ok(Self { world, writer, next: load.instances })
    }

    fn changes(&mut self, count: usize) -> Arc<Changes> {
        let first = self.next;
        self.next += count;
        Arc::new(Changes::new(first, count))
    }

    /// Starts a server. Returns it with its ports.
    async fn serve(&self, library: Library) -> Result<(Program, Vec<u16>)> {
        let prefix = String::from_utf8(range(&ServiceRef::parse("x")?)?.0)?;
        let prefix = prefix.strip_suffix("x/").ok_or("the keys of a service begin otherwise")?;
        let mut program = Program::start(library, "xds", &self.world.url(), &[prefix]).await?;
        program.say("go").await?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ports")]
        let ports = program.until("serves").await?.into_iter().map(|port| port as u16).collect();
        Ok((program, ports))
    }
}

impl Loaded {
    /// Makes some of the changes. Returns their times in milliseconds: the median, and that of 99 %.
    async fn times(&mut self, changes: Range<usize>, store: &Store, load: &Load) -> Result<[f64; 2]> {
        let times = tokio::select! {
            times = self.changes.make(changes, &store.writer, load, &self.followers) => times?,
            Some(ended) = self.clients.join_next() => {
                return Err(ended?.err().unwrap_or_else(|| "a client has ended".into()));
            }
        };
        Ok([quantile(&times, 0.5), quantile(&times, 0.99)])
    }

    /// Waits until all clients are ready.
    async fn wait(&mut self, mut ready: mpsc::Receiver<()>) -> Result {
        for _ in 0..self.clients.len() {
            tokio::select! {
                Some(()) = ready.recv() => {}
                Some(ended) = self.clients.join_next() => ended??,
            }
        }
        tokio::time::sleep(REST).await;
        Ok(())
    }
}

/// Measures clients of xDS.
pub(super) async fn run(report: &mut Report, plan: &Plan) -> Result {
    let mut store = Store::start(&plan.load).await?;
    let [median, tail, processor, memory] = in_turns(plan, Library::ControlPlane, async |library, _| {
        let mut loaded = subscribed(&mut store, &plan.load, library).await?;
        let (used, begun) = (loaded.program.processor_time().await?, Moment::now());
        let [median, tail] = loaded.times(0..plan.load.changes, &store, &plan.load).await?;
        let used = (loaded.program.processor_time().await? - used) / micros(begun.elapsed()) * 100.0;
        Ok([median, tail, used, mib(loaded.program.resident()?)])
    })
    .await?;
    let Load { clients, services, instances, .. } = plan.load;
    let case = format!("{clients} clients, {services} × {instances} instances, beside go-control-plane");
    report.turns("xds", format!("{case}: median"), "ms", &median, None);
    report.turns("xds", format!("{case}: 99 %"), "ms", &tail, None);
    report.turns("xds", format!("{case}: processor"), "%", &processor, None);
    report.turns("xds", format!("{case}: memory"), "MiB", &memory, plan.bound(Bound::AtMost(0.5)));
    let alone = Spread::of(tail.ours);
    report.number("xds", "from a change to the ACK: 99 %", "ms", alone, plan.bound(Bound::AtMost(100.0)));
    Ok(())
}

/// Starts a server with clients of xDS.
async fn subscribed(store: &mut Store, load: &Load, library: Library) -> Result<Loaded> {
    let (program, ports) = store.serve(library).await?;
    let (changes, mut followers) = (store.changes(load.changes), vec![0; load.services]);
    let (ready, are_ready) = mpsc::channel(load.clients);
    let mut clients = JoinSet::new();
    for client in 0..load.clients {
        let numbers = (0..load.subscriptions).map(|at| (client * load.subscriptions + at) % load.services);
        let names = numbers.inspect(|number| followers[*number] += 1).map(service).collect();
        clients.spawn(ads::follow(ports[0], names, Arc::clone(&changes), ready.clone()));
    }
    let mut loaded = Loaded { program, clients, changes, followers };
    loaded.wait(are_ready).await?;
    Ok(loaded)
}

/// Measures clients of events.
pub(super) async fn events(report: &mut Report, plan: &Plan) -> Result {
    let mut store = Store::start(&plan.load).await?;
    let (mut median, mut tail, mut grown) = (Turns::default(), Turns::default(), Vec::new());
    for _ in 0..plan.rounds {
        let (program, ports) = store.serve(Library::Ours).await?;
        let port = *ports.get(1).ok_or("no HTTP")?;
        let mut loaded = read(&mut store, &plan.load, program, port).await?;
        let count = plan.load.changes;
        let without = loaded.times(0..count, &store, &plan.load).await?;
        let before = loaded.program.resident()?;
        let mut mute = Vec::new();
        for _ in 0..plan.load.mute {
            mute.push(events::mute(port).await?);
        }
        tokio::time::sleep(REST).await;
        let with = loaded.times(count..2 * count, &store, &plan.load).await?;
        grown.push(mib(loaded.program.resident()? - before));
        for (turns, (with, without)) in [&mut median, &mut tail].into_iter().zip(with.into_iter().zip(without)) {
            turns.ours.push(with);
            turns.reference.push(without);
        }
    }
    let Load { readers, mute, .. } = plan.load;
    let case = format!("{readers} clients, and {mute} that do not read, beside none of these");
    report.turns("events", format!("{case}: median"), "ms", &median, plan.bound(Bound::AtMost(1.2)));
    report.turns("events", format!("{case}: 99 %"), "ms", &tail, plan.bound(Bound::AtMost(1.5)));
    let case = format!("memory of {mute} that do not read");
    report.number("events", case, "MiB", Spread::of(grown), plan.bound(Bound::AtMost(20.0)));
    Ok(())
}

/// Starts clients of events, which read one service each, for twice the changes.
async fn read(store: &mut Store, load: &Load, program: Program, port: u16) -> Result<Loaded> {
    let (changes, mut followers) = (store.changes(2 * load.changes), vec![0; load.services]);
    let (ready, are_ready) = mpsc::channel(load.readers);
    let mut clients = JoinSet::new();
    for client in 0..load.readers {
        let number = client % load.services;
        followers[number] += 1;
        clients.spawn(events::follow(port, service(number), Arc::clone(&changes), ready.clone()));
    }
    let mut loaded = Loaded { program, clients, changes, followers };
    loaded.wait(are_ready).await?;
    Ok(loaded)
}

/// Returns bytes in MiB.
#[expect(clippy::cast_precision_loss, reason = "memory of a process")]
fn mib(bytes: i64) -> f64 {
    bytes as f64 / MIB
}
