//! The user's layers around the requests. They outlive every connection, because the failover of
//! [`crate::client::connection::failover`] is inside of them.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use enlist::backend::caught_now;
use futures::{FutureExt, future::BoxFuture};
use tonic::{Status, body::Body};
use tower::{BoxError, Layer, Service, ServiceExt, util::BoxCloneSyncService};

use crate::client::connection::{dialled::Used, failover::Failover};

/// Requests of a client to etcd, as a layer receives and forwards them. See
/// [`EtcdBuilder::layer`](crate::EtcdBuilder::layer).
pub type Requests = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, BoxError>;

/// The user's layers, from the innermost to the outermost.
#[derive(Clone, Default)]
pub(crate) struct Layers(Vec<Arc<dyn Fn(Requests) -> Requests + Send + Sync>>);

impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Layers").field(&self.0.len()).finish()
    }
}

impl Layers {
    /// Adds a layer around the others.
    pub(crate) fn add<L, B>(&mut self, layer: L)
    where
        L: Layer<Requests> + Send + Sync + 'static,
        L::Service: Service<http::Request<Body>, Response = http::Response<B>> + Clone + Send + Sync + 'static,
        <L::Service as Service<http::Request<Body>>>::Error: Into<BoxError>,
        <L::Service as Service<http::Request<Body>>>::Future: Send + 'static,
        B: http_body::Body<Data = <Body as http_body::Body>::Data, Error: Into<BoxError>> + Send + 'static,
    {
        self.0.push(Arc::new(move |inner| {
            let answers = |answer: http::Response<B>| answer.map(Body::new);
            Requests::new(layer.layer(inner).map_response(answers).map_err(Into::into))
        }));
    }

    /// Wraps a connection in all layers.
    pub(crate) fn around(&self, channel: Failover) -> Requests {
        let inner = Requests::new(channel);
        if self.0.is_empty() {
            return inner;
        }
        Requests::new(Outermost(self.0.iter().fold(inner, |inner, layer| layer(inner))))
    }
}

/// Outermost service of the session's requests. A layer may move a request to another task, so the connection that the
/// request uses is recorded here. A panic in a layer, or in the body of its answer, fails the request, not the
/// session's task that sent it.
#[derive(Clone)]
struct Outermost(Requests);

impl Service<http::Request<Body>> for Outermost {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // As that of the connection: part of the call.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        request.extensions_mut().insert(Used::present());
        let mut inner = self.0.clone();
        let call = async move {
            let answer = inner.ready().await?.call(request).await?;
            Ok(answer.map(|body| Body::new(CaughtBody(Some(body)))))
        };
        let caught = AssertUnwindSafe(call).catch_unwind();
        caught.map(|answer| answer.unwrap_or_else(|_| Err("a layer around the requests panicked".into()))).boxed()
    }
}

/// Body of an answer; `None` after a panic. A panic in it ends it with an error.
struct CaughtBody(Option<Body>);

impl http_body::Body for CaughtBody {
    type Data = <Body as http_body::Body>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Status>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        caught_now(|| Pin::new(body).poll_frame(context)).unwrap_or_else(|_| {
            // A body that panicked may panic again in its drop.
            let _ = caught_now(|| self.0 = None);
            Poll::Ready(Some(Err(Status::unknown("the body of a layer around the requests panicked"))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|body| caught_now(|| body.is_end_stream()).unwrap_or(false))
    }
}
