//! `enlist agent` beside a real etcd. Clients of the agent are tested in its crate.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use enlist_testkit::eventually;
use http_body_util::Empty;
use hyper::{Request, body::Bytes};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Running, bare, certificate, enlist, run, server};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// Begin of a client's connection, see RFC 9113, section 3.4, with empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Type of the frame with which an HTTP/2 server begins.
const SETTINGS: u8 = 4;

/// Starts the agent with these additional arguments. Returns it with its address for xDS.
async fn agent(server: &enlist_testkit::EtcdServer, arguments: &[&str]) -> (Running, SocketAddr) {
    let (agent, printed) = started(server, arguments).await;
    (agent, printed["xds"].as_str().unwrap().parse().unwrap())
}

/// Starts the agent with these additional arguments. Returns it with the object that it prints.
async fn started(server: &enlist_testkit::EtcdServer, arguments: &[&str]) -> (Running, serde_json::Value) {
    let mut command = enlist(server, ["agent", "--xds", "127.0.0.1:0", "--output", "json"]);
    command.args(arguments).env("RUST_LOG", "enlist_agent=debug");
    let mut agent = Running::start(command);
    let printed = serde_json::from_str(&agent.says("xds").await).unwrap();
    (agent, printed)
}

/// Opens a stream for discovery. Returns the `grpc-status` of a response that consists of headers only.
async fn status(address: SocketAddr, token: Option<&str>) -> Option<String> {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let mut request = Request::post(format!(
        "http://{address}/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
    ))
    .header("content-type", "application/grpc")
    .header("te", "trailers");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let response = tokio::select! {
        response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()) => response.unwrap(),
        ended = connection => panic!("the connection ended: {ended:?}"),
    };
    response.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn the_agent_ends_in_order_on_a_signal() {
    let server = server().await;
    let (mut agent, address) = agent(&server, &[]).await;
    assert_eq!(status(address, None).await, None);
    agent.warns("stream ended").await;
    agent.signal("-TERM");
    assert_eq!(agent.code().await, Some(0));
}

#[tokio::test]
async fn only_clients_with_the_token_are_served() {
    let server = server().await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "secret\n").unwrap();
    let (_agent, address) = agent(&server, &["--token-file", token.to_str().unwrap()]).await;
    // 16 is UNAUTHENTICATED.
    assert_eq!(status(address, None).await.as_deref(), Some("16"));
    assert_eq!(status(address, Some("wrong")).await.as_deref(), Some("16"));
    assert_eq!(status(address, Some("secret")).await, None);
}

/// Returns the memory of a process in bytes.
fn memory(pid: u32) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB")).unwrap();
    resident.trim().parse::<usize>().unwrap() << 10
}

/// Reads frames, and answers pings (RFC 9113, section 6.7), until the connection ends. Counts the connection once the
/// agent has begun with it.
async fn idle(address: SocketAddr, begun: Arc<AtomicUsize>) {
    const HEAD: usize = 9;
    const PING: u8 = 6;
    const ACK: u8 = 1;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    let mut head = [0; HEAD];
    let mut is_first = true;
    while stream.read_exact(&mut head).await.is_ok() {
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        if (head[3], head[4] & ACK) == (PING, 0) {
            head[4] = ACK;
            stream.write_all(&[&head[..], &payload[..]].concat()).await.unwrap();
        }
        begun.fetch_add(usize::from(std::mem::take(&mut is_first)), Relaxed);
    }
}

#[tokio::test]
async fn ten_thousand_idle_connections_cost_little() {
    // One place is left.
    const CONNECTIONS: usize = 9_999;
    /// Files of the test besides the connections.
    const OTHER_FILES: usize = 200;
    const BYTES_EACH: usize = 24 << 10;
    const AT_A_TIME: usize = 200;
    let limit = getrlimit(Resource::Nofile);
    let needed = limit.current.map(|files| files.max((CONNECTIONS + OTHER_FILES) as u64));
    setrlimit(Resource::Nofile, Rlimit { current: needed, ..limit }).expect("10,200 open files are permitted");
    let server = server().await;
    let (agent, address) = agent(&server, &[]).await;
    assert_eq!(status(address, None).await, None);
    let before = memory(agent.child.id());
    let begun = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    // A few at a time: the queue of a listener is short.
    for number in (0..CONNECTIONS).step_by(AT_A_TIME) {
        let end = CONNECTIONS.min(number + AT_A_TIME);
        for _ in number..end {
            connections.spawn(idle(address, begun.clone()));
        }
        eventually("the agent has begun with these", || async {
            let number = begun.load(Relaxed);
            if number == end { Ok(()) } else { Err(number) }
        })
        .await;
    }
    let growth = memory(agent.child.id()).saturating_sub(before);
    assert!(connections.try_join_next().is_none(), "they are open");
    assert!(growth <= CONNECTIONS * BYTES_EACH, "{growth} bytes");
    assert_eq!(status(address, None).await, None, "another client is served");
}

#[tokio::test]
async fn a_certificate_excludes_plain_text() {
    let server = server().await;
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = certificate(folder.path());
    let first_frame = async |address| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        let mut head = [0; 4];
        let read = enlist_testkit::soon("an answer, or the end", stream.read_exact(&mut head)).await;
        read.ok().map(|_| head[3])
    };
    let (_plain, address) = agent(&server, &[]).await;
    assert_eq!(first_frame(address).await, Some(SETTINGS));
    let (_tls, address) = agent(&server, &["--tls-cert", &certificate, "--tls-key", &key]).await;
    assert_ne!(first_frame(address).await, Some(SETTINGS));
}

#[tokio::test]
async fn the_registry_is_served_over_http() {
    let server = server().await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "secret\n").unwrap();
    let arguments = ["--http", "127.0.0.1:0", "--http-host", "agent.test", "--token-file", token.to_str().unwrap()];
    let (_agent, printed) = started(&server, &arguments).await;
    let address: SocketAddr = printed["http"].as_str().unwrap().parse().unwrap();
    for (path, host, token, status) in [
        ("/v1/services", "agent.test", "secret", 200),
        ("/v1/locks", "localhost", "secret", 200),
        ("/v1/services", "agent.test", "wrong", 401),
        ("/v1/services", "other.test", "secret", 421),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.0\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut response = String::new();
        enlist_testkit::soon("a response", stream.read_to_string(&mut response)).await.unwrap();
        assert!(response.starts_with(&format!("HTTP/1.0 {status}")), "{path} {host} {token}: {response}");
    }
}

#[tokio::test]
async fn faulty_options_are_refused() {
    for (arguments, code, expected) in [
        (vec!["--xds", "0.0.0.0:0"], 1, "can be reached from other hosts"),
        (vec!["--xds", "127.0.0.1:0", "--http", "0.0.0.0:0"], 1, "can be reached from other hosts"),
        (vec!["--http-host", "agent.test"], 2, "--http"),
        (vec!["--envoy", "greeter"], 2, "write ADDRESS=SERVICE"),
        (vec!["--envoy", "127.0.0.1:80="], 1, "a name that no service can have"),
        (vec!["--token-file", "/nonexistent"], 1, "cannot read /nonexistent"),
        (vec!["--tls-cert", "cert.pem"], 2, "--tls-key"),
    ] {
        let mut command = bare();
        command.arg("agent").args(&arguments);
        let done = run(command).await;
        assert!(done.code == Some(code) && done.stderr.contains(expected), "{arguments:?}: {done:?}");
    }
}

/// The file as it is printed in the documentation, on free ports.
#[tokio::test]
async fn the_documented_configuration_is_served() {
    let server = server().await;
    let folder = tempfile::tempdir().unwrap();
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/agent.md")).unwrap();
    let text = page.split_once("```toml\n").unwrap().1.split_once("```").unwrap().0;
    let text = text.replace("127.0.0.1:18000", "127.0.0.1:0").replace("127.0.0.1:18001", "127.0.0.1:0");
    let [certificate, key] = certificate(folder.path());
    for (from, to) in [(&*certificate, "agent.pem"), (&*key, "agent.key"), (&*certificate, "clients.pem")] {
        fs::copy(from, folder.path().join(to)).unwrap();
    }
    fs::write(folder.path().join("agent.token"), "secret\n").unwrap();
    let file = folder.path().join("agent.toml");
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let mut agent = Running::start(enlist(&server, ["agent", "--config", file, "--output", "json"]));
    let printed: serde_json::Value = serde_json::from_str(&agent.says("xds").await).unwrap();
    let http: SocketAddr = printed["http"].as_str().unwrap().parse().unwrap();
    TcpStream::connect(http).await.unwrap();
    agent.signal("-TERM");
    assert_eq!(agent.code().await, Some(0));
}

#[tokio::test]
async fn an_unknown_key_is_reported_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.toml");
    fs::write(&file, "[xds]\nadress = \"127.0.0.1:0\"\n").unwrap();
    let mut command = bare();
    command.args(["agent", "--config"]).arg(file);
    let done = run(command).await;
    let expected = "agent.toml: line 2: unknown field `adress`";
    assert!(done.code == Some(2) && done.stderr.contains(expected), "{done:?}");
}
