//! Changes that do not fit into a message of a watch, next to reading the result by pages.

use std::{sync::Arc, time::Duration};

use enlist::{Counter, Directory, Moment, ServiceRef, Snapshot, ViewChanges};
use enlist_etcd::{
    Etcd, Native,
    layout::{Layout, Writing},
};
use etcd_client::{Client, DeleteOptions};

use super::sync::read_all;
use crate::{
    measure::{Result, Spread, Turns},
    report::{Bound, Report},
    world::{World, instance, pair, range},
};

/// Revisions that a watch catches up with, and the bytes of each.
const REVISIONS: usize = 1000;
const BYTES: usize = 1 << 20;

/// Instances that the revisions change.
const CHANGED: usize = 10;

/// Values of a megabyte in a page, below the limit of a plain client, 4 MiB.
const LARGE_PAGE: i64 = 3;

/// Bytes of a value beside its large part, at most.
const OVERHEAD: usize = 1024;

/// Instances before a loss, and after it. A view that would become empty is kept for a while.
const MANY: usize = 1_000_000;
const LEFT: usize = 10;

/// Maximum time until a view is exact.
const LIMIT: Duration = Duration::from_secs(300);

/// A view misses revisions that are a gigabyte together, and catches up.
pub(crate) async fn catch_up(report: &mut Report) -> Result {
    let (world, service) = (World::start().await, ServiceRef::parse("large")?);
    let (mut raw, proxy) = (world.raw().await?, world.proxy().await?);
    for number in 0..CHANGED {
        store(&mut raw, &service, number, 0).await?;
    }
    let ours = Etcd::connect(proxy.url()).await?;
    let mut changes = Directory::new(Arc::new(ours.clone())).view(&service).changes();
    until(&mut changes, |snapshot| snapshot.len() == CHANGED).await?;
    proxy.cut();
    for revision in 1..=REVISIONS {
        store(&mut raw, &service, revision % CHANGED, revision).await?;
    }
    let before = ours.counters().get(Counter::WatchRelists);
    proxy.heal();
    let begun = Moment::now();
    until(&mut changes, |snapshot| {
        // The last revision of each instance.
        (REVISIONS - CHANGED + 1..=REVISIONS).all(|revision| shows(snapshot, revision % CHANGED, revision))
    })
    .await?;
    let time = begun.elapsed().as_secs_f64() * 1e3;
    let begun = Moment::now();
    if read_all(raw, &service, LARGE_PAGE).await? != CHANGED {
        return Err("another number of keys".into());
    }
    let turns = Turns { ours: vec![time], reference: vec![begun.elapsed().as_secs_f64() * 1e3] };
    let case = format!("{REVISIONS} revisions of 1 MiB, beside a plain range by pages");
    report.turns("catch-up", case, "ms", &turns, None);
    if ours.counters().get(Counter::WatchRelists) == before {
        return Err("the range was not listed again, so the revisions fitted into messages".into());
    }
    report_lists(report, "catch-up", &ours, before)
}

/// All but a few of a million instances are deleted in one revision.
pub(crate) async fn million(report: &mut Report) -> Result {
    let (world, service) = (World::start().await, ServiceRef::parse("large")?);
    world.fill(&service, MANY).await?;
    let (mut raw, ours) = (world.raw().await?, world.ours().await?);
    let mut changes = Directory::new(Arc::new(ours.clone())).view(&service).changes();
    until(&mut changes, |snapshot| snapshot.len() == MANY).await?;
    let before = ours.counters().get(Counter::WatchRelists);
    let ((first, _), (_, end)) = (pair(&service, LEFT, 100)?, range(&service)?);
    let begun = Moment::now();
    let (answered, shown) = tokio::join!(
        async { (raw.delete(first, Some(DeleteOptions::new().with_range(end))).await, begun.elapsed()) },
        async { (until(&mut changes, |snapshot| snapshot.len() == LEFT).await, begun.elapsed()) },
    );
    match answered.0 {
        // It waits for 7 s, and deletes the keys nevertheless.
        Err(etcd_client::Error::GRpcStatus(status)) if status.message().contains("timed out") => {}
        deleted => drop(deleted?),
    }
    shown.0?;
    let case = format!("{} of {MANY} lost in one revision", MANY - LEFT);
    let exact = Spread::exactly(shown.1.as_secs_f64() * 1e3);
    report.number("million", &*case, "ms", exact, Some(Bound::AtMost(60_000.0)));
    let answer = Spread::exactly(answered.1.as_secs_f64() * 1e3);
    report.number("million", format!("{case}: etcd's answer to the deletion"), "ms", answer, None);
    report_lists(report, "million", &ours, before)
}

/// Reports how often the range was listed again.
fn report_lists(report: &mut Report, scenario: &'static str, ours: &Etcd, before: u64) -> Result {
    let lists = u32::try_from(ours.counters().get(Counter::WatchRelists) - before)?;
    let lists = Spread::exactly(f64::from(lists));
    report.number(scenario, "times that the range was listed again", "", lists, Some(Bound::AtMost(1.0)));
    Ok(())
}

/// Waits for a state of a view.
async fn until(changes: &mut ViewChanges, is_reached: impl Fn(&Snapshot) -> bool) -> Result {
    let reached = async {
        while !is_reached(&changes.next().await?.snapshot) {}
        Result::Ok(())
    };
    tokio::time::timeout(LIMIT, reached).await.map_err(|_| "the view does not become exact")?
}

/// Stores an instance with a value of a megabyte, which names its revision.
async fn store(client: &mut Client, service: &ServiceRef, number: usize, revision: usize) -> Result {
    let (layout, padding) = (Native::default(), "x".repeat(BYTES - OVERHEAD));
    let instance = instance(number)?.with_version(revision.to_string()).with_metadata("padding", padding);
    let key = layout.key(service, instance.id(), None)?;
    client.put(key, layout.encode(service, &instance, &Writing::default())?, None).await?;
    Ok(())
}

fn shows(snapshot: &Snapshot, number: usize, revision: usize) -> bool {
    let Ok(instance) = instance(number) else { return false };
    let version = snapshot.get(instance.id()).and_then(|entry| entry.instance().version().map(str::to_owned));
    version == Some(revision.to_string())
}
