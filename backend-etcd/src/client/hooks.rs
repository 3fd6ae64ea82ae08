//! The user's part in the connection: tonic's settings of each dial, and layers around the requests.
//!
//! Both outlive every connection: the failover of [`crate::client::channel`] is inside of the layers, and asks for settings at each dial.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use enlist::{Cause, backend::caught_now, with_causes};
use futures::{FutureExt, future::BoxFuture};
use tonic::{Status, body::Body, transport::Endpoint};
use tower::{BoxError, Layer, Service, ServiceExt, util::BoxCloneSyncService};

use crate::{
    client::channel::{Failover, Used},
    error::text_cause,
};

/// The requests of a client to etcd, as a layer gets them and hands them on. See [`EtcdBuilder::layer`](crate::EtcdBuilder::layer).
pub type Requests = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, BoxError>;

/// The user's change to the settings of each dial.
#[derive(Clone)]
pub(crate) struct DialSettings(Arc<dyn Fn(Endpoint) -> Result<Endpoint, BoxError> + Send + Sync>);

impl fmt::Debug for DialSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DialSettings")
    }
}

impl DialSettings {
    pub(crate) fn new(change: impl Fn(Endpoint) -> Result<Endpoint, BoxError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(change))
    }

    /// Returns the changed settings, or the reason for which this endpoint is not dialled: the user's error, a panic, or the loss of TLS.
    pub(crate) fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, Cause> {
        let url = endpoint.uri().clone();
        let refused = |reason: String| text_cause(format!("{url}: {reason}"));
        let changed = match caught_now(|| (self.0)(endpoint)) {
            Ok(changed) => changed.map_err(|error| refused(with_causes(&*error).to_string()))?,
            Err(message) => return Err(refused(format!("the settings panicked: {message}"))),
        };
        if url.scheme_str() == Some("https") && changed.uri().scheme_str() != Some("https") {
            return Err(refused("the settings were replaced by some without TLS".to_owned()));
        }
        Ok(changed)
    }
}

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

    /// Wraps a connection in all of them.
    pub(crate) fn around(&self, channel: Failover) -> Requests {
        let inner = Requests::new(channel);
        if self.0.is_empty() {
            return inner;
        }
        Requests::new(Outermost(self.0.iter().fold(inner, |inner, layer| layer(inner))))
    }
}

/// Outermost service of the session's requests: a layer may hand a request to another task, where the connection that it uses could not be
/// noted otherwise, and a panic in one, or in the body of its answer, fails the request and not the task of the session that it is for.
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

/// The body of an answer, `None` once it panicked: a panic in it ends it with an error.
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
            // A body that panicked may do so in its drop, too.
            let _ = caught_now(|| self.0 = None);
            Poll::Ready(Some(Err(Status::unknown("the body of a layer around the requests panicked"))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|body| caught_now(|| body.is_end_stream()).unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::transport::ClientTlsConfig;

    fn applied(
        url: &'static str,
        change: impl Fn(Endpoint) -> Result<Endpoint, BoxError> + Send + Sync + 'static,
    ) -> Result<String, String> {
        let endpoint = Endpoint::from_static(url);
        let endpoint =
            if url.starts_with("https") { endpoint.tls_config(ClientTlsConfig::new()).unwrap() } else { endpoint };
        let changed = DialSettings::new(change).apply(endpoint);
        changed.map(|endpoint| endpoint.uri().to_string()).map_err(|cause| cause.to_string())
    }

    #[test]
    fn settings_that_fail_say_so_of_their_endpoint() {
        assert_eq!(applied("http://h:1", Ok), Ok("http://h:1/".to_owned()));
        assert_eq!(applied("http://h:1", |_| Err("not this one".into())), Err("http://h:1/: not this one".to_owned()));
        let panicked = applied("http://h:1", |_| panic!("on purpose"));
        assert_eq!(panicked, Err("http://h:1/: the settings panicked: on purpose".to_owned()));
    }

    #[test]
    fn settings_do_not_take_tls_away() {
        let plain = |_| Ok(Endpoint::from_static("http://h:1"));
        assert!(applied("https://h:1", plain).unwrap_err().contains("without TLS"));
        assert_eq!(applied("https://h:1", Ok), Ok("https://h:1/".to_owned()));
    }
}
