//! `enlist` as a measured program, with the commands of those in Go (`testkit/interop-go/*/bench`).
//!
//! ```text
//! peer follow SERVICE COUNT
//! peer pick SERVICE COUNT THREADS PICKS
//! peer register SERVICE COUNT
//! peer steady PREFIX SERVICES COUNT
//! peer contend LOCK SESSIONS
//! peer lock LOCK COUNT
//! peer campaign ELECTION VALUE TTL
//! peer call|call-tonic SERVICE COUNT SIZE CALLERS CALLS
//! ```

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use enlist::{
    Counter, Directory, Election, InstanceId, Lock, LockName, LockOptions, Moment, PickError, PickPolicy,
    RegisterOptions, Registration, Registry, ServiceRef, ServiceView, Snapshot,
};
use enlist_bench::{
    driven::{self, Input, answer, resident},
    measure::{Result, quantile},
    world::{instance, micros},
};
use enlist_etcd::Etcd;
use enlist_examples::greeter::{GreeterClient, HelloRequest};
use enlist_grpc::{Channel, InstanceState, balance_channel};
use futures::{StreamExt, TryStreamExt};
use tokio::task::JoinSet;
use tonic::{body::Body, client::GrpcService, codegen};

/// Number of calls before those that count.
const WARM_UP: usize = 300;

/// Prefix of the address of the instance that changes. No other one has it.
const MARKED: &str = "10.255.";

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let input = Input::default();
    let run = async {
        match arguments[..] {
            ["follow", service, count] => follow(input, service, count.parse()?).await,
            ["pick", service, count, threads, picks] => {
                pick(input, service, count.parse()?, threads.parse()?, picks.parse()?).await
            }
            ["register", service, count] => register(input, service, count.parse()?).await,
            ["steady", prefix, services, count] => steady(input, prefix, services.parse()?, count.parse()?).await,
            ["contend", name, sessions] => contend(input, name, sessions.parse()?).await,
            ["lock", name, count] => lock(input, name, count.parse()?).await,
            ["call", service, count, size, callers, calls] => {
                let channel = channel(&connected(service, count.parse()?).await?).await?;
                call(input, GreeterClient::new(channel), size.parse()?, callers.parse()?, calls.parse()?).await
            }
            ["call-tonic", service, count, size, callers, calls] => {
                let balanced = balance_channel(&connected(service, count.parse()?).await?)?;
                let client = GreeterClient::new(balanced.channel());
                call(input, client, size.parse()?, callers.parse()?, calls.parse()?).await
            }
            ["campaign", name, value, ttl] => campaign(input, name, value, ttl.parse()?).await,
            _ => Err("no such command".into()),
        }
    };
    driven::run(run).await;
}

async fn connect() -> Result<Etcd> {
    Ok(Etcd::from_env()?.connect().await?)
}

fn view(etcd: Etcd, service: &str) -> Result<ServiceView> {
    Ok(Directory::new(Arc::new(etcd)).view(&ServiceRef::parse(service)?))
}

/// Returns a view once it shows all instances.
async fn connected(service: &str, wanted: usize) -> Result<ServiceView> {
    let view = view(connect().await?, service)?;
    let mut changes = view.changes();
    while changes.next().await?.snapshot.len() < wanted {}
    Ok(view)
}

/// Prints each change of a view.
struct Shown {
    changing: InstanceId,
    begun: Moment,
    wanted: usize,
    is_ready: bool,
    last: (usize, String),
}

impl Shown {
    fn show(&mut self, snapshot: &Snapshot) {
        let count = snapshot.len();
        if !self.is_ready {
            if count < self.wanted {
                return;
            }
            self.is_ready = true;
            println!("ready {:.0}", micros(self.begun.elapsed()));
        }
        let changing = snapshot.get(&self.changing);
        let address = changing.and_then(|entry| entry.instance().endpoints().first()).map(enlist::Endpoint::authority);
        let address = address.filter(|address| address.starts_with(MARKED)).unwrap_or("-");
        if self.last.0 != count || self.last.1 != address {
            self.last = (count, address.to_owned());
            println!("seen {count} {address}");
        }
    }
}

async fn follow(mut input: Input, service: &str, wanted: usize) -> Result {
    let etcd = connect().await?;
    input.go().await?;
    let (before, begun) = (resident("self")?, Moment::now());
    let view = view(etcd, service)?;
    let mut changes = view.changes();
    let changing = instance(0)?.id().clone();
    let mut shown = Shown { changing, begun, wanted, is_ready: false, last: (0, String::new()) };
    loop {
        tokio::select! {
            change = changes.next() => shown.show(&change?.snapshot),
            line = input.line() => answer(&line?, before)?,
        }
    }
}

async fn pick(mut input: Input, service: &str, wanted: usize, threads: usize, picks: u32) -> Result {
    let view = connected(service, wanted).await?;
    input.go().await?;
    let start = Barrier::new(threads);
    let total = std::thread::scope(|scope| {
        let run = |_| {
            let (mut picker, start) = (view.picker(PickPolicy::RoundRobin), &start);
            scope.spawn(move || {
                start.wait();
                let begun = Moment::now();
                for _ in 0..picks {
                    std::hint::black_box(picker.pick())?;
                }
                Ok::<_, PickError>(begun.elapsed().as_secs_f64() * 1e9 / f64::from(picks))
            })
        };
        let running: Vec<_> = (0..threads).map(run).collect();
        running.into_iter().map(|thread| Ok(thread.join().map_err(|_| "a thread panicked")??)).sum::<Result<f64>>()
    })?;
    println!("picked {}", total / f64::from(u32::try_from(threads)?));
    input.answer().await
}

async fn register(mut input: Input, service: &str, count: usize) -> Result {
    let (etcd, service) = (connect().await?, ServiceRef::parse(service)?);
    let instances: Result<Vec<_>> = (0..count).map(instance).collect();
    let instances = instances?;
    input.go().await?;
    let begun = Moment::now();
    let all = instances.into_iter().map(|instance| etcd.register(&service, instance, RegisterOptions::new()));
    let kept: Vec<Registration> = futures::stream::iter(all).buffer_unordered(count).try_collect().await?;
    println!("registered {:.0}", micros(begun.elapsed()));
    input.answer().await?;
    drop(kept);
    Ok(())
}

/// Registers as many instances of each service, and follows all services.
async fn steady(mut input: Input, prefix: &str, services: usize, count: usize) -> Result {
    let etcd = connect().await?;
    let named = |number| ServiceRef::parse(format!("{prefix}-{number:04}"));
    let services: Vec<ServiceRef> = (0..services).map(named).collect::<std::result::Result<_, _>>()?;
    input.go().await?;
    let (before, begun) = (resident("self")?, Moment::now());
    let register = |number: usize| {
        let (etcd, service) = (&etcd, &services[number % services.len()]);
        async move { Result::Ok(etcd.register(service, instance(number)?, RegisterOptions::new()).await?) }
    };
    let all = futures::stream::iter((0..count).map(register)).buffer_unordered(count);
    let _registrations: Vec<Registration> = all.try_collect().await?;
    let directory = Directory::new(Arc::new(etcd.clone()));
    let views: Vec<ServiceView> = services.iter().map(|service| directory.view(service)).collect();
    for view in &views {
        let mut changes = view.changes();
        while changes.next().await?.snapshot.len() < count / services.len() {}
    }
    println!("ready {:.0}", micros(begun.elapsed()));
    loop {
        answer(&input.line().await?, before)?;
    }
}

async fn contend(mut input: Input, name: &str, sessions: usize) -> Result {
    let (name, grants) = (LockName::parse(name)?, Arc::<AtomicU64>::default());
    let mut clients = Vec::new();
    for _ in 0..sessions {
        clients.push(connect().await?);
    }
    input.go().await?;
    let begun = Moment::now();
    let contender = |client: &Etcd| take_turns(client.clone(), name.clone(), Arc::clone(&grants));
    let mut running: JoinSet<Result> = clients.iter().map(contender).collect();
    loop {
        tokio::select! {
            Some(ended) = running.join_next() => ended??,
            line = input.line() => match line?.as_str() {
                "count" => {
                    let (grants, time) = (grants.load(Ordering::Relaxed), micros(begun.elapsed()));
                    let checks: u64 = clients.iter().map(|client| client.counters().get(Counter::WatchChecks)).sum();
                    println!("count {grants} {time:.0} {checks}");
                }
                other => answer(other, 0)?,
            },
        }
    }
}

/// Takes a lock repeatedly.
async fn take_turns(client: Etcd, name: LockName, grants: Arc<AtomicU64>) -> Result {
    loop {
        let guard = client.acquire(&name, LockOptions::new()).await?;
        grants.fetch_add(1, Ordering::Relaxed);
        guard.release().await?;
    }
}

async fn lock(mut input: Input, name: &str, count: u32) -> Result {
    let (etcd, name) = (connect().await?, LockName::parse(name)?);
    let once = async || Result::Ok(etcd.acquire(&name, LockOptions::new()).await?.release().await?);
    // With the first acquisition the session's lease is granted.
    once().await?;
    input.go().await?;
    let begun = Moment::now();
    for _ in 0..count {
        once().await?;
    }
    println!("locked {:.0}", micros(begun.elapsed()));
    input.answer().await
}

async fn campaign(mut input: Input, name: &str, value: &str, ttl: u64) -> Result {
    let (etcd, name) = (connect().await?, LockName::parse(name)?);
    let options = LockOptions::new().ttl(Duration::from_secs(ttl));
    loop {
        input.go().await?;
        let leadership = etcd.campaign(&name, value, options.clone()).await?;
        println!("leads");
        input.line().await?;
        leadership.resign().await?;
        println!("resigned");
    }
}

/// Returns a channel to the instances of a view once all are connected.
async fn channel(view: &ServiceView) -> Result<Channel> {
    let channel = Channel::new(view)?;
    while channel.instances().is_empty()
        || channel.instances().iter().any(|instance| instance.state != InstanceState::Ready)
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(channel)
}

/// Makes that many calls with each caller, and prints the duration, and the latencies of the median and of 99 %.
async fn call<C>(mut input: Input, client: GreeterClient<C>, size: usize, callers: usize, calls: usize) -> Result
where
    C: GrpcService<Body> + Clone + Send + 'static,
    C::Future: Send,
    C::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    C::ResponseBody: codegen::Body<Data = codegen::Bytes> + Send + 'static,
    <C::ResponseBody as codegen::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    take_calls(client.clone(), 0, WARM_UP).await?;
    input.go().await?;
    let begun = Moment::now();
    let mut running: JoinSet<Result<Vec<f64>>> =
        (0..callers).map(|_| take_calls(client.clone(), size, calls)).collect();
    let mut times = Vec::with_capacity(callers * calls);
    while let Some(ended) = running.join_next().await {
        times.extend(ended??);
    }
    let time = micros(begun.elapsed());
    times.sort_unstable_by(f64::total_cmp);
    println!("called {time:.0} {} {}", quantile(&times, 0.5), quantile(&times, 0.99));
    input.answer().await
}

/// Makes calls one after the other, and returns their latencies in microseconds.
async fn take_calls<C>(mut client: GreeterClient<C>, size: usize, calls: usize) -> Result<Vec<f64>>
where
    C: GrpcService<Body>,
    C::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    C::ResponseBody: codegen::Body<Data = codegen::Bytes> + Send + 'static,
    <C::ResponseBody as codegen::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let name = "x".repeat(size);
        let begun = Moment::now();
        client.hello(HelloRequest { name }).await?;
        times.push(micros(begun.elapsed()));
    }
    Ok(times)
}
