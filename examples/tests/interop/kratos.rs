//! kratos 2.9.1: an app, discovery and its gRPC client, on its `contrib/registry/etcd`; its configuration, on its
//! `contrib/config/etcd`.

use enlist::{Endpoint, Instance, InstanceId, RegisterOptions, Registry, Resolver, ServiceRef};
use enlist_etcd::{Etcd, Kratos};
use enlist_testkit::soon;

use super::{
    Go,
    both::{self, Change, Framework, LostLease, Stored},
    own_etcd, recorded, settings,
};

const FRAMEWORK: Framework = Framework {
    program: "kratos",
    layout: |builder| builder.layout(Kratos::default()),
    service: "helloworld",
    prefix: "/microservices/helloworld/",
    scheme: "grpc://",
    lost_lease: LostLease::ComesBack,
    stored: Stored::AsByOurs,
    change: Change::team(",,team=green"),
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

/// The version, the weight and the metadata are carried in both directions, and theirs sees a change of them.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn all_metadata_is_carried() {
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

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn theirs_writes_the_recorded_bytes() {
    let fixture = include_str!("../../../backend-etcd/tests/fixtures/kratos.json");
    recorded::the_library_writes_the_recorded_bytes("kratos", fixture, &[]).await;
}

/// Values of ours under a prefix are merged by kratos, each in the format of its suffix, and a change is observed. What
/// is deleted stays in its view.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn our_configuration_is_followed() {
    let server = own_etcd().await;
    let ours = settings::Settings::connect(&server).await;
    ours.put("app/log.yaml", "level: info\n").await;
    ours.put("app/limits.json", r#"{"limit":10}"#).await;
    let mut theirs = Go::start(&server, "kratos", &["config", "/config/app/"]);
    settings::says(&mut theirs, "sees info").await;
    ours.put("app/log.yaml", "level: debug\n").await;
    settings::says(&mut theirs, "sees debug").await;
    ours.delete("app/log.yaml").await;
    ours.put("app/log.json", r#"{"level":"warn"}"#).await;
    settings::says(&mut theirs, "sees warn").await;
}
