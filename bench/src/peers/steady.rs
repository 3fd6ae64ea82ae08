//! A process with many registrations and views, while nothing changes.

use std::time::Duration;

use super::{Plan, in_turns, library::REGISTRARS, program::Program, registrations::revoke_all};
use crate::{measure::Result, report::Report, world::World};

/// Time after which a process is at rest: the watches of its own keys are open, and buffers are freed.
const REST: Duration = Duration::from_secs(10);

pub(super) async fn run(report: &mut Report, plan: &Plan) -> Result {
    let rest = plan.rest;
    for peer in REGISTRARS {
        let world = World::start().await;
        let client = world.raw().await?;
        let [processor, memory, messages] = in_turns(&plan.at_rest(), peer, async |library, round| {
            let (services, instances) = (rest.services.to_string(), rest.instances.to_string());
            let arguments = [&*format!("resting{round}"), &services, &instances];
            let mut program = Program::start(library, "steady", &world.url(), &arguments).await?;
            program.ask("go", "ready").await?;
            tokio::time::sleep(REST).await;
            let (used, sent) = (program.processor_time().await?, world.messages().await?);
            tokio::time::sleep(rest.length).await;
            let (used, sent) = (program.processor_time().await? - used, world.messages().await? - sent);
            let memory = program.ask("memory", "memory").await?;
            program.kill().await?;
            revoke_all(&client).await?;
            let seconds = rest.length.as_secs_f64();
            Ok([used / seconds / 1e4, memory / 1e6, sent / seconds])
        })
        .await?;
        let case = format!("{} instances, {} views, beside {}", rest.instances, rest.services, peer.name());
        report.turns("steady", format!("{case}: processor, of one core"), "%", &processor, None);
        report.turns("steady", format!("{case}: memory"), "MB", &memory, None);
        report.turns("steady", format!("{case}: messages to etcd"), "per s", &messages, None);
    }
    Ok(())
}
