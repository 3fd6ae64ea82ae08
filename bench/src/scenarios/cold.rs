//! Time from the start of a process to its first pick, next to a process that connects and reads the range.

use enlist::{Moment, ServiceRef};

use crate::{
    measure::{Result, in_turns},
    report::{Bound, Report},
    world::World,
};

pub(crate) async fn run(report: &mut Report) -> Result {
    let (world, service) = (World::start().await, ServiceRef::parse("cold")?);
    world.fill(&service, 1000).await?;
    let url = world.url();
    let start = |side: &'static str| {
        let (url, service) = (url.clone(), service.name().clone());
        async move {
            let begun = Moment::now();
            super::helper("cold", &[side, &url, service.as_str()]).await?;
            Ok(begun.elapsed().as_secs_f64() * 1e3)
        }
    };
    let turns = in_turns(25, || start("ours"), || start("raw")).await?;
    let case = "process to first pick, beside connecting and a plain range";
    report.turns("cold", case, "ms", &turns, Some(Bound::AtMost(1.5)));
    Ok(())
}
