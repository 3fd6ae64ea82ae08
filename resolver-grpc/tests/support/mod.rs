//! Support of the channel's tests: servers that respond with their names, behind proxies that can fail, registered in a
//! memory store.

#![allow(dead_code, reason = "each test program uses its own part of it")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::{Future, ready},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use enlist::{
    Directory, Endpoint, Instance, InstanceId, RegisterOptions, Registration, Registry, ServiceRef, ServiceView,
    TaskOwner,
};
use enlist_grpc::{Channel, ChannelBuilder};
use enlist_memory::{MemoryClient, MemoryStore};
use enlist_testkit::{Mode, Proxy, soon};
use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use http::uri::PathAndQuery;
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status, body::Body, client::GrpcService, metadata::MetadataMap, server::NamedService,
};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

/// The first frame of a server: SETTINGS without a setting (RFC 9113, section 6.5).
pub(crate) const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

type Codec = ProstCodec<String, String>;

/// A service with three methods over texts: `Say` responds once, `Stream` responds with the name and stays open until
/// it is dropped, and `Hold` neither reads nor responds. The text selects the behaviour: `sleep` with milliseconds,
/// `fail` with a code, `header` to return a header; any other text returns the name.
#[derive(Clone, Debug)]
pub(crate) struct Echo {
    name: &'static str,
    /// Number of started calls.
    pub(crate) calls: Arc<AtomicUsize>,
    /// Number of further calls that end with `UNAVAILABLE`.
    pub(crate) failing: Arc<AtomicUsize>,
    slow: Duration,
}

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl Echo {
    async fn respond(self, text: String, metadata: MetadataMap) -> Result<Response<String>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let fewer = |failing: usize| failing.checked_sub(1);
        if self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok() {
            return Err(Status::unavailable("failed on request"));
        }
        tokio::time::sleep(self.slow).await;
        match text.split_once(' ') {
            Some(("sleep", time)) => tokio::time::sleep(Duration::from_millis(time.parse().unwrap())).await,
            Some(("fail", code)) => {
                return Err(Status::new(Code::from_i32(code.parse().unwrap()), "failed on request"));
            }
            Some(("header", name)) => {
                let value = metadata.get(name).map_or("", |value| value.to_str().unwrap());
                return Ok(Response::new(value.to_owned()));
            }
            _ => {}
        }
        Ok(Response::new(self.name.to_owned()))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Codec::default());
            if request.uri().path().ends_with("Hold") {
                let _unread = request;
                return std::future::pending().await;
            }
            if request.uri().path().ends_with("Stream") {
                let stream = |_: Request<String>| {
                    let name = Ok(echo.name.to_owned());
                    let for_ever = futures::stream::once(ready(name)).chain(futures::stream::pending());
                    ready(Ok::<Response<BoxStream<'static, Result<String, Status>>>, Status>(Response::new(Box::pin(
                        for_ever,
                    ))))
                };
                return Ok(grpc.server_streaming(service_fn(stream), request).await);
            }
            let say = move |request: Request<String>| {
                let (metadata, _, text) = request.into_parts();
                echo.clone().respond(text, metadata)
            };
            Ok(grpc.unary(service_fn(say), request).await)
        })
    }
}

/// Returns the service, for another server than `Server`.
pub(crate) fn echo(name: &'static str) -> Echo {
    Echo { name, calls: Arc::default(), failing: Arc::default(), slow: Duration::ZERO }
}

/// A server behind a proxy.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) proxy: Proxy,
    pub(crate) echo: Echo,
    pub(crate) health: tonic_health::server::HealthReporter,
    tasks: TaskOwner,
}

impl Server {
    pub(crate) async fn start(name: &'static str) -> Self {
        Self::slow(name, Duration::ZERO).await
    }

    /// Starts a server that delays each response by `slow`.
    pub(crate) async fn slow(name: &'static str, slow: Duration) -> Self {
        Self::with(name, slow, tonic::transport::Server::builder()).await
    }

    /// Starts a server with at most this many concurrent streams per connection.
    pub(crate) async fn limited(name: &'static str, streams: u32) -> Self {
        Self::with(name, Duration::ZERO, tonic::transport::Server::builder().max_concurrent_streams(streams)).await
    }

    async fn with(name: &'static str, slow: Duration, mut builder: tonic::transport::Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
        let echo = Echo { slow, ..echo(name) };
        let (health, health_service) = tonic_health::server::health_reporter();
        let tasks = TaskOwner::new();
        let stop = tasks.stop_signal();
        let server = builder
            .add_service(health_service)
            .add_service(echo.clone())
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned());
        tasks.spawn("server", async move { server.await.unwrap() }).unwrap();
        Self { name, proxy, echo, health, tasks }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.address()
    }

    pub(crate) fn instance(&self) -> Instance {
        Instance::new(id(self.name), [Endpoint::try_from(self.address()).unwrap()]).unwrap()
    }

    pub(crate) fn calls(&self) -> usize {
        self.echo.calls.load(Ordering::SeqCst)
    }

    /// Cuts its connections silently, then refuses new ones, like a killed process.
    pub(crate) fn kill(&self) {
        self.proxy.set(Mode::Refuse);
    }

    /// Returns the number of open connections.
    pub(crate) fn open(&self) -> usize {
        self.proxy.connections().iter().filter(|connection| !connection.ended).count()
    }

    /// Returns the number of connections so far.
    pub(crate) fn dials(&self) -> usize {
        self.proxy.connections().len()
    }

    /// Sends GOAWAY, and ends after its last call.
    pub(crate) fn go_away(&self) {
        self.tasks.stop_signal().cancel();
    }

    /// Stops in order, as seen by its clients: GOAWAY, then the end.
    pub(crate) async fn stop(&self) {
        self.tasks.stop(Duration::from_secs(5)).await.unwrap();
    }
}

/// Returns the port of a listener on all addresses that passes each connection to `each`.
pub(crate) async fn listen<F>(tasks: &TaskOwner, mut each: impl FnMut(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let (port, stop) = (listener.local_addr().unwrap().port(), tasks.stop_signal());
    let accept = async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            connections.spawn(each(connection));
            while connections.try_join_next().is_some() {}
        }
    };
    tasks.spawn("listener", async move { _ = stop.run_until_cancelled(accept).await }).unwrap();
    port
}

/// Reads until the other side closes the connection.
pub(crate) async fn swallow(connection: &mut TcpStream) {
    let _ = tokio::io::copy(connection, &mut tokio::io::sink()).await;
}

/// Returns `count` instances behind one port of the loopback network, with one address each.
pub(crate) fn addresses(count: u32, port: u16) -> impl Iterator<Item = Instance> {
    (0..count).map(move |n| {
        let [_, _, high, low] = n.to_be_bytes();
        let endpoint = Endpoint::parse(format!("127.1.{high}.{low}:{port}")).unwrap();
        Instance::new(id(&format!("i{n}")), [endpoint]).unwrap()
    })
}

pub(crate) fn id(name: &str) -> InstanceId {
    InstanceId::parse(name).unwrap()
}

/// A service in a memory store, and a client's directory.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) store: MemoryStore,
    /// Client that servers register with.
    pub(crate) servers: MemoryClient,
    /// Client that resolves.
    pub(crate) client: MemoryClient,
    pub(crate) directory: Directory,
    pub(crate) service: ServiceRef,
    registrations: Mutex<BTreeMap<&'static str, Registration>>,
}

impl World {
    pub(crate) fn new() -> Self {
        let store = MemoryStore::new();
        let (servers, client) = (store.client(), store.client());
        let directory = Directory::new(Arc::new(client.clone()));
        let service = ServiceRef::parse("echo").unwrap();
        Self { store, servers, client, directory, service, registrations: Mutex::default() }
    }

    /// Returns a world with these servers registered.
    pub(crate) async fn of(servers: &[Server]) -> Self {
        let world = Self::new();
        for server in servers {
            world.register(server, server.instance()).await;
        }
        world
    }

    pub(crate) async fn register(&self, server: &Server, instance: Instance) {
        let registered = self.servers.register(&self.service, instance, RegisterOptions::new());
        let registration = soon("registered", registered).await.unwrap();
        self.registrations.lock().unwrap().insert(server.name, registration);
    }

    pub(crate) fn registration(&self, server: &Server) -> Registration {
        self.registrations.lock().unwrap().remove(server.name).unwrap()
    }

    pub(crate) async fn deregister(&self, server: &Server) {
        soon("deregistered", self.registration(server).deregister()).await.unwrap();
    }

    pub(crate) fn view(&self) -> ServiceView {
        self.directory.view(&self.service)
    }

    /// Returns a channel with `ready` ready instances.
    pub(crate) async fn channel(&self, builder: ChannelBuilder, ready: usize) -> Channel {
        let channel = builder.build(&self.view()).unwrap();
        until_ready(&channel, ready).await;
        channel
    }
}

/// Waits until exactly this many instances are ready.
pub(crate) async fn until_ready(channel: &Channel, ready: usize) {
    enlist_testkit::eventually("so many are ready", || async {
        let instances = channel.instances();
        let now = instances.iter().filter(|one| one.state == enlist_grpc::InstanceState::Ready).count();
        if now == ready { Ok(()) } else { Err(instances) }
    })
    .await;
}

/// Waits until an instance is in a state.
pub(crate) async fn until(channel: &Channel, name: &str, state: enlist_grpc::InstanceState) {
    enlist_testkit::eventually("the instance is in the state", || async {
        let instances = channel.instances();
        let is = instances.iter().any(|one| one.id == id(name) && one.state == state);
        if is { Ok(()) } else { Err(instances) }
    })
    .await;
}

/// Starts a future now; its end is awaited later.
pub(crate) fn begun<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> impl Future<Output = T> {
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(future);
    async move { tasks.join_next().await.unwrap().unwrap() }
}

/// Calls `Say`.
pub(crate) fn say<S, R>(channel: &S, request: R) -> impl Future<Output = Result<String, Status>> + use<S, R>
where
    R: tonic::IntoRequest<String>,
    S: GrpcService<Body> + Clone,
    S::ResponseBody: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    <S::ResponseBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut grpc, request) = (tonic::client::Grpc::new(channel.clone()), request.into_request());
    async move {
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let path = PathAndQuery::from_static("/test.Echo/Say");
        Ok(grpc.unary(request, path, Codec::default()).await?.into_inner())
    }
}

/// Calls `Say` with a deadline of `limit`.
pub(crate) async fn say_within(channel: &Channel, text: &str, limit: Duration) -> Result<String, Status> {
    let mut request = Request::new(text.to_owned());
    request.set_timeout(limit);
    say(channel, request).await
}

/// Opens a stream that responds with the server's name and stays open.
pub(crate) async fn stream(channel: &Channel) -> Result<tonic::Streaming<String>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/test.Echo/Stream");
    Ok(grpc.server_streaming(Request::new(String::new()), path, Codec::default()).await?.into_inner())
}

/// Calls `Say` with a text of this many bytes, of which tonic sends at most `limit`.
pub(crate) async fn say_at_most(channel: &Channel, bytes: usize, limit: usize) -> Result<String, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_encoding_message_size(limit);
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/test.Echo/Say");
    Ok(grpc.unary(Request::new("x".repeat(bytes)), path, Codec::default()).await?.into_inner())
}

/// Calls `Hold` with this many texts of 64 KiB.
pub(crate) async fn hold(channel: &Channel, texts: usize) -> Result<String, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await?;
    let texts = futures::stream::iter(std::iter::repeat_n("x".repeat(64 << 10), texts));
    let path = PathAndQuery::from_static("/test.Echo/Hold");
    Ok(grpc.client_streaming(Request::new(texts), path, Codec::default()).await?.into_inner())
}

/// Counts the instances that respond to this many sequential calls. All have to succeed.
pub(crate) async fn shares(channel: &Channel, calls: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..calls {
        *shares.entry(say(channel, String::new()).await.unwrap()).or_default() += 1;
    }
    shares
}

/// Waits until these instances take calls, and no others. An instance that has become ready is chosen, and counts for
/// its zone, from the next picker state on.
pub(crate) async fn until_called(channel: &Channel, names: &[&str]) {
    enlist_testkit::eventually("these take calls", || async {
        let shares = shares(channel, 50).await;
        if shares.keys().eq(names) { Ok(()) } else { Err(shares) }
    })
    .await;
}

/// Makes calls from several concurrent callers. Returns the errors.
pub(crate) async fn calls_side_by_side<F>(callers: usize, calls: usize, call: impl Fn() -> F) -> Vec<Status>
where
    F: Future<Output = Result<String, Status>>,
{
    let caller = || async {
        let mut failed = Vec::new();
        for _ in 0..calls / callers {
            failed.extend(call().await.err());
        }
        failed
    };
    futures::future::join_all((0..callers).map(|_| caller())).await.concat()
}
