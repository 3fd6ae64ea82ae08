//! Incoming connections of a server, limited in number. A connection above the limit is closed at once, so that its
//! client can try another agent. One on which nothing arrives is closed after [`OPENING`], and frees its slot.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Sleep,
};
use tonic::transport::server::{Connected, TcpConnectInfo};

#[cfg(feature = "tls")]
use crate::{
    error::AgentError,
    security::TlsIdentity,
    tls::{Protocol, TlsServer},
};

/// Delay after a failure to accept, such as the lack of a file descriptor.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Maximum time until a connection has begun: for the handshake of TLS and its first [`PREFACE_BYTES`]. The server for
/// HTTP/2 waits for the first bytes without a deadline, and sends pings only after them.
pub(crate) const OPENING: Duration = Duration::from_secs(10);

/// Bytes with which each connection of HTTP/2 begins (RFC 9113, section 3.4), within TLS. A request of HTTP/1.1 with
/// its header `host` is longer.
const PREFACE_BYTES: usize = 24;

/// Owner of connections: once it is dropped, they can neither read nor write. The tasks of the server that use them are
/// detached, and end with them.
#[derive(Debug, Default)]
pub(crate) struct ConnectionOwner(watch::Sender<()>);

/// Protocol below HTTP.
#[derive(Clone, Debug)]
pub(crate) enum Transport {
    /// Plain text.
    Tcp,
    /// TLS.
    #[cfg(feature = "tls")]
    Tls(TlsServer),
}

impl Transport {
    /// Returns the transport with this identity, plain text without one.
    ///
    /// # Errors
    ///
    /// [`AgentError::Tls`] if the certificates or the key cannot be used.
    #[cfg(feature = "tls")]
    pub(crate) fn with(identity: Option<&TlsIdentity>, protocol: Protocol) -> Result<Self, AgentError> {
        let server = identity.map(|identity| TlsServer::new(identity, protocol)).transpose()?;
        Ok(server.map_or(Self::Tcp, Self::Tls))
    }

    fn over(&self, stream: TcpStream) -> Box<dyn ByteStream> {
        match self {
            Self::Tcp => Box::new(stream),
            #[cfg(feature = "tls")]
            Self::Tls(server) => Box::new(server.accept(stream)),
        }
    }
}

/// Bytes in both directions.
trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A connection, which counts until it is dropped.
pub(crate) struct Connection {
    stream: Box<dyn ByteStream>,
    peer: TcpConnectInfo,
    /// `None` once the connection has begun.
    opening: Option<Opening>,
    owner: OwnerGone,
    _slot: OwnedSemaphorePermit,
}

/// End of the [`ConnectionOwner`].
struct OwnerGone {
    signal: watch::Receiver<()>,
    wait: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl OwnerGone {
    fn of(owner: &watch::Receiver<()>) -> Self {
        let mut waiting = owner.clone();
        // Nothing is sent: this is the end.
        let wait = Box::pin(async move { _ = waiting.changed().await });
        Self { signal: owner.clone(), wait }
    }

    /// Returns an error once the owner is gone.
    fn check(&self) -> io::Result<()> {
        self.signal.has_changed().map(|_| ()).map_err(|_| io::ErrorKind::ConnectionAborted.into())
    }

    /// Waits for the end. Not called after [`check`](Self::check) has failed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.wait.as_mut().poll(cx).map(|()| io::ErrorKind::ConnectionAborted.into())
    }
}

/// State of a connection that has not begun yet.
#[derive(Debug)]
struct Opening {
    /// Number of bytes that are to arrive.
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Opening {
    fn new() -> Self {
        Self { missing: PREFACE_BYTES, deadline: Box::pin(tokio::time::sleep(OPENING)) }
    }
}

/// Accepts connections of an owner.
struct Acceptor {
    listener: TcpListener,
    transport: Transport,
    slots: Arc<Semaphore>,
    owner: watch::Receiver<()>,
}

/// Returns the connections that a listener accepts, at most `max` at a time.
pub(crate) fn incoming(
    listener: TcpListener,
    transport: Transport,
    max: usize,
    owner: &ConnectionOwner,
) -> impl Stream<Item = io::Result<Connection>> + Send + use<> {
    let slots = Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
    let acceptor = Acceptor { listener, transport, slots, owner: owner.0.subscribe() };
    stream::unfold(acceptor, |acceptor| async move {
        let connection = next(&acceptor).await;
        Some((Ok(connection), acceptor))
    })
}

async fn next(Acceptor { listener, transport, slots, owner }: &Acceptor) -> Connection {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(cause) => {
                tracing::warn!(%cause, "connection not accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(slots).try_acquire_owned() else {
            tracing::warn!("connection closed: there are too many");
            continue;
        };
        // Responses are small, and a client waits for each.
        let _ = stream.set_nodelay(true);
        let (peer, stream) = (stream.connect_info(), transport.over(stream));
        return Connection { stream, peer, opening: Some(Opening::new()), owner: OwnerGone::of(owner), _slot: slot };
    }
}

impl Connection {
    /// Returns the result of an operation; an error if it waits although the owner is gone or the connection has not
    /// begun in time. A write waits as well during the handshake of TLS.
    fn or_late<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            return result;
        }
        if let Poll::Ready(gone) = self.owner.poll(cx) {
            return Poll::Ready(Err(gone));
        }
        match &mut self.opening {
            Some(opening) => opening.deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
            None => Poll::Pending,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.owner.check()?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready()
            && let Some(opening) = &mut self.opening
        {
            opening.missing = opening.missing.saturating_sub(buffer.filled().len() - before);
            if opening.missing == 0 {
                self.opening = None;
            }
        }
        self.or_late(cx, read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.owner.check()?;
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.or_late(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.owner.check()?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.or_late(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_connection_above_the_limit_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let owner = ConnectionOwner::default();
        let mut incoming = Box::pin(incoming(listener, Transport::Tcp, 1, &owner));
        let mut first = TcpStream::connect(address).await.unwrap();
        let accepted = incoming.next().await.unwrap().unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let mut byte = [0];
        // The server accepts while it waits for the next one.
        let end = tokio::select! {
            end = second.read(&mut byte) => end.unwrap_or(0),
            _ = incoming.next() => panic!("above the limit"),
        };
        assert_eq!(end, 0);
        drop(accepted);
        assert_eq!(first.read(&mut [0]).await.unwrap_or(0), 0);
        let third = TcpStream::connect(address).await.unwrap();
        incoming.next().await.unwrap().unwrap();
        drop(third);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_loses_its_slot() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let owner = ConnectionOwner::default();
        let mut incoming = Box::pin(incoming(listener, Transport::Tcp, 1, &owner));
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut accepted = incoming.next().await.unwrap().unwrap();
        let read = tokio::time::timeout(Duration::from_mins(1), accepted.read(&mut [0])).await;
        let end = read.expect("a silent connection is ended").unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::TimedOut);
        drop(accepted);
        let _second = TcpStream::connect(address).await.unwrap();
        incoming.next().await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_begun_may_be_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let owner = ConnectionOwner::default();
        let mut incoming = Box::pin(incoming(listener, Transport::Tcp, 1, &owner));
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut accepted = incoming.next().await.unwrap().unwrap();
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        accepted.read_exact(&mut [0; 24]).await.unwrap();
        let read = tokio::time::timeout(Duration::from_mins(1), accepted.read(&mut [0])).await;
        read.expect_err("it is open");
    }
}
