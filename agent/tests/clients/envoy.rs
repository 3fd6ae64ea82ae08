//! Envoy in front of a client without xDS, with the configuration of the documentation.

use std::{fs, net::SocketAddr, process::Stdio};

use enlist_testkit::{eventually, free_port};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use crate::{
    caller::Caller,
    over_memory::Memory,
    page, python,
    scenarios::{self, Client, NODE, ZONE, tests},
    server::{Running, Server},
    shown::{self, ShownClient},
    supplied,
    world::{Settings, World},
};

const NONE: [&str; 0] = [];

/// Envoy that listens at an address.
struct Envoy {
    edge: SocketAddr,
    token: Option<&'static str>,
}

impl Envoy {
    fn new() -> Self {
        Self { edge: ([127, 0, 0, 1], free_port()).into(), token: None }
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

tests! {
    super::Envoy::new(),
    also: [],
    weights: [shares_follow_the_weights],
    zones: [calls_leave_the_zone_only_without_an_instance_in_it]
}

#[tokio::test]
#[ignore = "needs the client's library: cargo xtask clients"]
async fn calls_work_beside_ten_thousand_instances() {
    scenarios::calls_work_beside_ten_thousand_instances(&Envoy::new()).await;
}

#[tokio::test]
#[ignore = "needs the client's library: cargo xtask clients"]
async fn a_token_is_sent_as_documented() {
    let envoy = Envoy { token: Some("s3cret"), ..Envoy::new() };
    scenarios::calls_follow_the_instances_without_a_failure::<_, Memory>(&envoy).await;
}

/// As ones that crashed, until their leases end.
#[tokio::test]
#[ignore = "needs the client's library: cargo xtask clients"]
async fn dead_instances_fail_no_call() {
    let envoy = Envoy::new();
    let mut world = Memory::new(envoy.settings()).await;
    world.start_agent().await;
    let _one = Running::start(&world, "greeter-1").await;
    let mut dead = Vec::new();
    for name in ["dead-1", "dead-2", "dead-3"] {
        dead.push(world.register_as("greeter", name, free_port()).await);
    }
    shown::instances(&world, 4).await;
    let mut caller = envoy.start(world.xds(), "greeter").await;
    for _ in 0..10 {
        assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
    }
}

#[tokio::test]
#[ignore = "needs the client's library: cargo xtask clients"]
async fn a_refused_listener_is_shown_and_harmless() {
    let envoy = Envoy::new();
    let mut world = Memory::new(envoy.settings()).await;
    world.start_agent().await;
    let _one = Running::start(&world, "greeter-1").await;
    let mut caller = envoy.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
    // An address of no host, see RFC 5737.
    world.settings_mut().envoy.push(("192.0.2.1:10000".parse().unwrap(), "greeter"));
    world.stop_agent().await;
    world.start_agent().await;
    let found = ShownClient::only(&world, |client| client.rejected > 0).await;
    let rejection = found.last_rejection.unwrap();
    assert!(rejection.r#type == "listener" && rejection.message.contains("192.0.2.1"), "{rejection:?}");
    let _two = Running::start(&world, "greeter-2").await;
    assert_eq!(caller.reaches(&["greeter-1", "greeter-2"]).await, NONE);
}

#[tokio::test]
#[ignore = "needs the client's library: cargo xtask clients"]
async fn a_listener_with_another_service_fails_no_call() {
    let envoy = Envoy::new();
    // As documented, both services have a listener before and after the change.
    let unused = ([127, 0, 0, 1], free_port()).into();
    let before = vec![(envoy.edge, "former"), (unused, "greeter")];
    let mut world = Memory::new(Settings { envoy: before, ..envoy.settings() }).await;
    world.start_agent().await;
    let former = Server::start("former-1").await;
    let _former = world.register_as("former", "former-1", former.port).await;
    let _one = Running::start(&world, "greeter-1").await;
    let mut caller = envoy.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["former-1"]).await, NONE);
    world.settings_mut().envoy = vec![(envoy.edge, "greeter"), (unused, "former")];
    world.stop_agent().await;
    world.start_agent().await;
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
}
