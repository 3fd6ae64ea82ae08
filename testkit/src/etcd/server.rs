//! One etcd server for tests: an endpoint given by the environment, a container, or a local process.
//!
//! Servers listen on the loopback interface, on ports that were free. After a start the server is asked for its name,
//! so that another etcd on the same port is noticed. `provider.rs` documents the environment variables.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use tempfile::TempDir;
use tokio::process::Command;

use super::{
    gateway,
    process::Running,
    provider::{Provider, restorer},
};
use crate::ports::free_port;

/// Maximum time until a server answers.
const READY: Duration = Duration::from_secs(30);

/// Number of times that a start is repeated with other ports.
const ATTEMPTS: usize = 5;

/// Options of a server.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ServerOptions {
    /// More arguments for `etcd`.
    pub arguments: Vec<String>,
    /// Serve TLS beside plain text, on a port of its own.
    pub tls: bool,
}

impl ServerOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds arguments for `etcd`.
    #[must_use]
    pub fn arguments<A: Into<String>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Serves TLS beside plain text; the certificates are to be given as arguments.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }
}

/// One etcd. Dropping it ends it.
#[derive(Debug)]
pub struct EtcdServer {
    options: ServerOptions,
    name: String,
    ports: Ports,
    /// Its address for the other members, and theirs; a server of its own is alone.
    peers: Option<Peers>,
    state: State,
}

/// Knowledge of a member about its cluster.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    pub(crate) advertised: String,
    pub(crate) initial: String,
    /// The cluster is there already.
    pub(crate) existing: bool,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    client: u16,
    peer: u16,
    tls: u16,
}

#[derive(Debug)]
enum State {
    Given(SocketAddr),
    Process {
        directory: TempDir,
        running: Option<Box<Running>>,
    },
    #[cfg(feature = "containers")]
    Container(Box<super::container::EtcdContainer>),
}

impl EtcdServer {
    /// Starts a server as the environment says.
    ///
    /// # Panics
    ///
    /// With a sentence that says what to do, if there is no etcd to be had.
    pub async fn start() -> Self {
        Self::start_with(Provider::from_env(), ServerOptions::new()).await
    }

    /// Starts a server.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub async fn start_with(provider: Provider, options: ServerOptions) -> Self {
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            let mut server = Self::down(&provider, options.clone());
            match server.up().await {
                Ok(()) => return server,
                Err(why) => last = why,
            }
        }
        panic!("no etcd could be started after {ATTEMPTS} attempts: {last}");
    }

    /// A server that has not been started.
    pub(crate) fn down(provider: &Provider, options: ServerOptions) -> Self {
        let ports = Ports { client: free_port(), peer: free_port(), tls: free_port() };
        let name = format!("enlist-test-{}-{}", std::process::id(), ports.client);
        let state = match provider {
            Provider::Environment(address) => State::Given(*address),
            Provider::Process => {
                let directory = TempDir::with_prefix("enlist-etcd-").expect("a temporary directory can be made");
                State::Process { directory, running: None }
            }
            #[cfg(feature = "containers")]
            Provider::Container => State::Container(Box::new(super::container::EtcdContainer::new(name.clone()))),
            #[cfg(not(feature = "containers"))]
            Provider::Container => panic!("enlist-testkit was built without the feature `containers`"),
        };
        Self { options, name, ports, peers: None, state }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Address at which it listens to other members.
    pub(crate) fn peer_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.peer).into()
    }

    /// Makes it a member. A container is put on the host's network then, as members talk through proxies.
    pub(crate) fn join(&mut self, peers: Peers) {
        self.peers = Some(peers);
        #[cfg(feature = "containers")]
        if let State::Container(container) = &mut self.state {
            container.use_host_network();
        }
    }

    /// Its id and that of the leader it knows; `None` without an answer.
    pub(crate) async fn status(&self) -> Option<(String, String)> {
        let answer = gateway::ask(self.address(), "/v3/maintenance/status").await?;
        Some((gateway::number(&answer, "member_id")?, gateway::number(&answer, "leader").unwrap_or_default()))
    }

    /// Address at which it serves plain text.
    pub fn address(&self) -> SocketAddr {
        if let State::Given(address) = self.state {
            return address;
        }
        (Ipv4Addr::LOCALHOST, self.ports.client).into()
    }

    /// The URL it serves plain text at.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The URL it serves TLS at.
    pub fn tls_url(&self) -> String {
        format!("https://localhost:{}", self.ports.tls)
    }

    /// Returns `true` if it is nobody else's, so that it may be stopped and wiped.
    pub fn is_own(&self) -> bool {
        !matches!(self.state, State::Given(_))
    }

    /// Kills it, as `kill -9` does, and waits until it is gone.
    ///
    /// # Panics
    ///
    /// If it is not its own, or cannot be killed.
    pub async fn kill(&mut self) {
        match &mut self.state {
            State::Given(address) => panic!("{}", not_ours(*address)),
            State::Process { running, .. } => {
                if let Some(running) = running.take() {
                    running.kill().await;
                }
            }
            #[cfg(feature = "containers")]
            State::Container(container) => container.kill().await,
        }
    }

    /// Starts it again after a [`kill`](Self::kill), on the same ports and with its data.
    ///
    /// # Panics
    ///
    /// If it does not come back.
    pub async fn restart(&mut self) {
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            match self.up().await {
                Ok(()) => return,
                Err(why) => last = why,
            }
            // Somebody has its port for a moment; what waits for it knows this port only.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("etcd does not come back: {last}");
    }

    /// Kills it, throws its data away and starts it again on the same ports.
    ///
    /// # Panics
    ///
    /// As [`kill`](Self::kill) and [`restart`](Self::restart).
    pub async fn wipe(&mut self) {
        self.kill().await;
        self.forget().await;
        self.restart().await;
    }

    /// Ends it if it has not ended by itself.
    pub(crate) async fn end(&mut self) {
        if let State::Process { running, .. } = &mut self.state {
            if let Some(running) = running.take() {
                running.end().await;
            }
        } else {
            self.kill().await;
        }
    }

    /// Throws the data of a server away that does not run.
    pub(crate) async fn forget(&mut self) {
        match &mut self.state {
            State::Given(address) => panic!("{}", not_ours(*address)),
            State::Process { directory, .. } => {
                let data = directory.path().join("data");
                tokio::fs::remove_dir_all(data).await.expect("the data directory can be removed");
            }
            #[cfg(feature = "containers")]
            State::Container(container) => container.forget().await,
        }
    }

    /// Kills it, puts what the file `snapshot` holds in place of its data, with `etcdutl` or `etcdctl`, and starts it
    /// again on the same ports, as operators do after a disaster. Returns before clients can reach it through anything
    /// but its own address.
    ///
    /// # Panics
    ///
    /// As [`kill`](Self::kill) and [`restart`](Self::restart), if it is no local process, and with a sentence that says
    /// what to do, if neither tool is there.
    pub async fn restore(&mut self, snapshot: &Path) {
        self.kill().await;
        self.forget().await;
        let State::Process { directory, .. } = &self.state else { panic!("only a local process can be restored") };
        let peer = format!("http://127.0.0.1:{}", self.ports.peer);
        let mut restore = Command::new(restorer());
        restore.args(["snapshot", "restore"]).arg(snapshot);
        restore.arg(format!("--data-dir={}", directory.path().join("data").display()));
        restore.arg(format!("--name={}", self.name)).arg(format!("--initial-cluster={}={peer}", self.name));
        restore.arg(format!("--initial-advertise-peer-urls={peer}")).env("ETCDCTL_API", "3");
        let output = restore.output().await.expect("the tool can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.restart().await;
    }

    /// Freezes it: it holds its connections and does nothing, until [`resume`](Self::resume).
    ///
    /// # Panics
    ///
    /// If it is not a running server of its own.
    pub async fn pause(&self) {
        match &self.state {
            State::Process { running: Some(running), .. } => running.signal("STOP").await,
            #[cfg(feature = "containers")]
            State::Container(container) => container.pause().await,
            _ => panic!("only a running server of the tests can be frozen"),
        }
    }

    /// Lets it go on.
    ///
    /// # Panics
    ///
    /// As [`pause`](Self::pause).
    pub async fn resume(&self) {
        match &self.state {
            State::Process { running: Some(running), .. } => running.signal("CONT").await,
            #[cfg(feature = "containers")]
            State::Container(container) => container.unpause().await,
            _ => panic!("only a frozen server of the tests can go on"),
        }
    }

    /// Starts it for the first time.
    pub(crate) async fn up(&mut self) -> Result<(), String> {
        if let State::Given(address) = self.state {
            return match gateway::members(address).await {
                Some(_) => Ok(()),
                None => Err(format!("ENLIST_TEST_ETCD: no etcd answers at {address}")),
            };
        }
        self.begin().await?;
        self.ready().await
    }

    /// Starts it, without waiting for its answers.
    pub(crate) async fn begin(&mut self) -> Result<(), String> {
        let arguments = self.arguments();
        match &mut self.state {
            State::Given(address) => return Err(not_ours(*address)),
            State::Process { running, directory } => {
                *running = Some(Box::new(Running::start(&arguments, directory.path()).await?));
            }
            #[cfg(feature = "containers")]
            State::Container(container) => container.start(&arguments, self.ports.client).await?,
        }
        Ok(())
    }

    fn arguments(&self) -> Vec<String> {
        let Ports { client, peer, tls } = self.ports;
        // A container has interfaces of its own, unless it is a member; its port is mapped to the loopback interface.
        let (listen, port) = match &self.state {
            #[cfg(feature = "containers")]
            State::Container(_) if self.peers.is_none() => ("0.0.0.0", super::container::PORT),
            _ => ("127.0.0.1", client),
        };
        let data = if let State::Process { directory, .. } = &self.state {
            directory.path().join("data").display().to_string()
        } else {
            "/data".to_owned()
        };
        let mut urls = format!("http://{listen}:{port}");
        if self.options.tls {
            urls = format!("{urls},https://{listen}:{tls}");
        }
        let peer = format!("http://127.0.0.1:{peer}");
        let alone = || Peers { advertised: peer.clone(), initial: format!("{}={peer}", self.name), existing: false };
        let Peers { advertised, initial, existing } = self.peers.clone().unwrap_or_else(alone);
        let mut arguments = vec![
            format!("--name={}", self.name),
            format!("--data-dir={data}"),
            format!("--listen-client-urls={urls}"),
            format!("--advertise-client-urls=http://127.0.0.1:{client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={advertised}"),
            format!("--initial-cluster={initial}"),
            format!("--initial-cluster-state={}", if existing { "existing" } else { "new" }),
            "--log-level=error".to_owned(),
            // The other logger of 3.4 ends the process where it has a warning of a read to log.
            "--logger=zap".to_owned(),
        ];
        arguments.extend(self.options.arguments.iter().cloned());
        arguments
    }

    /// Waits until this very server answers.
    async fn ready(&self) -> Result<(), String> {
        let address = self.address();
        let asked = async {
            loop {
                if let Some(members) = gateway::members(address).await {
                    return members;
                }
                if let State::Process { running: Some(running), .. } = &self.state
                    && let Some(log) = running.ended()
                {
                    return log;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(READY, asked).await {
            Ok(members) if members.contains(&self.name) => Ok(()),
            Ok(members) => Err(format!("{address} is not the etcd that was started: {members}")),
            Err(_) => Err(format!("etcd did not answer at {address} within {READY:?}")),
        }
    }
}

fn not_ours(address: SocketAddr) -> String {
    format!(
        "this case stops or wipes its etcd, which is not done to the one given by ENLIST_TEST_ETCD ({address}); \
         unset the variable to let the tests start their own"
    )
}
