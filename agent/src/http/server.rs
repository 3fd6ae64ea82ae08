//! The HTTP server: its listener and connections.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use enlist::TaskOwner;
use http_body::{Frame, SizeHint};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::Service as _};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
};

use super::{
    options::HttpOptions,
    router::router,
    shared::{RequestContext, Sources},
    stop::{Stop, stopping},
};
#[cfg(feature = "tls")]
use crate::tls::Protocol;
use crate::{
    connections::{Acceptor, ConnectionOwner, InUse, LimitedConnection, Peer, Transport},
    error::AgentError,
    security::check_exposure,
};

/// Time in which a client has to send the head of a request, and after which an idle connection is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum bytes of a request's head, and about the maximum of a response that waits for its client.
const BUFFER: usize = 32 << 10;

/// Time for connections to end after the stop.
const DRAIN: Duration = Duration::from_secs(2);

/// Service of a connection.
type Service = TowerToHyperService<axum::Router>;

/// An HTTP server that listens.
#[derive(Debug)]
pub(crate) struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
    transport: Transport,
    shared: Arc<RequestContext>,
    stop: watch::Sender<Stop>,
}

impl HttpServer {
    /// Listens on the configured address.
    ///
    /// # Errors
    ///
    /// [`AgentError::InvalidOption`], [`AgentError::Exposed`], [`AgentError::Tls`], [`AgentError::Bind`].
    pub(crate) async fn bind(sources: Sources, options: HttpOptions) -> Result<Self, AgentError> {
        options.check()?;
        let address = options.address;
        check_exposure(address, options.protection())?;
        #[cfg(feature = "tls")]
        let transport = Transport::with(options.tls.as_ref(), Protocol::Http1)?;
        #[cfg(not(feature = "tls"))]
        let transport = Transport::Tcp;
        let bind = |source| AgentError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let (stop, stopped) = watch::channel(Stop::Serving);
        let shared = Arc::new(RequestContext::new(sources, &options, stopped));
        Ok(Self { listener, address, transport, shared, stop })
    }

    /// Returns the address that the server listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` completes; then ends the event streams, and waits a short time for connections to end. At
    /// its end, or once the future is dropped, no connection remains.
    pub(crate) async fn serve(self, stop: impl Future<Output = ()>) {
        let Self { listener, transport, shared, stop: stopping, .. } = self;
        let (connections, owner) = (TaskOwner::new(), ConnectionOwner::default());
        let service = TowerToHyperService::new(router(Arc::clone(&shared)));
        let acceptor = Acceptor::new(listener, transport, Arc::clone(&shared.connections), &owner);
        let serve = |connection: LimitedConnection| {
            let peer = connection.peer().clone();
            serve_connection(connection, peer, service.clone(), shared.stop.clone())
        };
        tokio::select! {
            () = stop => {}
            () = acceptor.serve_each(&connections, serve) => {}
        }
        stopping.send_replace(Stop::Stopping);
        if !connections.drain(DRAIN).await {
            tracing::debug!("connections did not end in time");
        }
        shared.scopes.stop(DRAIN).await;
        if let Err(error) = connections.stop(DRAIN).await {
            tracing::warn!(%error, "connections did not end");
        }
    }
}

/// Serves one connection until its end, or until the response after the stop. `peer`: its client.
async fn serve_connection(
    connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Peer,
    service: Service,
    mut stop: watch::Receiver<Stop>,
) {
    let service = hyper::service::service_fn(move |request| respond(service.clone(), peer.clone(), request));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(BUFFER);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = stopping(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Responds to a request, which uses the connection until the response is complete.
async fn respond(service: Service, peer: Peer, request: Request<Incoming>) -> Result<Response<UsingBody>, Infallible> {
    let in_use = peer.in_use();
    let response = service.call(request).await?;
    Ok(response.map(|body| UsingBody { body, _in_use: in_use }))
}

/// Body of a response, which uses its connection until it is dropped.
#[derive(Debug)]
struct UsingBody {
    body: Body,
    _in_use: InUse,
}

impl http_body::Body for UsingBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        connections::{LimitedConnection, STALL},
        xds::{XdsOptions, XdsStatus},
    };
    use enlist::{Directory, Endpoint, Instance, InstanceId, RegisterOptions, Registry as _, Resolver, ServiceRef};
    use enlist_memory::MemoryStore;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        net::TcpStream,
        sync::oneshot,
    };

    fn sources(store: &MemoryStore) -> Sources {
        let resolver: Arc<dyn Resolver> = Arc::new(store.client());
        let directory = Directory::new(Arc::clone(&resolver));
        let xds = XdsStatus::new(directory.clone(), Duration::ZERO, &XdsOptions::new());
        Sources { resolver, directory, idle: enlist::DEFAULT_IDLE, queues: None, xds }
    }

    fn shared(store: &MemoryStore) -> (Arc<RequestContext>, watch::Sender<Stop>) {
        let (stop, stopped) = watch::channel(Stop::Serving);
        (Arc::new(RequestContext::new(sources(store), &HttpOptions::new(), stopped)), stop)
    }

    /// A connection over a pipe that holds `bytes`.
    fn connect(tasks: &TaskOwner, shared: &Arc<RequestContext>, bytes: usize) -> DuplexStream {
        let (client, server) = duplex(bytes);
        let service = TowerToHyperService::new(router(Arc::clone(shared)));
        tasks
            .spawn_until_stopped("connection", serve_connection(server, Peer::new(None), service, shared.stop.clone()))
            .unwrap();
        client
    }

    async fn read_until(client: &mut DuplexStream, text: &str) -> String {
        let mut read = Vec::new();
        while !String::from_utf8_lossy(&read).contains(text) {
            assert_ne!(client.read_buf(&mut read).await.unwrap(), 0, "{}", String::from_utf8_lossy(&read));
        }
        String::from_utf8(read).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_is_closed() {
        let (shared, _stop) = shared(&MemoryStore::new());
        let tasks = TaskOwner::new();
        let mut idle = connect(&tasks, &shared, 1024);
        let mut begun = connect(&tasks, &shared, 1024);
        begun.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        let mut used = connect(&tasks, &shared, 1024);
        used.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        read_until(&mut used, "ok").await;
        for client in [&mut idle, &mut begun, &mut used] {
            client.read_to_end(&mut Vec::new()).await.unwrap();
        }
    }

    /// The deadline is that of the whole head: single bytes do not extend it.
    #[tokio::test(start_paused = true)]
    async fn a_dripping_request_is_ended() {
        let (shared, _stop) = shared(&MemoryStore::new());
        let tasks = TaskOwner::new();
        let mut client = connect(&tasks, &shared, 1024);
        let begin = tokio::time::Instant::now();
        while client.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        assert!(begin.elapsed() <= HEAD_TIMEOUT + Duration::from_secs(5), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_too_large_is_refused() {
        let (shared, _stop) = shared(&MemoryStore::new());
        let tasks = TaskOwner::new();
        let mut client = connect(&tasks, &shared, 1 << 20);
        let head = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(2 * BUFFER));
        client.write_all(head.as_bytes()).await.unwrap();
        assert!(read_until(&mut client, "\r\n").await.starts_with("HTTP/1.1 431"));
    }

    /// A client of a service with 2,000 instances that reads nothing for an hour of changes then gets the state that it
    /// had begun to read, and the latest one. The server kept no part for it but the one being sent.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_delays_nothing() {
        let store = MemoryStore::new();
        let writer = store.client();
        let service = ServiceRef::parse("s").unwrap();
        let instance = |id: &str| {
            Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse("grpc://10.0.0.1:80").unwrap()]).unwrap()
        };
        for number in 0..2000 {
            writer.publish(&service, instance(&format!("i{number:04}"))).await.unwrap();
        }
        let changing = writer.register(&service, instance("z"), RegisterOptions::new()).await.unwrap();
        let (shared, stop) = shared(&store);
        let tasks = TaskOwner::new();
        let mut slow = connect(&tasks, &shared, 1024);
        slow.write_all(b"GET /v1/events?service=s HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut fast = connect(&tasks, &shared, 1 << 20);
        fast.write_all(b"GET /v1/events?service=s HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        read_until(&mut fast, "event: synced").await;
        for weight in 1..=300 {
            changing.update(|update| _ = update.weight(weight)).await.unwrap();
            tokio::time::sleep(Duration::from_secs(12)).await;
            let expected = format!("\"weight\":{weight},");
            read_until(&mut fast, &expected).await;
        }
        let read = read_until(&mut slow, "\"weight\":300,").await;
        let states: Vec<_> = read.lines().filter(|line| line.contains("\"id\":\"z\"")).collect();
        assert_eq!(states.len(), 2, "{states:?}");
        assert!(states[1].contains("\"weight\":300,"), "{states:?}");
        stop.send_replace(Stop::Stopping);
        fast.read_to_end(&mut Vec::new()).await.unwrap();
    }

    /// The server keeps neither the connections nor the instances for them. The event client returns with its position.
    #[tokio::test(start_paused = true)]
    async fn clients_that_take_nothing_are_disconnected() {
        let store = MemoryStore::new();
        let writer = store.client();
        let service = ServiceRef::parse("s").unwrap();
        let endpoint = Endpoint::parse("grpc://10.0.0.1:80").unwrap();
        for number in 0..2000 {
            let instance = Instance::new(InstanceId::parse(number.to_string()).unwrap(), [endpoint.clone()]).unwrap();
            writer.publish(&service, instance).await.unwrap();
        }
        let (shared, _stop) = shared(&store);
        let tasks = TaskOwner::new();
        let mut clients = Vec::new();
        for path in ["/v1/services/default/s", "/v1/prometheus/targets", "/v1/events"] {
            let (server, mut client, owner) = LimitedConnection::over_pipe(1024);
            let service = TowerToHyperService::new(router(Arc::clone(&shared)));
            tasks
                .spawn_until_stopped(
                    "connection",
                    serve_connection(server, Peer::new(None), service, shared.stop.clone()),
                )
                .unwrap();
            client.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
            clients.push((client, owner));
        }
        assert!(tasks.drain(2 * STALL).await, "the connections end");
        for (mut client, _owner) in clients {
            let mut read = Vec::new();
            client.read_to_end(&mut read).await.unwrap();
            assert!(read.len() <= 1024, "only what was on its way");
        }
    }

    #[tokio::test]
    async fn the_server_ends_with_open_event_streams() {
        let store = MemoryStore::new();
        let options = HttpOptions::new().address(([127, 0, 0, 1], 0).into()).max_connections(1);
        let server = HttpServer::bind(sources(&store), options).await.unwrap();
        let address = server.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let client = async {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
            let mut read = Vec::new();
            while !String::from_utf8_lossy(&read).contains("synced") {
                assert_ne!(client.read_buf(&mut read).await.unwrap(), 0);
            }
            // A connection above the limit is closed.
            let mut second = TcpStream::connect(address).await.unwrap();
            let mut nothing = Vec::new();
            let _ = second.read_to_end(&mut nothing).await;
            assert!(nothing.is_empty());
            stop.send(()).unwrap();
            client.read_to_end(&mut read).await.unwrap();
        };
        tokio::join!(server.serve(async { drop(stopped.await) }), client);
    }

    #[tokio::test]
    async fn other_hosts_are_refused_without_a_token() {
        let bind = async |options: HttpOptions| {
            HttpServer::bind(sources(&MemoryStore::new()), options.address(([0, 0, 0, 0], 0).into())).await
        };
        assert!(matches!(bind(HttpOptions::new()).await, Err(AgentError::Exposed { .. })));
        bind(HttpOptions::new().insecure()).await.unwrap();
        bind(HttpOptions::new().token(crate::BearerToken::new("t").unwrap())).await.unwrap();
    }
}
