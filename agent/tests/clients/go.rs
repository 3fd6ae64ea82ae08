//! gRPC in Go.

use std::{env, net::SocketAddr, path::Path};

use tokio::process::Command;

use crate::{
    caller::Caller,
    page, python,
    scenarios::{Client, tests},
    supplied,
};

/// Returns a program of the folder `go`.
fn program(name: &str) -> Command {
    Command::new(Path::new(&supplied("ENLIST_CLIENT_GO")).join(name))
}

struct Go;

impl Client for Go {
    const USER_AGENT: &'static str = "gRPC Go";
    const UNAVAILABLE: &'static str = "Unavailable";
    const WITHOUT_AGENT: &'static [&'static str] = &["Unavailable", "DeadlineExceeded"];

    async fn start(&self, agent: SocketAddr, service: &str) -> Caller {
        let mut command = program("calls");
        command.arg(format!("xds:///{service}")).env("GRPC_XDS_BOOTSTRAP_CONFIG", python::bootstrap(agent));
        Caller::start(command)
    }
}

tests! {
    super::Go,
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
#[ignore = "needs the client's library: cargo xtask clients"]
async fn the_documented_client_works_as_printed() {
    let go = supplied("ENLIST_CLIENT_GO_PROGRAM");
    let mut folders = vec![Path::new(&go).parent().unwrap().to_owned()];
    folders.extend(env::split_paths(&supplied("PATH")));
    let mut shell = Command::new("sh");
    shell.env("PATH", env::join_paths(folders).unwrap());
    // Settings of the user would apply to the printed commands.
    shell.env("GOFLAGS", "").env("GO111MODULE", "on").env("GOWORK", "off");
    page::greets_as_printed(shell, "clients/go.md", &[("main.go", "go")]).await;
}
