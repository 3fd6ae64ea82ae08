//! Restart of all servers of a service, one by one, without failed calls.
//!
//! ```text
//! cargo run --example rolling_restart [-- --kill]
//! cargo run --example rolling_restart --features etcd -- --etcd http://127.0.0.1:2379 [--kill]
//! ```
//!
//! Six servers and 1,500 calls a second. Each server leaves in order and returns at another port. With `--kill` it
//! cannot: its process is killed with SIGKILL, and half of the calls use a channel on which the method may be repeated.
//! With etcd, servers are processes; with the memory backend, each has a thread and a runtime of its own, which end as
//! abruptly.
//!
//! The example fails on any failed call of an orderly restart, and, with `--kill`, on a failed call that may be
//! repeated or that was not in flight on the killed server.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    io::{IsTerminal, Write},
    process::{Child, Command},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use enlist::{Directory, Moment, RegisterOptions, ServiceRef};
use enlist_examples::{
    Store, flag,
    greeter::{self, GreeterClient, HelloRequest},
};
use enlist_grpc::{Channel, InstanceState, RetryPolicy};
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, interval_at},
};

const SERVERS: usize = 6;
const CALLERS: u32 = 30;
const CALLS_PER_SECOND: u32 = 1500;

/// Maximum duration of a step.
const LIMIT: Duration = Duration::from_secs(30);

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// End of a server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ServerEnd {
    Orderly,
    Killed,
}

/// Permission of a channel to repeat failed calls.
#[derive(Clone, Copy)]
enum Calls {
    Plain,
    Repeatable,
}

#[tokio::main]
async fn main() -> Result {
    let store = Store::from_args()?;
    if let Some(id) = env::args().skip_while(|arg| arg != "--serve").nth(1) {
        return serve(&store, &id, None).await;
    }
    let end = if flag("--kill") { ServerEnd::Killed } else { ServerEnd::Orderly };
    let mut servers = Vec::new();
    for number in 1..=SERVERS {
        servers.push(Server::start(&store, format!("greeter-{number}"))?);
    }
    let directory = Directory::new(store.client().await? as Arc<dyn enlist::Resolver>);
    let view = directory.view(&ServiceRef::parse("greeter")?);
    let plain = Channel::new(&view)?;
    let repeating = Channel::builder().retry("/greeter.Greeter/Hello", RetryPolicy::new()).build(&view)?;
    until_ready(&plain).await?;
    until_ready(&repeating).await?;

    let tally = Arc::new(Mutex::new(Tally::default()));
    let mut load = JoinSet::new();
    for caller in 0..CALLERS {
        let (channel, calls) = match end {
            ServerEnd::Killed if caller % 2 == 0 => (&repeating, Calls::Repeatable),
            ServerEnd::Killed | ServerEnd::Orderly => (&plain, Calls::Plain),
        };
        let first = Duration::from_secs(1) * caller / CALLS_PER_SECOND;
        load.spawn(call(channel.clone(), calls, first, Arc::clone(&tally)));
    }
    let begun = Moment::now();
    load.spawn(show(Arc::clone(&tally), begun));
    for server in &mut servers {
        server.end(end).await?;
        *server = Server::start(&store, server.id.clone())?;
        // The last connection of the killed server must be closed before all can count as ready.
        until_ready(&plain).await?;
        until_ready(&repeating).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let took = begun.elapsed();
    load.shutdown().await;
    let tally = std::mem::take(&mut *lock(&tally));
    for server in &mut servers {
        server.end(ServerEnd::Orderly).await?;
    }
    tally.report(took, end)
}

/// Runs one server.
async fn serve(store: &Store, id: &str, stop: Option<greeter::Stop>) -> Result {
    let backend = store.client().await?;
    // The next server under this id takes over the key of a killed one.
    let options = RegisterOptions::new().ttl(Duration::from_secs(5)).owner(id);
    greeter::serve(&*backend, greeter::bind(Some(id), None).await?, options, stop).await?.deregistered?;
    Ok(())
}

struct Server {
    id: String,
    body: Body,
}

enum Body {
    Process(Child),
    Thread { runtime: Option<Runtime>, stop: Option<oneshot::Sender<()>>, ended: Option<oneshot::Receiver<Result>> },
}

impl Server {
    fn start(store: &Store, id: String) -> Result<Self> {
        if !matches!(store, Store::Memory(_)) {
            let child = Command::new(env::current_exe()?).args(env::args().skip(1)).args(["--serve", &id]).spawn()?;
            return Ok(Self { id, body: Body::Process(child) });
        }
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let (store, name) = (store.clone(), id.clone());
        // The task ends with its runtime.
        let mut tasks = JoinSet::new();
        let stopped: greeter::Stop = Box::pin(async {
            let _ = stopped.await;
        });
        tasks.spawn_on(async move { _ = end.send(serve(&store, &name, Some(stopped)).await) }, runtime.handle());
        tasks.detach_all();
        Ok(Self { id, body: Body::Thread { runtime: Some(runtime), stop: Some(stop), ended: Some(ended) } })
    }

    /// Ends the server, in order or abruptly, and returns when it has ended.
    async fn end(&mut self, end: ServerEnd) -> Result {
        match &mut self.body {
            Body::Process(child) => {
                match end {
                    ServerEnd::Killed => child.kill()?,
                    ServerEnd::Orderly => _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?,
                }
                let ended = async {
                    while child.try_wait()?.is_none() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Result::Ok(())
                };
                tokio::time::timeout(LIMIT, ended).await?
            }
            Body::Thread { runtime, stop, ended } => {
                let (runtime, stop, ended) = (runtime.take(), stop.take(), ended.take());
                if let (ServerEnd::Orderly, Some(stop), Some(ended)) = (end, stop, ended) {
                    let _ = stop.send(());
                    tokio::time::timeout(LIMIT, ended).await???;
                }
                // All tasks of the runtime are dropped at their current await.
                if let Some(runtime) = runtime {
                    runtime.shutdown_background();
                }
                Ok(())
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Body::Process(child) = &mut self.body {
            // On a failure no server remains. A server that has ended cannot be killed again.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until exactly the running servers are ready.
async fn until_ready(channel: &Channel) -> Result {
    let wait = async {
        loop {
            let instances = channel.instances();
            let listed = instances.iter().filter(|one| one.state != InstanceState::Leaving);
            let (ready, others): (Vec<_>, Vec<_>) = listed.partition(|one| one.state == InstanceState::Ready);
            if ready.len() == SERVERS && others.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    Ok(tokio::time::timeout(LIMIT, wait).await.map_err(|_| format!("not ready: {:?}", channel.instances()))?)
}

#[derive(Default)]
struct Tally {
    /// Latencies in microseconds.
    times: Vec<u32>,
    by_server: BTreeMap<String, u32>,
    /// Calls and failures of methods that may be repeated.
    repeating: (u32, Vec<String>),
    /// Calls and failures of other methods.
    plain: (u32, Vec<String>),
}

fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One caller. It does not wait for a late answer before it counts the next call as due.
async fn call(channel: Channel, calls: Calls, first: Duration, tally: Arc<Mutex<Tally>>) {
    let mut client = GreeterClient::new(channel);
    let mut due = interval_at(Instant::now() + first, Duration::from_secs(1) * CALLERS / CALLS_PER_SECOND);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        due.tick().await;
        let begun = Moment::now();
        let answer = client.hello(HelloRequest { name: "world".to_owned() }).await;
        let took = begun.elapsed();
        let mut tally = lock(&tally);
        tally.times.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        let failed = match answer {
            Ok(reply) => {
                *tally.by_server.entry(reply.into_inner().from).or_default() += 1;
                None
            }
            Err(status) => Some(status.to_string()),
        };
        let (count, failures) = match calls {
            Calls::Repeatable => &mut tally.repeating,
            Calls::Plain => &mut tally.plain,
        };
        *count += 1;
        failures.extend(failed);
    }
}

/// Prints the progress, in place on a terminal.
async fn show(tally: Arc<Mutex<Tally>>, begun: Moment) {
    let in_place = std::io::stdout().is_terminal();
    let mut every = interval(Duration::from_millis(if in_place { 200 } else { 1000 }));
    loop {
        every.tick().await;
        let line = {
            let tally = lock(&tally);
            let (calls, failed) = (tally.times.len(), tally.plain.1.len() + tally.repeating.1.len());
            let share = |(id, calls_there): (&String, &u32)| {
                format!("{id} {:2}%", u64::from(*calls_there) * 100 / calls.max(1) as u64)
            };
            let shares: Vec<_> = tally.by_server.iter().map(share).collect();
            format!("{:4.1}s  {calls:6} calls  {failed:3} failed  {}", begun.elapsed().as_secs_f64(), shares.join("  "))
        };
        print!("{}{line}{}", if in_place { "\r\x1b[K" } else { "" }, if in_place { "" } else { "\n" });
        let _ = std::io::stdout().flush();
    }
}

impl Tally {
    fn report(mut self, took: Duration, end: ServerEnd) -> Result {
        self.times.sort_unstable();
        let calls = self.times.len();
        let quantile = |percent: usize| {
            let at = calls.saturating_sub(1).min(calls * percent / 100);
            Duration::from_micros(self.times.get(at).copied().unwrap_or(0).into())
        };
        let per_second = f64::from(self.plain.0 + self.repeating.0) / took.as_secs_f64();
        println!("\n{SERVERS} servers restarted under {per_second:.0} calls per second");
        let lost = |failure: &&String| failure.contains("was lost during the call");
        let in_flight = self.plain.1.iter().filter(lost).count();
        if end == ServerEnd::Killed {
            let ((repeated, unrepeated), (plain, failed)) =
                ((self.repeating.0, self.repeating.1.len()), (self.plain.0, self.plain.1.len()));
            println!("may be repeated: calls={repeated} failed={unrepeated}");
            println!(
                "may not: calls={plain} failed={failed}, of which in flight on a server that was killed: {in_flight}"
            );
        }
        let failed = self.plain.1.len() + self.repeating.1.len();
        println!("calls={calls} failed={failed} p50={:?} p99={:?}", quantile(50), quantile(99));
        let allowed = if end == ServerEnd::Killed { in_flight } else { 0 };
        if failed > allowed {
            let all = self.repeating.1.iter().chain(&self.plain.1);
            return Err(format!("{failed} calls failed, such as: {:?}", all.take(5).collect::<Vec<_>>()).into());
        }
        Ok(())
    }
}
