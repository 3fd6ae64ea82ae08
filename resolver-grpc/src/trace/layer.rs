//! The layer that runs the requests of a server in spans.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tower::{Layer, Service};

use crate::trace::{
    context::TraceContext,
    span::{CallSpan, TracedBody},
};

/// Layer for servers: `tonic::transport::Server::builder().layer(TraceLayer)` runs each request in a span and in the
/// context of its headers.
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

impl<S, B, R> Service<http::Request<B>> for Traced<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    R: http_body::Body,
{
    type Response = http::Response<TracedBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let parent = TraceContext::read(request.headers());
        let (span, context) = CallSpan::serve(&request, |span| {
            parent.map_or_else(|| TraceContext::root_of(span), |parent| parent.child())
        });
        let call = self.inner.call(request);
        Box::pin(async move {
            let response = span.scope().run(context.scope(call)).await;
            span.follow(response)
        })
    }
}
