//! dubbo-go 3.3.1: application-level service discovery. Its session on etcd has a TTL of one second and is never opened
//! again, so the tests leave etcd alone. Our channel does not call endpoints with dubbo's protocol `tri`.

use std::sync::Arc;

use enlist::Directory;
use enlist_etcd::Dubbo;
use enlist_testkit::soon;

use super::{
    Server,
    both::{self, Framework, LostLease},
    own_etcd, recorded,
};

const FRAMEWORK: Framework = Framework {
    program: "dubbo",
    layout: |builder| builder.layout(Dubbo),
    service: "greet-app",
    prefix: "/services/greet-app/",
    scheme: "tri://",
    lost_lease: LostLease::StaysAway,
};

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn ours_is_found() {
    let server = own_etcd().await;
    let (etcd, service) = (FRAMEWORK.connect(&server).await, FRAMEWORK.service());
    let (first, second) = (Server::start(), Server::start());
    let (one, two) = (first.address.to_string(), second.address.to_string());
    let registration = first.register(&etcd, &service, FRAMEWORK.scheme).await;
    let mut theirs = FRAMEWORK.follow(&server);
    theirs.sees(&[&one]).await;
    theirs.calls().await;
    let crashing = second.register(&FRAMEWORK.connect(&server).await, &service, FRAMEWORK.scheme).await;
    theirs.sees(&[&one, &two]).await;
    soon("deregistered", registration.deregister()).await.unwrap();
    theirs.sees(&[&two]).await;
    theirs.calls().await;
    crashing.abandon();
    theirs.sees(&[]).await;
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn theirs_is_found() {
    let server = own_etcd().await;
    let etcd = FRAMEWORK.connect(&server).await;
    let view = Directory::new(Arc::new(etcd.clone())).view(&FRAMEWORK.service());
    let (mut first, one) = FRAMEWORK.serve(&server).await;
    both::shows(&view, &[&one]).await;
    recorded::the_server_is_stored_as_by_ours(&server, etcd.layout(), &FRAMEWORK.service()).await;
    let (_second, two) = FRAMEWORK.serve(&server).await;
    both::shows(&view, &[&one, &two]).await;
    first.go_on();
    assert_eq!(first.line().await, "left");
    both::shows(&view, &[&two]).await;
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn theirs_writes_the_recorded_bytes() {
    let fixture = include_str!("../../../backend-etcd/tests/fixtures/dubbo-application.json");
    recorded::the_library_writes_the_recorded_bytes("dubbo", fixture, &[]).await;
}
