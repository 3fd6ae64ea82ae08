//! Prometheus with the printed configuration.

use std::{fs, net::SocketAddr, process::Stdio};

use enlist_testkit::eventually;
use serde_json::Value;
use tokio::{net::TcpListener, process::Command};

use crate::{
    http::{DOCUMENTED, exchange, start},
    page, supplied,
    support::{Store, instance},
};

/// Returns the names of the active targets of the job `enlist`.
async fn targets(prometheus: SocketAddr) -> Vec<String> {
    let Ok(body) = exchange(prometheus, "GET", "/api/v1/targets?state=active", "").await else { return vec![] };
    let Ok(body) = serde_json::from_str::<Value>(&body) else { return vec![] };
    let targets = body["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
    let targets = targets.iter().filter(|target| target["labels"]["job"] == "enlist");
    let name = |target: &Value| target["labels"]["id"].as_str().unwrap_or_default().to_owned();
    let mut names: Vec<_> = targets.map(name).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
#[ignore = "needs Prometheus: cargo xtask clients"]
async fn its_targets_follow_the_instances() {
    let store = Store::new();
    let (_agent, address) = start(&store).await;
    let first = store.register("greeter", instance("a", 8080)).await;
    let _second = store.register("greeter", instance("b", 8081)).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prometheus.yml");
    let printed = page::block("clients/prometheus.md", "## Configuration", "yaml");
    assert!(printed.contains(DOCUMENTED) && printed.contains("refresh_interval: 10s"), "{printed}");
    let text =
        printed.replace(DOCUMENTED, &address.to_string()).replace("refresh_interval: 10s", "refresh_interval: 1s");
    fs::write(&file, text).unwrap();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = free.local_addr().unwrap();
    drop(free);
    let mut command = Command::new(supplied("ENLIST_CLIENT_PROMETHEUS"));
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--web.listen-address={listen}"));
    command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
    let _process = command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let are = |expected: &'static [&'static str]| async move {
        eventually("the targets", || async {
            let found = targets(listen).await;
            if found == expected { Ok(()) } else { Err(found) }
        })
        .await;
    };
    are(&["a", "b"]).await;
    first.deregister().await.unwrap();
    are(&["b"]).await;
}
