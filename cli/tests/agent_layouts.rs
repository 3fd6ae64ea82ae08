//! `enlist agent` over the layouts of Go frameworks: servers that their libraries register are called by gRPC in Go,
//! which knows the agent only. `cargo xtask clients layouts` builds the Go programs and runs this.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

#[path = "../../agent/tests/clients/caller.rs"]
mod caller;
mod support;

use std::{env, path::PathBuf, process::Stdio};

use caller::Caller;
use enlist_testkit::{EtcdServer, soon};
use support::{Running, enlist, server};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// Method that the servers of all frameworks have.
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Number of reports for which nothing has to change.
const REPORTS: u32 = 10;

const NONE: [&str; 0] = [];

/// Returns a program in a folder that `cargo xtask clients` sets.
fn program(folder: &str, name: &str) -> Command {
    let folder = env::var(folder).unwrap_or_else(|_| panic!("{folder} is not set: run `cargo xtask clients`"));
    let mut command = Command::new(PathBuf::from(folder).join(name));
    command.kill_on_drop(true);
    command
}

/// A server in Go, registered by the library of its framework.
struct GoServer {
    address: String,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl GoServer {
    async fn start(etcd: &EtcdServer, framework: &str, service: &str) -> Self {
        let mut command = program("ENLIST_INTEROP_BIN", framework);
        command.args(["server", service]).env("ENLIST_ENDPOINTS", etcd.address().to_string());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut server =
            Self { address: String::new(), input, output: BufReader::new(output).lines(), _process: process };
        let line = server.line().await;
        line.strip_prefix("serves ").expect("its address").clone_into(&mut server.address);
        server
    }

    async fn line(&mut self) -> String {
        soon("the Go side prints a line", self.output.next_line()).await.unwrap().expect("it goes on")
    }

    /// Deregisters the server, in the way of its framework. It continues to serve.
    async fn leave(&mut self) {
        self.input.write_all(b"\n").await.unwrap();
        assert_eq!(self.line().await, "left");
    }
}

/// Starts calls of a service through an agent.
fn call(xds: &str, service: &str) -> Caller {
    let bootstrap = serde_json::json!({
        "xds_servers": [{ "server_uri": xds, "channel_creds": [{ "type": "insecure" }] }],
        "node": { "id": "caller-1" },
    });
    let mut command = program("ENLIST_CLIENT_GO", "calls");
    command.args([&format!("xds:///{service}"), HEALTH]).env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string());
    Caller::start(command)
}

/// Starts the agent over a layout. Returns it with its address for xDS.
async fn agent(etcd: &EtcdServer, layout: &str, xds: &str) -> (Running, String) {
    let mut agent = Running::start(enlist(etcd, ["--layout", layout, "--output", "json", "agent", "--xds", xds]));
    let printed: serde_json::Value = serde_json::from_str(&agent.says("xds").await).unwrap();
    let xds = printed["xds"].as_str().unwrap().to_owned();
    (agent, xds)
}

/// Removes the history of etcd up to now.
async fn compact(etcd: &EtcdServer) {
    let mut client = etcd_client::Client::connect([etcd.url()], None).await.unwrap();
    let revision = client.put("compaction", "", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
}

/// Waits for some calls, which reach these servers without a failure.
async fn calls_continue(caller: &mut Caller, servers: &[&str]) {
    for _ in 0..REPORTS {
        let report = caller.report().await;
        assert!(report.failures.is_empty() && report.names() == servers, "{report:?}");
    }
}

/// Runs servers of a framework under calls: one leaves, and others come after a restart of etcd, after a compaction
/// that the agent has missed, after the death of the agent, and after a loss of everything in etcd.
async fn servers_are_called(framework: &str, layout: &str, service: &str) {
    let mut etcd = server().await;
    let (mut running, xds) = agent(&etcd, layout, "127.0.0.1:0").await;
    let mut one = GoServer::start(&etcd, framework, service).await;
    let two = GoServer::start(&etcd, framework, service).await;
    let mut caller = call(&xds, service);
    // The first calls may precede the registrations.
    caller.reaches(&sorted([&one.address, &two.address])).await;
    one.leave().await;
    assert_eq!(caller.reaches(&[&two.address]).await, NONE);

    etcd.kill().await;
    calls_continue(&mut caller, &[&two.address]).await;
    running.signal("-STOP");
    etcd.restart().await;
    let three = GoServer::start(&etcd, framework, service).await;
    compact(&etcd).await;
    calls_continue(&mut caller, &[&two.address]).await;
    running.signal("-CONT");
    assert_eq!(caller.reaches(&sorted([&two.address, &three.address])).await, NONE);

    running.signal("-KILL");
    running.code().await;
    calls_continue(&mut caller, &sorted([&two.address, &three.address])).await;
    let (_running, _) = agent(&etcd, layout, &xds).await;
    let four = GoServer::start(&etcd, framework, service).await;
    assert_eq!(caller.reaches(&sorted([&two.address, &three.address, &four.address])).await, NONE);

    etcd.wipe().await;
    let five = GoServer::start(&etcd, framework, service).await;
    let all = sorted([&two.address, &three.address, &four.address, &five.address]);
    assert_eq!(caller.reaches(&all).await, NONE);
}

fn sorted<const N: usize>(mut addresses: [&str; N]) -> [&str; N] {
    addresses.sort_unstable();
    addresses
}

#[tokio::test]
#[ignore = "needs Go: cargo xtask clients layouts"]
async fn servers_of_go_zero_are_called() {
    servers_are_called("gozero", "go-zero", "user.rpc").await;
}

#[tokio::test]
#[ignore = "needs Go: cargo xtask clients layouts"]
async fn servers_that_kitex_registers_are_called() {
    servers_are_called("kitex", "kitex", "echo").await;
}

#[tokio::test]
#[ignore = "needs Go: cargo xtask clients layouts"]
async fn servers_of_kratos_are_called() {
    servers_are_called("kratos", "kratos", "user").await;
}
