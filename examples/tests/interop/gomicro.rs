//! go-micro 4.11.0: its plug-in `registry/etcd` 1.2.0.

use enlist_etcd::GoMicro;

use super::{
    both::{self, Framework, LostLease},
    recorded,
};

const FRAMEWORK: Framework = Framework {
    program: "gomicro",
    layout: |builder| builder.layout(GoMicro),
    service: "greeter",
    prefix: "/micro/registry/greeter/",
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
    let fixture = include_str!("../../../backend-etcd/tests/fixtures/go-micro.json");
    recorded::the_library_writes_the_recorded_bytes("gomicro", fixture, &[]).await;
}
