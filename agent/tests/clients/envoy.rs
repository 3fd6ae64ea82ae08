//! Envoy in front of a client without xDS, with the configuration of the documentation.

use std::{fs, net::SocketAddr, process::Stdio, time::Duration};

use enlist_testkit::{eventually, free_port};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use crate::{
    caller::Caller,
    http::exchange,
    over_memory::Memory,
    page, python,
    scenarios::{self, Client, NODE, ShowsClusters, ZONE, tests},
    supplied,
    world::Settings,
};

/// Envoy that listens at an address.
struct Envoy {
    edge: SocketAddr,
    admin: SocketAddr,
    token: Option<&'static str>,
}

impl Envoy {
    fn new() -> Self {
        let [edge, admin] = [(); 2].map(|()| ([127, 0, 0, 1], free_port()).into());
        Self { edge, admin, token: None }
    }

    /// Returns the printed configuration, for this agent.
    fn configuration(&self, agent: SocketAddr) -> String {
        let printed = page::block("clients/envoy.md", "## Configuration", "yaml");
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
        let (address, port) = (self.admin.ip(), self.admin.port());
        format!("{text}admin: {{ address: {{ socket_address: {{ address: {address}, port_value: {port} }} }} }}\n")
    }

    /// Starts a process, and returns once it takes calls.
    async fn run(&self, agent: SocketAddr) -> (Child, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("envoy.yaml");
        fs::write(&file, self.configuration(agent)).unwrap();
        let mut command = Command::new(supplied("ENLIST_CLIENT_ENVOY"));
        command.arg("--config-path").arg(file).args(["--concurrency", "1", "--log-level", "warn"]);
        // Connections to a replaced listener end soon, instead of after ten minutes.
        command.args(["--drain-time-s", "5", "--drain-strategy", "immediate"]);
        // Several run at a time.
        command.args(["--use-dynamic-base-id", "--disable-hot-restart"]);
        let process = command.stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        eventually("Envoy listens", || TcpStream::connect(self.edge)).await;
        (process, folder)
    }
}

impl Client for Envoy {
    const USER_AGENT: &'static str = "envoy";

    fn settings(&self) -> Settings {
        Settings { envoy: vec![(self.edge, "greeter")], token: self.token, ..Settings::default() }
    }

    async fn start(&self, agent: SocketAddr, _service: &str) -> Caller {
        let proxy = self.run(agent).await;
        Caller::start(python::calls(&self.edge.to_string())).through(proxy)
    }
}

impl ShowsClusters for Envoy {
    async fn has_changed_clusters(&self, connect_timeout: Duration) {
        let clusters = async |state: &str| {
            let path = format!("/config_dump?resource=dynamic_{state}_clusters");
            exchange(self.admin, "GET", &path, "").await.map_err(|error| error.to_string())
        };
        eventually("the clusters have changed", || async {
            let (active, warming) = (clusters("active").await?, clusters("warming").await?);
            let wanted = format!("\"connect_timeout\": \"{}s\"", connect_timeout.as_secs());
            // A dump without a cluster of this state is an empty object, here between the lengths of chunks.
            if active.contains(&wanted) && warming.contains("{}") && !warming.contains("configs") {
                Ok(())
            } else {
                Err(format!("{active} and {warming}"))
            }
        })
        .await;
    }
}

tests! {
    super::Envoy::new(),
    also: [
        calls_of_an_unknown_service_fail_at_once, dead_instances_fail_no_call, a_refused_listener_is_shown_and_harmless,
        a_listener_with_another_service_fails_no_call, changed_clusters_fail_no_call
    ],
    weights: [shares_follow_the_weights],
    zones: [
        calls_leave_the_zone_only_without_an_instance_in_it, a_zone_of_dead_instances_fails_no_call,
        calls_work_beside_ten_thousand_instances
    ]
}

#[tokio::test]
#[ignore = "needs the client's library: cargo xtask clients"]
async fn a_token_is_sent_as_documented() {
    let _machine = crate::MACHINE.read().await;
    let envoy = Envoy { token: Some("s3cret"), ..Envoy::new() };
    scenarios::calls_follow_the_instances_without_a_failure::<_, Memory>(&envoy).await;
}
