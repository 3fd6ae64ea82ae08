//! Costs by size, with the exponent of their growth.

use std::{sync::Arc, time::Duration};

use enlist::{Directory, Moment, PickPolicy, Resolver, ServiceRef, ServiceView};
use etcd_client::{Client, Txn};
use tokio::task::JoinSet;

use super::{change, lock};
use crate::{
    measure::{Result, Spread, processor_time, slope},
    report::Report,
    world::{World, micros, put},
};

/// Number of changes that watchers observe.
const CHANGES: u32 = 30;

pub(crate) async fn run(report: &mut Report) -> Result {
    instances(report).await?;
    watchers(report).await?;
    // Last: each session has a thread, and a publication costs more where a thousand threads were (`arc-swap`).
    contenders(report).await
}

/// Measures costs by size, then reports the exponent of each.
#[derive(Default)]
struct Table(Vec<(&'static str, Vec<(f64, f64)>)>);

impl Table {
    fn add(&mut self, report: &mut Report, what: &'static str, unit: &'static str, size: usize, cost: f64) {
        report.number("growth", format!("{what}, {size}"), unit, Spread::exactly(cost), None);
        #[expect(clippy::cast_precision_loss, reason = "sizes")]
        let point = (size as f64, cost);
        match self.0.iter_mut().find(|(name, _)| *name == what) {
            Some((_, points)) => points.push(point),
            None => self.0.push((what, vec![point])),
        }
    }

    fn slopes(self, report: &mut Report) {
        for (what, points) in self.0 {
            report.number("growth", format!("{what}: exponent"), "", Spread::exactly(slope(&points)), None);
        }
    }
}

async fn instances(report: &mut Report) -> Result {
    let mut table = Table::default();
    for size in [100, 1000, 10_000, 100_000] {
        let (world, service) = (World::start().await, ServiceRef::parse("growing")?);
        world.fill(&service, size).await?;
        let ours = world.ours().await?;
        let mut times = Vec::new();
        for _ in 0..3 {
            let begun = Moment::now();
            let view = Directory::new(Arc::new(ours.clone())).view(&service);
            view.ready().await?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        table.add(report, "first picture by instances", "ms", size, Spread::of(times).median);
        let heap: f64 =
            super::helper("heap", &["sync", &world.url(), service.name().as_str()]).await?.trim().parse()?;
        table.add(report, "heap of each by instances", "bytes", size, heap);
        let view = Directory::new(Arc::new(ours.clone())).view(&service);
        view.ready().await?;
        for (what, policy) in [
            ("picker's list built anew by instances", PickPolicy::RoundRobin),
            ("picker's ring built anew by instances", PickPolicy::ConsistentHash),
        ] {
            let mut times = Vec::new();
            for _ in 0..9 {
                let begun = Moment::now();
                view.picker(policy).pick()?;
                times.push(micros(begun.elapsed()));
            }
            table.add(report, what, "µs", size, Spread::of(times).median);
        }
        let updated = ring_update(&view, &mut world.raw().await?, &service).await?;
        table.add(report, "picker's ring updated by instances", "µs", size, updated);
        drop((view, world));
        let changed = change::at_size(size).await?;
        table.add(report, "change to view by instances", "µs", size, Spread::of(changed.latency.ours).median);
        table.add(
            report,
            "processor time of a change by instances",
            "µs",
            size,
            Spread::of(changed.processor.ours).median,
        );
    }
    table.slopes(report);
    Ok(())
}

/// Returns the microseconds of the first pick by key after the change of a weight, by a picker that picked before.
async fn ring_update(view: &ServiceView, writer: &mut Client, service: &ServiceRef) -> Result<f64> {
    let (mut picker, mut changes, mut times) = (view.picker(PickPolicy::ConsistentHash), view.changes(), Vec::new());
    picker.pick_for(b"key")?;
    changes.next().await?;
    for weight in 101..110 {
        writer.txn(Txn::new().and_then([put(service, 0, weight, None)?])).await?;
        tokio::time::timeout(Duration::from_secs(10), changes.next()).await??;
        let begun = Moment::now();
        picker.pick_for(b"key")?;
        times.push(micros(begun.elapsed()));
    }
    Ok(Spread::of(times).median)
}

async fn contenders(report: &mut Report) -> Result {
    let (world, mut table) = (World::start().await, Table::default());
    for count in [1, 10, 100, 1000] {
        let clients = lock::clients(&world, count).await?;
        let grants = lock::ours(&world, &clients, count).await?;
        table.add(report, "time of a grant by contenders, a session each", "µs", count, 1e6 / grants.per_second);
        table.add(report, "requests of a grant by contenders, a session each", "", count, grants.requests);
        lock::close(clients).await;
    }
    for count in [1, 10, 100, 1000] {
        let one = world.ours().await?;
        let grants = lock::ours(&world, std::slice::from_ref(&one), count).await?;
        table.add(report, "time of a grant by contenders, one session", "µs", count, 1e6 / grants.per_second);
        table.add(report, "requests of a grant by contenders, one session", "", count, grants.requests);
        lock::close(vec![one]).await;
    }
    table.slopes(report);
    Ok(())
}

async fn watchers(report: &mut Report) -> Result {
    let (world, service, mut table) = (World::start().await, ServiceRef::parse("watched")?, Table::default());
    world.fill(&service, 100).await?;
    let mut writer = world.raw().await?;
    let mut weight = 1000;
    for count in [1, 10, 100, 1000] {
        let ours = world.ours().await?;
        let requests = world.requests().await?;
        let (changed, mut news) = tokio::sync::mpsc::channel(count);
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let (mut watcher, changed) = (ours.watch(&service).await?, changed.clone());
            watcher.next().await?;
            tasks.spawn(async move { while watcher.next().await.is_ok() && changed.send(()).await.is_ok() {} });
        }
        let opened = world.requests().await? - requests;
        table.add(report, "requests to open watches of one service by watchers", "", count, opened);
        let (mut times, mut used) = (Vec::new(), 0.0);
        for _ in 0..CHANGES {
            weight += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (begun, before) = (Moment::now(), processor_time());
            writer.txn(Txn::new().and_then([put(&service, 0, weight, None)?])).await?;
            for _ in 0..count {
                tokio::time::timeout(Duration::from_secs(10), news.recv()).await?;
            }
            times.push(micros(begun.elapsed()));
            used += processor_time() - before;
        }
        table.add(report, "change to the last of them by watchers", "µs", count, Spread::of(times).median);
        let each = used / f64::from(CHANGES);
        table.add(report, "processor time of a change by watchers", "µs", count, each);
    }
    table.slopes(report);
    Ok(())
}
