//! Calls through the channel of `enlist-grpc`, next to tonic's plain and balanced channels, in one process.

use std::{
    error::Error,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use enlist::{Directory, Endpoint, Instance, InstanceId, Moment, Registry, ServiceRef, ServiceView, TaskOwner};
use enlist_examples::greeter::{self, GreeterClient, HelloRequest};
use enlist_grpc::{Channel, balance_channel};
use enlist_memory::MemoryStore;
use tokio::{net::TcpListener, runtime::Builder};
use tonic::transport::server::TcpIncoming;

use crate::{
    measure::{Result, Spread, Turns, quantile},
    report::{Bound, Report},
    world::micros,
};

/// Number of times that both channels are created anew: the placement of a connection's tasks has more effect than the
/// difference to be measured.
const PAIRS: usize = 20;

/// Number of blocks of each side per pair of channels. Blocks of the two sides alternate.
const BLOCKS: usize = 5;

/// Number of calls in a block.
const BLOCK: usize = 200;

/// The same without a subscriber that records spans.
const TRACED: &str = "1 callers, 0 KiB, 1 instance, traced, beside a plain channel";

/// Number of calls in a block with many callers.
const CROWDED_BLOCK: usize = 640;

pub(crate) async fn run(report: &mut Report) -> Result {
    // This scenario has its own runtimes.
    let measured = tokio::task::spawn_blocking(both_sides).await??;
    for Measured { case, medians, tails, bounds } in measured.calls {
        let (median, tail) = bounds.map(|(median, tail)| (Bound::AtMost(median), Bound::AtMost(tail))).unzip();
        report.turns("grpc", format!("{case}: median"), "µs", &medians, median);
        report.turns("grpc", format!("{case}: 99 %"), "µs", &tails, tail);
    }
    let failed = Spread::exactly(f64::from(measured.failed));
    report.number("grpc", "failed calls of 2,000, one of three dead", "", failed, Some(Bound::AtMost(1.0)));
    let tonics = Spread::exactly(f64::from(measured.tonics_failed));
    report.number("grpc", "the same through tonic's balanced channel", "", tonics, None);
    let case = "3,000 calls, one of three slow, beside the balanced channel";
    report.turns("grpc", case, "ms", &measured.slow, Some(Bound::AtMost(0.6)));
    Ok(())
}

/// Side of the comparison.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Side {
    /// The channel of `enlist-grpc`.
    Ours,
    /// A plain channel of tonic.
    Plain,
}

/// Makes calls with a name of `bytes` bytes, one after the other, for the program `hot`.
///
/// # Errors
///
/// If the channel is not ready in time, or a call fails.
pub fn calls(side: Side, often: u64, bytes: usize) -> Result {
    let servers = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let clients = Builder::new_current_thread().enable_all().build()?;
    let world = servers.block_on(World::start())?;
    clients.block_on(async {
        match side {
            Side::Ours => one_by_one(ready(&world.view("one", &world.quick[..1]).await?, 1).await?, often, bytes).await,
            Side::Plain => one_by_one(world.plain()?.connect().await?, often, bytes).await,
        }
    })
}

fn both_sides() -> Result<Outcome> {
    // Servers and clients have one thread each, so that the scheduler's choice of threads does not count.
    let servers = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let clients = Builder::new_current_thread().enable_all().build()?;
    let world = servers.block_on(World::start())?;
    clients.block_on(measure(&world))
}

/// Calls of one kind.
struct Measured {
    case: String,
    medians: Turns,
    tails: Turns,
    /// Maximum ratios of the medians and of the tails.
    bounds: Option<(f64, f64)>,
}

struct Outcome {
    calls: Vec<Measured>,
    failed: u32,
    tonics_failed: u32,
    slow: Turns,
}

struct World {
    store: MemoryStore,
    /// Addresses of servers that answer at once.
    quick: Vec<SocketAddr>,
    /// Address of a server that answers after 100 ms.
    slow: SocketAddr,
    _tasks: TaskOwner,
}

impl World {
    async fn start() -> Result<Self> {
        let tasks = TaskOwner::new();
        let mut quick = Vec::new();
        for _ in 0..3 {
            quick.push(serve(&tasks, Duration::ZERO).await?);
        }
        let slow = serve(&tasks, Duration::from_millis(100)).await?;
        Ok(Self { store: MemoryStore::new(), quick, slow, _tasks: tasks })
    }

    async fn view(&self, name: &str, addresses: &[SocketAddr]) -> Result<ServiceView> {
        let (client, service) = (self.store.client(), ServiceRef::parse(name)?);
        for address in addresses {
            let id = InstanceId::parse(address.to_string())?;
            client.publish(&service, Instance::new(id, [Endpoint::try_from(*address)?])?).await?;
        }
        let view = Directory::new(Arc::new(client)).view(&service);
        view.ready().await?;
        Ok(view)
    }

    /// Settings of a plain channel to a server that answers at once.
    fn plain(&self) -> Result<tonic::transport::Endpoint> {
        Ok(tonic::transport::Endpoint::from_shared(format!("http://{}", self.quick[0]))?.tcp_nodelay(true))
    }
}

/// Serves greetings, which take this long. Returns the address.
pub(crate) async fn serve(tasks: &TaskOwner, thinks: Duration) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    // Without Nagle's algorithm: an answer larger than a window would wait 40 ms for an acknowledgement.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let (stop, server) = (tasks.stop_signal(), greeter::router("bench", thinks));
    tasks.spawn("server", async move {
        if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
            eprintln!("the server ended: {error}");
        }
    })?;
    Ok(address)
}

async fn measure(world: &World) -> Result<Outcome> {
    let one = world.view("one", &world.quick[..1]).await?;
    let three = world.view("three", &world.quick).await?;
    let plain = world.plain()?;
    let mut calls = Vec::new();
    for (callers, size) in [(1, 0), (1, 64 << 10), (64, 0), (64, 64 << 10)] {
        let load = Load { callers, size };
        let mut single = Sides::default();
        let mut triple = Sides::default();
        for _ in 0..PAIRS {
            single.take(load, ready(&one, 1).await?, plain.connect().await?).await?;
            triple.take(load, ready(&three, 3).await?, balance_channel(&three)?.channel()).await?;
        }
        if (callers, size) == (1, 0) {
            let mut traced = Sides::default();
            for _ in 0..PAIRS {
                let channel = Channel::builder().traced().build(&one)?;
                traced.take(load, until_ready(channel, 1).await?, plain.connect().await?).await?;
            }
            calls.push(Measured { bounds: None, ..traced.measured(TRACED.to_owned()) });
        }
        let callers = format!("{callers} callers, {} KiB", size >> 10);
        calls.push(single.measured(format!("{callers}, 1 instance, beside a plain channel")));
        calls.push(triple.measured(format!("{callers}, 3 instances, beside a balanced channel")));
    }

    let dead = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let with_a_dead_one = world.view("dead", &[world.quick[0], world.quick[1], dead]).await?;
    let balanced = balance_channel(&with_a_dead_one)?;
    let (failed, _) = side_by_side(&GreeterClient::new(ready(&with_a_dead_one, 2).await?), 1, 2000).await;
    let (tonics_failed, _) = side_by_side(&GreeterClient::new(balanced.channel()), 1, 2000).await;

    let with_a_slow_one = world.view("slow", &[world.quick[0], world.quick[1], world.slow]).await?;
    let balanced = balance_channel(&with_a_slow_one)?;
    let (_, our_time) = side_by_side(&GreeterClient::new(ready(&with_a_slow_one, 3).await?), 60, 3000).await;
    let (_, tonics_time) = side_by_side(&GreeterClient::new(balanced.channel()), 60, 3000).await;
    let slow = Turns { ours: vec![micros(our_time) / 1e3], reference: vec![micros(tonics_time) / 1e3] };
    Ok(Outcome { calls, failed, tonics_failed, slow })
}

/// Returns a channel with this number of ready instances.
async fn ready(view: &ServiceView, instances: usize) -> Result<Channel> {
    until_ready(Channel::new(view)?, instances).await
}

async fn until_ready(channel: Channel, instances: usize) -> Result<Channel> {
    let are_ready = || {
        let all = channel.instances();
        all.iter().filter(|one| one.state == enlist_grpc::InstanceState::Ready).count() == instances
    };
    let begun = Moment::now();
    while !are_ready() {
        if begun.elapsed() > Duration::from_secs(10) {
            return Err(format!("not ready: {channel:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(channel)
}

/// Calls the greeter once.
macro_rules! call {
    ($client:expr, $name:expr) => {
        $client.hello(HelloRequest { name: $name }).await
    };
}

/// Kind of calls.
#[derive(Clone, Copy)]
struct Load {
    callers: usize,
    /// Size of a request and of its response in bytes.
    size: usize,
}

/// Latencies of calls that two channels made in turns.
#[derive(Default)]
struct Sides {
    medians: Turns,
    tails: Turns,
}

impl Sides {
    async fn take(&mut self, load: Load, ours: Channel, tonics: tonic::transport::Channel) -> Result {
        let (ours, tonics) = (GreeterClient::new(ours), GreeterClient::new(tonics));
        let (mut our_times, mut tonics_times) = (Vec::new(), Vec::new());
        for block in 0..=BLOCKS {
            // The first block is a warm-up.
            let (some, others) = (block_of(load, &ours).await?, block_of(load, &tonics).await?);
            if block > 0 {
                our_times.extend(some);
                tonics_times.extend(others);
            }
        }
        our_times.sort_unstable_by(f64::total_cmp);
        tonics_times.sort_unstable_by(f64::total_cmp);
        for (turns, part) in [(&mut self.medians, 0.5), (&mut self.tails, 0.99)] {
            turns.ours.push(quantile(&our_times, part));
            turns.reference.push(quantile(&tonics_times, part));
        }
        Ok(())
    }

    fn measured(self, case: String) -> Measured {
        let Self { medians, tails } = self;
        Measured { case, medians, tails, bounds: Some((1.05, 1.15)) }
    }
}

/// Returns the latencies of a block of calls, in microseconds.
async fn block_of<C>(load: Load, client: &GreeterClient<C>) -> Result<Vec<f64>>
where
    C: tonic::client::GrpcService<tonic::body::Body> + Clone,
    C::Error: Into<Box<dyn Error + Send + Sync>>,
    C::ResponseBody: tonic::codegen::Body<Data = tonic::codegen::Bytes> + Send + 'static,
    <C::ResponseBody as tonic::codegen::Body>::Error: Into<Box<dyn Error + Send + Sync>> + Send,
{
    let calls = if load.callers == 1 { BLOCK } else { CROWDED_BLOCK / load.callers };
    let caller = || async {
        let (mut client, mut times) = (client.clone(), Vec::with_capacity(calls));
        for _ in 0..calls {
            let name = "x".repeat(load.size);
            let begun = Moment::now();
            call!(client, name)?;
            times.push(micros(begun.elapsed()));
        }
        Result::Ok(times)
    };
    let times = futures::future::try_join_all((0..load.callers).map(|_| caller())).await?;
    Ok(times.concat())
}

async fn one_by_one<C>(channel: C, calls: u64, size: usize) -> Result
where
    C: tonic::client::GrpcService<tonic::body::Body>,
    C::Error: Into<Box<dyn Error + Send + Sync>>,
    C::ResponseBody: tonic::codegen::Body<Data = tonic::codegen::Bytes> + Send + 'static,
    <C::ResponseBody as tonic::codegen::Body>::Error: Into<Box<dyn Error + Send + Sync>> + Send,
{
    let mut client = GreeterClient::new(channel);
    for _ in 0..calls {
        call!(client, "x".repeat(size))?;
    }
    Ok(())
}

/// Returns the number of failed calls of several callers, and the total time.
async fn side_by_side<C>(client: &GreeterClient<C>, callers: u32, calls: u32) -> (u32, Duration)
where
    C: tonic::client::GrpcService<tonic::body::Body> + Clone,
    C::Error: Into<Box<dyn Error + Send + Sync>>,
    C::ResponseBody: tonic::codegen::Body<Data = tonic::codegen::Bytes> + Send + 'static,
    <C::ResponseBody as tonic::codegen::Body>::Error: Into<Box<dyn Error + Send + Sync>> + Send,
{
    let (begun, made) = (Moment::now(), AtomicU32::new(0));
    let caller = || async {
        let (mut client, mut failed) = (client.clone(), 0);
        while made.fetch_add(1, Ordering::Relaxed) < calls {
            failed += u32::from(call!(client, "world".to_owned()).is_err());
        }
        failed
    };
    let failed = futures::future::join_all((0..callers).map(|_| caller())).await;
    (failed.into_iter().sum(), begun.elapsed())
}
