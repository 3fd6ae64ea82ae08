//! go-kit 0.13.0: `sd/etcdv3`, its endpointer and balancer, its gRPC transport.

use enlist::{Resolver, ServiceRef};
use enlist_etcd::{Etcd, GoKit};

use super::{
    Go,
    both::{self, Change, Framework, LostLease, Stored},
    own_etcd, recorded,
};

const FRAMEWORK: Framework = Framework {
    program: "gokit",
    layout: |builder| builder.layout(GoKit::default()),
    service: "foosvc",
    prefix: "/services/foosvc/",
    scheme: "",
    lost_lease: LostLease::StaysAway,
    stored: Stored::AsByOurs,
    change: Change::Address,
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

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn a_url_is_an_endpoint_with_its_scheme() {
    let server = own_etcd().await;
    let etcd = Etcd::builder([server.url()]).layout(GoKit::default()).connect().await.unwrap();
    let service = ServiceRef::parse("foosvc").unwrap();
    let mut go = Go::start(&server, "gokit", &["server", "foosvc", "http://1.2.3.4:8080"]);
    assert_eq!(go.line().await, "serves http://1.2.3.4:8080");
    let found = etcd.resolve(&service).await.unwrap();
    let found: Vec<_> = found.entries().map(|entry| entry.instance().endpoints()[0].to_string()).collect();
    assert_eq!(found, ["http://1.2.3.4:8080"]);
    go.go_on();
    assert_eq!(go.line().await, "left");
    assert!(etcd.resolve(&service).await.unwrap().is_empty());
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn theirs_writes_the_recorded_bytes() {
    let fixture = include_str!("../../../backend-etcd/tests/fixtures/go-kit.json");
    recorded::the_library_writes_the_recorded_bytes("gokit", fixture, &[]).await;
}
