//! State that all requests share.

use std::{sync::Arc, time::Duration};

use enlist::{Directory, ElectionQueue, LockQueue, Namespace, Queues, Resolver};
use tokio::sync::watch;

use super::{
    api::{cache::Cache, readiness::Readiness},
    following::scopes::Scopes,
    messages::{guard::Hosts, responses::ResponseCounts},
    options::HttpOptions,
    stop::Stop,
};
use crate::{
    limits::{LimitUse, Permits},
    security::BearerToken,
    xds::XdsStatus,
};

/// Age up to which a list of namespaces is reused.
const NAMESPACES_AGE: Duration = Duration::from_secs(1);

/// Age up to which queues are reused.
const QUEUES_AGE: Duration = Duration::from_secs(1);

/// Sources of the served data.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) resolver: Arc<dyn Resolver>,
    /// Views of services, shared with other servers.
    pub(crate) directory: Directory,
    /// Time for which the directory keeps a view without a user.
    pub(crate) idle: Duration,
    /// Locks and elections, if the backend can read them.
    pub(crate) queues: Option<Arc<dyn Queues>>,
    /// Clients of xDS.
    pub(crate) xds: XdsStatus,
}

/// State that all requests share.
#[derive(Debug)]
pub(super) struct RequestContext {
    pub(super) scopes: Arc<Scopes>,
    pub(super) queues: Option<Arc<dyn Queues>>,
    pub(super) xds: XdsStatus,
    /// The locks that were read last, by namespace.
    pub(super) locks: Cache<Namespace, Vec<LockQueue>>,
    /// The elections that were read last, by namespace.
    pub(super) elections: Cache<Namespace, Vec<ElectionQueue>>,
    /// The namespaces that were read last.
    pub(super) namespaces: Cache<(), Vec<Namespace>>,
    pub(super) readiness: Readiness,
    /// Permits for connections.
    pub(super) connections: Arc<Permits>,
    /// Permits for event clients.
    pub(super) event_clients: Permits,
    pub(super) responses: ResponseCounts,
    pub(super) stop: watch::Receiver<Stop>,
    pub(super) hosts: Hosts,
    pub(super) token: Option<BearerToken>,
}

impl RequestContext {
    /// Creates the state of a server that ends its connections when `stop` reports it.
    pub(super) fn new(sources: Sources, options: &HttpOptions, stop: watch::Receiver<Stop>) -> Self {
        let Sources { resolver, directory, idle, queues, xds } = sources;
        Self {
            scopes: Scopes::new(resolver, directory, idle, options.limits()),
            queues,
            xds,
            locks: Cache::new(QUEUES_AGE),
            elections: Cache::new(QUEUES_AGE),
            namespaces: Cache::new(NAMESPACES_AGE),
            readiness: Readiness::default(),
            connections: Arc::new(Permits::new("http_connections", options.max_connections)),
            event_clients: Permits::new("http_event_clients", options.max_event_clients),
            responses: ResponseCounts::default(),
            stop,
            hosts: options.hosts(),
            token: options.token.clone(),
        }
    }

    /// Returns the use of all limits.
    pub(super) fn limits(&self) -> Vec<LimitUse> {
        let own = [self.connections.usage(), self.event_clients.usage(), self.scopes.usage()];
        self.xds.limits().into_iter().chain(own).collect()
    }
}
