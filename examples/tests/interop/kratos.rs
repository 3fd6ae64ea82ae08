//! kratos 2.8.3: an app, discovery and its gRPC client, on a registry of ours.

use enlist::{Endpoint, Instance, InstanceId, RegisterOptions, Registry, Resolver, ServiceRef};
use enlist_etcd::{Etcd, Kratos};
use enlist_testkit::soon;

use super::{
    Go,
    both::{self, Framework, LostLease},
    own_etcd,
};

const FRAMEWORK: Framework = Framework {
    program: "kratos",
    layout: |builder| builder.layout(Kratos::default()),
    service: "helloworld",
    prefix: "/microservices/helloworld/",
    scheme: "grpc://",
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

/// The version, the weight and the metadata are carried in both directions, and theirs sees a change of them.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn weights_versions_and_metadata_are_carried() {
    let server = own_etcd().await;
    let etcd = Etcd::builder([server.url()]).layout(Kratos::default()).connect().await.unwrap();
    let service = ServiceRef::parse("helloworld").unwrap();
    let endpoint = Endpoint::parse("grpc://127.0.0.1:9000").unwrap();
    let instance = Instance::new(InstanceId::parse("ours").unwrap(), [endpoint]).unwrap();
    let instance = instance.with_version("v2").with_weight(9).with_metadata("team", "blue");
    let registration = etcd.register(&service, instance, RegisterOptions::new()).await.unwrap();
    let mut theirs = FRAMEWORK.follow(&server);
    theirs.sees(&["grpc://127.0.0.1:9000,v2,team=blue+weight=9"]).await;
    let update = registration.update(|update| {
        update.weight(3);
    });
    soon("stored", update).await.unwrap();
    theirs.sees(&["grpc://127.0.0.1:9000,v2,team=blue+weight=3"]).await;
    soon("deregistered", registration.deregister()).await.unwrap();
    theirs.sees(&[]).await;

    let mut go = Go::start(&server, "kratos", &["server", "helloworld"]);
    assert!(go.line().await.starts_with("serves "));
    let found = etcd.resolve(&service).await.unwrap();
    let found = found.entries().next().unwrap().instance();
    assert_eq!((found.version(), found.weight()), (Some("v1.0.0"), 7));
}
