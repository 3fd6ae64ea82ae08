//! The span of a call or a request, from its beginning to the end of its response, with the fields of OpenTelemetry's
//! conventions.

use std::{
    any::Any,
    borrow::Cow,
    future::Future,
    mem,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use enlist::{Endpoint, ServiceRef};
use http::{HeaderMap, StatusCode, request::Parts};
use http_body::{Body, Frame, SizeHint};
use percent_encoding::percent_decode;
use tonic::{Code, Status, transport::server::TcpConnectInfo};
use tracing::{Instrument, Span, field::Empty};

use crate::{
    retry::status::{code, http_code, only_status},
    trace::context::TraceContext,
};

/// Name for methods that a server does not know, by the conventions. Their real names are chosen by the client.
const UNKNOWN_METHOD: &str = "_OTHER";

/// The span of a call or a request. Dropping it before its end records the call as cancelled.
#[derive(Debug)]
pub(crate) struct CallSpan {
    span: Span,
    side: Side,
    is_ended: bool,
}

#[derive(Debug)]
enum Side {
    /// `peer` is the instance that was called last.
    Client {
        peer: Option<Endpoint>,
    },
    Server {
        method: String,
    },
}

impl CallSpan {
    /// The span of a call to the instances of `service`.
    pub(crate) fn begin(service: &ServiceRef, head: &Parts) -> Self {
        let method = method(head.uri.path());
        let span = tracing::info_span!(
            "grpc call",
            otel.kind = "client",
            otel.name = method,
            otel.status_code = Empty,
            otel.status_description = Empty,
            rpc.system.name = "grpc",
            rpc.method = method,
            rpc.status_code = Empty,
            error.type = Empty,
            // As a string, which a log escapes and an exporter does not.
            server.address = service.to_string(),
            network.peer.address = Empty,
            network.peer.port = Empty,
            trace_id = Empty,
            span_id = Empty,
        );
        Self { span, side: Side::Client { peer: None }, is_ended: false }
    }

    /// The span of a request to a server, in its `context`.
    pub(super) fn serve<B>(
        request: &http::Request<B>,
        context: impl FnOnce(&Span) -> TraceContext,
    ) -> (Self, TraceContext) {
        let method = method(request.uri().path());
        let span = tracing::info_span!(
            "grpc request",
            otel.kind = "server",
            otel.name = method,
            otel.status_code = Empty,
            otel.status_description = Empty,
            rpc.system.name = "grpc",
            rpc.method = Empty,
            rpc.method_original = Empty,
            rpc.status_code = Empty,
            error.type = Empty,
            server.address = request.uri().host(),
            server.port = request.uri().port_u16().map(i64::from),
            network.peer.address = Empty,
            network.peer.port = Empty,
            trace_id = Empty,
            span_id = Empty,
        );
        if let Some(peer) = peer(request.extensions()) {
            record_peer(&span, &peer.ip().to_string(), peer.port());
        }
        let context = context(&span);
        record_context(&span, &context);
        (Self { span, side: Side::Server { method: method.to_owned() }, is_ended: false }, context)
    }

    /// Adds the context to the headers of a call, unless they have one already.
    pub(crate) fn inject(&self, head: &mut Parts) {
        let carried = TraceContext::read(&head.headers);
        let context = carried.clone().unwrap_or_else(|| {
            let parent = head.extensions.get().cloned().or_else(TraceContext::current);
            parent.map_or_else(|| TraceContext::root_of(&self.span), |parent| parent.child())
        });
        if carried.is_none() {
            context.write(&mut head.headers);
        }
        record_context(&self.span, &context);
    }

    pub(crate) fn scope(&self) -> Scope {
        Scope(self.span.clone())
    }

    /// Notes the called endpoint.
    pub(crate) fn called(&mut self, endpoint: &Endpoint) {
        if let Side::Client { peer } = &mut self.side {
            *peer = Some(endpoint.clone());
        }
    }

    /// Ends the span with the body of the response, or now if there is none.
    pub(crate) fn follow<B: Body, E: 'static>(
        mut self,
        outcome: Result<http::Response<B>, E>,
    ) -> Result<http::Response<TracedBody<B>>, E> {
        match outcome {
            Err(error) => {
                self.end_with(&error);
                Err(error)
            }
            Ok(response) => {
                if let Some(code) = only_status(&response) {
                    self.end(code, &message(response.headers()));
                }
                let http = response.status();
                Ok(response.map(|body| TracedBody { body, http, span: Some(self).filter(|span| !span.is_ended) }))
            }
        }
    }

    fn end_with(&mut self, error: &dyn Any) {
        match error.downcast_ref::<Status>() {
            Some(status) => self.end(status.code(), status.message()),
            None => self.end(Code::Unknown, ""),
        }
    }

    fn end(&mut self, code: Code, description: &str) {
        if mem::replace(&mut self.is_ended, true) {
            return;
        }
        let (span, name) = (&self.span, name(code));
        span.record("rpc.status_code", name);
        let is_error = match &self.side {
            Side::Client { peer } => {
                if let Some(peer) = peer {
                    record_peer(span, peer.host(), peer.port());
                }
                code != Code::Ok
            }
            // The server may not know the method.
            Side::Server { method } if code == Code::Unimplemented => {
                span.record("rpc.method", UNKNOWN_METHOD).record("rpc.method_original", method.as_str());
                true
            }
            Side::Server { method } => {
                span.record("rpc.method", method.as_str());
                is_error_of_server(code)
            }
        };
        if is_error {
            span.record("otel.status_code", "ERROR").record("error.type", name);
            if !description.is_empty() {
                span.record("otel.status_description", description);
            }
        }
    }
}

impl Drop for CallSpan {
    fn drop(&mut self) {
        self.end(Code::Cancelled, "");
    }
}

/// A span to run in.
pub(crate) struct Scope(Span);

impl Scope {
    pub(crate) fn run<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        future.instrument(self.0)
    }
}

/// The body of a response. The span of its call lasts to its end.
#[derive(Debug)]
pub struct TracedBody<B> {
    body: B,
    /// Status of the call if no gRPC status follows.
    http: StatusCode,
    span: Option<CallSpan>,
}

impl<B> Body for TracedBody<B>
where
    B: Body + Unpin,
    B::Error: 'static,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = &mut *self;
        let frame = {
            let _entered = this.span.as_ref().map(|span| span.span.enter());
            ready!(Pin::new(&mut this.body).poll_frame(cx))
        };
        let is_data = frame.as_ref().is_some_and(|frame| frame.as_ref().is_ok_and(Frame::is_data));
        if let Some(mut span) = this.span.take_if(|_| !is_data) {
            match &frame {
                Some(Ok(last)) => {
                    let trailers = last.trailers_ref();
                    let code = trailers.and_then(code).unwrap_or_else(|| http_code(this.http));
                    span.end(code, &trailers.map(message).unwrap_or_default());
                }
                Some(Err(error)) => span.end_with(error),
                None => span.end(http_code(this.http), ""),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The message of a status in the head of a response, or in its trailers.
fn message(headers: &HeaderMap) -> String {
    let message =
        headers.get(Status::GRPC_MESSAGE).map(|message| percent_decode(message.as_bytes()).decode_utf8_lossy());
    message.map(Cow::into_owned).unwrap_or_default()
}

/// `package.Service/Method`.
fn method(path: &str) -> &str {
    path.trim_start_matches('/')
}

fn record_context(span: &Span, context: &TraceContext) {
    if !span.is_disabled() {
        span.record("trace_id", context.trace_id()).record("span_id", context.span_id());
    }
}

/// The port is a signed number, since OpenTelemetry has no unsigned ones.
fn record_peer(span: &Span, address: &str, port: u16) {
    span.record("network.peer.address", address);
    if port > 0 {
        span.record("network.peer.port", i64::from(port));
    }
}

/// The other end of a connection of tonic's server.
fn peer(extensions: &http::Extensions) -> Option<SocketAddr> {
    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
    if let Some(info) = extensions.get::<tonic::transport::server::TlsConnectInfo<TcpConnectInfo>>() {
        return info.get_ref().remote_addr();
    }
    extensions.get::<TcpConnectInfo>()?.remote_addr()
}

/// Returns `true` for codes that report a failure of the server, not of its caller.
fn is_error_of_server(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The name of a code (<https://github.com/grpc/grpc/blob/master/doc/statuscodes.md>).
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
