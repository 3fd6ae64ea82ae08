//! etcd, with `enlist agent` as a process, and servers that `enlist register` or the library of a framework in Go
//! registers. `cargo xtask clients etcd` builds the programs.

use std::{
    fs,
    marker::PhantomData,
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use enlist_testkit::{EtcdServer, Mode, Provider, Proxy, ServerOptions, eventually, free_port, soon};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::{
    http::exchange,
    shown, supplied,
    support::{ASSIGNMENT, AdsClient, CLUSTER, LISTENER, ROUTE, ports},
    world::{Crowded, Failure, Offer, Settings, World},
};

/// A program that prints a line for each step.
#[derive(Debug)]
pub(crate) struct Program {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn start(mut command: Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { process, input, output: BufReader::new(output).lines() }
    }

    /// Waits for a line with this part.
    async fn says(&mut self, part: &str) -> String {
        let line = async {
            loop {
                let line = self.output.next_line().await.unwrap();
                let line = line.unwrap_or_else(|| panic!("the program ended without {part:?}"));
                if line.contains(part) {
                    return line;
                }
            }
        };
        soon(&format!("the program says {part:?}"), line).await
    }

    /// Sends SIGTERM, and waits until the program has ended.
    async fn terminate(&mut self) -> ExitStatus {
        let pid = self.process.id().expect("it runs").to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        soon("the program ends", self.process.wait()).await.unwrap()
    }
}

/// A program that keeps an instance registered, and the layout of its keys.
pub(crate) trait Publisher {
    const LAYOUT: &'static str;

    /// Value of [`World::DRAINS`].
    const DRAINS: bool = false;

    /// Value of [`World::ANNOUNCES_DEPARTURES`].
    const ANNOUNCES_DEPARTURES: bool = true;

    /// Returns key and value of an instance of `greeter` at this port, as `docs/wire-formats.md` states them.
    fn entry(port: u16, zone: &str) -> (String, String);

    /// Starts the program, and returns once the instance is registered.
    async fn register(offer: Offer<'_>, etcd: &str) -> Program;

    /// Removes the instance, and ends the program.
    async fn deregister(program: Program);
}

fn enlist() -> Command {
    Command::new(supplied("ENLIST_COMMAND"))
}

/// `enlist register`, in the native layout.
pub(crate) struct Native;

impl Publisher for Native {
    const LAYOUT: &'static str = "native";
    const DRAINS: bool = true;

    fn entry(port: u16, zone: &str) -> (String, String) {
        let id = format!("other-{port}");
        let value = json!({ "v": 1, "id": id, "endpoints": [format!("192.0.2.1:{port}")], "zone": zone });
        (format!("enlist/services/default/greeter/{id}"), value.to_string())
    }

    async fn register(offer: Offer<'_>, etcd: &str) -> Program {
        let mut command = enlist();
        command.args(["register", offer.service, &format!("127.0.0.1:{}", offer.port), "--id", offer.name]);
        command.args(["--drain", &format!("{}ms", offer.drain.as_millis())]).env("ENLIST_ENDPOINTS", etcd);
        if let Some(weight) = offer.weight {
            command.args(["--weight", &weight.to_string()]);
        }
        if let Some(zone) = offer.zone {
            command.args(["--zone", zone]);
        }
        let mut program = Program::start(command);
        program.says("registered at revision").await;
        program
    }

    async fn deregister(mut program: Program) {
        program.terminate().await;
        program.says("deregistered: ").await;
    }
}

/// A publication by `discov` of go-zero.
pub(crate) struct GoZero;

impl Publisher for GoZero {
    const LAYOUT: &'static str = "go-zero";
    /// The library revokes the lease.
    const ANNOUNCES_DEPARTURES: bool = false;

    fn entry(port: u16, _: &str) -> (String, String) {
        (format!("greeter/{port}"), format!("192.0.2.1:{port}"))
    }

    async fn register(offer: Offer<'_>, etcd: &str) -> Program {
        publish("gozero", offer, etcd).await
    }

    async fn deregister(program: Program) {
        withdraw(program).await;
    }
}

/// A registration by `registry-etcd` of kitex.
pub(crate) struct Kitex;

impl Publisher for Kitex {
    const LAYOUT: &'static str = "kitex";

    fn entry(port: u16, _: &str) -> (String, String) {
        let address = format!("192.0.2.1:{port}");
        let value = json!({ "network": "tcp", "address": address, "weight": 10, "tags": null });
        (format!("kitex/registry-etcd/greeter/{address}"), value.to_string())
    }

    async fn register(offer: Offer<'_>, etcd: &str) -> Program {
        publish("kitex", offer, etcd).await
    }

    async fn deregister(program: Program) {
        withdraw(program).await;
    }
}

/// A registration by `registry-etcd` of kitex with the library's own times: it looks for its key every 30 s.
pub(crate) struct KitexByDefault;

impl Publisher for KitexByDefault {
    const LAYOUT: &'static str = Kitex::LAYOUT;

    fn entry(port: u16, zone: &str) -> (String, String) {
        Kitex::entry(port, zone)
    }

    async fn register(offer: Offer<'_>, etcd: &str) -> Program {
        let mut command = publication("kitex", offer, etcd);
        command.env("ENLIST_INTEROP_KITEX_TIMES", "default");
        published(command).await
    }

    async fn deregister(program: Program) {
        withdraw(program).await;
    }
}

/// Lets the library of a framework register an instance.
async fn publish(framework: &str, offer: Offer<'_>, etcd: &str) -> Program {
    published(publication(framework, offer, etcd)).await
}

/// Returns the program on a framework that registers an instance.
fn publication(framework: &str, offer: Offer<'_>, etcd: &str) -> Command {
    assert!(offer.zone.is_none(), "{framework} has no zones");
    let mut command = Command::new(Path::new(&supplied("ENLIST_INTEROP_BIN")).join(framework));
    command.args(["publish", offer.service, &format!("127.0.0.1:{}", offer.port)]);
    command.args(offer.weight.map(|weight| weight.to_string()));
    command.env("ENLIST_ENDPOINTS", etcd.trim_start_matches("http://"));
    command
}

async fn published(command: Command) -> Program {
    let mut program = Program::start(command);
    program.says("published").await;
    program
}

/// Lets the library of a framework remove its instance.
async fn withdraw(mut program: Program) {
    program.input.write_all(b"\n").await.unwrap();
    program.says("left").await;
}

/// An etcd, and `enlist agent` over it.
pub(crate) struct OverEtcd<P> {
    etcd: EtcdServer,
    /// For the agent.
    agents: Proxy,
    /// For registrations.
    servers: Proxy,
    settings: Settings,
    addresses: [SocketAddr; 2],
    folder: TempDir,
    agent: Option<Program>,
    publisher: PhantomData<P>,
}

impl<P: Publisher> OverEtcd<P> {
    /// Returns the configuration file of the agent, and writes the files that it names.
    fn configuration(&self) -> String {
        let Settings { prefers_own_zone, token, connect_timeout, envoy } = &self.settings;
        let [xds, http] = self.addresses;
        let mut lines = Vec::new();
        if let Some(token) = token {
            fs::write(self.folder.path().join("agent.token"), token).unwrap();
            lines.push("token-file = \"agent.token\"".to_owned());
        }
        lines.push(format!("[http]\naddress = \"{http}\""));
        lines.push(format!("[xds]\naddress = \"{xds}\"\nprefer-own-zone = {prefers_own_zone}"));
        if let Some(time) = connect_timeout {
            lines.push(format!("connect-timeout = \"{}ms\"", time.as_millis()));
        }
        for (address, service) in envoy {
            lines.push(format!("[[xds.envoy]]\naddress = \"{address}\"\nservice = \"{service}\""));
        }
        lines.join("\n")
    }
}

impl<P: Publisher> World for OverEtcd<P> {
    type Registration = Program;

    const DRAINS: bool = P::DRAINS;
    const ANNOUNCES_DEPARTURES: bool = P::ANNOUNCES_DEPARTURES;

    async fn new(settings: Settings) -> Self {
        let etcd = EtcdServer::start_with(Provider::own(), ServerOptions::new()).await;
        let [agents, servers] =
            [Proxy::start(etcd.address()).await.unwrap(), Proxy::start(etcd.address()).await.unwrap()];
        let addresses = [(); 2].map(|()| ([127, 0, 0, 1], free_port()).into());
        let folder = tempfile::tempdir().unwrap();
        Self { etcd, agents, servers, settings, addresses, folder, agent: None, publisher: PhantomData }
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn xds(&self) -> SocketAddr {
        self.addresses[0]
    }

    fn http(&self) -> SocketAddr {
        self.addresses[1]
    }

    async fn start_agent(&mut self) {
        let file = self.folder.path().join("agent.toml");
        fs::write(&file, self.configuration()).unwrap();
        let mut command = enlist();
        command.args(["--layout", P::LAYOUT, "agent", "--config"]).arg(file).env("ENLIST_ENDPOINTS", self.agents.url());
        let mut agent = Program::start(command);
        agent.says("xDS is served").await;
        self.agent = Some(agent);
    }

    async fn stop_agent(&mut self) {
        let status = self.agent.take().expect("it runs").terminate().await;
        assert!(status.success(), "{status}");
    }

    async fn kill_agent(&mut self) {
        soon("the agent is killed", self.agent.take().expect("it runs").process.kill()).await.unwrap();
    }

    async fn register(&self, offer: Offer<'_>) -> Program {
        P::register(offer, &self.servers.url()).await
    }

    async fn deregister(&self, registration: Program) {
        P::deregister(registration).await;
    }

    fn cut_agent(&self) {
        self.agents.set(Mode::Refuse);
    }

    fn heal_agent(&self) {
        self.agents.heal();
    }

    fn cut_servers(&self) {
        self.servers.set(Mode::Refuse);
    }

    fn heal_servers(&self) {
        self.servers.heal();
    }

    async fn begin(&mut self, failure: Failure) {
        match failure {
            Failure::Down => self.etcd.kill().await,
            Failure::Compacted => {
                self.cut_agent();
                let meanwhile = self.register(Offer::new("meanwhile", 1)).await;
                self.deregister(meanwhile).await;
                self.etcd.compact().await;
            }
            Failure::Wiped => self.etcd.wipe().await,
        }
    }

    async fn end(&mut self, failure: Failure) {
        match failure {
            Failure::Down => self.etcd.restart().await,
            Failure::Compacted => self.heal_agent(),
            Failure::Wiped => {}
        }
    }
}

impl<P: Publisher> Crowded for OverEtcd<P> {
    /// Writes the keys itself, because the agent knows no backend. It uses etcd's JSON gateway, in transactions of at
    /// most 128 operations.
    async fn register_many(&self, zone: &str, number: u16) {
        let ports: Vec<_> = (1..=number).collect();
        for ports in ports.chunks(128) {
            let puts = ports.iter().map(|port| {
                let (key, value) = P::entry(*port, zone);
                json!({ "request_put": { "key": STANDARD.encode(key), "value": STANDARD.encode(value) } })
            });
            let body = json!({ "success": puts.collect::<Vec<_>>() }).to_string();
            let answer = exchange(self.etcd.address(), "POST", "/v3/kv/txn", &body).await.unwrap();
            assert!(answer.contains("succeeded"), "{answer}");
        }
    }
}

/// Makes tests of scenarios without a client library, over each layout.
macro_rules! tests_without_client {
    ($($layout:ident: $publisher:ty),*) => {
        mod without_client {$(
            mod $layout {
                #[tokio::test]
                #[ignore = "needs the command: cargo xtask clients etcd"]
                async fn two_agents_send_equal_versions() {
                    let _machine = crate::MACHINE.read().await;
                    crate::over_etcd::equal_versions::<$publisher>().await;
                }

                #[tokio::test]
                #[ignore = "needs the command: cargo xtask clients etcd"]
                async fn ten_thousand_instances_are_one_assignment() {
                    let _machine = crate::MACHINE.read().await;
                    crate::over_etcd::large_assignment::<$publisher>().await;
                }
            }
        )*}
    };
}

tests_without_client! {
    native: crate::over_etcd::Native,
    kitex: crate::over_etcd::Kitex,
    go_zero: crate::over_etcd::GoZero
}

async fn equal_versions<P: Publisher>() {
    let mut world = OverEtcd::<P>::new(Settings::default()).await;
    world.start_agent().await;
    let former = world.agent.take();
    let first = world.xds();
    world.addresses = [(); 2].map(|()| ([127, 0, 0, 1], free_port()).into());
    world.start_agent().await;
    let agents = [first, world.xds()];
    let mut registered = Vec::new();
    for (name, port) in [("one", 1001), ("two", 1002)] {
        registered.push(world.register(Offer::new(name, port)).await);
    }
    send_equal_versions(agents, registered.len()).await;
    for failure in Failure::ALL {
        world.begin(failure).await;
        world.end(failure).await;
        shown::instances(&world, registered.len()).await;
        send_equal_versions(agents, registered.len()).await;
    }
    drop(former);
}

/// Waits until two agents send the same versions of all types, and this number of instances. Both see a change at
/// their own time.
async fn send_equal_versions(agents: [SocketAddr; 2], instances: usize) {
    eventually("both send equal versions", || async {
        let (one, two) = (versions(agents[0], instances).await?, versions(agents[1], instances).await?);
        if one == two { Ok(()) } else { Err(format!("{one:?} and {two:?}")) }
    })
    .await;
}

/// Returns types and versions that an agent sends. Fails unless its assignment has this number of instances.
async fn versions(agent: SocketAddr, instances: usize) -> Result<Vec<(String, String)>, String> {
    let mut client = AdsClient::connect(agent).await;
    let mut versions = Vec::new();
    for kind in [LISTENER, ROUTE, CLUSTER, ASSIGNMENT] {
        client.request(kind, &["greeter"]).await;
        let response = client.next(kind).await;
        assert!(!response.version_info.is_empty(), "{response:?}");
        if kind == ASSIGNMENT && ports(&response).1.len() != instances {
            return Err(format!("{response:?}"));
        }
        versions.push((response.type_url, response.version_info));
    }
    Ok(versions)
}

async fn large_assignment<P: Publisher>() {
    const INSTANCES: u16 = 10_000;
    let mut world = OverEtcd::<P>::new(Settings::default()).await;
    world.start_agent().await;
    world.register_many("eu-1b", INSTANCES).await;
    let all = usize::from(INSTANCES);
    for failure in Failure::ALL {
        shown::instances(&world, all).await;
        world.begin(failure).await;
        if failure == Failure::Wiped {
            shown::instances(&world, 0).await;
        }
        // Also to a client that comes meanwhile.
        assert_eq!(AdsClient::connect(world.xds()).await.assignment("greeter").await.len(), all, "{failure:?}");
        world.end(failure).await;
    }
    world.register_many("eu-1b", INSTANCES).await;
    shown::instances(&world, all).await;
    assert_eq!(AdsClient::connect(world.xds()).await.assignment("greeter").await.len(), all);
}
