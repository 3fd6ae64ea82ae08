//! First snapshot of a large service, next to reading the same range by pages.

use std::sync::Arc;

use enlist::{Directory, Moment, ServiceRef};
use etcd_client::{Client, GetOptions};

use crate::{
    measure::{Result, Spread, in_turns},
    report::{Bound, Report},
    world::{World, pair, range},
};

const INSTANCES: usize = 100_000;

/// Number of keys per page of the reference.
const PAGE: i64 = 1000;

pub(crate) async fn run(report: &mut Report) -> Result {
    let (world, service) = (World::start().await, ServiceRef::parse("large")?);
    world.fill(&service, INSTANCES).await?;
    let (ours, raw) = (world.ours().await?, world.raw().await?);
    let turns = in_turns(
        5,
        || async {
            let begun = Moment::now();
            let view = Directory::new(Arc::new(ours.clone())).view(&service);
            let known = view.ready().await?.len();
            let time = begun.elapsed();
            if known != INSTANCES {
                return Err(format!("{known} instances of {INSTANCES}").into());
            }
            Ok(time.as_secs_f64() * 1e3)
        },
        || async {
            let begun = Moment::now();
            let read = read_all(raw.clone(), &service, PAGE).await?;
            let time = begun.elapsed();
            if read != INSTANCES {
                return Err(format!("{read} keys of {INSTANCES}").into());
            }
            Ok(time.as_secs_f64() * 1e3)
        },
    )
    .await?;
    let case = "100,000 instances, beside a plain range by pages";
    report.turns("sync", case, "ms", &turns, Some(Bound::AtMost(0.8)));
    let value = pair(&service, INSTANCES / 2, 100)?.1.len();
    let value = Spread::exactly(f64::from(u32::try_from(value)?));
    report.number("sync", "size of a value", "bytes", value, None);
    let heap = super::helper("heap", &["sync", &world.url(), service.name().as_str()]).await?;
    let heap: f64 = heap.trim().parse()?;
    let case = "heap of a view of 100,000 instances, each";
    report.number("sync", case, "bytes", Spread::exactly(heap), Some(Bound::AtMost(700.0)));
    Ok(())
}

/// Reads a range by pages at one revision. Returns the number of keys.
pub(crate) async fn read_all(mut client: Client, service: &ServiceRef, page: i64) -> Result<usize> {
    let (mut from, end) = range(service)?;
    let (mut read, mut revision) = (0, 0);
    loop {
        let options = GetOptions::new().with_range(end.clone()).with_limit(page).with_revision(revision);
        let page = client.get(from, Some(options)).await?;
        revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
        read += page.kvs().len();
        match page.kvs().last() {
            Some(last) if page.more() => from = [last.key(), &[0]].concat(),
            _ => return Ok(read),
        }
    }
}
