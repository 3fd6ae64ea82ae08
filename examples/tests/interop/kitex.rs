//! kitex 0.15.3: `registry-etcd` 0.3.0.

use enlist::Resolver;
use enlist_etcd::{Etcd, Kitex};

use super::{
    Go,
    both::{self, Framework, LostLease},
    own_etcd, recorded,
};

const FRAMEWORK: Framework = Framework {
    program: "kitex",
    layout: |builder| builder.layout(Kitex::default()),
    service: "echo",
    prefix: "kitex/registry-etcd/echo/",
    scheme: "",
    lost_lease: LostLease::ComesBack,
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
