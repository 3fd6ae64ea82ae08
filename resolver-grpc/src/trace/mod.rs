//! Spans according to OpenTelemetry's conventions for RPC, and the W3C trace context between client and server.
//!
//! A call of a channel that is [traced](crate::ChannelBuilder::traced) is a span `grpc call` (client), a request that
//! goes through [`TraceLayer`] a span `grpc request` (server). Each lasts to the end of the response's body, all
//! attempts included, and has the fields of version 1.45 of the conventions, a release candidate
//! (<https://github.com/open-telemetry/semantic-conventions/blob/v1.45.0/docs/rpc/grpc.md>). Up to 1.44, the code was
//! `rpc.response.status_code`, and up to 1.38 the number `rpc.grpc.status_code`
//! (<https://github.com/open-telemetry/semantic-conventions/pull/3921>,
//! <https://github.com/open-telemetry/semantic-conventions/pull/2920>); neither is set.
//!
//! | field | value |
//! |---|---|
//! | `otel.kind`, `otel.name` | `client` or `server`, `package.Service/Method` |
//! | `rpc.system.name`, `rpc.method` | `grpc`, `package.Service/Method` |
//! | `rpc.status_code` | name of the code that the call ended with, such as `NOT_FOUND`; `CANCELLED` if it was dropped |
//! | `otel.status_code`, `error.type` | `ERROR` and that name, if it is an error: for a client all but `OK`, for a server those that its caller did not cause |
//! | `otel.status_description` | message of such an error |
//! | `server.address`, `server.port` | client: the service, as `namespace/service`; server: the `:authority` of the request |
//! | `network.peer.address`, `network.peer.port` | client: the instance that was called last; server: the client |
//! | `trace_id`, `span_id` | ids of the context below |
//!
//! With `UNIMPLEMENTED` a server may not know the method: the span has the method `_OTHER`, and the requested name in
//! `rpc.method_original`.
//!
//! The context travels in `traceparent` and `tracestate` (<https://www.w3.org/TR/trace-context/>): a call is a child of
//! the [`TraceContext`] in its extensions, else of the current one, else the root of a trace of its own, which is
//! sampled if its span is recorded. Existing headers stay unchanged. With an OpenTelemetry SDK, whose ids are its own,
//! let an [`Intercept`](crate::Intercept) put its headers: it runs in the span of its call.
//!
//! To change it, begin with `span.rs`; `context.rs` has the headers, `layer.rs` the server's side.

mod context;
mod layer;
pub(crate) mod span;

pub use self::{
    context::TraceContext,
    layer::{TraceLayer, Traced},
    span::TracedBody,
};
