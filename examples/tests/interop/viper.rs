//! viper 1.21.0 with its provider `etcd3`, over crypt 0.31.0.

use std::time::Duration;

use enlist_testkit::soon;

use super::{
    Go, own_etcd,
    settings::{self, Settings},
};

const KEY: &str = "/config/app.json";

/// viper reads a value of ours, its changes, and keeps the last one after a deletion. Its watch delivers each change.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn our_configuration_is_read() {
    let server = own_etcd().await;
    let ours = Settings::connect(&server).await;
    ours.put("app.json", r#"{"level":"info","limit":10}"#).await;
    let mut theirs = Go::start(&server, "viper", &["read", KEY]);
    assert_eq!(theirs.line().await, "reads info 10");
    ours.put("app.json", r#"{"level":"debug","limit":20}"#).await;
    theirs.go_on();
    assert_eq!(theirs.line().await, "reads debug 20");
    ours.delete("app.json").await;
    theirs.go_on();
    assert_eq!(theirs.line().await, "keeps debug 20");

    let mut watcher = Go::start(&server, "viper", &["watch", KEY]);
    assert_eq!(watcher.line().await, "watches");
    let first = soon("a change is delivered", async {
        loop {
            // A watch that is being created misses changes.
            ours.put("app.json", "first").await;
            if let Ok(line) = tokio::time::timeout(Duration::from_millis(100), watcher.lines.recv()).await {
                return line;
            }
        }
    })
    .await;
    assert_eq!(first.as_deref(), Some("sees first"));
    ours.put("app.json", "last").await;
    settings::says(&mut watcher, "sees last").await;
}

/// A value that crypt writes is read and followed by ours.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn their_configuration_is_read() {
    let server = own_etcd().await;
    let ours = Settings::connect(&server).await;
    let mut view = ours.watch().await;
    view.has(&[]).await;
    for value in ["one", "two"] {
        assert_eq!(Go::start(&server, "viper", &["set", KEY, value]).line().await, "set");
        view.has(&[("app.json", value)]).await;
        assert_eq!(ours.get("app.json").await.as_deref(), Some(value));
    }
}
