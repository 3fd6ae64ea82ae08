//! Delay of the write of a request's head over HTTP/2, so that the head and the body of a small request are one write.
//!
//! h2 assigns send capacity to the body of a request only once the head was taken for writing. Without a delay they are
//! two writes, and wake the server twice. One more pass of the scheduler is enough for the body to join the head.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Type of the first frame of a request, and the flag of a request without a body (RFC 9113, section 6.2).
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// Visibility of the frames of a connection.
#[expect(clippy::exhaustive_enums, reason = "a connection is encrypted, or it is not")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameVisibility {
    /// The connection is not encrypted.
    Visible,
    /// The connection uses TLS.
    Encrypted,
}

/// The stream under a client's connection over HTTP/2. It writes the head and the body of a small request at once.
#[derive(Debug)]
pub struct JoinedWrites<S> {
    stream: S,
    /// `None` if the bytes are encrypted: no write is deferred then.
    head: Option<HeadWrite>,
}

impl<S> JoinedWrites<S> {
    /// Wraps the stream of a new connection.
    pub fn new(stream: S, frames: FrameVisibility) -> Self {
        Self { stream, head: (frames == FrameVisibility::Visible).then(HeadWrite::default) }
    }
}

impl<S: AsyncWrite + Unpin> JoinedWrites<S> {
    /// Writes with `write`, unless the write of a request's head is deferred. `bytes` are the first of `offered` ones.
    fn poll_written(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        offered: usize,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Self { stream, head } = self;
        if head.as_mut().is_some_and(|head| head.decide(bytes) == WriteDecision::Defer) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let written = write(Pin::new(stream), cx);
        if let (Some(head), Poll::Ready(Ok(written))) = (head, &written) {
            head.wrote(*written, offered);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for JoinedWrites<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for JoinedWrites<S> {
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

/// Position of the next write in the frames of a connection, as far as the writes show it: a part of a frame may be
/// offered as if it were a whole one. A payload that looks like a head is then deferred as well, by one pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum HeadWrite {
    /// The next byte is the first one of a frame.
    #[default]
    AtFrame,
    /// A frame was written in part.
    InFrame,
    /// The next frame is the head of a request, whose write was deferred.
    Deferred,
}

/// Decision about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteDecision {
    Now,
    /// The write is deferred until the connection is polled again.
    Defer,
}

impl HeadWrite {
    /// Decides about the write of `bytes`. It is deferred if they begin with the head of a request that has a body. A
    /// head is deferred at most once.
    fn decide(&mut self, bytes: &[u8]) -> WriteDecision {
        let is_head = matches!(bytes, [_, _, _, HEADERS, flags, ..] if flags & END_STREAM == 0);
        if *self != Self::AtFrame || !is_head {
            return WriteDecision::Now;
        }
        *self = Self::Deferred;
        WriteDecision::Defer
    }

    /// Notes that `written` of `offered` bytes were written.
    fn wrote(&mut self, written: usize, offered: usize) {
        *self = if written == offered { Self::AtFrame } else { Self::InFrame };
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        task::{Wake, Waker},
    };

    use super::*;

    /// The header of a frame, and a byte of its payload.
    fn frame(kind: u8, flags: u8) -> [u8; 10] {
        [0, 0, 1, kind, flags, 0, 0, 0, 1, 0]
    }

    #[test]
    fn a_head_with_a_body_is_deferred_once() {
        let mut write = HeadWrite::default();
        let head = frame(HEADERS, 4);
        assert_eq!([write.decide(&head), write.decide(&head)], [WriteDecision::Defer, WriteDecision::Now]);
        write.wrote(head.len(), head.len());
        assert_eq!(write.decide(&head), WriteDecision::Defer, "the next request");
    }

    /// Keeps each write. It takes none while it is full.
    #[derive(Default)]
    struct Written {
        writes: Vec<Vec<u8>>,
        is_full: bool,
    }

    impl AsyncWrite for Written {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            if self.is_full {
                return Poll::Pending;
            }
            self.writes.push(buf.to_vec());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Counts how often its task is woken.
    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wakes {
        fn count(&self) -> u32 {
            self.0.load(Ordering::Relaxed)
        }
    }

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Offers the head of a request, and at the next attempt its body as well. Returns the writes. Only a deferred
    /// one wakes the writer, because nothing else would repeat it.
    fn written(frames: FrameVisibility) -> Vec<Vec<u8>> {
        let mut stream = JoinedWrites::new(Written::default(), frames);
        let (head, body) = (frame(HEADERS, 4), frame(0, END_STREAM));
        let counter = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&counter));
        let cx = &mut Context::from_waker(&waker);
        let first = Pin::new(&mut stream).poll_write(cx, &head);
        let deferred = u32::from(first.is_pending());
        assert_eq!(counter.count(), deferred, "{frames:?}: the first attempt");
        let rest = if first.is_pending() { [head, body].concat() } else { body.to_vec() };
        assert!(Pin::new(&mut stream).poll_write(cx, &rest).is_ready());
        assert_eq!(counter.count(), deferred, "{frames:?}: the second attempt");
        stream.stream.writes
    }

    #[test]
    fn a_head_and_its_body_are_one_write() {
        let sizes = |frames| written(frames).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(FrameVisibility::Visible), [20]);
        assert_eq!(sizes(FrameVisibility::Encrypted), [10, 10], "encrypted bytes may look like a head");
    }

    /// Otherwise the connection would be polled without pause for as long as the stream is full.
    #[test]
    fn a_full_stream_does_not_wake_the_writer() {
        let mut stream = JoinedWrites::new(Written { is_full: true, ..Written::default() }, FrameVisibility::Visible);
        let counter = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&counter));
        let cx = &mut Context::from_waker(&waker);
        for attempt in ["the write is deferred", "the stream is full", "the stream is still full"] {
            assert!(Pin::new(&mut stream).poll_write(cx, &frame(HEADERS, 4)).is_pending(), "{attempt}");
            assert_eq!(counter.count(), 1, "{attempt}");
        }
    }

    #[test]
    fn other_frames_are_not_deferred() {
        let whole = frame(HEADERS, 4 | END_STREAM);
        let (data, preface) = (frame(0, 0), *b"PRI * HTTP/2.0");
        let decided = [&whole[..], &data, &preface, &[]].map(|bytes| HeadWrite::default().decide(bytes));
        assert_eq!(decided, [WriteDecision::Now; 4]);
    }

    #[test]
    fn the_rest_of_a_frame_is_not_deferred() {
        let mut write = HeadWrite::default();
        write.wrote(9, 30);
        assert_eq!(write.decide(&frame(HEADERS, 4)), WriteDecision::Now, "these bytes are payload");
        write.wrote(21, 21);
        assert_eq!(write.decide(&frame(HEADERS, 4)), WriteDecision::Defer);
    }
}
