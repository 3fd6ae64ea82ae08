//! Signals to a server. A separate program, because an unhandled signal ends all tests of its program.

#![cfg(unix)]

mod support;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Deregistered, Endpoint, Entry, Error, Evicted, Instance, InstanceId, Lease, RegisterOptions, Registration,
    Registry, Resolver, Revision, ServiceRef,
};
use enlist_grpc::serve;
use enlist_memory::MemoryClient;
use enlist_testkit::soon;
use support::{World, begun, id};
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore},
};

/// A registry whose registrations wait for a permit.
#[derive(Debug)]
struct Slow {
    inner: MemoryClient,
    entered: Notify,
    go: Semaphore,
}

#[async_trait]
impl Registry for Slow {
    async fn register(
        &self,
        service: &ServiceRef,
        instance: Instance,
        options: RegisterOptions,
    ) -> Result<Registration, Error> {
        self.entered.notify_one();
        self.go.acquire().await.map_err(|_| Error::Closed)?.forget();
        self.inner.register(service, instance, options).await
    }

    async fn publish(&self, service: &ServiceRef, instance: Instance) -> Result<Revision, Error> {
        self.inner.publish(service, instance).await
    }

    async fn remove(&self, service: &ServiceRef, id: &InstanceId) -> Result<Entry, Error> {
        self.inner.remove(service, id).await
    }

    async fn evict(&self, s: &ServiceRef, id: &InstanceId, modified: Option<Revision>) -> Result<Evicted, Error> {
        self.inner.evict(s, id, modified).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, Error> {
        self.inner.grant_lease(ttl).await
    }
}

#[tokio::test]
async fn a_signal_during_registration_ends_in_order() {
    let world = World::new();
    let slow = Arc::new(Slow { inner: world.servers.clone(), entered: Notify::new(), go: Semaphore::new(0) });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::try_from(listener.local_addr().unwrap()).unwrap();
    let instance = Instance::new(id("a"), [endpoint]).unwrap();
    let server = serve(listener, tonic::transport::Server::builder().add_service(support::echo("a")));
    let (registry, service) = (Arc::clone(&slow), world.service.clone());
    let run =
        begun(async move { server.register_and_run(&*registry, &service, instance, RegisterOptions::new()).await });
    soon("the registration is under way", slow.entered.notified()).await;
    let sent = std::process::Command::new("kill").args(["-TERM", &std::process::id().to_string()]).status().unwrap();
    assert!(sent.success());
    slow.go.add_permits(1);
    let report = soon("the end", run).await.unwrap();
    assert!(matches!(report.deregistered, Ok(Deregistered::Removed)), "{report:?}");
    assert!(world.client.resolve(&world.service).await.unwrap().is_empty());
}
