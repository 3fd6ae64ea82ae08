//! A real tonic client follows a service from one server to another.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{net::SocketAddr, sync::Arc};

use enlist::{Directory, Endpoint, Instance, InstanceId, RegisterOptions, Registry, ServiceRef, TaskOwner};
use enlist_grpc::balance_channel;
use enlist_memory::MemoryStore;
use enlist_testkit::{eventually, soon};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// A gRPC server that only knows the health of `service`, which tells the servers apart.
async fn serve(service: &'static str) -> (SocketAddr, TaskOwner) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status(service, tonic_health::ServingStatus::Serving).await;
    let tasks = TaskOwner::new();
    let stop = tasks.stop_signal();
    let server = tonic::transport::Server::builder()
        .add_service(health)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned());
    tasks.spawn("server", async move { server.await.unwrap() }).unwrap();
    (address, tasks)
}

fn instance(id: &str, address: SocketAddr) -> Instance {
    Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::try_from(address).unwrap()]).unwrap()
}

#[tokio::test]
async fn calls_go_where_the_service_is() {
    let (first, _first) = serve("first").await;
    let (second, _second) = serve("second").await;
    let store = MemoryStore::new();
    let (servers, service) = (store.client(), ServiceRef::parse("health").unwrap());
    let a = servers.register(&service, instance("a", first), RegisterOptions::new()).await.unwrap();

    let view = Directory::new(Arc::new(store.client())).view(&service);
    soon("ready", view.ready()).await.unwrap();
    let balanced = balance_channel(&view).unwrap();
    let client = HealthClient::new(balanced.channel());
    let knows = |name: &'static str| {
        let mut client = client.clone();
        let request = HealthCheckRequest { service: name.to_owned() };
        async move { soon("an answer", client.check(request)).await.map(|_| ()).map_err(|status| status.code()) }
    };
    eventually("the first server answers", || knows("first")).await;
    assert_eq!(knows("second").await, Err(tonic::Code::NotFound));

    let _b = servers.register(&service, instance("b", second), RegisterOptions::new()).await.unwrap();
    soon("deregistered", a.deregister()).await.unwrap();
    eventually("the second server answers", || knows("second")).await;
    eventually("the first one is no longer asked", || async {
        match knows("first").await {
            Err(tonic::Code::NotFound) => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

#[test]
fn outside_a_runtime_it_refuses() {
    let store = MemoryStore::new();
    let view = Directory::new(Arc::new(store.client())).view(&ServiceRef::parse("s").unwrap());
    assert!(balance_channel(&view).is_err());
}
