//! Envoy in front of a client without xDS, with the configuration of the documentation.

use std::{fs, net::SocketAddr, process::Stdio};

use enlist_agent::{BearerToken, EnvoyListener, XdsOptions};
use enlist_testkit::eventually;
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use crate::{
    caller::Caller,
    page, python,
    scenarios::{self, Client, NODE, ZONE, tests},
    supplied,
    support::local,
};

/// Envoy that listens at an address.
struct Envoy {
    edge: SocketAddr,
    token: Option<&'static str>,
}

impl Envoy {
    async fn new() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { edge: free.local_addr().unwrap(), token: None }
    }

    /// Returns the printed configuration, for this agent.
    fn configuration(&self, agent: SocketAddr) -> String {
        let printed = page::block("agent.md", "## Envoy", "yaml");
        let text = printed.replace("port_value: 18000", &format!("port_value: {}", agent.port()));
        let mut text = text.replace("id: envoy-1", &format!("id: {NODE}, locality: {{ zone: {ZONE} }}"));
        assert!(text.contains(&agent.port().to_string()) && text.contains(NODE), "{printed}");
        if let Some(token) = self.token {
            let with_token = page::block("agent.md", "## Tokens and certificates", "yaml");
            let place = text.find("    grpc_services:").expect("the configuration refers to the agent");
            let end = text.find("  lds_config:").expect("it requests listeners");
            let indented = format!("    {}\n", with_token.trim_end().replace('\n', "\n    "));
            text.replace_range(place..end, &indented.replace("TOKEN", token));
        }
        text
    }

    /// Starts a process, and returns once it takes calls.
    async fn run(&self, agent: SocketAddr) -> (Child, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("envoy.yaml");
        fs::write(&file, self.configuration(agent)).unwrap();
        let mut command = Command::new(supplied("ENLIST_CLIENT_ENVOY"));
        command.arg("--config-path").arg(file).args(["--concurrency", "1", "--log-level", "warn"]);
        // Several run at a time.
        command.args(["--use-dynamic-base-id", "--disable-hot-restart"]);
        let process = command.stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        eventually("Envoy listens", || TcpStream::connect(self.edge)).await;
        (process, folder)
    }
}

impl Client for Envoy {
    const USER_AGENT: &'static str = "envoy";

    fn options(&self) -> XdsOptions {
        let options = local().envoy(EnvoyListener::new("edge", self.edge).route("/", "greeter"));
        match self.token {
            Some(token) => options.token(BearerToken::new(token).unwrap()),
            None => options,
        }
    }

    async fn start(&self, agent: SocketAddr, _service: &str) -> Caller {
        let proxy = self.run(agent).await;
        Caller::start(python::calls(&self.edge.to_string())).through(proxy)
    }
}

tests! {
    Envoy::new().await,
    calls_follow_the_instances_without_a_failure,
    calls_work_again_once_an_empty_service_has_an_instance,
    an_outage_of_the_store_fails_no_call,
    an_outage_of_the_agent_fails_no_call,
    restarts_of_servers_and_agent_fail_no_call,
    calls_leave_the_zone_only_without_an_instance_in_it,
}

#[tokio::test]
#[ignore = "needs the client's library: cargo xtask clients"]
async fn a_token_is_sent_as_documented() {
    let envoy = Envoy { token: Some("s3cret"), ..Envoy::new().await };
    scenarios::calls_follow_the_instances_without_a_failure(&envoy).await;
}
