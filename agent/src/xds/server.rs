//! The server for xDS: aggregated discovery, state of the world.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use enlist::{Directory, TaskOwner};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};
use futures::Stream;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue, transport::Server};

use super::{
    client_stream::ClientStream,
    clients::{Clients, XdsClient, XdsTotals},
    envoy::EnvoyResources,
    options::{XdsOptions, ZonePreference},
    shared::SharedAssignments,
};
#[cfg(feature = "tls")]
use crate::tls::Protocol;
use crate::{
    connections::{ConnectionOwner, Transport, incoming},
    error::AgentError,
    security::{BearerToken, check_exposure},
};

/// Responses that wait for a client to take them. Later ones are made when it does.
const RESPONSES: usize = 1;

/// Maximum bytes of a request. Envoy's reason for a rejection contains the whole resource.
const MAX_REQUEST_BYTES: usize = 4 << 20;

/// Maximum number of streams of one connection.
const STREAMS_PER_CONNECTION: u32 = 1_000;

/// Interval of the pings that find connections without a client, and the time for an answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// Time for connections to end after the stop. Streams are ended at once, so this is for clients that do not react.
const DRAIN: Duration = Duration::from_secs(2);

/// A server for xDS that listens.
#[derive(Debug)]
pub(crate) struct XdsServer {
    transport: Transport,
    listener: TcpListener,
    address: SocketAddr,
    max_connections: usize,
    service: Service,
    /// Owner of the tasks of streams.
    streams: Arc<TaskOwner>,
}

/// Clients and counters of a server.
#[derive(Clone, Debug)]
pub(crate) struct XdsStatus {
    clients: Arc<Clients>,
    assignments: Arc<SharedAssignments>,
}

/// The service of aggregated discovery.
#[derive(Clone, Debug)]
struct Service {
    status: XdsStatus,
    envoy: Arc<EnvoyResources>,
    token: Option<BearerToken>,
    max_names: usize,
    zones: ZonePreference,
    /// Weak, because each connection has a clone of the service: the streams end with the server.
    streams: Weak<TaskOwner>,
}

impl XdsServer {
    /// Listens on the configured address. `idle`: time for which the directory keeps a view without a user.
    ///
    /// # Errors
    ///
    /// [`AgentError::Exposed`], [`AgentError::Tls`], [`AgentError::InvalidListener`], [`AgentError::Bind`].
    pub(crate) async fn bind(directory: Directory, idle: Duration, options: XdsOptions) -> Result<Self, AgentError> {
        let address = options.address;
        check_exposure(address, options.protection())?;
        #[cfg(feature = "tls")]
        let transport = Transport::with(options.tls.as_ref(), Protocol::Http2)?;
        #[cfg(not(feature = "tls"))]
        let transport = Transport::Tcp;
        let envoy = Arc::new(EnvoyResources::new(&options.envoy)?);
        let bind = |source| AgentError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let status = XdsStatus::new(directory, idle, &options);
        let streams = Arc::new(TaskOwner::new());
        let service = Service {
            status,
            envoy,
            token: options.token.clone(),
            max_names: options.max_names,
            zones: options.zones,
            streams: Arc::downgrade(&streams),
        };
        Ok(Self { transport, listener, address, max_connections: options.max_streams, service, streams })
    }

    /// Returns the address that the server listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a handle to the clients and counters.
    pub(crate) fn status(&self) -> XdsStatus {
        self.service.status.clone()
    }

    /// Serves until `stop` completes; then ends the streams, and waits a short time for connections to end. At its end,
    /// or once the future is dropped, no stream and no connection remains.
    pub(crate) async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
        let Self { transport, listener, max_connections, service, streams, .. } = self;
        let (stopped, connections) = (streams.stop_signal(), ConnectionOwner::default());
        let service = AggregatedDiscoveryServiceServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES);
        let incoming = incoming(listener, transport, max_connections, &connections);
        let serving = server().add_service(service).serve_with_incoming_shutdown(incoming, stopped.cancelled());
        let mut serving = std::pin::pin!(serving);
        let ended = tokio::select! {
            () = stop => None,
            ended = &mut serving => Some(ended),
        };
        if let Some(ended) = ended {
            return ended.map_err(|error| AgentError::Server(error.into()));
        }
        if let Err(error) = streams.stop(DRAIN).await {
            tracing::warn!(%error, "streams of clients did not end");
        }
        match tokio::time::timeout(DRAIN, serving).await {
            Ok(ended) => ended.map_err(|error| AgentError::Server(error.into())),
            // Clients that do not end their connections lose them.
            Err(_) => Ok(()),
        }
    }
}

/// Returns the server, without services.
fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE.0))
        .http2_keepalive_timeout(Some(KEEP_ALIVE.1))
        .max_concurrent_streams(Some(STREAMS_PER_CONNECTION))
}

impl XdsStatus {
    /// Creates the status of a server without clients. `idle`: time for which the directory keeps a view without a
    /// user.
    pub(crate) fn new(directory: Directory, idle: Duration, options: &XdsOptions) -> Self {
        let assignments = SharedAssignments::new(directory, options.max_services, idle);
        Self { clients: Arc::new(Clients::new(options.max_streams)), assignments: Arc::new(assignments) }
    }

    /// Returns the connected clients.
    pub(crate) fn clients(&self) -> Vec<XdsClient> {
        self.clients.list()
    }

    /// Returns the counters.
    pub(crate) fn totals(&self) -> XdsTotals {
        let mut totals = self.clients.totals();
        for assignment in self.assignments.known() {
            for (omission, count) in assignment.omitted {
                *totals.omitted.entry(omission).or_default() += count;
            }
        }
        totals
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.check_token(&request)?;
        let too_many = || Status::resource_exhausted("the agent has as many streams as permitted");
        let client = self.status.clients.enter(request.remote_addr()).ok_or_else(too_many)?;
        let (envoy, assignments) = (Arc::clone(&self.envoy), Arc::clone(&self.status.assignments));
        let stream = ClientStream::new(client, assignments, envoy, self.max_names, self.zones);
        let (sender, responses) = mpsc::channel(RESPONSES);
        let stops = || Status::unavailable("the agent stops");
        let streams = self.streams.upgrade().ok_or_else(stops)?;
        let stop = streams.stop_signal();
        let task = stream.run(request.into_inner(), sender, async move { stop.cancelled().await });
        streams.spawn("xds stream", task).map_err(|_| stops())?;
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    async fn delta_aggregated_resources(
        &self,
        _request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("configure the state of the world: `api_type: GRPC`"))
    }
}

impl Service {
    fn check_token(&self, request: &Request<Streaming<DiscoveryRequest>>) -> Result<(), Status> {
        let header = request.metadata().get("authorization").map(MetadataValue::as_bytes);
        match &self.token {
            Some(token) if !token.admits(header) => Err(Status::unauthenticated("the token is missing or wrong")),
            Some(_) | None => Ok(()),
        }
    }
}
