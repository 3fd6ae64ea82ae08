//! Calls to servers that end them in each of HTTP/2's ways, and to servers that never end them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use enlist::{Endpoint, Instance, Registry, TaskOwner};
use enlist_grpc::{CallHead, Channel, ChannelBuilder, InstanceState, Intercept, RetryPolicy};
use enlist_testkit::{eventually, soon};
use h2::{Reason, RecvStream, server::SendResponse};
use http::uri::PathAndQuery;
use support::{Server, World, begun, id, say, say_within};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// A request, as received over HTTP/2.
type Asked = http::Request<RecvStream>;

/// An HTTP/2 server with responses defined by the test.
struct Raw {
    address: SocketAddr,
    /// Number of received calls.
    calls: Arc<AtomicUsize>,
    _tasks: TaskOwner,
}

impl Raw {
    async fn start<F, A>(handle: F) -> Self
    where
        F: Fn(Asked, SendResponse<Bytes>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, calls, tasks) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)), TaskOwner::new());
        let (stop, counted) = (tasks.stop_signal(), Arc::clone(&calls));
        let accept = async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, Arc::clone(&counted), handle.clone()));
            }
        };
        tasks.spawn("raw", async move { _ = stop.run_until_cancelled(accept).await }).unwrap();
        Self { address, calls, _tasks: tasks }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Returns a channel to this server only.
    async fn channel(&self, builder: ChannelBuilder) -> Channel {
        channel(&[self], builder).await
    }
}

/// Returns a channel to these servers.
async fn channel(servers: &[&Raw], builder: ChannelBuilder) -> Channel {
    let world = World::new();
    for (server, name) in servers.iter().zip(["raw", "other"]) {
        let instance = Instance::new(id(name), [Endpoint::try_from(server.address).unwrap()]).unwrap();
        world.servers.publish(&world.service, instance).await.unwrap();
    }
    world.channel(builder, servers.len()).await
}

async fn serve<F, A>(stream: TcpStream, calls: Arc<AtomicUsize>, handle: F)
where
    F: Fn(Asked, SendResponse<Bytes>) -> A + Send,
    A: Future<Output = ()> + Send + 'static,
{
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let mut responses = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        if request.uri().path().starts_with("/test.Echo/") {
            calls.fetch_add(1, Ordering::SeqCst);
        }
        responses.spawn(handle(request, respond));
    }
}

/// Returns the head of a response.
fn head(status: u16, content: &str) -> http::Response<()> {
    http::Response::builder().status(status).header("content-type", content).body(()).unwrap()
}

/// Opens a stream with a deadline.
async fn stream_within(channel: &Channel, limit: Duration) -> Result<Streaming<String>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await?;
    let mut request = Request::new(String::new());
    request.set_timeout(limit);
    let path = PathAndQuery::from_static("/test.Echo/Stream");
    let codec: ProstCodec<String, String> = ProstCodec::default();
    Ok(grpc.server_streaming(request, path, codec).await?.into_inner())
}

#[tokio::test]
async fn a_stream_that_stalls_ends_at_its_deadline() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 1).await;
    let mut stream = stream_within(&channel, Duration::from_secs(3)).await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap(), "a");
    let late = soon("the stream ends", stream.message()).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    let instances = channel.instances();
    assert_eq!((instances[0].in_flight, instances[0].failed), (0, 0), "it had begun to respond");
}

/// Sets a deadline on every call.
struct Hurry;

#[async_trait::async_trait]
impl Intercept for Hurry {
    async fn before(&self, call: CallHead<'_>) -> Result<(), Status> {
        call.headers.insert("grpc-timeout", http::HeaderValue::from_static("3S"));
        Ok(())
    }
}

#[tokio::test]
async fn an_interceptors_deadline_ends_a_stream() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().intercept(Arc::new(Hurry)).allow_plaintext(), 1).await;
    let mut streams =
        [support::stream(&channel).await.unwrap(), stream_within(&channel, Duration::from_secs(600)).await.unwrap()];
    // Both deadlines are the same, and the second message would be lost after the first one.
    for stream in &mut streams {
        assert_eq!(stream.message().await.unwrap().unwrap(), "a");
    }
    for stream in &mut streams {
        let late = soon("the stream ends", stream.message()).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    }
}

#[tokio::test]
async fn a_response_without_body_ends_at_its_deadline() {
    let (sender, mut resets) = tokio::sync::mpsc::channel(1);
    let stalling = Raw::start(move |_, mut respond| {
        let sender = sender.clone();
        async move {
            let mut body = respond.send_response(head(200, "application/grpc"), false).unwrap();
            let reset = poll_fn(|cx| body.poll_reset(cx)).await.unwrap();
            sender.send(reset).await.unwrap();
        }
    });
    let stalling = stalling.await;
    let channel = stalling.channel(Channel::builder()).await;
    let late = say_within(&channel, "", Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    let instances = channel.instances();
    assert_eq!((instances[0].in_flight, instances[0].failed), (0, 1));
    assert_eq!(soon("the server sees the reset", resets.recv()).await, Some(Reason::CANCEL));
    assert_eq!(stalling.calls(), 1);
}

#[tokio::test]
async fn a_wait_for_room_ends_at_the_deadline() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    // tonic passes one call on at a time and buffers one more; a third one waits in front of the buffer.
    let builder = Channel::builder().settings(|_, settings| Ok(settings.concurrency_limit(1).buffer_size(1)));
    let channel = world.channel(builder, 1).await;
    let _stuck = begun(say(&channel, "sleep 60000".to_owned()));
    eventually("the slot is taken", || async { if servers[0].calls() == 1 { Ok(()) } else { Err(()) } }).await;
    let late = (0..4).map(|_| say_within(&channel, "", Duration::from_millis(300)));
    for late in soon("all calls end", futures::future::join_all(late)).await {
        let late = late.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    }
    assert_eq!(channel.instances()[0].failed, 0, "none of them was sent");
}

/// Makes calls until one of two instances has failed five in a row and is ejected.
async fn one_is_ejected(channel: &Channel) {
    for _ in 0..9 {
        let failed = say(channel, String::new()).await.unwrap_err();
        assert_eq!(failed.code(), Code::Unavailable, "{failed}");
    }
    eventually("one is ejected", || async {
        let instances = channel.instances();
        let is_ejected = instances.iter().any(|one| one.state == InstanceState::Ejected);
        if is_ejected { Ok(()) } else { Err(instances) }
    })
    .await;
}

#[tokio::test]
async fn an_http_error_has_its_grpc_code() {
    let gateway = || {
        Raw::start(|_, mut respond| async move {
            let mut body = respond.send_response(head(503, "text/html"), false).unwrap();
            body.send_data("<html>no backend</html>".into(), true).unwrap();
        })
    };
    let gateways = [gateway().await, gateway().await];
    let both = channel(&[&gateways[0], &gateways[1]], Channel::builder()).await;
    let failed = say(&both, String::new()).await.unwrap_err();
    assert!(failed.code() == Code::Unavailable && failed.message().contains("503"), "{failed}");
    one_is_ejected(&both).await;
    // The call is repeated like one with any other `UNAVAILABLE`.
    let repeating = gateways[0].channel(Channel::builder().retry("", RetryPolicy::new())).await;
    let before = gateways[0].calls();
    say(&repeating, String::new()).await.unwrap_err();
    assert_eq!(gateways[0].calls() - before, 3);
}

#[tokio::test]
async fn http_errors_without_a_body_eject_an_instance() {
    let gateway =
        || Raw::start(|_, mut respond| async move { _ = respond.send_response(head(502, "application/grpc"), true) });
    let gateways = [gateway().await, gateway().await];
    one_is_ejected(&channel(&[&gateways[0], &gateways[1]], Channel::builder()).await).await;
}

#[tokio::test]
async fn a_refused_stream_is_sent_once_more() {
    let refusing = Raw::start(|_, mut respond| async move { respond.send_reset(Reason::REFUSED_STREAM) }).await;
    let channel = refusing.channel(Channel::builder().ejection(None)).await;
    let refused = say(&channel, String::new()).await.unwrap_err();
    assert_eq!((refused.code(), refusing.calls()), (Code::Unavailable, 2), "{refused}");
}

#[tokio::test]
async fn a_policy_repeats_a_refused_stream() {
    let refusing = Raw::start(|_, mut respond| async move { respond.send_reset(Reason::REFUSED_STREAM) }).await;
    let repeating = refusing.channel(Channel::builder().ejection(None).retry("", RetryPolicy::new())).await;
    say(&repeating, String::new()).await.unwrap_err();
    assert_eq!(refusing.calls(), 4, "three attempts, and one that does not count");
}

#[tokio::test]
async fn a_reset_stream_is_repeated_by_its_code() {
    let resetting = Raw::start(|_, mut respond| async move { respond.send_reset(Reason::INTERNAL_ERROR) }).await;
    let channel = resetting.channel(Channel::builder().ejection(None).retry("", RetryPolicy::new())).await;
    let reset = say(&channel, String::new()).await.unwrap_err();
    assert_eq!((reset.code(), resetting.calls()), (Code::Internal, 1), "{reset}");
    let internal = RetryPolicy::new().codes([Code::Internal]);
    let repeating = resetting.channel(Channel::builder().ejection(None).retry("", internal)).await;
    say(&repeating, String::new()).await.unwrap_err();
    assert_eq!(resetting.calls() - 1, 3);
}

#[tokio::test]
async fn a_connection_lost_during_a_response_is_unavailable() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 1).await;
    let mut stream = support::stream(&channel).await.unwrap();
    stream.message().await.unwrap();
    servers[0].proxy.cut();
    let lost = soon("the stream breaks", stream.message()).await.unwrap_err();
    assert!(lost.code() == Code::Unavailable && lost.message().contains("lost during the call"), "{lost}");
}

/// A stream that counts its writes, with or without support for vectored ones.
struct Counted {
    stream: TcpStream,
    writes: Arc<AtomicUsize>,
    vectored: Vectored,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vectored {
    Supported,
    Unsupported,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        assert_eq!(self.vectored, Vectored::Supported);
        self.writes.fetch_add(1, Ordering::SeqCst);
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored == Vectored::Supported
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Returns the number of writes of ten calls with a text of this many bytes each.
async fn writes_of_ten_calls(bytes: usize, vectored: Vectored) -> usize {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let writes = Arc::new(AtomicUsize::new(0));
    let (counted, address) = (Arc::clone(&writes), servers[0].address());
    let builder = Channel::builder().connector(move |_, _| {
        let writes = Arc::clone(&counted);
        async move { Ok(Counted { stream: TcpStream::connect(address).await?, writes, vectored }) }
    });
    let channel = world.channel(builder, 1).await;
    soon("a response", say(&channel, String::new())).await.unwrap();
    let before = writes.load(Ordering::SeqCst);
    for _ in 0..10 {
        soon("a response", say(&channel, "x".repeat(bytes))).await.unwrap();
    }
    writes.load(Ordering::SeqCst) - before
}

#[tokio::test]
async fn a_small_request_is_one_write() {
    assert_eq!(writes_of_ten_calls(5, Vectored::Unsupported).await, 10);
}

#[tokio::test]
async fn a_small_request_is_one_vectored_write() {
    assert_eq!(writes_of_ten_calls(5, Vectored::Supported).await, 10);
    // From 256 bytes on, h2 offers the frame's header and its payload as two buffers.
    assert_eq!(writes_of_ten_calls(2048, Vectored::Supported).await, 10);
}
