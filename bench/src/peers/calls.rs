//! Calls to three servers, beside grpc-go's balancer and tonic's.

use std::time::Duration;

use enlist::TaskOwner;

use super::{
    Plan, in_turns,
    library::{Library, service},
    program::Program,
};
use crate::{
    measure::Result,
    report::{Bound, Report},
    scenarios::grpc::serve,
    world::World,
};

/// Number of servers, in this process.
const SERVERS: usize = 3;

pub(super) async fn run(report: &mut Report, plan: &Plan) -> Result {
    let (world, tasks) = (World::start().await, TaskOwner::new());
    let mut writer = world.raw().await?;
    let mut addresses = Vec::new();
    for _ in 0..SERVERS {
        addresses.push(serve(&tasks, Duration::ZERO).await?.to_string());
    }
    for library in [Library::Ours, Library::GrpcGo, Library::Tonic] {
        library.store(&mut writer, &service(library), &addresses).await?;
    }
    for (callers, size) in [(1_u32, 0), (8, 0), (64, 0), (1, 64 << 10), (64, 64 << 10)] {
        for peer in [Library::GrpcGo, Library::Tonic] {
            let calls = if size == 0 { plan.calls } else { plan.calls / 4 };
            let [rate, median, tail, processor] = in_turns(plan, peer, async |library, _| {
                let calls = (calls / callers).max(1);
                let numbers = [SERVERS.to_string(), size.to_string(), callers.to_string(), calls.to_string()];
                let [servers, size, callers_text, calls_text] = numbers.each_ref().map(String::as_str);
                let arguments = [&*service(library), servers, size, callers_text, calls_text];
                let mut program = Program::start(library, "call", &world.url(), &arguments).await?;
                program.say("go").await?;
                let [time, median, tail] = program.three("called").await?;
                let made = f64::from(calls * callers);
                Ok([made / (time / 1e6), median, tail, program.processor_time().await? / made])
            })
            .await?;
            let case = format!("{callers} callers, {} KiB, beside {}", size >> 10, peer.name());
            report.turns("calls", &*case, "per s", &rate, plan.bound(Bound::AtLeast(1.0)));
            report.turns("calls", format!("{case}: median"), "µs", &median, None);
            report.turns("calls", format!("{case}: 99 %"), "µs", &tail, plan.bound(Bound::AtMost(1.0)));
            report.turns("calls", format!("{case}: processor of a call"), "µs", &processor, None);
        }
    }
    Ok(())
}
