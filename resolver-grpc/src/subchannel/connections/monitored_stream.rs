//! The stream under a connection. It counts reads, and notes the server's limit of streams, GOAWAY, and its own end.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use enlist::backend::{FrameVisibility, JoinedWrites};
use futures::task::AtomicWaker;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use crate::{
    retry::failure::BoxError,
    subchannel::connections::{
        frames::{FrameReader, Statement},
        transport::{Opened, Stream},
    },
};

/// Observations of a connection.
#[derive(Debug)]
pub(crate) struct Pulse {
    pub(crate) reads: AtomicU64,
    pub(crate) frames: FrameVisibility,
    /// Maximum number of concurrent streams, if the server's frames are visible.
    pub(crate) max_streams: AtomicU32,
    /// The server has changed its limit of streams.
    pub(crate) restated: Notify,
    /// The connection takes no more calls, after a GOAWAY or a failed call.
    pub(crate) spent: CancellationToken,
    /// The server has sent its settings, if its frames are visible.
    pub(crate) heard: CancellationToken,
    /// The connection is gone.
    pub(crate) lost: CancellationToken,
    /// The first error of the connection, or its end.
    pub(crate) cause: OnceLock<String>,
    /// The connection is to be ended.
    pub(crate) cut: AtomicBool,
    /// Waker of the reader.
    pub(crate) reader: AtomicWaker,
}

impl Pulse {
    pub(crate) fn new(frames: FrameVisibility) -> Self {
        Self {
            reads: AtomicU64::new(0),
            frames,
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
                // Set before the demotion, so that no further call is sent that would have to be repeated.
                self.max_streams.store(0, Ordering::Release);
                self.spent.cancel();
            }
        }
    }
}

pub(crate) async fn connect_once(once: Option<(Opened, Arc<Pulse>)>) -> Result<TokioIo<MonitoredStream>, BoxError> {
    let (opened, pulse) = once.ok_or("the connection is gone")?;
    let stream = opened.await?;
    let frames = (pulse.frames == FrameVisibility::Visible).then(FrameReader::default);
    let stream = JoinedWrites::new(stream, pulse.frames);
    Ok(TokioIo::new(MonitoredStream { stream, pulse, frames, registered: None }))
}

/// A stream that records its reads and its end.
pub(crate) struct MonitoredStream {
    stream: JoinedWrites<Box<dyn Stream>>,
    pulse: Arc<Pulse>,
    /// `None` if the bytes are encrypted.
    frames: Option<FrameReader>,
    /// The waker that `pulse.reader` has. Only a cut takes it, and nothing is read after a cut.
    registered: Option<Waker>,
}

impl AsyncRead for MonitoredStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, pulse, frames, registered } = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(stream).poll_read(cx, buf);
        if read.is_pending() && !registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            // Registered before the check, so that a cut in between is not missed.
            pulse.reader.register(cx.waker());
            *registered = Some(cx.waker().clone());
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

impl AsyncWrite for MonitoredStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.pulse.check(written)
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
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.pulse.check(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Drop for MonitoredStream {
    fn drop(&mut self) {
        self.pulse.lost.cancel();
    }
}
