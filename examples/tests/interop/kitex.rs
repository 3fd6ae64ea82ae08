//! kitex 0.16.3: a server and a client, with its protocol for gRPC and `registry-etcd` 0.3.0.

use enlist::{Endpoint, Instance, InstanceId, RegisterOptions, Registry, Resolver};
use enlist_etcd::{Etcd, Kitex};
use enlist_testkit::soon;

use super::{
    Go,
    both::{self, Change, Framework, LostLease, Stored},
    own_etcd, recorded,
};

const FRAMEWORK: Framework = Framework {
    program: "kitex",
    layout: |builder| builder.layout(Kitex::default()),
    service: "echo",
    prefix: "kitex/registry-etcd/echo/",
    scheme: "",
    lost_lease: LostLease::ComesBack,
    stored: Stored::AsByOurs,
    change: Change::Parts {
        ours: |update| {
            update.weight(3).metadata("team", "green");
        },
        theirs_sees: ",weight=3,team=green",
        ours_sees: |instance| instance.weight() == 3 && both::is_green(instance),
    },
};

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn ours_is_found() {
    both::ours_is_found(&FRAMEWORK).await;
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn theirs_is_found() {
    both::theirs_is_found(&FRAMEWORK).await;
}

both::tests_of_changes!(FRAMEWORK);

/// Theirs reads the weight and the tags of ours, and sees a change of them. A server of theirs has kitex's default
/// weight.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn weights_are_carried_with_tags() {
    let server = own_etcd().await;
    let etcd = FRAMEWORK.connect(&server).await;
    let endpoint = Endpoint::parse("tcp://127.0.0.1:9000").unwrap();
    let instance = Instance::new(InstanceId::parse("ours").unwrap(), [endpoint]).unwrap();
    let instance = instance.with_weight(9).with_metadata("team", "blue");
    let service = FRAMEWORK.service();
    let registered = etcd.register(&service, instance, RegisterOptions::new());
    let registration = soon("registered", registered).await.unwrap();
    let mut theirs = FRAMEWORK.follow(&server);
    theirs.sees(&["127.0.0.1:9000,weight=9,team=blue"]).await;
    let update = registration.update(|update| {
        update.weight(3);
    });
    soon("stored", update).await.unwrap();
    theirs.sees(&["127.0.0.1:9000,weight=3,team=blue"]).await;
    soon("deregistered", registration.deregister()).await.unwrap();
    theirs.sees(&[]).await;

    let (_theirs, _) = FRAMEWORK.serve(&server).await;
    let found = etcd.resolve(&service).await.unwrap();
    assert_eq!(found.entries().next().unwrap().instance().weight(), 10);
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn theirs_writes_the_recorded_bytes() {
    let fixture = include_str!("../../../backend-etcd/tests/fixtures/kitex.json");
    recorded::the_library_writes_the_recorded_bytes("kitex", fixture, &[]).await;
}

/// kitex joins the address and the port without brackets.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn an_address_of_ipv6_without_brackets_is_read() {
    let server = own_etcd().await;
    let etcd = Etcd::builder([server.url()]).layout(Kitex::default()).connect().await.unwrap();
    let mut go = Go::start(&server, "kitex", &["ipv6", "echo", "8888"]);
    assert_eq!(go.line().await, "wrote");
    let payloads = etcd.payloads(&FRAMEWORK.service()).await.unwrap();
    assert_eq!(payloads[0].key, "kitex/registry-etcd/echo/::1:8888");
    let found = etcd.resolve(&FRAMEWORK.service()).await.unwrap();
    let found: Vec<_> = found.entries().map(|entry| entry.instance().endpoints()[0].to_string()).collect();
    assert_eq!(found, ["tcp://[::1]:8888"]);
}
