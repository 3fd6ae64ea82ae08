//! Incoming connections of a server, limited in number. A connection above the limit is closed at once, so that its
//! client can try another agent, unless one that has served nothing for [`UNUSED`](peer::UNUSED) gives way. One on
//! which nothing arrives is closed after [`OPENING`], and one whose client takes nothing, or is gone without a word,
//! after [`STALL`]. Both free their slots, and what is kept for the client.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use enlist::TaskOwner;
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, watch},
    time::Sleep,
};

use self::eviction::Evictable;
pub(crate) use self::peer::{InUse, Peer};
use crate::limits::Permits;
#[cfg(feature = "tls")]
use crate::{
    error::AgentError,
    security::TlsIdentity,
    tls::{Protocol, TlsServer},
};

mod eviction;
mod peer;

/// Delay after a failure to accept, such as the lack of a file descriptor.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Maximum time until a connection has begun: for the handshake of TLS and its first [`PREFACE_BYTES`]. The server for
/// HTTP/2 waits for the first bytes without a deadline, and sends pings only after them.
pub(crate) const OPENING: Duration = Duration::from_secs(10);

/// Maximum time for which a client takes none of the bytes that wait for it. Until then, the response that it does not
/// read stays in memory. On Linux it is also the maximum time until the host of the client acknowledges bytes: small
/// events fit into the buffers of the system, which otherwise repeats them for a quarter of an hour.
pub(crate) const STALL: Duration = Duration::from_secs(60);

/// Maximum time until a connection that gives way has done so.
const EVICTION: Duration = Duration::from_secs(1);

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
pub(crate) struct LimitedConnection {
    stream: Box<dyn ByteStream>,
    peer: Peer,
    /// `None` once the connection has begun.
    opening: Option<Opening>,
    writing: Stall,
    flushing: Stall,
    owner: OwnerGone,
    _slot: OwnedSemaphorePermit,
}

/// Deadline of the next progress; `None` while nothing waits.
#[derive(Debug, Default)]
struct Stall(Option<Pin<Box<Sleep>>>);

impl Stall {
    /// Returns the result of an operation; an error if it has waited for [`STALL`] without progress.
    fn or_late<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.0 = None;
            return result;
        }
        let deadline = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL)));
        deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// End of the [`ConnectionOwner`], or of the connection alone.
struct OwnerGone {
    signal: watch::Receiver<()>,
    closing: watch::Receiver<bool>,
    wait: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl OwnerGone {
    fn of(owner: &watch::Receiver<()>, peer: &Peer) -> Self {
        let (mut waiting, closing) = (owner.clone(), peer.state.closing.subscribe());
        let mut closed = closing.clone();
        let wait = Box::pin(async move {
            tokio::select! {
                // Nothing is sent: this is the end.
                _ = waiting.changed() => {}
                _ = closed.wait_for(|closing| *closing) => {}
            }
        });
        Self { signal: owner.clone(), closing, wait }
    }

    /// Returns an error once the owner is gone.
    fn check(&self) -> io::Result<()> {
        if *self.closing.borrow() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
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

/// Accepts the connections of a server, as many at a time as there are slots. Above the limit, a connection that is not
/// [in use](Peer::in_use) gives way.
pub(crate) struct Acceptor {
    listener: TcpListener,
    transport: Transport,
    slots: Arc<Permits>,
    owner: watch::Receiver<()>,
    /// Maximum time until bytes are acknowledged.
    acknowledged: Duration,
    evictable: Evictable,
}

impl Acceptor {
    /// Creates the acceptor of connections of this owner.
    pub(crate) fn new(
        listener: TcpListener,
        transport: Transport,
        slots: Arc<Permits>,
        owner: &ConnectionOwner,
    ) -> Self {
        let (owner, evictable) = (owner.0.subscribe(), Evictable::default());
        Self { listener, transport, slots, owner, acknowledged: STALL, evictable }
    }

    /// Serves each connection by a task of its own, until the future is dropped.
    pub(crate) async fn serve_each<F: Future<Output = ()> + Send + 'static>(
        self,
        tasks: &TaskOwner,
        serve: impl Fn(LimitedConnection) -> F,
    ) {
        loop {
            let serving = serve(self.next().await);
            // It fails after a stop only.
            let _ = tasks.spawn_until_stopped("connection", serving);
        }
    }

    /// Returns the next connection. Dropping the future closes one that waits for a slot.
    async fn next(&self) -> LimitedConnection {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(cause) => {
                    tracing::warn!(%cause, "connection not accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let Some(slot) = self.slot().await else { continue };
            // Responses are small, and a client waits for each.
            let _ = stream.set_nodelay(true);
            limit_acknowledgement(&stream, self.acknowledged);
            let peer = Peer::new(stream.peer_addr().ok());
            self.evictable.add(&peer);
            let owner = OwnerGone::of(&self.owner, &peer);
            return LimitedConnection::new(self.transport.over(stream), peer, owner, slot);
        }
    }

    /// Returns a slot for a connection, if there is one, or another connection gives way.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        match self.slots.free() {
            Some(slot) => Some(slot),
            None if self.evictable.evict() => self.slots.take_within(EVICTION).await,
            None => self.slots.take(),
        }
    }
}

/// Ends a connection over which bytes are not acknowledged in time.
#[cfg(target_os = "linux")]
fn limit_acknowledgement(stream: &TcpStream, limit: Duration) {
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(limit));
}

/// Other systems choose the time themselves.
#[cfg(not(target_os = "linux"))]
fn limit_acknowledgement(_: &TcpStream, _: Duration) {}

impl LimitedConnection {
    fn new(stream: Box<dyn ByteStream>, peer: Peer, owner: OwnerGone, slot: OwnedSemaphorePermit) -> Self {
        let (opening, writing, flushing) = (Some(Opening::new()), Stall::default(), Stall::default());
        Self { stream, peer, opening, writing, flushing, owner, _slot: slot }
    }

    /// Returns the client at the other end.
    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Returns a connection over a pipe that holds this number of bytes, its client, and its owner.
    #[cfg(test)]
    pub(crate) fn over_pipe(bytes: usize) -> (Self, tokio::io::DuplexStream, ConnectionOwner) {
        let (client, server) = tokio::io::duplex(bytes);
        let (connection, owner) = Self::over(server);
        (connection, client, owner)
    }

    /// Returns a connection over this stream, and its owner.
    #[cfg(test)]
    fn over(stream: impl ByteStream + 'static) -> (Self, ConnectionOwner) {
        let owner = ConnectionOwner::default();
        let slot = Permits::new("connections", 1).take().expect("it is the only one");
        let peer = Peer::new(None);
        let gone = OwnerGone::of(&owner.0.subscribe(), &peer);
        (Self::new(Box::new(stream), peer, gone, slot), owner)
    }

    /// Records whether bytes wait for the client. Before the connection has begun, there are none: a flush waits for
    /// the handshake of TLS.
    fn note_writing<T>(&self, written: &Poll<io::Result<T>>) {
        self.peer.state.set_writing(written.is_pending() && self.opening.is_none());
    }

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

impl AsyncRead for LimitedConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.owner.check()?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.peer.hear();
        }
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

impl AsyncWrite for LimitedConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.owner.check()?;
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_writing(&written);
        let written = self.writing.or_late(cx, written);
        self.or_late(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.owner.check()?;
        // Over TLS, bytes wait in the stream itself, and before that the handshake, also after a failed read.
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.note_writing(&flushed);
        let flushed = self.flushing.or_late(cx, flushed);
        self.or_late(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.owner.check()?;
        // Over TLS, the end is a message.
        let ended = Pin::new(&mut self.stream).poll_shutdown(cx);
        let ended = self.flushing.or_late(cx, ended);
        self.or_late(cx, ended)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.owner.check()?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.note_writing(&written);
        let written = self.writing.or_late(cx, written);
        self.or_late(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::{peer::UNUSED, *};
    use enlist_testkit::soon;
    #[cfg(target_os = "linux")]
    use socket2::SockFilter;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn one_slot() -> Arc<Permits> {
        Arc::new(Permits::new("connections", 1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_loses_its_slot() {
        let (mut connection, mut client, _owner) = LimitedConnection::over_pipe(1024);
        client.write_all(&[b'x'; PREFACE_BYTES]).await.unwrap();
        connection.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
        let writing = tokio::time::timeout(2 * STALL, connection.write_all(&[0; 4096]));
        let end = writing.await.expect("the write ends").unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_gets_everything() {
        const PARTS: usize = 20;
        let (mut connection, mut client, _owner) = LimitedConnection::over_pipe(1024);
        client.write_all(&[b'x'; PREFACE_BYTES]).await.unwrap();
        connection.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
        let sent = vec![0; PARTS * 1024];
        let read = async {
            for _ in 0..PARTS {
                tokio::time::sleep(STALL * 9 / 10).await;
                client.read_exact(&mut [0; 1024]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(connection.write_all(&sent), read);
        written.unwrap();
    }

    /// The request is over, but the client reads slowly.
    #[tokio::test(start_paused = true)]
    async fn a_connection_with_bytes_for_its_client_is_in_use() {
        let (mut connection, mut client, _owner) = LimitedConnection::over_pipe(1024);
        let evictable = Evictable::default();
        evictable.add(connection.peer());
        drop(connection.peer().in_use());
        client.write_all(&[b'x'; PREFACE_BYTES]).await.unwrap();
        connection.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
        let evict = async {
            tokio::time::sleep(10 * UNUSED).await;
            let is_evicted = evictable.evict();
            if !is_evicted {
                client.read_exact(&mut [0; 4096]).await.unwrap();
            }
            is_evicted
        };
        let ended = soon("everything is written", async { tokio::join!(connection.write_all(&[0; 4096]), evict) });
        let (written, is_evicted) = ended.await;
        assert!(!is_evicted);
        written.unwrap();
        tokio::time::sleep(UNUSED).await;
        assert!(evictable.evict());
    }

    /// Its client has sent what is refused, and does not read that.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_nothing_has_used_gives_way() {
        let (mut connection, mut client, _owner) = LimitedConnection::over_pipe(1024);
        let evictable = Evictable::default();
        evictable.add(connection.peer());
        client.write_all(&[b'x'; PREFACE_BYTES]).await.unwrap();
        connection.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
        tokio::time::sleep(UNUSED).await;
        let evict = async { assert!(evictable.evict()) };
        let (written, ()) = tokio::join!(connection.write_all(&[0; 4096]), evict);
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }

    /// Over TLS, the end is a message.
    #[tokio::test(start_paused = true)]
    async fn an_end_that_is_not_taken_is_given_up() {
        let (mut client, server) = tokio::io::duplex(1024);
        let (mut connection, _owner) = LimitedConnection::over(tokio::io::BufWriter::new(server));
        client.write_all(&[b'x'; PREFACE_BYTES]).await.unwrap();
        connection.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
        connection.write_all(&[0; 4096]).await.unwrap();
        let end = tokio::time::timeout(2 * STALL, connection.shutdown()).await.expect("it ends").unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_connection_above_the_limit_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let owner = ConnectionOwner::default();
        let slots = one_slot();
        let acceptor = Acceptor::new(listener, Transport::Tcp, Arc::clone(&slots), &owner);
        let mut first = TcpStream::connect(address).await.unwrap();
        let accepted = acceptor.next().await;
        let mut second = TcpStream::connect(address).await.unwrap();
        let mut byte = [0];
        // The server accepts while it waits for the next one.
        let end = tokio::select! {
            end = second.read(&mut byte) => end.unwrap_or(0),
            _ = acceptor.next() => panic!("above the limit"),
        };
        assert_eq!(end, 0);
        assert_eq!((slots.usage().used, slots.usage().refused), (Some(1), 1));
        drop(accepted);
        assert_eq!(first.read(&mut [0]).await.unwrap_or(0), 0);
        let third = TcpStream::connect(address).await.unwrap();
        acceptor.next().await;
        drop(third);
    }

    /// No packet reaches the client any more, as after a loss of power.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_client_that_vanishes_loses_its_slot() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let owner = ConnectionOwner::default();
        let slots = one_slot();
        let acceptor = Acceptor {
            acknowledged: Duration::from_secs(1),
            ..Acceptor::new(listener, Transport::Tcp, Arc::clone(&slots), &owner)
        };
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut accepted = acceptor.next().await;
        client.write_all(&[b'x'; PREFACE_BYTES]).await.unwrap();
        accepted.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
        // Instruction 6 is "return", here the length 0 of what passes.
        SockRef::from(&client).attach_filter(&[SockFilter::new(6, 0, 0, 0)]).unwrap();
        accepted.write_all(b"event").await.unwrap();
        let end = soon("the connection ends", accepted.read(&mut [0])).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::TimedOut);
        drop(accepted);
        assert_eq!(slots.usage().used, Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_loses_its_slot() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let owner = ConnectionOwner::default();
        let acceptor = Acceptor::new(listener, Transport::Tcp, one_slot(), &owner);
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut accepted = acceptor.next().await;
        let read = tokio::time::timeout(Duration::from_secs(60), accepted.read(&mut [0])).await;
        let end = read.expect("a silent connection is ended").unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::TimedOut);
        drop(accepted);
        let _second = TcpStream::connect(address).await.unwrap();
        acceptor.next().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_begun_may_be_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let owner = ConnectionOwner::default();
        let acceptor = Acceptor::new(listener, Transport::Tcp, one_slot(), &owner);
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut accepted = acceptor.next().await;
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        accepted.read_exact(&mut [0; 24]).await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(60), accepted.read(&mut [0])).await;
        read.expect_err("it is open");
    }
}
