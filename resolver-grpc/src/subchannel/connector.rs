//! A function of the user's that opens the streams to instances, in place of TCP and Unix sockets. The [connection](crate::subchannel::connection)
//! watches them as it does its own.

use std::{fmt, panic::AssertUnwindSafe, sync::Arc};

use enlist::{Endpoint, Instance};
use futures::{FutureExt, future::BoxFuture};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    channel::{ChannelBuilder, settings::panicked},
    retry::failure::BoxError,
    subchannel::connection::Stream,
};

/// A stream that is being opened.
pub(crate) type Opened = BoxFuture<'static, Result<Box<dyn Stream>, BoxError>>;

type Connect = dyn Fn(&Instance, &Endpoint) -> Opened + Send + Sync;

/// Opens streams.
#[derive(Clone)]
pub(crate) struct Connector(Arc<Connect>);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    /// Opens a stream to `endpoint` of `instance`. A panic of the user's is an error.
    pub(crate) fn open(&self, instance: &Instance, endpoint: &Endpoint) -> Opened {
        let (Self(connect), instance, endpoint) = (self.clone(), instance.clone(), endpoint.clone());
        let opened = AssertUnwindSafe(async move { connect(&instance, &endpoint).await }).catch_unwind();
        Box::pin(async move { opened.await.unwrap_or_else(|panic| Err(panicked("connector", &*panic))) })
    }
}

impl ChannelBuilder {
    /// Replaces the way in which a stream to an instance is opened: through a proxy or a tunnel, or to a test double. Called for each
    /// dial, of Unix sockets too. Default: TCP, or the socket.
    ///
    /// TLS, where the channel uses it, is spoken over the stream. The limit for a dial covers it, and the future is dropped at the limit.
    /// An error or a panic counts as a failed dial. Of the [settings](Self::settings), those of TCP have no effect.
    pub fn connector<F, S>(mut self, connect: impl Fn(&Instance, &Endpoint) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<S, BoxError>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.connections.connector = Some(Connector(Arc::new(move |instance, endpoint| {
            let stream = connect(instance, endpoint);
            Box::pin(async move { Ok(Box::new(stream.await?) as Box<dyn Stream>) })
        })));
        self
    }
}
