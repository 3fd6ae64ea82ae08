//! tonic-xds. It has no default for a service without instances: calls wait for one until their deadline. It ignores
//! weights and zones, and calls instances that are dead.

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
    const CALLS_DEAD_INSTANCES: bool = true;

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
    also: [calls_that_precede_the_agent_work_once_it_runs],
    weights: [],
    zones: []
}

#[tokio::test]
#[ignore = "needs the client's library: cargo xtask clients"]
async fn the_documented_client_works_as_printed() {
    const PAGE: &str = "clients/rust.md";
    const PACKAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/tonic/greeter");
    for (file, language) in [("src/main.rs", "rust"), ("Cargo.toml", "toml")] {
        let built = fs::read_to_string(format!("{PACKAGE}/{file}")).unwrap();
        assert_eq!(page::block(PAGE, page::PROGRAM, language), built, "{file}");
    }
    page::greets(program("greeter-client"), &page::bootstrap(PAGE)).await;
}
