//! Latency and cost of changes from the store to a view, next to a plain watch of the same range.

use std::{sync::Arc, time::Duration};

use enlist::{Directory, Moment, ServiceRef, ViewChanges};
use etcd_client::{Client, Txn, WatchOptions, WatchStream};
use futures::{StreamExt, TryStreamExt};

use crate::{
    measure::{Result, Spread, Turns, in_turns, processor_time, slope},
    report::{Bound, Report},
    world::{World, micros, pair, put, range},
};

/// Number of changes of one side before the other side's turn.
const BLOCK: u32 = 40;

const ROUNDS: usize = 4;

/// Pause between changes, longer than the publication interval of a view.
const PAUSE: Duration = Duration::from_millis(60);

/// Maximum latency of a change.
const LIMIT: Duration = Duration::from_secs(30);

/// Number of changes in a burst.
const BURST: usize = 10_000;

/// Number of concurrent puts.
const AT_ONCE: usize = 64;

/// An observer of the weight of instance 0.
#[async_trait::async_trait]
trait Follower: Send {
    async fn until_weight(&mut self, weight: u32) -> Result;
}

#[async_trait::async_trait]
impl Follower for ViewChanges {
    async fn until_weight(&mut self, weight: u32) -> Result {
        let id = crate::world::instance(0)?.id().clone();
        loop {
            let snapshot = self.next().await?.snapshot;
            if snapshot.get(&id).is_some_and(|entry| entry.instance().weight() == weight) {
                return Ok(());
            }
        }
    }
}

/// A plain watch of the service.
struct Plain {
    stream: WatchStream,
    service: ServiceRef,
}

#[async_trait::async_trait]
impl Follower for Plain {
    async fn until_weight(&mut self, weight: u32) -> Result {
        let (key, value) = pair(&self.service, 0, weight)?;
        loop {
            let message = self.stream.message().await?.ok_or("the watch ended")?;
            let mut pairs = message.events().iter().filter_map(|event| event.kv());
            if pairs.any(|pair| pair.key() == key && pair.value() == value) {
                return Ok(());
            }
        }
    }
}

/// Starts a plain watch of a service at the current revision.
pub(crate) async fn plain_watch(client: &mut Client, service: &ServiceRef) -> Result<WatchStream> {
    let (start, end) = range(service)?;
    let mut stream = client.watch(start, Some(WatchOptions::new().with_range(end).with_fragment())).await?;
    stream.message().await?.ok_or("the watch ended")?;
    Ok(stream)
}

pub(crate) async fn run(report: &mut Report) -> Result {
    let mut times = Vec::new();
    for size in [100, 1000, 10_000, 100_000] {
        let measured = at_size(size).await?;
        let case = format!("one instance of {size} changes, beside a plain watch");
        report.turns("change", case, "µs", &measured.latency, Some(Bound::AtMost(1.25)));
        times.push((size, measured));
    }
    let processor: Vec<f64> =
        times.iter().map(|(_, measured)| Spread::of(measured.processor.ours.clone()).median).collect();
    if let [small, .., large] = &times[..] {
        let turns = Turns { ours: large.1.processor.ours.clone(), reference: small.1.processor.ours.clone() };
        let case = "processor time of a change among 100,000, beside 100";
        report.turns("change", case, "µs", &turns, Some(Bound::AtMost(1.5)));
    }
    #[expect(clippy::cast_precision_loss, reason = "sizes")]
    let points: Vec<_> = times.iter().zip(processor).map(|((size, _), time)| (*size as f64, time)).collect();
    report.number("change", "exponent of the processor time by size", "", Spread::exactly(slope(&points)), None);
    Ok(())
}

/// Cost of a change in a service of a given size.
pub(crate) struct Change {
    /// Time from sending a change to observing it, in microseconds.
    pub(crate) latency: Turns,
    /// Processor time of this process per change, in microseconds, including the write.
    pub(crate) processor: Turns,
}

pub(crate) async fn at_size(size: usize) -> Result<Change> {
    let (world, service) = (World::start().await, ServiceRef::parse("changing")?);
    world.fill(&service, size).await?;
    let ours = world.ours().await?;
    let (mut writer, mut watcher) = (world.raw().await?, world.raw().await?);
    let (mut our_processor, mut their_processor) = (Vec::new(), Vec::new());
    let mut weight = 1000;
    let mut turns = Turns::default();
    for round in 0..=ROUNDS {
        let view = Directory::new(Arc::new(ours.clone())).view(&service);
        view.ready().await?;
        let mut changes = view.changes();
        let (latency, processor) = block(&mut writer, &service, &mut weight, &mut changes).await?;
        drop((view, changes));
        let mut plain = Plain { stream: plain_watch(&mut watcher, &service).await?, service: service.clone() };
        let (plain_latency, plain_processor) = block(&mut writer, &service, &mut weight, &mut plain).await?;
        if round > 0 {
            turns.ours.push(latency);
            turns.reference.push(plain_latency);
            our_processor.push(processor);
            their_processor.push(plain_processor);
        }
    }
    Ok(Change { latency: turns, processor: Turns { ours: our_processor, reference: their_processor } })
}

/// Returns the median latency and the mean processor time of a change, in microseconds.
async fn block(
    writer: &mut Client,
    service: &ServiceRef,
    weight: &mut u32,
    follower: &mut impl Follower,
) -> Result<(f64, f64)> {
    let mut times = Vec::new();
    // Background work of opening the watch does not count.
    tokio::time::sleep(PAUSE * 5).await;
    let mut processor = 0.0;
    for change in 0..=BLOCK {
        tokio::time::sleep(PAUSE).await;
        *weight += 1;
        let txn = Txn::new().and_then([put(service, 0, *weight, None)?]);
        let (begun, used) = (Moment::now(), processor_time());
        let (written, seen) =
            tokio::join!(writer.txn(txn), tokio::time::timeout(LIMIT, follower.until_weight(*weight)));
        written?;
        seen.map_err(|_| "the change was not seen")??;
        if change > 0 {
            times.push(micros(begun.elapsed()));
            processor += processor_time() - used;
        }
    }
    Ok((Spread::of(times).median, processor / f64::from(BLOCK)))
}

pub(crate) async fn burst(report: &mut Report) -> Result {
    let (world, service) = (World::start().await, ServiceRef::parse("bursting")?);
    world.fill(&service, BURST).await?;
    let ours = world.ours().await?;
    let (writer, mut watcher) = (world.raw().await?, world.raw().await?);
    let rounds = std::cell::Cell::new(1000);
    let next = || {
        rounds.set(rounds.get() + 1);
        rounds.get()
    };
    let mut publications = Vec::new();
    let turns = {
        let publications = std::cell::RefCell::new(&mut publications);
        let watcher = tokio::sync::Mutex::new(&mut watcher);
        in_turns(
            5,
            || async {
                let weight = next();
                let view = Directory::new(Arc::new(ours.clone())).view(&service);
                view.ready().await?;
                // The first publication is over and was observed.
                tokio::time::sleep(PAUSE).await;
                let mut changes = view.changes();
                changes.next().await?;
                let begun = Moment::now();
                let (written, seen) =
                    tokio::join!(write_all(&writer, &service, weight), published(&mut changes, weight));
                written?;
                let (time, seen) = (begun.elapsed(), seen?);
                let most = time.as_secs_f64() / 0.05 + 1.0;
                publications.borrow_mut().push(seen / most);
                Ok(time.as_secs_f64() * 1e3)
            },
            || async {
                let weight = next();
                let mut watcher = watcher.lock().await;
                let mut stream = plain_watch(&mut watcher, &service).await?;
                let begun = Moment::now();
                tokio::try_join!(write_all(&writer, &service, weight), drain(&mut stream, BURST))?;
                Ok(begun.elapsed().as_secs_f64() * 1e3)
            },
        )
        .await?
    };
    report.turns("burst", "10,000 changes, 64 at a time, beside a plain watch", "ms", &turns, Some(Bound::AtMost(1.3)));
    let case = "publications, beside one per 50 ms and one";
    report.number("burst", case, "", Spread::of(publications), Some(Bound::AtMost(1.0)));
    Ok(())
}

/// Writes a weight to every instance.
async fn write_all(writer: &Client, service: &ServiceRef, weight: u32) -> Result {
    let puts = futures::stream::iter(0..BURST).map(|number| {
        let mut writer = writer.kv_client();
        async move {
            let (key, value) = pair(service, number, weight)?;
            writer.put(key, value, None).await?;
            Ok(())
        }
    });
    puts.buffer_unordered(AT_ONCE).try_collect::<()>().await
}

/// Waits until every instance has the weight. Returns the number of publications until then.
async fn published(changes: &mut ViewChanges, weight: u32) -> Result<f64> {
    let mut publications = 0.0;
    loop {
        let snapshot = tokio::time::timeout(LIMIT, changes.next()).await??.snapshot;
        publications += 1.0;
        if snapshot.len() == BURST && snapshot.entries().all(|entry| entry.instance().weight() == weight) {
            return Ok(publications);
        }
    }
}

async fn drain(stream: &mut WatchStream, events: usize) -> Result {
    let mut seen = 0;
    while seen < events {
        seen += stream.message().await?.ok_or("the watch ended")?.events().len();
    }
    Ok(())
}
