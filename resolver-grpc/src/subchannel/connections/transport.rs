//! The stream below a connection: TCP, a unix socket, or a stream of the user's connector.

use std::{fmt, future::poll_fn, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use enlist::{Endpoint, Instance};
use futures::{FutureExt, future::BoxFuture};
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};
use tonic::transport::Endpoint as Settings;
use tower::Service;

use crate::{
    name_resolution::sources::Names,
    retry::failure::{BoxError, panicked},
};

/// Time for which data may stay unacknowledged by the other kernel before the connection counts as broken. It covers
/// calls without a deadline over a network that drops packets. The kernel's own limit is about 15 min.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(20);

/// Byte stream of a connection.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A stream that is being opened.
pub(crate) type Opened = BoxFuture<'static, Result<Box<dyn Stream>, BoxError>>;

type ConnectFn = dyn Fn(&Instance, &Endpoint) -> Opened + Send + Sync;

/// Opens streams.
#[derive(Clone)]
pub(crate) struct Connector(Arc<ConnectFn>);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector that opens streams with `connect`.
    pub(crate) fn new<F, S>(connect: impl Fn(&Instance, &Endpoint) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<S, BoxError>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self(Arc::new(move |instance, endpoint| {
            let stream = connect(instance, endpoint);
            Box::pin(async move { Ok(Box::new(stream.await?) as Box<dyn Stream>) })
        }))
    }

    /// Opens a stream to `endpoint` of `instance`. A panic of the user's code is an error.
    pub(crate) fn open(&self, instance: &Instance, endpoint: &Endpoint) -> Opened {
        let (Self(connect), instance, endpoint) = (self.clone(), instance.clone(), endpoint.clone());
        let opened = AssertUnwindSafe(async move { connect(&instance, &endpoint).await }).catch_unwind();
        Box::pin(async move { opened.await.unwrap_or_else(|panic| Err(panicked("connector", &*panic))) })
    }
}

/// A connector with the TCP settings of `settings`.
pub(crate) fn tcp(settings: &Settings) -> HttpConnector<Names> {
    // A lookup that hangs outlives its dial, and hyper's own resolver blocks a thread for each.
    let mut tcp = HttpConnector::new_with_resolver(Names::new());
    tcp.enforce_http(false);
    tcp.set_nodelay(settings.get_tcp_nodelay());
    tcp.set_keepalive(settings.get_tcp_keepalive());
    tcp.set_keepalive_interval(settings.get_tcp_keepalive_interval());
    tcp.set_keepalive_retries(settings.get_tcp_keepalive_retries());
    tcp.set_connect_timeout(settings.get_connect_timeout());
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT));
    tcp
}

/// A stream to `endpoint`.
pub(crate) async fn connect(endpoint: &Endpoint, mut tcp: HttpConnector<Names>) -> Result<Box<dyn Stream>, BoxError> {
    if endpoint.is_unix() {
        return Ok(Box::new(UnixStream::connect(endpoint.host()).await?));
    }
    poll_fn(|cx| tcp.poll_ready(cx)).await?;
    let url = Uri::try_from(format!("http://{}", endpoint.authority()))?;
    Ok(Box::new(tcp.call(url).await?.into_inner()))
}
