//! go-zero 1.10.3: a zrpc server, a subscriber, a zrpc client.

use enlist_etcd::GoZero;

use super::both::{self, Framework, LostLease};

const FRAMEWORK: Framework = Framework {
    program: "gozero",
    layout: |builder| builder.layout(GoZero),
    service: "user.rpc",
    prefix: "user.rpc/",
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
