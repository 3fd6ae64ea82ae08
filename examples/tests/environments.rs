//! Services in environments, as in go-etcd: one client and one manager for the instances of all environments.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{sync::Arc, time::Duration};

use enlist::{Endpoint, Instance, InstanceId, RegisterOptions, Registry, ServiceRef};
use enlist_etcd::{Etcd, Fireflycore};
use enlist_examples::greeter::{self, GreeterClient, HelloRequest};
use enlist_grpc::{Callee, ConnectionManager, Invocation, ManagerOptions};
use enlist_testkit::{BackgroundTask, EtcdServer, soon};
use tonic::transport::server::TcpIncoming;

async fn connect(server: &EtcdServer, environment: &str) -> Etcd {
    let layout = Fireflycore::new(environment).unwrap();
    soon("connected", Etcd::builder([server.url()]).layout(layout).connect()).await.unwrap()
}

#[tokio::test]
async fn a_call_reaches_the_named_environment() {
    let server = EtcdServer::start().await;
    let service = ServiceRef::parse("auth").unwrap();
    let mut running = Vec::new();
    for (environment, id) in [("dev", "i-1"), ("prod", "i-2"), ("", "i-3")] {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = Endpoint::try_from(incoming.local_addr().unwrap()).unwrap();
        let serve = greeter::router(environment, Duration::ZERO).serve_with_incoming(incoming);
        let serving = BackgroundTask::run(async move { serve.await.unwrap() });
        // Each server has its own environment. Keys and values are those of Go, byte for byte.
        let etcd = connect(&server, environment).await;
        let instance = Instance::new(InstanceId::parse(id).unwrap(), [endpoint]).unwrap();
        let registered = soon("registered", etcd.register(&service, instance, RegisterOptions::new())).await.unwrap();
        running.push((serving, etcd, registered));
    }

    let resolver = Arc::new(connect(&server, "").await);
    let manager = ConnectionManager::from_resolver(resolver, Invocation::default(), ManagerOptions::new()).unwrap();
    let auth = Callee::parse("default/auth").unwrap();
    for (callee, environment) in [
        (auth.clone().in_environment("dev"), "dev"),
        (auth.clone().in_environment("prod"), "prod"),
        (auth.clone().in_environment(""), ""),
        (auth, ""),
    ] {
        let mut client = GreeterClient::new(manager.channel(&callee).unwrap());
        let reply = soon("an answer", client.hello(HelloRequest { name: "world".to_owned() })).await.unwrap();
        assert_eq!(reply.into_inner().from, environment, "{callee:?}");
    }
    assert_eq!(manager.targets().len(), 3);
    soon("closed", manager.close(Duration::from_secs(5))).await.unwrap();
}
