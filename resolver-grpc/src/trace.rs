//! Spans with the names of OpenTelemetry's conventions for RPC, and the W3C trace context between client and server.
//!
//! A call of a [`Channel`](crate::Channel) is a span `grpc call` (client), a request that goes through [`TraceLayer`] a span `grpc
//! request` (server), with the fields `otel.kind`, `otel.name`, `rpc.system`, `rpc.service`, `rpc.method`, `rpc.grpc.status_code`,
//! `server.address`, `server.port` (<https://opentelemetry.io/docs/specs/semconv/rpc/grpc/>), `trace_id` and `span_id`. The context
//! travels in `traceparent` and `tracestate` (<https://www.w3.org/TR/trace-context/>): a call is a child of the
//! [`TraceContext`] in its extensions, else of the current one, else the root of a trace of its own. Headers that are there already, put
//! by an interceptor that knows an OpenTelemetry SDK, stay as they are.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use enlist::Endpoint;
use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::Code;
use tower::{Layer, Service};
use tracing::{Instrument, Span, field::Empty};

const PARENT: HeaderName = HeaderName::from_static("traceparent");
const STATE: HeaderName = HeaderName::from_static("tracestate");

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// Where a call stands in a trace: W3C trace context, version 00.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    flags: u8,
    state: Option<HeaderValue>,
}

impl TraceContext {
    /// The root of a new trace, marked as sampled.
    pub fn root() -> Self {
        Self { trace: fastrand::u128(1..), span: fastrand::u64(1..), flags: 1, state: None }
    }

    /// A span below this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span: fastrand::u64(1..), ..self.clone() }
    }

    /// Reads the context that a request carries; `None` if there is none or it is malformed.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(PARENT)?.to_str().ok()?;
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex =
            |text: &str, digits| text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        // Later versions may have more parts; version 00 has none, and ff is none.
        let fits = is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        if !(fits && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2)) {
            return None;
        }
        let (trace, span) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
        let flags = u8::from_str_radix(flags, 16).ok()?;
        (trace != 0 && span != 0).then(|| Self { trace, span, flags, state: headers.get(STATE).cloned() })
    }

    /// Lets a request carry this context.
    pub fn write(&self, headers: &mut HeaderMap) {
        // Hexadecimal digits and hyphens.
        if let Ok(parent) = HeaderValue::try_from(self.to_string()) {
            headers.insert(PARENT, parent);
        }
        if let Some(state) = &self.state {
            headers.insert(STATE, state.clone());
        }
    }

    /// The context that the current task runs in.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Runs `future` in this context: calls made in it are children.
    ///
    /// # Cancel safety
    ///
    /// That of `future`.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }

    /// The id of the trace, in 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// The id of the span, in 16 hexadecimal digits.
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// `/package.Service/Method`, in two.
fn split(path: &str) -> (&str, &str) {
    path.trim_start_matches('/').rsplit_once('/').unwrap_or(("", path))
}

/// The span of a call, whose head is told of it.
pub(crate) fn client_span(head: &mut http::request::Parts) -> Span {
    let carried = TraceContext::read(&head.headers);
    let context = carried.clone().unwrap_or_else(|| {
        let parent = head.extensions.get().cloned().or_else(TraceContext::current);
        parent.map_or_else(TraceContext::root, |parent| parent.child())
    });
    if carried.is_none() {
        context.write(&mut head.headers);
    }
    let path = head.uri.path();
    let (service, method) = split(path);
    tracing::info_span!(
        "grpc call",
        otel.kind = "client",
        otel.name = path.trim_start_matches('/'),
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = Empty,
        server.address = Empty,
        server.port = Empty,
        trace_id = context.trace_id(),
        span_id = context.span_id(),
    )
}

/// Notes who is called.
pub(crate) fn called(endpoint: &Endpoint) {
    let span = Span::current();
    span.record("server.address", endpoint.host());
    if endpoint.port() > 0 {
        span.record("server.port", endpoint.port());
    }
}

/// Notes how a call ended, as far as the head of its answer says.
pub(crate) fn ended(code: Code) {
    Span::current().record("rpc.grpc.status_code", code as i32);
}

/// For servers: `tonic::transport::Server::builder().layer(TraceLayer)` runs each request in a span and in the context that it carries.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner }
    }
}

/// A service whose requests run in spans of their own.
#[derive(Clone, Debug)]
pub struct Traced<S> {
    inner: S,
}

impl<S, B> Service<http::Request<B>> for Traced<S>
where
    S: Service<http::Request<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let context = TraceContext::read(request.headers()).map_or_else(TraceContext::root, |parent| parent.child());
        let (service, method) = split(request.uri().path());
        let span = tracing::info_span!(
            "grpc request",
            otel.kind = "server",
            otel.name = request.uri().path().trim_start_matches('/'),
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            trace_id = context.trace_id(),
            span_id = context.span_id(),
        );
        let answer = self.inner.call(request);
        Box::pin(context.scope(answer).instrument(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parent: &str) -> Option<TraceContext> {
        TraceContext::read(&HeaderMap::from_iter([(PARENT, HeaderValue::from_str(parent).unwrap())]))
    }

    /// The examples of the recommendation, sections 3.2.2 and 3.2.4.
    #[test]
    fn the_parent_is_read_as_w3c_has_it() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = read(text).unwrap();
        assert_eq!(context.to_string(), text);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(read("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes-later").is_some());
        for malformed in [
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "",
        ] {
            assert_eq!(read(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn a_child_stays_in_its_trace_and_keeps_the_state() {
        let mut headers = HeaderMap::new();
        TraceContext::root().write(&mut headers);
        headers.insert(STATE, HeaderValue::from_static("vendor=1"));
        let parent = TraceContext::read(&headers).unwrap();
        let child = parent.child();
        assert_eq!((child.trace_id(), &child.state), (parent.trace_id(), &parent.state));
        assert_ne!(child.span_id(), parent.span_id());
    }
}
