//! gRPC in Python, which is the client of C++, Ruby and PHP as well.

#[cfg(feature = "tls")]
mod credentials;

use std::{fs, net::SocketAddr, process::Stdio};

use enlist_testkit::soon;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::{
    caller::Caller,
    http::exchange,
    page,
    scenarios::{Client, NODE, ZONE, tests},
    supplied,
};

/// Its page.
const PAGE: &str = "clients/python.md";

/// Returns the interpreter that has the libraries.
pub(crate) fn python() -> Command {
    let mut command = Command::new(supplied("ENLIST_CLIENT_PYTHON"));
    command.kill_on_drop(true);
    command
}

/// Returns a program that calls this target.
pub(crate) fn calls(target: &str) -> Command {
    let mut command = python();
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/python/calls.py")).arg(target);
    command
}

/// Returns the configuration of gRPC clients.
pub(crate) fn bootstrap(agent: SocketAddr) -> String {
    format!(
        r#"{{"xds_servers":[{{"server_uri":"{agent}","channel_creds":[{{"type":"insecure"}}],
        "server_features":["xds_v3","ignore_resource_deletion"]}}],
         "node":{{"id":"{NODE}","locality":{{"zone":"{ZONE}"}}}}}}"#
    )
}

struct Python;

impl Client for Python {
    const USER_AGENT: &'static str = "gRPC C-core";

    async fn start(&self, agent: SocketAddr, service: &str) -> Caller {
        let mut command = calls(&format!("xds:///{service}"));
        command.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap(agent));
        Caller::start(command)
    }
}

tests! {
    super::Python,
    also: [
        calls_that_precede_the_agent_work_once_it_runs, calls_of_an_unknown_service_fail_at_once,
        dead_instances_fail_no_call
    ],
    weights: [shares_follow_the_weights],
    zones: [
        calls_leave_the_zone_only_without_an_instance_in_it, a_zone_of_dead_instances_fails_no_call,
        calls_work_beside_ten_thousand_instances
    ]
}

#[tokio::test]
#[ignore = "needs Python: cargo xtask clients"]
async fn the_documented_client_works_as_printed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("greeter_client.py"), page::block(PAGE, page::PROGRAM, "python")).unwrap();
    let mut command = python();
    command.arg("greeter_client.py").current_dir(&folder);
    let printed = page::greets(command, &page::bootstrap(PAGE)).await;
    assert!(printed.contains("greeter-1") && printed.contains("greeter-2"), "{printed}");
}

/// The commands that the demo prints, with the client of the documentation.
#[tokio::test]
#[ignore = "needs Python: cargo xtask clients"]
async fn the_demo_works_as_printed() {
    let mut demo = Command::new(supplied("ENLIST_CLIENT_DEMO"));
    demo.args(["--xds", "127.0.0.1:0", "--http", "127.0.0.1:0"]).stdout(Stdio::piped()).kill_on_drop(true);
    let mut demo = demo.spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let mut printed = String::new();
    while !printed.contains("End with Ctrl-C") {
        let line = soon("the demo prints its commands", lines.next_line()).await.unwrap();
        printed.push_str(&line.expect("the demo goes on"));
        printed.push('\n');
    }
    let between = |before: &str, after: &str| {
        let (_, rest) = printed.split_once(before).unwrap_or_else(|| panic!("no {before}: {printed}"));
        rest.split_once(after).unwrap().0.to_owned()
    };
    let http: SocketAddr = between("The web console is http://", "/").parse().unwrap();
    let console = exchange(http, "GET", "/", "").await.unwrap();
    assert!(console.contains("<title>"), "{console}");
    for path in
        [format!("curl http://{http}"), format!("curl --no-buffer http://{http}")].map(|url| between(&url, "\n"))
    {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--no-buffer", "--max-time", "2"]).arg(format!("http://{http}{path}"));
        let output = soon("curl ends", curl.output()).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("greeter-1") && text.contains("greeter-2"), "{path}: {text}");
    }
    let mut client = python();
    client.args(["-c", &page::block(PAGE, page::PROGRAM, "python")]);
    client.env("GRPC_XDS_BOOTSTRAP_CONFIG", between("export GRPC_XDS_BOOTSTRAP_CONFIG='", "'"));
    let output = soon("the client ends", client.output()).await.unwrap();
    let greetings = String::from_utf8_lossy(&output.stdout);
    assert_eq!(greetings.lines().count(), 10, "{greetings}{}", String::from_utf8_lossy(&output.stderr));
    assert!(greetings.contains("greeter-1") && greetings.contains("greeter-2"), "{greetings}");
}
