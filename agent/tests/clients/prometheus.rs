//! Prometheus with the printed configuration.

#[cfg(feature = "tls")]
use std::sync::Arc;
use std::{fs, net::SocketAddr, path::Path, process::Stdio};

#[cfg(feature = "tls")]
use enlist_agent::{Agent, BearerToken, HttpOptions, TlsIdentity};
use enlist_testkit::{eventually, free_port};
use serde_json::Value;
use tokio::process::{Child, Command};

#[cfg(feature = "tls")]
use crate::support::{TestAgent, authority::Authority, local};
use crate::{
    http::{DOCUMENTED, exchange, start},
    page, supplied,
    support::{Store, instance},
};

/// Returns the active targets.
async fn active_targets(prometheus: SocketAddr) -> Vec<Value> {
    let Ok(body) = exchange(prometheus, "GET", "/api/v1/targets?state=active", "").await else { return vec![] };
    let Ok(body) = serde_json::from_str::<Value>(&body) else { return vec![] };
    body["data"]["activeTargets"].as_array().cloned().unwrap_or_default()
}

/// Returns the names of the active targets of the job `enlist`.
async fn targets(prometheus: SocketAddr) -> Vec<String> {
    let targets = active_targets(prometheus).await;
    let targets = targets.iter().filter(|target| target["labels"]["job"] == "enlist");
    let name = |target: &Value| target["labels"]["id"].as_str().unwrap_or_default().to_owned();
    let mut names: Vec<_> = targets.map(name).collect();
    names.sort_unstable();
    names
}

/// Runs Prometheus with a printed configuration and these changes to it, until the process is dropped.
fn start_prometheus(folder: &Path, heading: &str, changes: &[(&str, &str)]) -> (Child, SocketAddr) {
    let (file, mut text) = (folder.join("prometheus.yml"), page::block("clients/prometheus.md", heading, "yaml"));
    for (printed, changed) in changes.iter().chain(&[("refresh_interval: 10s", "refresh_interval: 1s")]) {
        assert!(text.contains(printed), "{printed} in {text}");
        text = text.replace(printed, changed);
    }
    // The first scrape is at any time within an interval, which is a minute by default.
    fs::write(&file, format!("global: {{ scrape_interval: 1s }}\n{text}")).unwrap();
    let listen = ([127, 0, 0, 1], free_port()).into();
    let mut command = Command::new(supplied("ENLIST_CLIENT_PROMETHEUS"));
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--web.listen-address={listen}"));
    command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
    let process = command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    (process, listen)
}

/// Waits until the targets are these.
async fn targets_are(prometheus: SocketAddr, expected: &[&str]) {
    eventually("the targets", || async {
        let found = targets(prometheus).await;
        if found == expected { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs Prometheus: cargo xtask clients"]
async fn its_targets_follow_the_instances() {
    let store = Store::new();
    let (_agent, address) = start(&store).await;
    let first = store.register("greeter", instance("a", 8080)).await;
    let _second = store.register("greeter", instance("b", 8081)).await;
    let folder = tempfile::tempdir().unwrap();
    let (_process, listen) = start_prometheus(folder.path(), "## Configuration", &[(DOCUMENTED, &address.to_string())]);
    targets_are(listen, &["a", "b"]).await;
    first.deregister().await.unwrap();
    targets_are(listen, &["b"]).await;
}

/// With and without a certificate of its own.
#[cfg(feature = "tls")]
#[tokio::test]
#[ignore = "needs Prometheus: cargo xtask clients"]
async fn it_uses_certificates_and_a_token() {
    for has_certificate in [false, true] {
        let store = Store::new();
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        let (certificate, key) = authority.issue("localhost");
        let mut identity = TlsIdentity::new(certificate, key);
        let mut tls = "ca_file: ca.pem".to_owned();
        if has_certificate {
            identity = identity.client_authority(authority.pem());
            let (certificate, key) = authority.issue("prometheus");
            fs::write(folder.path().join("client.pem"), certificate).unwrap();
            fs::write(folder.path().join("client.key"), key).unwrap();
            tls.push_str(", cert_file: client.pem, key_file: client.key");
        }
        let http = HttpOptions::new().address(([127, 0, 0, 1], 0).into()).tls(identity);
        let http = http.token(BearerToken::new("secret").unwrap());
        let agent = TestAgent::of(Agent::builder(Arc::new(store.agents.clone())).xds(local()).http(http)).await;
        let address = format!("localhost:{}", agent.http.unwrap().port());
        fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        fs::write(folder.path().join("token"), "secret").unwrap();
        let _one = store.register("greeter", instance("a", 8080)).await;
        let changes = [("localhost:18001", &*address), ("ca_file: ca.pem", &*tls)];
        let (_process, listen) = start_prometheus(folder.path(), "## With a certificate and a token", &changes);
        targets_are(listen, &["a"]).await;
        eventually("the agent itself is scraped", || async {
            let found = active_targets(listen).await;
            let agent = found.iter().find(|target| target["labels"]["job"] == "enlist-agent");
            if agent.is_some_and(|agent| agent["health"] == "up") { Ok(()) } else { Err(found) }
        })
        .await;
    }
}
