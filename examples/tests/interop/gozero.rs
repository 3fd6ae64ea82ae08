//! go-zero 1.10.3: a zrpc server, a subscriber, a zrpc client, and the configurator of its configuration centre.

use std::time::Duration;

use enlist_etcd::GoZero;
use enlist_testkit::soon;

use super::{
    Go,
    both::{self, Change, Framework, LostLease, Stored},
    own_etcd, recorded, settings,
};

const FRAMEWORK: Framework = Framework {
    program: "gozero",
    layout: |builder| builder.layout(GoZero),
    service: "user.rpc",
    prefix: "user.rpc/",
    scheme: "",
    lost_lease: LostLease::ComesBack,
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
async fn theirs_writes_the_recorded_bytes() {
    let fixture = include_str!("../../../backend-etcd/tests/fixtures/go-zero.json");
    recorded::the_library_writes_the_recorded_bytes("gozero", fixture, &[]).await;
}

/// The configurator follows a value of ours, sees it go and return, and follows it again after a restart of etcd.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn our_configuration_is_followed() {
    let mut server = own_etcd().await;
    let ours = settings::Settings::connect(&server).await;
    ours.put("app.json", r#"{"level":"info","limit":10}"#).await;
    // A longer key with the same beginning does not matter.
    ours.put("app.json/other", "no").await;
    let mut theirs = Go::start(&server, "gozero", &["config", "/config/app.json"]);
    settings::says(&mut theirs, "sees info 10").await;
    ours.put("app.json", r#"{"level":"debug","limit":20}"#).await;
    settings::says(&mut theirs, "sees debug 20").await;
    ours.delete("app.json").await;
    settings::says(&mut theirs, "fails empty config value").await;
    ours.put("app.json", r#"{"level":"warn","limit":30}"#).await;
    settings::says(&mut theirs, "sees warn 30").await;
    server.kill().await;
    server.restart().await;
    // go-zero shows a value that changed before it reconnected as empty until the next change.
    let followed = async {
        for limit in 40.. {
            ours.put("app.json", &format!(r#"{{"level":"error","limit":{limit}}}"#)).await;
            let wanted = format!("sees error {limit}");
            while let Ok(line) = tokio::time::timeout(Duration::from_secs(1), theirs.lines.recv()).await {
                if line.as_ref() == Some(&wanted) {
                    return;
                }
            }
        }
    };
    soon("a change after the restart is seen", followed).await;
}
