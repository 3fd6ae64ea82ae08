//! The server for xDS: aggregated discovery, state of the world.

use std::{convert::Infallible, future, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use enlist::{Directory, TaskOwner};
use hyper::{Request, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tonic::body::Body;

use super::{envoy::EnvoyResources, options::XdsOptions, service::Service, status::XdsStatus};
#[cfg(feature = "tls")]
use crate::tls::Protocol;
use crate::{
    connections::{Acceptor, ConnectionOwner, LimitedConnection, Transport},
    error::AgentError,
    security::check_exposure,
};

/// Maximum number of streams of one connection.
const STREAMS_PER_CONNECTION: u32 = 100;

/// Bytes that a client can send before the agent takes them, on a stream and on its connection. A request that waits
/// for room holds back the former; several of them on one connection hold back the latter, too.
const WINDOWS: (u32, u32) = (16_384, 65_535);

/// Bytes of a stream from which its further responses wait until the connection has sent some. One part of a response
/// may be more.
const SEND_BUFFER: usize = 4 << 10;

/// Interval of the pings that find connections without a client, and the time for an answer. A client that is gone is
/// listed for no longer than both together, and its silence is shown meanwhile.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// Time for connections to end after the stop. Streams are ended at once, so this is for clients that do not react.
const DRAIN: Duration = Duration::from_secs(2);

/// A server for xDS that listens.
#[derive(Debug)]
pub(crate) struct XdsServer {
    transport: Transport,
    listener: TcpListener,
    address: SocketAddr,
    service: Service,
    /// Owner of the tasks of streams.
    streams: Arc<TaskOwner>,
}

impl XdsServer {
    /// Listens on the configured address. `idle`: time for which the directory keeps a view without a user.
    ///
    /// # Errors
    ///
    /// [`AgentError::InvalidOption`], [`AgentError::Exposed`], [`AgentError::Tls`], [`AgentError::InvalidListener`],
    /// [`AgentError::Bind`].
    pub(crate) async fn bind(directory: Directory, idle: Duration, options: XdsOptions) -> Result<Self, AgentError> {
        options.check()?;
        let address = options.address;
        check_exposure(address, options.protection())?;
        #[cfg(feature = "tls")]
        let transport = Transport::with(options.tls.as_ref(), Protocol::Http2)?;
        #[cfg(not(feature = "tls"))]
        let transport = Transport::Tcp;
        let envoy = Arc::new(EnvoyResources::new(&options.envoy, options.connect_timeout)?);
        let bind = |source| AgentError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let status = XdsStatus::new(directory, idle, &options);
        let streams = Arc::new(TaskOwner::new());
        let service = Service {
            status,
            envoy,
            token: options.token.clone(),
            zones: options.zones,
            streams: Arc::downgrade(&streams),
        };
        Ok(Self { transport, listener, address, service, streams })
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
    pub(crate) async fn serve(self, stop: impl Future<Output = ()>) {
        let Self { transport, listener, service, streams, .. } = self;
        let (connections, owner) = (TaskOwner::new(), ConnectionOwner::default());
        let acceptor = Acceptor::new(listener, transport, Arc::clone(&service.status.connections), &owner);
        let serve = |connection| serve_connection(connection, service.clone(), streams.stop_signal().cancelled_owned());
        tokio::select! {
            () = stop => {}
            () = acceptor.serve_each(&connections, serve) => {}
        }
        if let Err(error) = streams.stop(DRAIN).await {
            tracing::warn!(%error, "streams of clients did not end");
        }
        if !connections.drain(DRAIN).await {
            tracing::debug!("connections did not end in time");
        }
        if let Err(error) = connections.stop(DRAIN).await {
            tracing::warn!(%error, "connections did not end");
        }
    }
}

/// Serves one connection until its end. After `stop` it ends once its streams have.
async fn serve_connection(connection: LimitedConnection, service: Service, stop: impl Future<Output = ()>) {
    let peer = connection.peer().clone();
    let respond = move |request: Request<Incoming>| {
        let response = service.respond(request.map(Body::new), peer.clone());
        future::ready(Ok::<_, Infallible>(response))
    };
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_send_buf_size(SEND_BUFFER);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(connection), service_fn(respond)));
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = stop => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{
        super::{
            options::{DEFAULT_XDS_CONNECT_TIMEOUT, ZonePreference},
            resource::ResourceType,
        },
        *,
    };
    use enlist_memory::MemoryStore;
    use enlist_testkit::soon;
    use envoy_types::pb::envoy::service::discovery::v3::{
        DiscoveryRequest, DiscoveryResponse, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    };
    use tokio::{
        io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, duplex, split},
        sync::{mpsc, watch},
    };
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::{
        Streaming,
        transport::{Channel, Endpoint},
    };

    /// Number of clusters whose response does not fit into the buffers between the agent and its client.
    const CLUSTERS: usize = 40;

    /// Directions in which the network passes bytes on.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Passes {
        Both,
        ToAgent,
        /// As after a loss of power.
        None,
    }

    /// An agent with one connection, and its client.
    struct Network {
        status: XdsStatus,
        client: AggregatedDiscoveryServiceClient<Channel>,
        passes: watch::Sender<Passes>,
        _owners: (Arc<TaskOwner>, TaskOwner, ConnectionOwner),
    }

    impl Network {
        async fn new() -> Self {
            let directory = Directory::new(Arc::new(MemoryStore::new().client()));
            let status = XdsStatus::new(directory, Duration::ZERO, &XdsOptions::new());
            let (streams, tasks) = (Arc::new(TaskOwner::new()), TaskOwner::new());
            let service = Service {
                status: status.clone(),
                envoy: Arc::new(EnvoyResources::new(&[], DEFAULT_XDS_CONNECT_TIMEOUT).unwrap()),
                token: None,
                zones: ZonePreference::None,
                streams: Arc::downgrade(&streams),
            };
            let (connection, far, owner) = LimitedConnection::over_pipe(4096);
            let (client, near) = duplex(4096);
            let serving = serve_connection(connection, service, streams.stop_signal().cancelled_owned());
            tasks.spawn_until_stopped("server", serving).unwrap();
            let passes = watch::Sender::new(Passes::Both);
            let ((from_agent, to_agent), (from_client, to_client)) = (split(far), split(near));
            let requests = pass(from_client, to_agent, passes.subscribe(), &[Passes::Both, Passes::ToAgent]);
            let responses = pass(from_agent, to_client, passes.subscribe(), &[Passes::Both]);
            tasks.spawn_until_stopped("network", async { drop(tokio::join!(requests, responses)) }).unwrap();
            let mut client = Some(TokioIo::new(client));
            let connector = tower::service_fn(move |_| {
                let client = client.take().ok_or_else(|| io::Error::other("there is one connection"));
                async { client }
            });
            let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap();
            let client = AggregatedDiscoveryServiceClient::new(channel);
            Self { status, client, passes, _owners: (streams, tasks, owner) }
        }
    }

    /// Passes bytes on while the network does.
    async fn pass(
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        mut passes: watch::Receiver<Passes>,
        when: &[Passes],
    ) -> io::Result<()> {
        let mut bytes = [0; 1024];
        loop {
            let count = from.read(&mut bytes).await?;
            passes.wait_for(|passes| when.contains(passes)).await.map_err(io::Error::other)?;
            to.write_all(&bytes[..count]).await?;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_gone_leaves_the_list() {
        let Network { status, mut client, passes, _owners } = Network::new().await;
        let _stream = client.stream_aggregated_resources(futures::stream::pending()).await.unwrap();
        // A client that answers pings is not silent for longer than their interval.
        tokio::time::sleep(10 * KEEP_ALIVE.0).await;
        assert!(status.clients()[0].description().heard.elapsed() <= KEEP_ALIVE.0);
        passes.send_replace(Passes::None);
        let mut silence = Duration::ZERO;
        while let Some(client) = status.clients().first() {
            silence = client.description().heard.elapsed();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(silence > KEEP_ALIVE.0 + KEEP_ALIVE.1 / 2, "it was shown as silent: {silence:?}");
        assert!(silence <= Duration::from_secs(15), "it was listed for too long: {silence:?}");
    }

    /// Requests clusters whose response does not fit into the connection. Returns when nothing can go on.
    async fn request_clusters(network: &mut Network) -> (mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>) {
        let (requests, receiver) = mpsc::channel(1);
        let responses = network.client.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap();
        network.passes.send_replace(Passes::ToAgent);
        let type_url = ResourceType::Cluster.url().to_owned();
        let resource_names = (0..CLUSTERS).map(|number| format!("name-{number}")).collect();
        requests.send(DiscoveryRequest { type_url, resource_names, ..DiscoveryRequest::default() }).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(network.status.totals().responses[&ResourceType::Cluster], 1);
        (requests, responses.into_inner())
    }

    /// Its client has ended its requests, and reads nothing.
    #[tokio::test(start_paused = true)]
    async fn a_stream_counts_until_its_bytes_are_sent() {
        let mut network = Network::new().await;
        let (requests, mut responses) = request_clusters(&mut network).await;
        drop(requests);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(network.status.clients().len(), 1, "bytes of its response wait");
        network.passes.send_replace(Passes::Both);
        let response = soon("a response", responses.message()).await.unwrap().unwrap();
        assert_eq!(response.resources.len(), CLUSTERS);
        assert!(soon("the end", responses.message()).await.unwrap().is_none());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(network.status.clients().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_reset_leaves_the_list() {
        let mut network = Network::new().await;
        let stream = request_clusters(&mut network).await;
        assert_eq!(network.status.clients().len(), 1);
        drop(stream);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(network.status.clients().is_empty());
    }
}
