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

/// Runs servers of a framework, of which one leaves and one comes after a restart of etcd, under calls.
async fn servers_are_called(framework: &str, layout: &str, service: &str) {
    let mut etcd = server().await;
    let mut agent =
        Running::start(enlist(&etcd, ["--layout", layout, "--output", "json", "agent", "--xds", "127.0.0.1:0"]));
    let printed: serde_json::Value = serde_json::from_str(&agent.says("xds").await).unwrap();
    let mut one = GoServer::start(&etcd, framework, service).await;
    let two = GoServer::start(&etcd, framework, service).await;
    let mut caller = call(printed["xds"].as_str().unwrap(), service);
    // The first calls may precede the registrations.
    caller.reaches(&sorted([&one.address, &two.address])).await;
    one.leave().await;
    assert_eq!(caller.reaches(&[&two.address]).await, NONE);
    etcd.kill().await;
    for _ in 0..REPORTS {
        let report = caller.report().await;
        assert!(report.failures.is_empty() && report.names() == [&two.address], "{report:?}");
    }
    etcd.restart().await;
    let three = GoServer::start(&etcd, framework, service).await;
    assert_eq!(caller.reaches(&sorted([&two.address, &three.address])).await, NONE);
}

fn sorted(addresses: [&str; 2]) -> [&str; 2] {
    let [one, two] = addresses;
    if one < two { [one, two] } else { [two, one] }
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
