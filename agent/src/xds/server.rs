//! The server for xDS: aggregated discovery, state of the world.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use enlist::{Directory, TaskOwner};
use tokio::net::TcpListener;
use tonic::transport::Server;

use super::{envoy::EnvoyResources, options::XdsOptions, service::Service, status::XdsStatus};
#[cfg(feature = "tls")]
use crate::tls::Protocol;
use crate::{
    connections::{ConnectionOwner, Transport, incoming},
    error::AgentError,
    security::check_exposure,
};

/// Maximum number of streams of one connection.
const STREAMS_PER_CONNECTION: u32 = 100;

/// Bytes that a client can send before the agent takes them, on a stream and on its connection. A request that waits
/// for room holds back the former; several of them on one connection hold back the latter, too.
const WINDOWS: (u32, u32) = (16_384, 65_535);

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
    pub(crate) async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
        let Self { transport, listener, service, streams, .. } = self;
        let slots = Arc::clone(&service.status.connections);
        let (stopped, connections) = (streams.stop_signal(), ConnectionOwner::default());
        let incoming = incoming(listener, transport, slots, &connections);
        let serving =
            server().add_service(service.limited()).serve_with_incoming_shutdown(incoming, stopped.cancelled());
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
        .initial_stream_window_size(Some(WINDOWS.0))
        .initial_connection_window_size(Some(WINDOWS.1))
}

#[cfg(test)]
mod tests {
    use std::{io, iter};

    use super::{
        super::options::{DEFAULT_XDS_CONNECT_TIMEOUT, ZonePreference},
        *,
    };
    use crate::connections::LimitedConnection;
    use enlist_memory::MemoryStore;
    use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client;
    use futures::StreamExt as _;
    use hyper_util::rt::TokioIo;
    use tokio::{
        io::{copy_bidirectional, duplex},
        sync::oneshot,
    };
    use tonic::transport::Endpoint;

    /// The network between it and the agent fails without a word, as after a loss of power.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_gone_leaves_the_list() {
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
        let (connection, mut far, _owner) = LimitedConnection::over_pipe(4096);
        let (client, mut near) = duplex(4096);
        let connections = futures::stream::iter(iter::once(Ok::<_, io::Error>(connection)));
        let serving = server().add_service(service.limited());
        let serving = serving.serve_with_incoming(connections.chain(futures::stream::pending()));
        tasks.spawn_until_stopped("server", async { drop(serving.await) }).unwrap();
        let (fail, failed) = oneshot::channel::<()>();
        let network = async move {
            tokio::select! {
                _ = copy_bidirectional(&mut near, &mut far) => {}
                _ = failed => std::future::pending().await,
            }
        };
        tasks.spawn_until_stopped("network", network).unwrap();
        let mut client = Some(TokioIo::new(client));
        let connector = tower::service_fn(move |_| {
            let client = client.take().ok_or_else(|| io::Error::other("there is one connection"));
            async { client }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap();
        let mut client = aggregated_discovery_service_client::AggregatedDiscoveryServiceClient::new(channel);
        let _stream = client.stream_aggregated_resources(futures::stream::pending()).await.unwrap();
        // A client that answers pings is not silent for longer than their interval.
        tokio::time::sleep(10 * KEEP_ALIVE.0).await;
        assert!(status.clients()[0].description().heard.elapsed() <= KEEP_ALIVE.0);
        fail.send(()).unwrap();
        let mut silence = Duration::ZERO;
        while let Some(client) = status.clients().first() {
            silence = client.description().heard.elapsed();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(silence > KEEP_ALIVE.0 + KEEP_ALIVE.1 / 2, "it was shown as silent: {silence:?}");
        assert!(silence <= Duration::from_secs(15), "it was listed for too long: {silence:?}");
    }
}
