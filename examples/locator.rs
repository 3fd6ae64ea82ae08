//! Calls of services by configuration: in environments, through the registry or through the DNS names of Kubernetes.
//!
//! ```text
//! cargo run --example locator
//! cargo run --example locator --features etcd -- --etcd http://127.0.0.1:2379
//! ```
//!
//! Serves `greeter` in two environments, calls each through one manager, and prints the target of service-DNS mode.

use std::{error::Error, sync::Arc, time::Duration};

use enlist::{Instance, InstanceId, RegisterOptions, Registration, ServiceRef, TaskOwner, advertise};
use enlist_examples::{
    Backend, Store,
    greeter::{self, GreeterClient, HelloRequest},
};
use enlist_grpc::{Callee, Channel, ConnectionManager, Invocation, Locator, ManagerOptions, Target};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result {
    let store = Store::from_args()?;
    let backend = store.client().await?;
    let tasks = TaskOwner::new();
    let greeter = Callee::parse("greeter")?;
    let locator = Locator::new(Invocation::default())?;

    let mut registrations = Vec::new();
    for environment in ["dev", "prod"] {
        let Target::Service { service, .. } = locator.target(&greeter.clone().in_environment(environment))? else {
            return Err("the registry has services".into());
        };
        registrations.push(serve(&*backend, &tasks, &service, environment).await?);
    }

    // One manager for all services: one channel per target, which all callers share and which is kept for a while after
    // its last use.
    let options = ManagerOptions::new()
        .keep(Duration::from_secs(60))
        .channel(|_| Channel::builder().wait_for_ready().dial_timeout(Duration::from_secs(2)));
    let resolver = store.client().await? as Arc<dyn enlist::Resolver>;
    let manager = ConnectionManager::from_resolver(resolver, Invocation::default(), options)?;
    for environment in ["dev", "prod"] {
        let mut client = GreeterClient::new(manager.channel(&greeter.clone().in_environment(environment))?);
        let reply = client.hello(HelloRequest { name: environment.to_owned() }).await?.into_inner();
        println!("{}: {}", reply.from, reply.text);
        if reply.from != environment {
            return Err(format!("{} answered in {environment}", reply.from).into());
        }
    }
    for target in manager.targets() {
        println!("a channel to {target}");
    }

    let mut by_name = Invocation::default();
    by_name.prefer_service_dns = true;
    println!("in service-DNS mode: {}", Locator::new(by_name)?.target(&greeter)?);

    manager.close(Duration::from_secs(5)).await?;
    for registration in registrations {
        registration.deregister().await?;
    }
    tasks.stop(Duration::from_secs(5)).await?;
    Ok(())
}

/// Starts a server and registers it.
async fn serve(backend: &dyn Backend, tasks: &TaskOwner, service: &ServiceRef, id: &str) -> Result<Registration> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (endpoint, _) = advertise(listener.local_addr()?)?;
    let stop = tasks.stop_signal();
    let server = greeter::router(id, Duration::ZERO);
    tasks.spawn("server", async move {
        if let Err(error) =
            server.serve_with_incoming_shutdown(TcpIncoming::from(listener), stop.cancelled_owned()).await
        {
            eprintln!("a server ended: {error}");
        }
    })?;
    let instance = Instance::new(InstanceId::parse(id)?, [endpoint])?;
    Ok(backend.register(service, instance, RegisterOptions::new()).await?)
}
