//! gRPC in Java.

use std::net::SocketAddr;

use tokio::process::Command;

use crate::{
    caller::Caller,
    page, python,
    scenarios::{Client, tests},
    supplied,
};

/// Returns a program of the folder `java`.
fn program(class: &str) -> Command {
    let mut command = Command::new("java");
    // They live for seconds.
    command.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-classpath", &supplied("ENLIST_CLIENT_JAVA"), class]);
    command
}

struct Java;

impl Client for Java {
    const USER_AGENT: &'static str = "gRPC Java";
    const KEEPS_LAST_SERVER: bool = true;
    /// The virtual machine loads its classes.
    const FIRST_CALL_MS: u64 = 5_000;

    async fn start(&self, agent: SocketAddr, service: &str) -> Caller {
        let mut command = program("Calls");
        command.arg(format!("xds:///{service}")).env("GRPC_XDS_BOOTSTRAP_CONFIG", python::bootstrap(agent));
        Caller::start(command)
    }
}

tests! {
    super::Java,
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
    let files = [("src/main/java/GreeterClient.java", "java"), ("pom.xml", "xml")];
    page::greets_as_printed(Command::new("sh"), "clients/java.md", &files).await;
}
