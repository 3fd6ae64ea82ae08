//! The agent over a registry in memory, with three greeters behind it, of which one comes and goes, a service that
//! comes and goes as a whole, an election, and a lock that two workers share.
//!
//! ```text
//! cargo run -p enlist-agent --example demo
//! ```
//!
//! It needs neither etcd nor protoc, and prints the address of the web console and commands to try. `--xds ADDRESS` and
//! `--http ADDRESS` set other addresses than `127.0.0.1:18000` and `127.0.0.1:18001`.

mod greeter;

use std::{
    env,
    fmt::Display,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use enlist::{
    Election as _, Endpoint, Graceful, Instance, InstanceId, Lock as _, LockName, LockOptions, RegisterOptions,
    Registry as _, ServiceRef, TaskOwner, advertise,
};
use enlist_agent::{Agent, DEFAULT_HTTP_PORT, DEFAULT_XDS_PORT, EnvoyListener, HttpOptions, XdsOptions};
use enlist_memory::{MemoryClient, MemoryStore};
use greeter::Greeter;
use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};

/// Time of each turn: of what comes and goes, of a leader, and of the holder of the lock.
const TURN: Duration = Duration::from_secs(5);

/// Port on which an Envoy listens, if one is connected.
const ENVOY_PORT: u16 = 10_000;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let (xds, http) = addresses(env::args().skip(1))?;
    let registry = MemoryStore::new().client();
    let tasks = TaskOwner::new();
    for (name, zone) in [("greeter-1", "eu-1a"), ("greeter-2", "eu-1b")] {
        let registry = registry.clone();
        tasks.spawn("greeter", async move {
            run(&registry, name, zone, std::future::pending()).await;
        })?;
    }
    let coming = registry.clone();
    tasks.spawn_until_stopped("greeter", async move {
        loop {
            run(&coming, "greeter-3", "eu-1a", tokio::time::sleep(TURN)).await;
            tokio::time::sleep(TURN).await;
        }
    })?;
    let batch = registry.clone();
    tasks.spawn_until_stopped("batch", async move {
        if let Err(error) = come_and_go(&batch, "batch", "batch-1").await {
            eprintln!("batch-1 failed: {error}");
        }
    })?;
    for candidate in ["scheduler-1", "scheduler-2"] {
        let registry = registry.clone();
        tasks.spawn_until_stopped("candidate", async move { lead(&registry, candidate).await })?;
    }
    for _ in 0..2 {
        let registry = registry.clone();
        tasks.spawn_until_stopped("worker", async move { work(&registry).await })?;
    }
    let listener = EnvoyListener::new("greeter", (Ipv4Addr::LOCALHOST, ENVOY_PORT).into()).route("/", "greeter");
    let xds = XdsOptions::new().address(xds).envoy(listener);
    let http = HttpOptions::new().address(http);
    let registry = Arc::new(registry);
    let agent = Agent::builder(registry.clone()).queues(registry).xds(xds).http(http).bind().await?;
    print_commands(agent.xds_address(), agent.http_address().unwrap_or(agent.xds_address()));
    agent.serve(async { _ = tokio::signal::ctrl_c().await }).await;
    Ok(())
}

/// Returns the addresses of xDS and of HTTP, which the arguments can change.
fn addresses(mut arguments: impl Iterator<Item = String>) -> Result<(SocketAddr, SocketAddr), Failure> {
    let [mut xds, mut http] = [DEFAULT_XDS_PORT, DEFAULT_HTTP_PORT].map(|port| (Ipv4Addr::LOCALHOST, port).into());
    while let Some(argument) = arguments.next() {
        let address = match argument.as_str() {
            "--xds" => &mut xds,
            "--http" => &mut http,
            _ => return Err("usage: demo [--xds ADDRESS] [--http ADDRESS]".into()),
        };
        *address = arguments.next().ok_or_else(|| format!("{argument} needs an address"))?.parse()?;
    }
    Ok((xds, http))
}

/// Prints a line. The output may have been closed.
fn say(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Takes part in an election: leads for some time, and lets another candidate lead.
async fn lead(registry: &MemoryClient, candidate: &str) {
    let Ok(name) = LockName::parse("scheduler") else { return };
    while let Ok(leadership) = registry.campaign(&name, candidate, LockOptions::new()).await {
        tokio::time::sleep(TURN).await;
        drop(leadership);
    }
}

/// Holds a lock for some time, again and again, in turns with others.
async fn work(registry: &MemoryClient) {
    let Ok(name) = LockName::parse("reports") else { return };
    while let Ok(guard) = registry.acquire(&name, LockOptions::new()).await {
        tokio::time::sleep(TURN).await;
        drop(guard);
    }
}

/// Registers an instance of a service without a server, and removes it again, until the future is dropped.
async fn come_and_go(registry: &MemoryClient, service: &str, name: &str) -> Result<(), Failure> {
    let service = ServiceRef::parse(service)?;
    loop {
        // No server listens there (RFC 5737).
        let instance = Instance::new(InstanceId::parse(name)?, [Endpoint::parse("192.0.2.1:8080")?])?;
        let registration = registry.register(&service, instance, RegisterOptions::new()).await?;
        tokio::time::sleep(TURN).await;
        registration.deregister().await?;
        tokio::time::sleep(TURN).await;
    }
}

/// Serves a greeter until `stop`, and reports the end.
async fn run(registry: &MemoryClient, name: &str, zone: &str, stop: impl Future<Output = ()>) {
    say(format_args!("{name} comes"));
    match serve(registry, name, zone, stop).await {
        Ok(()) => say(format_args!("{name} has left")),
        Err(error) => eprintln!("{name} failed: {error}"),
    }
}

async fn serve(registry: &MemoryClient, name: &str, zone: &str, stop: impl Future<Output = ()>) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (endpoint, _) = advertise(listener.local_addr()?)?;
    let instance = Instance::new(InstanceId::parse(name)?, [endpoint])?.with_zone(zone);
    let (service, options) = (ServiceRef::parse("greeter")?, RegisterOptions::new());
    let register = registry.register(&service, instance, options);
    let router = Server::builder().add_service(Greeter::new(name));
    let incoming = TcpIncoming::from(listener);
    let server = Graceful::new();
    let report = server.register_and_run(register, stop, |end, _| async move {
        router.serve_with_incoming_shutdown(incoming, end.cancelled()).await
    });
    let report = report.await?;
    report.served.transpose()?;
    Ok(())
}

fn print_commands(xds: SocketAddr, http: SocketAddr) {
    say(format_args!(
        "\nThe web console is http://{http}/. One of the three servers of `greeter` comes and goes, and so does \
         the service `batch`.\n\n\
         The registry as JSON, as events, and as targets for Prometheus:\n\n\
         \x20 curl http://{http}/v1/services/default/greeter\n\
         \x20 curl --no-buffer http://{http}/v1/events\n\
         \x20 curl http://{http}/v1/prometheus/targets\n\n\
         xDS is served on {xds}. A client in Python, which balances over the servers without a library of this \
         project:\n\n\
         \x20 pip install grpcio protobuf\n\
         \x20 export GRPC_XDS_BOOTSTRAP_CONFIG='{bootstrap}'\n\
         \x20 python3 greeter_client.py    # it is printed in docs/clients/python.md\n\n\
         docs/clients has programs in Go, Java and Rust, and a configuration of Envoy, which serves `greeter` on port \
         {ENVOY_PORT}.\n\n\
         End with Ctrl-C.\n",
        bootstrap = bootstrap(xds)
    ));
}

/// Configuration of gRPC clients other than tonic-xds, which needs `http://` before the address.
fn bootstrap(address: SocketAddr) -> String {
    let server = serde_json::json!({
        "server_uri": address,
        "channel_creds": [{ "type": "insecure" }],
        "server_features": ["xds_v3", "ignore_resource_deletion"],
    });
    serde_json::json!({ "xds_servers": [server], "node": { "id": "demo" } }).to_string()
}
