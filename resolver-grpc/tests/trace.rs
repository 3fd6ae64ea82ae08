//! Trace context of a call, from client to server, and the export of its spans by OpenTelemetry's SDK.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    cell::Cell,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    task,
};

use async_trait::async_trait;
use enlist::{Endpoint, Instance, Registry, TaskOwner};
use enlist_grpc::{
    CallHead, Callee, Channel, ConnectionManager, Intercept, Invocation, ManagerOptions,
    trace::{TraceContext, TraceLayer},
};
use enlist_testkit::{eventually, soon};
use opentelemetry::{
    Context, KeyValue, Value,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{SpanId, SpanKind, TracerProvider},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{InMemorySpanExporter, SdkTracerProvider, SpanData},
};
use support::{Server, World, echo, id, say, stream};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Status};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{filter::dynamic_filter_fn, layer::SubscriberExt};

thread_local! {
    /// Set while this test filters out the spans of the crate.
    static FILTERED: Cell<bool> = const { Cell::new(false) };
}

/// Attributes of earlier versions of the conventions.
const FORMER: [&str; 4] = ["rpc.system", "rpc.service", "rpc.grpc.status_code", "rpc.response.status_code"];

/// Returns the exporter of all tests' spans: a thread's subscriber misses callsites that other tests used before.
fn exported() -> InMemorySpanExporter {
    static EXPORTER: OnceLock<InMemorySpanExporter> = OnceLock::new();
    let start = || {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let passes = |metadata: &tracing::Metadata<'_>| match metadata.target() {
            "caller" => true,
            target => target.starts_with("enlist_grpc::trace") && !FILTERED.get(),
        };
        // A filter for all layers: with a per-layer filter the span would exist without a layer.
        let filter = dynamic_filter_fn(move |metadata, _| passes(metadata));
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("tests"));
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(filter).with(layer)).unwrap();
        exporter
    };
    EXPORTER.get_or_init(start).clone()
}

fn attribute(span: &SpanData, key: &str) -> Option<Value> {
    let mut values = span.attributes.iter().filter(|attribute| attribute.key.as_str() == key);
    let value = values.next().map(|KeyValue { value, .. }| value.clone());
    assert!(values.next().is_none(), "{key} is there twice: {span:?}");
    value
}

fn text(span: &SpanData, key: &str) -> Option<String> {
    attribute(span, key).map(|value| value.as_str().into_owned())
}

/// Returns the spans of a kind whose attribute `key` is `value`, in the order of their ends.
fn spans(kind: &SpanKind, key: &str, value: &Value) -> Vec<SpanData> {
    let spans = exported().get_finished_spans().unwrap();
    spans.into_iter().filter(|span| span.span_kind == *kind && attribute(span, key).as_ref() == Some(value)).collect()
}

/// Returns the client's spans for calls to a server.
fn calls_to(address: SocketAddr) -> Vec<SpanData> {
    spans(&SpanKind::Client, "network.peer.port", &Value::I64(address.port().into()))
}

/// Returns the end of a span: the status, the description of the error, and the kind of error.
fn end(span: &SpanData) -> (Option<String>, Option<String>, Option<String>) {
    let description = match &span.status {
        opentelemetry::trace::Status::Error { description } => Some(description.to_string()),
        opentelemetry::trace::Status::Unset => None,
        opentelemetry::trace::Status::Ok => panic!("only applications set it: {span:?}"),
    };
    (text(span, "rpc.status_code"), description, text(span, "error.type"))
}

fn ended(code: &str) -> (Option<String>, Option<String>, Option<String>) {
    (Some(code.to_owned()), None, None)
}

fn failed(code: &str, description: &str) -> (Option<String>, Option<String>, Option<String>) {
    (Some(code.to_owned()), Some(description.to_owned()), Some(code.to_owned()))
}

/// Makes the context in a request's headers the SDK's current one while the request is handled.
#[derive(Clone)]
struct Attach<S>(S);

struct ReceivedHeaders<'a>(&'a http::HeaderMap);

impl Extractor for ReceivedHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

impl<S: Service<http::Request<B>>, B> Service<http::Request<B>> for Attach<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> task::Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> S::Future {
        let context = TraceContextPropagator::new().extract(&ReceivedHeaders(request.headers()));
        let _attached = context.attach();
        self.0.call(request)
    }
}

/// A server with the layer, without a proxy.
struct Layered {
    address: SocketAddr,
    _tasks: TaskOwner,
}

impl Layered {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, tasks) = (listener.local_addr().unwrap(), TaskOwner::new());
        let stop = tasks.stop_signal();
        let server = tonic::transport::Server::builder()
            .layer(ServiceBuilder::new().layer_fn(Attach).layer(TraceLayer::default()))
            .add_service(echo("layered"))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned());
        tasks.spawn("server", async move { server.await.unwrap() }).unwrap();
        Self { address, _tasks: tasks }
    }

    async fn channel(&self, builder: enlist_grpc::ChannelBuilder) -> Channel {
        let world = World::new();
        let instance = Instance::new(id("layered"), [Endpoint::try_from(self.address).unwrap()]).unwrap();
        world.servers.publish(&world.service, instance).await.unwrap();
        world.channel(builder, 1).await
    }

    /// Waits for this many spans of the server.
    async fn requests(&self, count: usize) -> Vec<SpanData> {
        let port = Value::I64(self.address.port().into());
        let spans = || async {
            let spans = spans(&SpanKind::Server, "server.port", &port);
            if spans.len() == count { Ok(spans) } else { Err(exported().get_finished_spans()) }
        };
        eventually("the server's spans have ended", spans).await
    }
}

#[tokio::test]
async fn a_call_is_a_child_of_its_context() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().traced(), 1).await;
    let heard = |text: String| {
        let headers = http::HeaderMap::from_iter([("traceparent".parse().unwrap(), text.parse().unwrap())]);
        TraceContext::read(&headers).unwrap()
    };
    let ask = || say(&channel, "header traceparent".to_owned());
    let parent = TraceContext::root();
    let child = heard(parent.clone().scope(ask()).await.unwrap());
    assert_eq!(child.trace_id(), parent.trace_id());
    assert_ne!(child.span_id(), parent.span_id());
    // An explicit context takes precedence over the current one, and an existing header over both.
    let mut request = Request::new("header traceparent".to_owned());
    let explicit = TraceContext::root();
    request.extensions_mut().insert(explicit.clone());
    let child = heard(parent.clone().scope(say(&channel, request)).await.unwrap());
    assert_eq!(child.trace_id(), explicit.trace_id());
    let mut request = Request::new("header traceparent".to_owned());
    request.metadata_mut().insert("traceparent", explicit.to_string().parse().unwrap());
    assert_eq!(heard(parent.scope(say(&channel, request)).await.unwrap()), explicit);
    // Without any of them, a new trace starts.
    assert_ne!(heard(ask().await.unwrap()).trace_id(), heard(ask().await.unwrap()).trace_id());
}

#[tokio::test]
async fn a_server_continues_the_context_of_its_request() {
    let inner = tower::service_fn(|_: http::Request<()>| async {
        let mut response = http::Response::new(tonic::body::Body::empty());
        response.extensions_mut().insert(TraceContext::current().unwrap());
        Ok::<_, std::convert::Infallible>(response)
    });
    let parent = TraceContext::root();
    let mut request = http::Request::new(());
    parent.write(request.headers_mut());
    let response = TraceLayer::default().layer(inner).oneshot(request).await.unwrap();
    let current: &TraceContext = response.extensions().get().unwrap();
    assert_eq!(current.trace_id(), parent.trace_id());
    assert_ne!(current.span_id(), parent.span_id());
}

#[tokio::test]
async fn calls_are_exported_by_the_conventions() {
    exported();
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().traced(), 1).await;
    say(&channel, String::new()).await.unwrap();
    say(&channel, "fail 5".to_owned()).await.unwrap_err();
    let calls = calls_to(servers[0].address());
    assert_eq!(calls.len(), 2, "{:?}", exported().get_finished_spans());
    for call in &calls {
        assert_eq!(call.name, "test.Echo/Say");
        for (key, value) in [
            ("rpc.system.name", "grpc"),
            ("rpc.method", "test.Echo/Say"),
            // The requested service, and the address of the server that answered.
            ("server.address", "default/echo"),
            ("network.peer.address", "127.0.0.1"),
        ] {
            assert_eq!(text(call, key).as_deref(), Some(value), "{key}: {call:?}");
        }
        assert_eq!(attribute(call, "server.port"), None, "{call:?}");
        for key in FORMER {
            assert_eq!(attribute(call, key), None, "{call:?}");
        }
    }
    assert_eq!(end(&calls[0]), ended("OK"));
    assert_eq!(end(&calls[1]), failed("NOT_FOUND", "failed on request"));
}

#[tokio::test]
async fn a_span_ends_with_the_calls_status() {
    exported();
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().traced(), 1).await;
    let mut endless = stream(&channel).await.unwrap();
    endless.message().await.unwrap();
    assert_eq!(calls_to(servers[0].address()).len(), 0, "it goes on");
    servers[0].proxy.cut();
    let lost = soon("the stream breaks", endless.message()).await.unwrap_err();
    let calls = calls_to(servers[0].address());
    assert_eq!(calls.iter().map(end).collect::<Vec<_>>(), [failed("UNAVAILABLE", lost.message())]);
}

#[tokio::test]
async fn an_abandoned_call_is_cancelled() {
    exported();
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().traced(), 1).await;
    let under_way = || async { if servers[0].calls() == 1 { Ok(()) } else { Err(()) } };
    tokio::select! {
        response = say(&channel, "sleep 60000".to_owned()) => panic!("{response:?}"),
        () = eventually("the call is under way", under_way) => {}
    }
    let mut dropped = stream(&channel).await.unwrap();
    dropped.message().await.unwrap();
    drop(dropped);
    let calls = calls_to(servers[0].address());
    assert_eq!(calls.iter().map(end).collect::<Vec<_>>(), [failed("CANCELLED", ""), failed("CANCELLED", "")]);
}

#[tokio::test]
async fn requests_are_exported_by_the_conventions() {
    exported();
    let server = Layered::start().await;
    let channel = server.channel(Channel::builder().traced()).await;
    say(&channel, String::new()).await.unwrap();
    say(&channel, "fail 5".to_owned()).await.unwrap_err();
    say(&channel, "fail 13".to_owned()).await.unwrap_err();
    say(&channel, "fail 12".to_owned()).await.unwrap_err();
    let mut dropped = stream(&channel).await.unwrap();
    dropped.message().await.unwrap();
    drop(dropped);
    let requests = server.requests(5).await;
    for request in &requests {
        for (key, value) in
            [("rpc.system.name", "grpc"), ("server.address", "127.0.0.1"), ("network.peer.address", "127.0.0.1")]
        {
            assert_eq!(text(request, key).as_deref(), Some(value), "{key}: {request:?}");
        }
        assert!(matches!(attribute(request, "network.peer.port"), Some(Value::I64(1..))), "{request:?}");
        for key in FORMER {
            assert_eq!(attribute(request, key), None, "{request:?}");
        }
    }
    let ends = requests.iter().map(end).collect::<Vec<_>>();
    // `NOT_FOUND` is no failure of the server.
    let unimplemented = failed("UNIMPLEMENTED", "failed on request");
    assert_eq!(
        ends,
        [ended("OK"), ended("NOT_FOUND"), failed("INTERNAL", "failed on request"), unimplemented, ended("CANCELLED")]
    );
    let method = |name: &str| Some(name.to_owned());
    let methods: Vec<_> = requests.iter().map(|request| text(request, "rpc.method")).collect();
    let (say, stream) = (method("test.Echo/Say"), method("test.Echo/Stream"));
    // Calls of unknown methods must not create an unbounded number of names.
    assert_eq!(methods, [say.clone(), say.clone(), say.clone(), method("_OTHER"), stream]);
    assert_eq!(text(&requests[3], "rpc.method_original"), say);
}

#[tokio::test]
async fn filtered_spans_are_not_sampled() {
    exported();
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().traced(), 1).await;
    let ask = || say(&channel, "header traceparent".to_owned());
    let recorded = ask().await.unwrap();
    assert!(recorded.ends_with("-01"), "{recorded}");
    FILTERED.set(true);
    let caller = tracing::info_span!(
        target: "caller",
        "filtered caller",
        rpc.grpc.status_code = tracing::field::Empty,
        rpc.status_code = tracing::field::Empty,
        server.address = tracing::field::Empty,
    );
    let filtered = ask().instrument(caller).await.unwrap();
    assert!(filtered.ends_with("-00"), "{filtered}");
    // A trace that another service samples stays sampled.
    let child = TraceContext::root().scope(ask()).await.unwrap();
    assert!(child.ends_with("-01"), "{child}");
    let spans = exported().get_finished_spans().unwrap();
    let caller = spans.iter().find(|span| span.name == "filtered caller").unwrap();
    for key in ["rpc.grpc.status_code", "rpc.status_code", "server.address"] {
        assert_eq!(attribute(caller, key), None, "{caller:?}");
    }
}

/// Adds the SDK's context of the call's span to its headers.
struct Propagate;

struct Headers<'a>(&'a mut http::HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(http::HeaderName::try_from(key).unwrap(), value.parse().unwrap());
    }
}

#[async_trait]
impl Intercept for Propagate {
    async fn before(&self, call: CallHead<'_>) -> Result<(), Status> {
        let context: Context = tracing::Span::current().context();
        TraceContextPropagator::new().inject_context(&context, &mut Headers(call.headers));
        Ok(())
    }
}

/// The page shows the code that is tested here.
#[test]
fn the_page_shows_this_interceptor() {
    let page = include_str!("../../docs/grpc.md");
    let shown = page.split("```rust,ignore\n").last().unwrap().split("```").next().unwrap();
    assert!(include_str!("trace.rs").contains(shown));
}

#[tokio::test]
async fn a_request_is_a_child_by_sdk_ids() {
    exported();
    let server = Layered::start().await;
    let channel = server.channel(Channel::builder().traced().intercept(Arc::new(Propagate)).allow_plaintext()).await;
    say(&channel, String::new()).await.unwrap();
    let requests = server.requests(1).await;
    let calls = calls_to(server.address);
    assert_eq!(requests[0].parent_span_id, calls[0].span_context.span_id());
    assert_eq!(requests[0].span_context.trace_id(), calls[0].span_context.trace_id());
    assert_eq!(calls[0].parent_span_id, SpanId::INVALID);
}

#[tokio::test]
async fn only_managers_trace_calls_by_default() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let carried = async |channel: &Channel| say(channel, "header traceparent".to_owned()).await.unwrap();
    let plain = world.channel(Channel::builder(), 1).await;
    assert_eq!(carried(&plain).await, "");
    let resolver = Arc::new(world.client.clone());
    let manager =
        ConnectionManager::from_resolver(resolver.clone(), Invocation::default(), ManagerOptions::new()).unwrap();
    let callee = Callee::parse("echo").unwrap();
    let context = carried(&manager.channel(&callee).unwrap()).await;
    assert!(context.starts_with("00-"), "{context}");
    let options = ManagerOptions::new().channel(|_| Channel::builder());
    let manager = ConnectionManager::from_resolver(resolver, Invocation::default(), options).unwrap();
    assert_eq!(carried(&manager.channel(&callee).unwrap()).await, "");
}
