//! One etcd server for tests: an endpoint given by the environment, a container, or a local process.
//!
//! Servers listen on the loopback interface, on ports that were free. After a start the server is asked for its name,
//! so that another etcd on the same port is noticed. `provider.rs` documents the environment variables.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::Command;

use super::{
    gateway,
    process::Running,
    provider::{Provider, binary, restorer},
    server_options::ServerOptions,
};
use crate::ports::free_port;

/// Maximum time until a server answers.
const READY: Duration = Duration::from_secs(30);

/// Number of attempts to start, each with other ports.
const ATTEMPTS: usize = 5;

/// Number of servers so far, for their names.
static SERVERS: AtomicUsize = AtomicUsize::new(0);

/// One etcd server. Dropping it ends it.
///
/// # Cancel safety
///
/// Dropping the future of a method leaves the server where it is: still up, or already down.
#[derive(Debug)]
pub struct EtcdServer {
    options: ServerOptions,
    name: String,
    ports: Ports,
    /// Cluster of the member; `None` for a server of its own.
    peers: Option<Peers>,
    state: State,
}

/// Cluster of a member, from its point of view.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    pub(crate) advertised: String,
    pub(crate) initial: String,
    /// The cluster exists already.
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
    /// Starts a server from the source that the environment selects.
    ///
    /// # Panics
    ///
    /// With a message that states the remedy, if no etcd is available.
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

    /// Creates a server without starting it.
    pub(crate) fn down(provider: &Provider, options: ServerOptions) -> Self {
        Self::down_on(Ports { client: free_port(), peer: free_port(), tls: free_port() }, provider, options)
    }

    fn down_on(ports: Ports, provider: &Provider, options: ServerOptions) -> Self {
        // Two servers of one process may have found the same port free.
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("enlist-test-{}-{number}", std::process::id());
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

    /// Returns the address for other members.
    pub(crate) fn peer_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.peer).into()
    }

    /// Makes the server a member of a cluster. A container uses the network of the host then, because members reach
    /// each other through proxies.
    pub(crate) fn join(&mut self, peers: Peers) {
        self.peers = Some(peers);
        #[cfg(feature = "containers")]
        if let State::Container(container) = &mut self.state {
            container.use_host_network();
        }
    }

    /// Returns the id of the server and that of its leader; `None` without an answer.
    pub(crate) async fn status(&self) -> Option<(String, String)> {
        let answer = gateway::ask(self.address(), "/v3/maintenance/status").await?;
        Some((gateway::text(&answer, "member_id")?, gateway::text(&answer, "leader").unwrap_or_default()))
    }

    /// Returns the address for plain text.
    pub fn address(&self) -> SocketAddr {
        if let State::Given(address) = self.state {
            return address;
        }
        (Ipv4Addr::LOCALHOST, self.ports.client).into()
    }

    /// Returns the URL for plain text.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Returns the URL for TLS.
    pub fn tls_url(&self) -> String {
        format!("https://localhost:{}", self.ports.tls)
    }

    /// Returns `true` if the server belongs to the tests, so that it may be stopped and wiped.
    pub fn is_own(&self) -> bool {
        !matches!(self.state, State::Given(_))
    }

    /// Kills the server, like `kill -9`, and waits until it has ended.
    ///
    /// # Panics
    ///
    /// If the server does not belong to the tests, or cannot be killed.
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

    /// Starts the server again after a [`kill`](Self::kill), on the same ports and with its data.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    pub async fn restart(&mut self) {
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            match self.up().await {
                Ok(()) => return,
                Err(why) => last = why,
            }
            // Another process may have the port for a moment. Clients know this port only.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("etcd does not come back: {last}");
    }

    /// Ends the server with SIGTERM, if it runs, and waits until it has ended.
    ///
    /// # Panics
    ///
    /// If the server is no local process, or does not end.
    pub async fn terminate(&mut self) {
        let State::Process { running, .. } = &mut self.state else { panic!("only a local process can be terminated") };
        if let Some(running) = running.take() {
            running.terminate().await;
        }
    }

    /// [Terminates](Self::terminate) the server and starts another `etcd` on the same ports and with the same data, as
    /// operators upgrade a member; [`EtcdCluster::upgrade`](crate::EtcdCluster::upgrade) does it in a cluster.
    ///
    /// # Panics
    ///
    /// If the server is no local process, does not end, or does not answer afterwards.
    pub async fn upgrade(&mut self, binary: &Path) {
        self.terminate().await;
        self.options.binary = Some(binary.to_owned());
        self.restart().await;
    }

    /// Returns the version of the server, and the lowest one that all members of its cluster support, such as `3.6.16`
    /// and `3.6.0`; `None` without an answer.
    pub async fn versions(&self) -> Option<(String, String)> {
        let answer = gateway::page(self.address(), "/version").await?;
        Some((gateway::text(&answer, "etcdserver")?, gateway::text(&answer, "etcdcluster")?))
    }

    /// Returns the sum of the values of a metric under all labels that `is_counted` accepts, written as in
    /// `{grpc_method="Watch"}`, and without labels empty; `None` without an answer, or if there is none.
    pub async fn metric(&self, name: &str, is_counted: impl Fn(&str) -> bool) -> Option<f64> {
        gateway::sum(&gateway::metrics(self.address()).await?, name, is_counted)
    }

    /// Returns `true` if the server reports that it is healthy, which needs a quorum.
    pub(crate) async fn is_healthy(&self) -> bool {
        gateway::page(self.address(), "/health").await.is_some()
    }

    /// Removes the history up to now.
    ///
    /// # Panics
    ///
    /// If the server does not do it.
    pub async fn compact(&self) {
        let compact = async {
            let now = gateway::tell(self.address(), "/v3/kv/range", r#"{"key":"AA==","count_only":true}"#).await?;
            let request = format!("{{\"revision\":\"{}\"}}", gateway::text(&now, "revision")?);
            gateway::tell(self.address(), "/v3/kv/compaction", &request).await
        };
        assert!(compact.await.is_some(), "the history cannot be compacted");
    }

    /// Kills the server, deletes its data and starts it again on the same ports.
    ///
    /// # Panics
    ///
    /// As [`kill`](Self::kill) and [`restart`](Self::restart).
    pub async fn wipe(&mut self) {
        self.kill().await;
        self.forget().await;
        self.restart().await;
    }

    /// Ends the server if it has not ended by itself.
    pub(crate) async fn end(&mut self) {
        if let State::Process { running, .. } = &mut self.state {
            if let Some(running) = running.take() {
                running.end().await;
            }
        } else {
            self.kill().await;
        }
    }

    /// Deletes the data of a server that does not run.
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

    /// Kills the server, replaces its data with the file `snapshot`, with `etcdutl` or `etcdctl`, and starts it again
    /// on the same ports, as operators do after a disaster.
    ///
    /// # Panics
    ///
    /// As [`kill`](Self::kill) and [`restart`](Self::restart), if it is no local process, and with a message that
    /// states the remedy, if neither tool is available.
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

    /// Freezes the server: it keeps its connections and does nothing, until [`resume`](Self::resume).
    ///
    /// # Panics
    ///
    /// If the server does not run, or does not belong to the tests.
    #[cfg_attr(not(feature = "containers"), expect(clippy::unused_async, reason = "only containers are awaited"))]
    pub async fn pause(&self) {
        match &self.state {
            State::Process { running: Some(running), .. } => running.signal(Signal::STOP),
            #[cfg(feature = "containers")]
            State::Container(container) => container.pause().await,
            _ => panic!("only a running server of the tests can be frozen"),
        }
    }

    /// Continues a frozen server.
    ///
    /// # Panics
    ///
    /// As [`pause`](Self::pause).
    #[cfg_attr(not(feature = "containers"), expect(clippy::unused_async, reason = "only containers are awaited"))]
    pub async fn resume(&self) {
        match &self.state {
            State::Process { running: Some(running), .. } => running.signal(Signal::CONT),
            #[cfg(feature = "containers")]
            State::Container(container) => container.unpause().await,
            _ => panic!("only a frozen server of the tests can go on"),
        }
    }

    /// Starts the server for the first time.
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

    /// Starts the server without waiting for answers.
    pub(crate) async fn begin(&mut self) -> Result<(), String> {
        let arguments = self.arguments();
        match &mut self.state {
            State::Given(address) => return Err(not_ours(*address)),
            State::Process { running, directory } => {
                let binary = self.options.binary.clone().unwrap_or_else(binary);
                *running = Some(Box::new(Running::start(&binary, &arguments, directory.path()).await?));
            }
            #[cfg(feature = "containers")]
            State::Container(container) => container.start(&arguments, self.ports.client).await?,
        }
        Ok(())
    }

    fn arguments(&self) -> Vec<String> {
        let Ports { client, peer, tls } = self.ports;
        // A container has interfaces of its own, unless it is a member. Its port is mapped to the loopback interface.
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
            // The other logger of etcd 3.4 ends the process when it logs a warning about a read.
            "--logger=zap".to_owned(),
        ];
        arguments.extend(self.options.arguments.iter().cloned());
        arguments
    }

    /// Waits until this server answers, and not another one on its port.
    async fn ready(&self) -> Result<(), String> {
        let address = self.address();
        let asked = async {
            loop {
                if let Some(members) = gateway::members(address).await {
                    return Ok(members);
                }
                if let State::Process { running: Some(running), .. } = &self.state
                    && let Some(log) = running.ended()
                {
                    return Err(log);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(READY, asked).await {
            Ok(Ok(members)) if members.contains(&format!("\"{}\"", self.name)) => Ok(()),
            Ok(Err(log)) => Err(log),
            Ok(Ok(members)) => Err(format!("{address} is not the etcd that was started: {members}")),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The second one ends because its port is in use, where the first one answers.
    #[tokio::test]
    async fn a_server_is_not_taken_for_another() {
        let ports = Ports { client: free_port(), peer: free_port(), tls: free_port() };
        let server = |ports| EtcdServer::down_on(ports, &Provider::Process, ServerOptions::new());
        let (mut first, mut second) = (server(ports), server(Ports { peer: free_port(), ..ports }));
        first.up().await.unwrap();
        assert!(second.up().await.is_err());
    }
}
