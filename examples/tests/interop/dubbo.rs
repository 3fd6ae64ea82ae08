//! dubbo-go 3.3.2: a server with the protocol `tri`, registered at application level, and its service discovery. Their
//! session on etcd has a TTL of one second and is never opened again, so each outlives a restart of etcd only as far as
//! its lease does, and programs that are started afterwards continue.

use std::{sync::Arc, time::Duration};

use enlist::{Directory, Endpoint, Instance, InstanceId, RegisterOptions, Registry};
use enlist_etcd::Dubbo;
use enlist_grpc::Channel;
use enlist_testkit::{Proxy, soon};
use tonic_health::pb::health_client::HealthClient;

use super::{
    Go, Server,
    both::{self, Change, Framework, LostLease, Stored},
    own_etcd, recorded,
};

const FRAMEWORK: Framework = Framework {
    program: "dubbo",
    layout: |builder| builder.layout(Dubbo),
    service: "greet-app",
    prefix: "/services/greet-app/",
    scheme: "tri://",
    lost_lease: LostLease::StaysAway,
    // Among them are the metadata of its service.
    stored: Stored::WithMethods,
    change: Change::Parts {
        ours: |update| {
            update.weight(3).metadata("team", "green");
        },
        theirs_sees: ",weight=3,team=green",
        ours_sees: |instance| instance.weight() == 3 && both::is_green(instance),
    },
};

/// Maximum time until an instance of a killed program is gone: its lease, whose TTL of 30 s is fixed, and the time for
/// which a view holds the last instance.
const CRASHED: Duration = Duration::from_secs(75);

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn ours_is_found() {
    let mut server = own_etcd().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (etcd, service) = (FRAMEWORK.connect(&server).await, FRAMEWORK.service());
    let (first, second) = (Server::start(), Server::start());
    let (one, two) = (first.address.to_string(), second.address.to_string());
    let registration = first.register(&etcd, &service, FRAMEWORK.scheme).await;
    let mut theirs = FRAMEWORK.follow(&server);
    theirs.sees(&[&one]).await;
    theirs.calls().await;
    let crashing = second.register(&FRAMEWORK.connect_to(proxy.url()).await, &service, FRAMEWORK.scheme).await;
    theirs.sees(&[&one, &two]).await;
    soon("deregistered", registration.deregister()).await.unwrap();
    theirs.sees(&[&two]).await;
    theirs.calls().await;

    FRAMEWORK.replace_lease(&server).await;
    // Ours cannot register again before theirs has seen the removal.
    proxy.cut();
    FRAMEWORK.revoke(&server).await;
    theirs.sees(&[]).await;
    proxy.heal();
    theirs.sees(&[&two]).await;
    theirs.calls().await;

    server.kill().await;
    server.restart().await;
    let mut theirs = FRAMEWORK.follow(&server);
    theirs.sees(&[&two]).await;
    theirs.calls().await;
    crashing.abandon();
    theirs.sees(&[]).await;
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn theirs_is_found() {
    let mut server = own_etcd().await;
    let etcd = FRAMEWORK.connect(&server).await;
    let view = Directory::new(Arc::new(etcd)).view(&FRAMEWORK.service());
    soon("the view is ready", view.ready()).await.unwrap();
    let mut client = HealthClient::new(Channel::new(&view).unwrap());
    let mut calls = async || both::answered(&mut client).await;
    let (mut first, one) = FRAMEWORK.serve(&server).await;
    both::shows(&view, &[&one]).await;
    calls().await;
    let (second, two) = FRAMEWORK.serve(&server).await;
    both::shows(&view, &[&one, &two]).await;
    first.go_on();
    assert_eq!(first.line().await, "left");
    both::shows(&view, &[&two]).await;
    drop(first);
    calls().await;

    // It is not registered again, and its end is that of the last instance, which the view holds for a while.
    FRAMEWORK.revoke(&server).await;
    both::shows(&view, &[]).await;
    assert!(FRAMEWORK.leases(&server).await.is_empty(), "it stays away");
    drop(second);
    let (third, three) = FRAMEWORK.serve(&server).await;
    both::shows(&view, &[&three]).await;
    calls().await;

    server.kill().await;
    server.restart().await;
    let (mut fourth, four) = FRAMEWORK.serve(&server).await;
    both::shows(&view, &[&three, &four]).await;
    calls().await;
    drop(third);
    both::shows_within(CRASHED, &view, &[&four]).await;
    calls().await;
    fourth.go_on();
    assert_eq!(fourth.line().await, "left");
    both::shows(&view, &[]).await;
}

both::tests_of_changes!(FRAMEWORK);

/// A consumer of dubbo finds the application of an interface, and the methods of its instances, in the metadata report,
/// which servers of dubbo write. For ours another program has to. Up to 3.3.1 there is no `/` between `/dubbo` and the
/// name of the application.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn a_consumer_of_dubbo_calls_ours() {
    const REPORT: [(&str, &str); 2] = [
        ("/dubbo/mapping/grpc.health.v1.Health", "greet-app"),
        (
            "/dubbo/greet-app/1",
            r#"{"app":"greet-app","revision":"1","services":{"grpc.health.v1.Health:tri":{"protocol":"tri",
            "name":"grpc.health.v1.Health","path":"grpc.health.v1.Health","params":{"methods":"Check,Watch"}}}}"#,
        ),
    ];
    let server = own_etcd().await;
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    for (key, value) in REPORT {
        raw.put(key, value, None).await.unwrap();
    }
    let ours = Server::start();
    let endpoint = Endpoint::parse(format!("tri://{}", ours.address)).unwrap();
    let instance = Instance::new(InstanceId::parse(ours.address.to_string()).unwrap(), [endpoint]).unwrap();
    let instance = instance.with_metadata("dubbo.metadata.revision", "1");
    let instance = instance.with_metadata("dubbo.metadata.storage-type", "remote");
    let etcd = FRAMEWORK.connect(&server).await;
    let service = FRAMEWORK.service();
    let registered = etcd.register(&service, instance, RegisterOptions::new());
    let _registration = soon("registered", registered).await.unwrap();
    let mut theirs = Go::start(&server, "dubbo", &["call"]);
    theirs.go_on();
    assert_eq!(theirs.line().await, "answered SERVING");
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn theirs_writes_the_recorded_bytes() {
    let fixture = include_str!("../../../backend-etcd/tests/fixtures/dubbo-application.json");
    recorded::the_library_writes_the_recorded_bytes("dubbo", fixture, &[]).await;
}
