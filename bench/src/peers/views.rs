//! Views of a service: changes, first snapshots, losses, and picks.

use std::{collections::HashMap, time::Duration};

use enlist::Moment;
use etcd_client::{Client, DeleteOptions};

use super::{
    Plan, in_turns,
    library::{Library, VIEWS, address, marked, service},
    program::Program,
};
use crate::{
    measure::{Result, Spread},
    report::{Bound, Report},
    world::{World, micros},
};

/// Pause between changes, longer than the interval between publications of a view of `enlist`.
const PAUSE: Duration = Duration::from_millis(60);

/// Time after which a program is at rest: buffers are freed, and the watch is open.
const REST: Duration = Duration::from_secs(1);

/// Instances that are not lost. A view of `enlist` that would become empty is kept for a while.
const LEFT: usize = 10;

/// Number of lost instances up to which go-zero's rounds take seconds.
const QUICK_LOSS: usize = 10_000;

/// Instances to pick from.
const PICKED: usize = 1000;

/// Starts a view of `count` instances. Returns the program, and the microseconds until it showed them.
async fn follow(world: &World, library: Library, count: usize) -> Result<(Program, f64)> {
    let subject = library.subject(&service(library))?;
    let mut program = Program::start(library, "follow", &world.url(), &[&subject, &count.to_string()]).await?;
    let ready = program.ask("go", "ready").await?;
    Ok((program, ready))
}

/// Stores `count` instances for `enlist` and for each of `peers`.
async fn filled(peers: &[Library], count: usize) -> Result<(World, Client)> {
    let world = World::start().await;
    let mut writer = world.raw().await?;
    for library in [Library::Ours].iter().chain(peers) {
        library.fill(&mut writer, &service(*library), count).await?;
    }
    Ok((world, writer))
}

pub(super) async fn change(report: &mut Report, plan: &Plan) -> Result {
    for size in plan.changing.iter().copied() {
        let (world, mut writer) = filled(&VIEWS, size).await?;
        let mut changes = HashMap::new();
        for peer in VIEWS {
            let [latency, processor] = in_turns(plan, peer, async |library, _| {
                let (mut program, _) = follow(&world, library, size).await?;
                tokio::time::sleep(REST).await;
                // It looks for changes in an interval.
                let polls = peer == Library::Kitex;
                let count = if polls { plan.polled_changes } else { plan.changes };
                let changes = changes.entry(library.name()).or_default();
                block(&mut writer, &mut program, library, changes, count).await
            })
            .await?;
            let slow = [Library::GoKit, Library::Kitex, Library::Kratos].contains(&peer);
            let most = match size {
                100 => Some(Bound::AtMost(1.1)),
                10_000 if slow => Some(Bound::AtMost(0.1)),
                _ => None,
            };
            let case = format!("one instance of {size} changes, beside {}", peer.name());
            report.turns("change", &*case, "µs", &latency, plan.bound(most));
            let case = format!("{case}: processor");
            report.turns("change", case, "µs", &processor, plan.bound(Bound::AtMost(1.0)));
        }
    }
    Ok(())
}

/// Returns the median latency and the mean processor time of a change, in microseconds.
async fn block(
    writer: &mut Client,
    program: &mut Program,
    library: Library,
    changes: &mut u32,
    count: u32,
) -> Result<[f64; 2]> {
    let (service, mut times) = (service(library), Vec::new());
    let mut used = 0.0;
    // The first change does not count.
    for change in 0..=count {
        let from = if *changes == 0 { address(0) } else { marked(*changes) };
        *changes += 1;
        let to = marked(*changes);
        let transaction = library.change(&service, &from, &to)?;
        tokio::time::sleep(PAUSE).await;
        if change == 1 {
            used = program.processor_time().await?;
        }
        let begun = Moment::now();
        let (written, seen) = tokio::join!(writer.txn(transaction), seen(program, &to));
        written?;
        seen?;
        if change > 0 {
            times.push(micros(begun.elapsed()));
        }
    }
    let used = program.processor_time().await? - used;
    Ok([Spread::of(times).median, used / f64::from(count)])
}

/// Waits until the view shows the changing instance at this address.
async fn seen(program: &mut Program, address: &str) -> Result {
    loop {
        if program.seen().await?.1 == address {
            return Ok(());
        }
    }
}

pub(super) async fn sync(report: &mut Report, plan: &Plan) -> Result {
    for size in plan.synced.iter().copied() {
        let (world, _writer) = filled(&VIEWS, size).await?;
        for peer in VIEWS {
            let [time, memory] = in_turns(plan, peer, async |library, _| {
                let (mut program, ready) = follow(&world, library, size).await?;
                tokio::time::sleep(REST).await;
                #[expect(clippy::cast_precision_loss, reason = "sizes")]
                let memory = program.ask("memory", "memory").await? / size as f64;
                Ok([ready / 1e3, memory])
            })
            .await?;
            let case = format!("{size} instances, beside {}", peer.name());
            report.turns("sync", &*case, "ms", &time, plan.bound(Bound::AtMost(1.0)));
            let case = format!("memory of each of {case}");
            report.turns("sync", case, "bytes", &memory, plan.bound(Bound::AtMost(0.5)));
        }
    }
    Ok(())
}

pub(super) async fn loss(report: &mut Report, plan: &Plan) -> Result {
    for size in plan.lost.iter().copied() {
        let world = World::start().await;
        let mut writer = world.raw().await?;
        for peer in VIEWS {
            // go-zero builds its whole list again for each deleted key, which takes a minute.
            let turns = if peer == Library::GoZero && size > QUICK_LOSS { plan.once() } else { *plan };
            let [time, processor] = in_turns(&turns, peer, async |library, _| {
                library.fill(&mut writer, &service(library), size).await?;
                let (mut program, _) = follow(&world, library, size).await?;
                tokio::time::sleep(REST).await;
                lose(&mut writer, &mut program, library, size).await
            })
            .await?;
            let most = (peer == Library::GoKit).then_some(Bound::AtMost(1.5));
            let case = format!("{} of {size} lost, beside {}", size - LEFT, peer.name());
            report.turns("loss", &*case, "ms", &time, plan.bound(most));
            report.turns("loss", format!("{case}: processor"), "ms", &processor, None);
            if peer == Library::GoKit {
                let case = format!("{} of {size} lost, until the view is exact", size - LEFT);
                let exact = Spread::of(time.ours);
                report.number("loss", case, "ms", exact, plan.bound(Bound::AtMost(2000.0)));
            }
        }
    }
    Ok(())
}

/// Deletes all but a few instances in one revision. Returns the milliseconds until the view shows it, and those of the
/// processor.
async fn lose(writer: &mut Client, program: &mut Program, library: Library, size: usize) -> Result<[f64; 2]> {
    let (from, end) = library.rest(&service(library), LEFT, size)?;
    let used = program.processor_time().await?;
    let begun = Moment::now();
    let deleted = writer.delete(from, Some(DeleteOptions::new().with_range(end)));
    let shown = async {
        while program.seen().await?.0 != LEFT {}
        Result::Ok(begun.elapsed())
    };
    let (deleted, shown) = tokio::join!(deleted, shown);
    let deleted = deleted?.deleted();
    if usize::try_from(deleted)? != size - LEFT {
        return Err(format!("{deleted} of {size} keys were deleted").into());
    }
    let used = program.processor_time().await? - used;
    Ok([shown?.as_secs_f64() * 1e3, used / 1e3])
}

pub(super) async fn pick(report: &mut Report, plan: &Plan) -> Result {
    let peer = Library::GoKit;
    let (world, _writer) = filled(&[peer], PICKED).await?;
    for threads in [1, 2] {
        let [time] = in_turns(plan, peer, async |library, _| {
            let subject = library.subject(&service(library))?;
            let arguments = [&*subject, &PICKED.to_string(), &threads.to_string(), &plan.picks.to_string()];
            let mut program = Program::start(library, "pick", &world.url(), &arguments).await?;
            Ok([program.ask("go", "picked").await?])
        })
        .await?;
        let most = (threads == 2).then_some(Bound::AtMost(0.1));
        let case = format!("round robin, {threads} threads, beside {}", peer.name());
        report.turns("pick", case, "ns", &time, plan.bound(most));
    }
    Ok(())
}
