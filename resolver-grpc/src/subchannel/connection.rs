//! One connection to one instance: dialled once, watched for signs of life, and never dialled again behind our back.
//!
//! tonic's channel counts an endpoint that refuses connections as ready and dials again by itself. Here its connector
//! works once; when the connection is gone, the [subchannel](crate::subchannel) dials a new one when it sees fit.

use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use enlist::Endpoint;
use futures::task::AtomicWaker;
use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::Notify,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint as Settings};
use tower::{Service, service_fn};

use crate::{
    channel::frames::{FrameReader, Statement},
    name_resolution::sources::Names,
    retry::failure::BoxError,
    subchannel::{connector::Opened, head_write::HeadWrite, probe::answered},
};

/// Time for which data may stay unacknowledged by the other kernel before the connection counts as broken. It covers calls without
/// a deadline through a network that swallows packets; the kernel's own patience is about a quarter of an hour.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// Maximum number of calls on a connection whose server's limit cannot be seen, which is so over TLS, while there may be further ones.
/// RFC 9113 (section 6.5.2) recommends that no server takes fewer.
const UNSEEN_STREAMS: usize = 100;

/// A connection that works, or did.
pub(crate) struct Connection {
    channel: Channel,
    pulse: Arc<Pulse>,
    /// Calls that were begun over it and have not ended.
    calls: AtomicUsize,
    /// Calls that have no stream yet and wait in hyper, where the server's limit cannot be seen.
    unopened: AtomicUsize,
    /// Streams that are no calls: a health stream.
    others: AtomicUsize,
    /// Its last call has ended.
    quiet: Notify,
    /// It is to be asked for a sign of life.
    doubted: Notify,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("pulse", &self.pulse).finish_non_exhaustive()
    }
}

/// Signs of life of a connection.
#[derive(Debug)]
struct Pulse {
    reads: AtomicU64,
    /// The frames of the server can be seen: the connection is not encrypted.
    visible: bool,
    /// Maximum number of streams that the server takes at a time, if its frames can be seen.
    max_streams: AtomicU32,
    /// The server has stated another number of streams.
    restated: Notify,
    /// The connection takes no more calls: the server said so, or a call found out.
    spent: CancellationToken,
    /// The server has said something, if its frames can be seen.
    heard: CancellationToken,
    /// The connection is gone.
    lost: CancellationToken,
    /// The first error of the connection, or its end.
    cause: OnceLock<String>,
    /// The connection is to be broken off.
    cut: AtomicBool,
    /// Waker of the reader.
    reader: AtomicWaker,
}

impl Pulse {
    fn new(visible: bool) -> Self {
        Self {
            reads: AtomicU64::new(0),
            visible,
            max_streams: AtomicU32::new(u32::MAX),
            restated: Notify::new(),
            spent: CancellationToken::new(),
            heard: CancellationToken::new(),
            lost: CancellationToken::new(),
            cause: OnceLock::new(),
            cut: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        }
    }

    /// Keeps the first error.
    fn check<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &outcome {
            self.cause.get_or_init(|| error.to_string());
        }
        outcome
    }

    fn note(&self, statement: Statement) {
        match statement {
            Statement::MaxStreams(streams) => {
                if self.max_streams.swap(streams, Ordering::AcqRel) != streams {
                    self.restated.notify_one();
                }
            }
            Statement::Settings => self.heard.cancel(),
            Statement::GoAway => {
                // Before it is demoted, so that no call is handed over that would have to be moved.
                self.max_streams.store(0, Ordering::Release);
                self.spent.cancel();
            }
        }
    }
}

impl Connection {
    /// Connects over the stream that `opened` leads to. It takes calls once the server has said something: one that accepts and stays
    /// silent, as a stopped process does, is none. Over TLS that is an answer to a health check, whatever it is.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub(crate) async fn dial(opened: Opened, settings: &Settings) -> Result<Self, BoxError> {
        let visible = settings.uri().scheme_str() != Some("https");
        let pulse = Arc::new(Pulse::new(visible));
        let channel = {
            let mut once = Some((opened, Arc::clone(&pulse)));
            let connector = service_fn(move |_: Uri| connect_once(once.take()));
            settings.connect_with_connector(connector).await?
        };
        let heard = async {
            if visible {
                pulse.heard.cancelled().await;
                return Ok(());
            }
            // What is read of a handshake tells of who ends TLS, which need not be the server.
            answered(channel.clone()).await.map_err(|failure| BoxError::from(failure.status))
        };
        tokio::select! {
            heard = heard => heard?,
            () = pulse.lost.cancelled() => return Err("closed before the server said anything".into()),
        }
        let [calls, unopened, others] = [0; 3].map(AtomicUsize::new);
        Ok(Self { channel, pulse, calls, unopened, others, quiet: Notify::new(), doubted: Notify::new() })
    }

    /// The channel over this connection alone.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Number of times that something was read. If the number has not changed, the other side has said nothing.
    pub(crate) fn reads(&self) -> u64 {
        self.pulse.reads.load(Ordering::Relaxed)
    }

    /// Calls over it that have not ended.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Acquire)
    }

    /// Begins a call, if there is a stream for it.
    pub(crate) fn begin(&self) -> bool {
        let room = self.room();
        self.calls
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |calls| (calls < room).then_some(calls + 1))
            .is_ok()
    }

    /// Begins a call over a connection that may take more than are meant for it.
    pub(crate) fn begin_anyway(&self) -> bool {
        self.calls.fetch_add(1, Ordering::AcqRel);
        true
    }

    /// Notes that a call that was begun has ended.
    pub(crate) fn end(&self) {
        if self.calls.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.quiet.notify_one();
        }
    }

    /// Returns `true` if there is a stream for another call.
    pub(crate) fn has_room(&self) -> bool {
        self.calls() < self.room()
    }

    /// Returns `true` if the server's frames cannot be seen: the connection is encrypted.
    pub(crate) fn is_opaque(&self) -> bool {
        !self.pulse.visible
    }

    /// Returns `true` if it may take more calls than are meant for it: its limit is unknown, and few calls wait for a stream.
    pub(crate) fn may_overflow(&self) -> bool {
        self.is_opaque() && self.unopened.load(Ordering::Relaxed) < UNSEEN_STREAMS
    }

    /// Notes a call that has no stream yet.
    pub(crate) fn hand_over(&self) {
        self.unopened.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that such a call has got its stream, or ended.
    pub(crate) fn opened(&self) {
        self.unopened.fetch_sub(1, Ordering::Relaxed);
    }

    /// Maximum number of calls at a time.
    fn room(&self) -> usize {
        if !self.pulse.visible {
            return UNSEEN_STREAMS;
        }
        let streams = usize::try_from(self.pulse.max_streams.load(Ordering::Acquire)).unwrap_or(usize::MAX);
        // A health stream may have the only one: calls then need a further connection.
        streams.saturating_sub(self.others.load(Ordering::Relaxed))
    }

    /// Returns `true` if the server takes calls on connections like this one.
    pub(crate) fn takes_streams(&self) -> bool {
        self.pulse.max_streams.load(Ordering::Acquire) > 0
    }

    /// Notes a stream that is no call, for as long as the connection lasts.
    pub(crate) fn occupy(&self) {
        self.others.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until the server states another number of streams.
    pub(crate) async fn restated(&self) {
        self.pulse.restated.notified().await;
    }

    /// Waits until no call is in flight.
    pub(crate) async fn quiet(&self) {
        while self.calls() > 0 {
            self.quiet.notified().await;
        }
    }

    /// Takes no more calls.
    pub(crate) fn spend(&self) {
        self.pulse.spent.cancel();
    }

    /// Waits until the connection takes no more calls.
    pub(crate) async fn spent(&self) {
        self.pulse.spent.cancelled().await;
    }

    /// Lets the connection be asked for a sign of life.
    pub(crate) fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Waits for a doubt.
    pub(crate) async fn doubted(&self) {
        self.doubted.notified().await;
    }

    /// The error that ended the connection, if it is known.
    pub(crate) fn cause(&self) -> Option<&str> {
        self.pulse.cause.get().map(String::as_str)
    }

    /// Returns `true` if the connection is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.pulse.lost.is_cancelled()
    }

    /// Waits until the connection is gone.
    pub(crate) async fn lost(&self) {
        self.pulse.lost.cancelled().await;
    }

    /// Breaks the connection off; calls over it fail.
    pub(crate) fn cut(&self) {
        self.pulse.cut.store(true, Ordering::Release);
        self.pulse.reader.wake();
    }
}

/// A connector with the TCP settings of `settings`.
pub(crate) fn tcp(settings: &Settings) -> HttpConnector<Names> {
    // A lookup that hangs outlives its dial, and hyper's own resolver takes a thread for each.
    let mut tcp = HttpConnector::new_with_resolver(Names::new());
    tcp.enforce_http(false);
    tcp.set_nodelay(settings.get_tcp_nodelay());
    tcp.set_keepalive(settings.get_tcp_keepalive());
    tcp.set_keepalive_interval(settings.get_tcp_keepalive_interval());
    tcp.set_keepalive_retries(settings.get_tcp_keepalive_retries());
    tcp.set_connect_timeout(settings.get_connect_timeout());
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
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

async fn connect_once(once: Option<(Opened, Arc<Pulse>)>) -> Result<TokioIo<Tracked>, BoxError> {
    let (opened, pulse) = once.ok_or("the connection is gone")?;
    let stream = opened.await?;
    let frames = pulse.visible.then(FrameReader::default);
    Ok(TokioIo::new(Tracked { stream, pulse, frames, head: HeadWrite::default() }))
}

/// Stream that bytes are exchanged over.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A stream that notes signs of life, and its own end.
struct Tracked {
    stream: Box<dyn Stream>,
    pulse: Arc<Pulse>,
    /// Unless the bytes are encrypted.
    frames: Option<FrameReader>,
    head: HeadWrite,
}

impl Tracked {
    /// Writes through `write`, unless a request's head is put off. `bytes` are the first of `offered` ones.
    fn poll_written(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        offered: usize,
        write: impl FnOnce(Pin<&mut dyn Stream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.pulse.visible && self.head.defers(bytes) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let written = write(Pin::new(&mut *self.stream), cx);
        if let Poll::Ready(Ok(written)) = written {
            self.head.wrote(written, offered);
        }
        self.pulse.check(written)
    }
}

impl AsyncRead for Tracked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, pulse, frames, head: _ } = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(stream).poll_read(cx, buf);
        if read.is_pending() {
            // Before the look, so that a cut between the two is not missed.
            pulse.reader.register(cx.waker());
        }
        if pulse.cut.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        ready!(pulse.check(read))?;
        let bytes = &buf.filled()[before..];
        if bytes.is_empty() && buf.remaining() > 0 {
            pulse.cause.get_or_init(|| "closed by the other side".to_owned());
        }
        if !bytes.is_empty() {
            pulse.reads.fetch_add(1, Ordering::Relaxed);
            if let Some(frames) = frames {
                frames.read(bytes, |statement| pulse.note(statement));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_written(cx, buf, buf.len(), |stream, cx| stream.poll_write(cx, buf))
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
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.first().map_or(&[][..], |buf| buf);
        let offered = bufs.iter().map(|buf| buf.len()).sum();
        self.poll_written(cx, first, offered, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.pulse.lost.cancel();
    }
}
