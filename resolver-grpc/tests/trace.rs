//! Where a call stands in a trace, from client to server, and what its span says.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::sync::{Arc, Mutex};

use enlist_grpc::{
    Channel,
    trace::{TraceContext, TraceLayer},
};
use support::{Server, World, say};
use tonic::Request;
use tower::{Layer, ServiceExt};
use tracing_subscriber::fmt::{MakeWriter, format::FmtSpan};

#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_call_is_a_child_of_where_it_is_made() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 1).await;
    let heard = |text: String| {
        let headers = http::HeaderMap::from_iter([("traceparent".parse().unwrap(), text.parse().unwrap())]);
        TraceContext::read(&headers).unwrap()
    };
    let ask = || say(&channel, "header traceparent".to_owned());
    let parent = TraceContext::root();
    let child = heard(parent.clone().scope(ask()).await.unwrap());
    assert_eq!(child.trace_id(), parent.trace_id());
    assert_ne!(child.span_id(), parent.span_id());
    // An explicit one counts more than the current one, and a header that is there more than both.
    let mut request = Request::new("header traceparent".to_owned());
    let explicit = TraceContext::root();
    request.extensions_mut().insert(explicit.clone());
    let child = heard(parent.clone().scope(say(&channel, request)).await.unwrap());
    assert_eq!(child.trace_id(), explicit.trace_id());
    let mut request = Request::new("header traceparent".to_owned());
    request.metadata_mut().insert("traceparent", explicit.to_string().parse().unwrap());
    assert_eq!(heard(parent.scope(say(&channel, request)).await.unwrap()), explicit);
    // Without any, a trace begins.
    assert_ne!(heard(ask().await.unwrap()).trace_id(), heard(ask().await.unwrap()).trace_id());
}

#[tokio::test]
async fn a_server_goes_on_in_the_context_of_its_request() {
    let inner = tower::service_fn(|_: http::Request<()>| async {
        Ok::<_, std::convert::Infallible>(TraceContext::current().unwrap())
    });
    let parent = TraceContext::root();
    let mut request = http::Request::new(());
    parent.write(request.headers_mut());
    let current = TraceLayer::default().layer(inner).oneshot(request).await.unwrap();
    assert_eq!(current.trace_id(), parent.trace_id());
    assert_ne!(current.span_id(), parent.span_id());
}

#[tokio::test]
async fn spans_have_the_names_of_the_conventions() {
    let lines = Lines::default();
    let subscriber =
        tracing_subscriber::fmt().with_writer(lines.clone()).with_span_events(FmtSpan::CLOSE).with_ansi(false);
    // For all threads: a thread's own subscriber misses callsites that other tests used before.
    tracing::subscriber::set_global_default(subscriber.finish()).unwrap();
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 1).await;
    say(&channel, String::new()).await.unwrap();
    say(&channel, "fail 5".to_owned()).await.unwrap_err();
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let port = format!("server.port={}", servers[0].address().port());
    let mut spans = text.lines().filter(|line| line.contains("grpc call") && line.contains("close"));
    let span = spans.find(|line| line.contains(&port)).unwrap_or_else(|| panic!("{text}"));
    for field in [
        "otel.kind=\"client\"",
        "otel.name=\"test.Echo/Say\"",
        "rpc.system=\"grpc\"",
        "rpc.service=\"test.Echo\"",
        "rpc.method=\"Say\"",
        "rpc.grpc.status_code=0",
        "server.address=\"127.0.0.1\"",
    ] {
        assert!(span.contains(field), "{field}: {span}");
    }
    assert!(text.contains("rpc.grpc.status_code=5"), "{text}");
}
