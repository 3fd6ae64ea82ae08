//! The agent: one process that serves a registry to other programs.

use std::{net::SocketAddr, sync::Arc};

use enlist::{Directory, DirectoryOptions, Queues, Resolver, backend::LONGEST};
use futures::FutureExt as _;

use crate::{
    error::AgentError,
    http::{HttpOptions, HttpServer, Sources},
    xds::{ClientEntry, XdsClient, XdsOptions, XdsServer, XdsStatus, XdsTotals},
};

/// Parts of an agent that does not listen yet. See [`Agent::builder`].
#[derive(Debug)]
#[must_use = "it does nothing until `bind`"]
pub struct AgentBuilder {
    resolver: Arc<dyn Resolver>,
    directory: Option<DirectoryOptions>,
    xds: XdsOptions,
    http: Option<HttpOptions>,
    queues: Option<Arc<dyn Queues>>,
}

/// An agent that listens, and serves once [`serve`](Self::serve) runs.
///
/// ```
/// # use enlist_agent::{Agent, XdsOptions};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (client, stop) = (enlist_memory::MemoryStore::new().client(), async {});
/// let xds = XdsOptions::new().address("127.0.0.1:0".parse()?);
/// let agent = Agent::builder(std::sync::Arc::new(client)).xds(xds).bind().await?;
/// println!("xDS on {}", agent.xds_address());
/// agent.serve(stop).await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Agent {
    xds: XdsServer,
    http: Option<HttpServer>,
}

/// Clients and counters of an agent. Clones share them; they remain readable after the agent's end.
#[derive(Clone, Debug)]
pub struct AgentStatus {
    xds: XdsStatus,
}

impl AgentBuilder {
    /// Sets the options of xDS. Default: [`XdsOptions::new`].
    pub fn xds(mut self, options: XdsOptions) -> Self {
        self.xds = options;
        self
    }

    /// Serves HTTP as well. Default: xDS only.
    pub fn http(mut self, options: HttpOptions) -> Self {
        self.http = Some(options);
        self
    }

    /// Sets the reader of locks and elections, which are served over HTTP. Default: none; their paths are not
    /// supported.
    pub fn queues(mut self, queues: Arc<dyn Queues>) -> Self {
        self.queues = Some(queues);
        self
    }

    /// Sets the options of the views of services, `hold` included. Default: [`DirectoryOptions::new`], with the time of
    /// [`XdsOptions::settle`] as `hold`.
    pub fn directory(mut self, options: DirectoryOptions) -> Self {
        self.directory = Some(options);
        self
    }

    /// Listens on the configured addresses. Clients can connect; they are served by [`Agent::serve`].
    ///
    /// # Errors
    ///
    /// [`AgentError::Exposed`] for an address that other hosts can reach, without TLS and without a token;
    /// [`AgentError::Tls`] if the certificate or key cannot be used; [`AgentError::InvalidListener`];
    /// [`AgentError::InvalidOption`]; [`AgentError::Bind`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the listeners.
    pub async fn bind(self) -> Result<Agent, AgentError> {
        let Self { resolver, directory, xds, http, queues } = self;
        let directory = directory.unwrap_or_else(|| DirectoryOptions::new().hold(xds.settle));
        let idle = directory.idle.min(LONGEST);
        let directory = Directory::with_options(Arc::clone(&resolver), directory);
        let xds = XdsServer::bind(directory.clone(), idle, xds).await?;
        let http = match http {
            Some(options) => {
                let sources = Sources { resolver, directory, idle, queues, xds: xds.status() };
                Some(HttpServer::bind(sources, options).await?)
            }
            None => None,
        };
        Ok(Agent { xds, http })
    }
}

impl Agent {
    /// Returns the parts of an agent for the services that `resolver` finds.
    pub fn builder(resolver: Arc<dyn Resolver>) -> AgentBuilder {
        AgentBuilder { resolver, directory: None, xds: XdsOptions::new(), http: None, queues: None }
    }

    /// Address on which xDS is served.
    pub fn xds_address(&self) -> SocketAddr {
        self.xds.address()
    }

    /// Address on which HTTP is served; `None` if it is not.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(HttpServer::address)
    }

    /// A handle to the clients and counters, for use while the agent serves.
    pub fn status(&self) -> AgentStatus {
        AgentStatus { xds: self.xds.status() }
    }

    /// Serves until `stop` completes. Then streams are ended, so that clients connect to another agent, and at most 4 s
    /// later (with HTTP 6 s) it returns. Clients keep the instances that they know.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends all connections.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let Self { xds, http } = self;
        let stop = stop.shared();
        let http = async {
            if let Some(http) = http {
                http.serve(stop.clone()).await;
            }
        };
        tokio::join!(xds.serve(stop.clone()), http);
    }
}

impl AgentStatus {
    /// The clients that have an open stream of xDS.
    pub fn xds_clients(&self) -> Vec<XdsClient> {
        self.xds.clients().iter().map(ClientEntry::description).collect()
    }

    /// Counters of xDS.
    pub fn xds_totals(&self) -> XdsTotals {
        self.xds.totals()
    }
}
