//! What does the channel cost, and what does it save, beside tonic's own?
//!
//! ```text
//! cargo run --release --package enlist-bench --bin grpc
//! ```

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
use enlist_bench::{Bound, judge, median};
use enlist_examples::greeter::{self, GreeterClient, HelloRequest};
use enlist_grpc::{Channel, balance_channel};
use enlist_memory::MemoryStore;
use tokio::{net::TcpListener, runtime::Builder};
use tokio_stream::wrappers::TcpListenerStream;

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Calls in a block; blocks of the two sides alternate.
const BLOCK: usize = 50;

/// Blocks of each side with the same two channels.
const BLOCKS: usize = 20;

/// How often both channels are made anew: where the tasks of a connection happen to run makes more of a difference than what
/// is to be measured.
const PAIRS: usize = 20;

fn main() -> Result {
    // Servers and clients have a thread each, so that work is measured and not which thread a scheduler happens to wake.
    let servers = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let clients = Builder::new_current_thread().enable_all().build()?;
    let world = servers.block_on(World::start())?;
    let bounds = clients.block_on(measure(&world))?;
    Ok(judge(&bounds)?)
}

struct World {
    store: MemoryStore,
    /// Answer at once.
    quick: Vec<SocketAddr>,
    /// Thinks for 100 ms.
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
}

async fn serve(tasks: &TaskOwner, thinks: Duration) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let incoming = TcpListenerStream::new(listener);
    let (stop, server) = (tasks.stop_signal(), greeter::router("bench", thinks));
    tasks.spawn("server", async move {
        if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
            eprintln!("the server ended: {error}");
        }
    })?;
    Ok(address)
}

async fn measure(world: &World) -> Result<Vec<Bound>> {
    let one = world.view("one", &world.quick[..1]).await?;
    let plain = tonic::transport::Endpoint::from_shared(format!("http://{}", world.quick[0]))?.tcp_nodelay(true);
    let mut single = Turns::default();
    for _ in 0..PAIRS {
        single.take(ready(&one, 1).await?, plain.connect().await?).await?;
    }
    let single = single.ratio("one instance");

    let three = world.view("three", &world.quick).await?;
    let mut triple = Turns::default();
    for _ in 0..PAIRS {
        let balanced = balance_channel(&three)?;
        triple.take(ready(&three, 3).await?, balanced.channel()).await?;
    }
    let triple = triple.ratio("three instances");

    let dead = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let with_a_dead_one = world.view("dead", &[world.quick[0], world.quick[1], dead]).await?;
    let balanced = balance_channel(&with_a_dead_one)?;
    let (ours, _) = side_by_side(&GreeterClient::new(ready(&with_a_dead_one, 2).await?), 1, 2000).await;
    let (tonics, _) = side_by_side(&GreeterClient::new(balanced.channel()), 1, 2000).await;
    println!("one of three dead, 2,000 calls: {ours} failed, {tonics} with tonic's balanced channel");

    let with_a_slow_one = world.view("slow", &[world.quick[0], world.quick[1], world.slow]).await?;
    let balanced = balance_channel(&with_a_slow_one)?;
    let (_, our_time) = side_by_side(&GreeterClient::new(ready(&with_a_slow_one, 3).await?), 60, 3000).await;
    let (_, tonics_time) = side_by_side(&GreeterClient::new(balanced.channel()), 60, 3000).await;
    println!("one of three slow by 100 ms, 3,000 calls, 60 callers: {our_time:?}, tonic's {tonics_time:?}");

    Ok(vec![
        Bound { what: "time of a call, one instance, to tonic's plain channel", measured: single, most: 1.05 },
        Bound { what: "time of a call, three instances, to tonic's balanced channel", measured: triple, most: 1.05 },
        Bound { what: "failed calls of 2,000 with one of three dead", measured: f64::from(ours), most: 1.0 },
        Bound {
            what: "total time with one of three slow, to tonic's balanced channel",
            measured: our_time.as_secs_f64() / tonics_time.as_secs_f64(),
            most: 0.6,
        },
    ])
}

/// A channel of which so many instances are ready.
async fn ready(view: &ServiceView, instances: usize) -> Result<Channel> {
    let channel = Channel::new(view)?;
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
    ($client:expr) => {
        $client.hello(HelloRequest { name: "world".to_owned() }).await
    };
}

/// The times of calls that two channels made in turns.
#[derive(Default)]
struct Turns {
    ours: Vec<Duration>,
    tonics: Vec<Duration>,
}

impl Turns {
    async fn take(&mut self, ours: Channel, tonics: tonic::transport::Channel) -> Result {
        let (mut ours, mut tonics) = (GreeterClient::new(ours), GreeterClient::new(tonics));
        for block in 0..=BLOCKS {
            // The first block warms up.
            let (mut our_times, mut tonics_times) = (Vec::new(), Vec::new());
            for _ in 0..BLOCK {
                let begun = Moment::now();
                call!(ours)?;
                our_times.push(begun.elapsed());
            }
            for _ in 0..BLOCK {
                let begun = Moment::now();
                call!(tonics)?;
                tonics_times.push(begun.elapsed());
            }
            if block > 0 {
                self.ours.append(&mut our_times);
                self.tonics.append(&mut tonics_times);
            }
        }
        Ok(())
    }

    /// The ratio of the median times of a call: ours to tonic's.
    fn ratio(mut self, what: &str) -> f64 {
        let (ours, tonics) = (median(&mut self.ours), median(&mut self.tonics));
        println!("{what}: a call takes {ours:?}, tonic's {tonics:?}");
        ours.as_secs_f64() / tonics.as_secs_f64()
    }
}

/// How many calls of several callers failed, and how long all took.
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
            failed += u32::from(call!(client).is_err());
        }
        failed
    };
    let failed = futures::future::join_all((0..callers).map(|_| caller())).await;
    (failed.into_iter().sum(), begun.elapsed())
}
