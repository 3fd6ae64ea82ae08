//! go-micro 4.11.0: a service and a client, with its plug-ins `registry/etcd`, `server/grpc` and `client/grpc`.

use enlist::{Endpoint, Instance, InstanceId, RegisterOptions, Registry, Resolver};
use enlist_etcd::GoMicro;
use enlist_testkit::soon;

use super::{
    both::{self, Change, Framework, LostLease, Stored},
    own_etcd, recorded,
};

const FRAMEWORK: Framework = Framework {
    program: "gomicro",
    layout: |builder| builder.layout(GoMicro),
    service: "greeter",
    prefix: "/micro/registry/greeter/",
    scheme: "",
    lost_lease: LostLease::ComesBack,
    stored: Stored::WithMethods,
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

/// The version and the metadata are carried in both directions, and theirs sees a change of them.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn all_metadata_is_carried() {
    let server = own_etcd().await;
    let etcd = FRAMEWORK.connect(&server).await;
    let endpoint = Endpoint::parse("127.0.0.1:9000").unwrap();
    let instance = Instance::new(InstanceId::parse("ours").unwrap(), [endpoint]).unwrap();
    let instance = instance.with_version("v2").with_metadata("team", "blue");
    let service = FRAMEWORK.service();
    let registered = etcd.register(&service, instance, RegisterOptions::new());
    let registration = soon("registered", registered).await.unwrap();
    let mut theirs = FRAMEWORK.follow(&server);
    theirs.sees(&["127.0.0.1:9000,v2,team=blue"]).await;
    let update = registration.update(|update| {
        update.metadata("team", "green");
    });
    soon("stored", update).await.unwrap();
    theirs.sees(&["127.0.0.1:9000,v2,team=green"]).await;
    soon("deregistered", registration.deregister()).await.unwrap();
    theirs.sees(&[]).await;

    let (_theirs, _) = FRAMEWORK.serve(&server).await;
    let found = etcd.resolve(&service).await.unwrap();
    let found = found.entries().next().unwrap().instance();
    assert_eq!((found.version(), found.metadata()["server"].as_str()), (Some("latest"), "grpc"));
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn theirs_writes_the_recorded_bytes() {
    let fixture = include_str!("../../../backend-etcd/tests/fixtures/go-micro.json");
    recorded::the_library_writes_the_recorded_bytes("gomicro", fixture, &[]).await;
}
