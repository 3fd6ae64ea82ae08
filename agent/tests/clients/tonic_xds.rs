//! tonic-xds. It has no default for a service without instances: calls wait for one until their deadline. It ignores
//! weights and zones.

use std::{fs, net::SocketAddr, path::Path};

use tokio::process::Command;

use crate::{
    caller::Caller,
    page, python,
    scenarios::{Client, tests},
    supplied,
};

/// Returns a program of the folder `tonic`.
fn program(name: &str) -> Command {
    Command::new(Path::new(&supplied("ENLIST_CLIENT_TONIC")).join(name))
}

/// Returns the bootstrap for tonic-xds, which needs a scheme before the address.
fn with_scheme(bootstrap: &str) -> String {
    bootstrap.replace("127.0.0.1", "http://127.0.0.1")
}

struct Tonic;

impl Client for Tonic {
    const USER_AGENT: &'static str = "gRPC Rust tonic-xds";
    const UNAVAILABLE: &'static str = "DeadlineExceeded";
    const WITHOUT_AGENT: &'static [&'static str] = &["DeadlineExceeded"];

    async fn start(&self, agent: SocketAddr, service: &str) -> Caller {
        let mut command = program("tonic-calls");
        command
            .arg(format!("xds:///{service}"))
            .env("GRPC_XDS_BOOTSTRAP_CONFIG", with_scheme(&python::bootstrap(agent)));
        Caller::start(command)
    }
}

tests! {
    super::Tonic,
    everywhere: [
        calls_follow_the_instances_without_a_failure,
        a_server_that_leaves_finishes_its_calls,
        calls_work_again_once_an_empty_service_has_an_instance,
        an_outage_of_the_store_fails_no_call,
        a_killed_agent_fails_no_call,
        an_agent_that_starts_over_an_empty_store_fails_no_call,
        calls_that_precede_the_agent_work_once_it_runs,
        restarts_of_servers_and_agent_fail_no_call,
    ],
    weights: [],
    zones: [],
}

#[tokio::test]
#[ignore = "needs the client's library: cargo xtask clients"]
async fn the_documented_client_works_as_printed() {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/tonic/src/greeter.rs");
    assert_eq!(page::block("agent-clients.md", "## Rust", "rust"), fs::read_to_string(source).unwrap());
    page::greets(program("tonic-greeter"), &with_scheme(&page::block("agent-clients.md", "## Bootstrap", "json")))
        .await;
}
