//! A request body that can be sent again while at most a limited number of bytes was read.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use enlist::backend::MutexExt as _;
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Status, body::Body};

use crate::retry::deadline::{Deadline, Expiry};

/// The body of a call, which its attempts send one after the other.
pub(crate) struct Replay(Arc<Mutex<ReplayBuffer>>);

/// Source of a request body, and what was read of it.
struct ReplayBuffer {
    source: Body,
    ahead: Ahead,
    deadline: Deadline,
    /// Pieces of the source that may have to be sent again. Once the call is committed: the pieces that are still to be
    /// sent.
    read: Pieces,
    /// Number of bytes that may still be kept.
    room: usize,
    /// There is no further attempt.
    committed: bool,
    ended: bool,
    /// The caller's error with which the source ended.
    own_error: Option<Status>,
    /// Number of the attempt that may read. The connection of an earlier one may still hold its body.
    attempt: u32,
    /// A part of this attempt's body was read.
    begun: bool,
    /// Number of the kept pieces that this attempt has sent.
    sent: usize,
    /// Waker of this attempt while it waits for the source, for the case that a later attempt takes over.
    reader: Option<Waker>,
}

impl Replay {
    /// Keeps at most `limit` bytes of what is read of `source`, which ends with `deadline`. The body is that of the
    /// first attempt.
    pub(crate) fn begin(source: Body, limit: usize, deadline: Deadline) -> (Self, Body) {
        let ended = source.is_end_stream();
        let buffer = ReplayBuffer {
            source,
            ahead: Ahead::Unasked,
            deadline,
            read: Pieces::default(),
            room: limit,
            committed: false,
            ended,
            own_error: None,
            attempt: 0,
            begun: ended,
            sent: 0,
            reader: None,
        };
        let replay = Self(Arc::new(Mutex::new(buffer)));
        let first = replay.lend(0);
        (replay, first)
    }

    /// The whole body for another attempt; `None` if more was read than is kept. Earlier attempts read no more from now
    /// on, so the body stays whole until it is sent.
    pub(crate) fn attempt(&self) -> Option<Body> {
        let mut buffer = lock(&self.0);
        if buffer.committed {
            return None;
        }
        buffer.attempt += 1;
        buffer.begun = buffer.ended && buffer.read.is_empty();
        buffer.sent = 0;
        let (number, superseded) = (buffer.attempt, buffer.reader.take());
        drop(buffer);
        if let Some(superseded) = superseded {
            superseded.wake();
        }
        Some(self.lend(number))
    }

    fn lend(&self, number: u32) -> Body {
        Body::new(Attempt { buffer: Arc::clone(&self.0), number, expiry: None })
    }

    /// Returns `true` if there can be another attempt, for now: the current one may read on meanwhile.
    pub(crate) fn is_replayable(&self) -> bool {
        !lock(&self.0).committed
    }

    /// Returns `true` if the connection has begun to read the latest attempt, which it does once it has opened a stream
    /// for it.
    pub(crate) fn is_begun(&self) -> bool {
        lock(&self.0).begun
    }

    /// The error of the caller with which the request ended, if it did. It counts against no instance.
    pub(crate) fn own_error(&self) -> Option<Status> {
        lock(&self.0).own_error.clone()
    }

    /// Makes the latest attempt the last one, and frees the data that it has sent.
    pub(crate) fn commit(&self) {
        lock(&self.0).commit();
    }
}

/// An error that resets the stream with `CANCEL`: hyper finds the reason among its sources.
fn cancelled(message: &str) -> Status {
    let mut status = Status::cancelled(message);
    status.set_source(Arc::new(h2::Error::from(h2::Reason::CANCEL)));
    status
}

fn lock(buffer: &Mutex<ReplayBuffer>) -> MutexGuard<'_, ReplayBuffer> {
    buffer.locked()
}

impl ReplayBuffer {
    fn commit(&mut self) {
        if !self.committed {
            self.committed = true;
            self.read.drop_front(self.sent);
            self.sent = 0;
        }
    }

    /// The next piece that was read for an earlier attempt.
    fn again(&mut self) -> Option<Bytes> {
        if self.committed {
            return self.read.pop_front();
        }
        let data = self.read.get(self.sent).cloned()?;
        self.sent += 1;
        Some(data)
    }

    /// Next frame of the source.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.ahead.take() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.source).poll_frame(cx),
        }
    }

    /// Polls once more after the first piece. A unary call has only one, and tonic's bodies show their end only to
    /// another read. The stream then ends with this piece, not with an empty frame after it.
    fn look_ahead(&mut self, cx: &mut Context<'_>) {
        self.ended = self.source.is_end_stream();
        if self.ended || !matches!(self.ahead, Ahead::Unasked) {
            return;
        }
        self.ahead = match Pin::new(&mut self.source).poll_frame(cx) {
            Poll::Ready(Some(frame)) => Ahead::Frame(frame),
            Poll::Ready(None) => {
                self.ended = true;
                Ahead::Asked
            }
            // The connection polls again in any case.
            Poll::Pending => Ahead::Asked,
        };
    }

    /// Keeps the data that is being sent, or commits the call to this attempt.
    fn keep(&mut self, data: &Bytes) {
        if self.committed {
            return;
        }
        let Some(room) = self.room.checked_sub(data.len()) else {
            return self.commit();
        };
        self.room = room;
        self.read.push_back(data.clone());
        self.sent += 1;
    }
}

/// Pieces of a request, in order. The first one is kept in place, without an allocation: unary calls have no other.
#[derive(Default)]
struct Pieces {
    first: Option<Bytes>,
    rest: VecDeque<Bytes>,
}

impl Pieces {
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.first.iter().chain(&self.rest)
    }

    fn get(&self, at: usize) -> Option<&Bytes> {
        match (&self.first, at.checked_sub(1)) {
            (Some(first), None) => Some(first),
            (Some(_), Some(before)) => self.rest.get(before),
            (None, _) => self.rest.get(at),
        }
    }

    fn push_back(&mut self, piece: Bytes) {
        if self.is_empty() {
            self.first = Some(piece);
        } else {
            self.rest.push_back(piece);
        }
    }

    fn pop_front(&mut self) -> Option<Bytes> {
        self.first.take().or_else(|| self.rest.pop_front())
    }

    fn drop_front(&mut self, count: usize) {
        for _ in 0..count.min(self.len()) {
            self.pop_front();
        }
    }
}

/// Knowledge of the source beyond its first piece.
enum Ahead {
    /// The source was not polled for a second piece yet.
    Unasked,
    /// The frame that it yielded.
    Frame(Result<Frame<Bytes>, Status>),
    /// The source was polled, and its frame was passed on.
    Asked,
}

impl Ahead {
    /// Number of bytes that were read ahead.
    fn len(&self) -> usize {
        match self {
            Self::Frame(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            Self::Frame(Err(_)) | Self::Unasked | Self::Asked => 0,
        }
    }

    fn take(&mut self) -> Option<Result<Frame<Bytes>, Status>> {
        match std::mem::replace(self, Self::Asked) {
            Self::Frame(frame) => Some(frame),
            Self::Asked => None,
            Self::Unasked => {
                *self = Self::Unasked;
                None
            }
        }
    }
}

struct Attempt {
    buffer: Arc<Mutex<ReplayBuffer>>,
    number: u32,
    /// Present only for an attempt that had to wait for its source.
    expiry: Option<Expiry>,
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { buffer, number, expiry } = &mut *self;
        let buffer = &mut *lock(buffer);
        if buffer.attempt != *number {
            return Poll::Ready(Some(Err(cancelled("the call was tried again"))));
        }
        buffer.begun = true;
        if let Some(data) = buffer.again() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if buffer.ended {
            return Poll::Ready(None);
        }
        let Poll::Ready(frame) = buffer.poll_source(cx) else {
            buffer.reader = Some(cx.waker().clone());
            ready!(expiry.get_or_insert_with(|| buffer.deadline.expiry()).poll(cx));
            return Poll::Ready(Some(Err(cancelled("the deadline of the call has passed"))));
        };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                // Frames after an error of the source are not part of the request.
                buffer.commit();
                buffer.ended = true;
                buffer.own_error = Some(error);
                return Poll::Ready(Some(Err(cancelled("the request ended with an error of the caller"))));
            }
            None => {
                buffer.ended = true;
                return Poll::Ready(None);
            }
        };
        match frame.data_ref() {
            Some(data) => {
                buffer.keep(data);
                buffer.look_ahead(cx);
            }
            // Clients of gRPC send no trailers. A request with trailers is sent once.
            None => buffer.commit(),
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let buffer = lock(&self.buffer);
        buffer.ended && buffer.attempt == self.number && buffer.sent >= buffer.read.len()
    }

    fn size_hint(&self) -> SizeHint {
        let buffer = lock(&self.buffer);
        let read = buffer.read.iter().skip(buffer.sent).map(Bytes::len).sum::<usize>();
        let unsent = (read + buffer.ahead.len()) as u64;
        let source = if buffer.ended { SizeHint::with_exact(0) } else { buffer.source.size_hint() };
        let mut hint = SizeHint::new();
        hint.set_lower(source.lower() + unsent);
        if let Some(upper) = source.upper() {
            hint.set_upper(upper + unsent);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::deadline::TIMEOUT;
    use futures::{StreamExt, stream::FuturesUnordered};
    use http_body_util::{BodyExt, StreamBody};
    use std::time::Duration;

    fn body(pieces: &[&'static str]) -> Body {
        let frames = pieces.iter().map(|piece| Ok::<_, Status>(Frame::data(Bytes::from_static(piece.as_bytes()))));
        Body::new(StreamBody::new(futures::stream::iter(frames.collect::<Vec<_>>())))
    }

    fn begin(source: Body, limit: usize) -> (Replay, Body) {
        Replay::begin(source, limit, Deadline::of(&http::HeaderMap::new()))
    }

    async fn read(body: Body) -> Vec<u8> {
        body.collect().await.unwrap().to_bytes().to_vec()
    }

    #[test]
    fn pieces_keep_their_order() {
        let piece = |text: &'static str| Bytes::from_static(text.as_bytes());
        let mut pieces = Pieces::default();
        for text in ["a", "b", "c"] {
            pieces.push_back(piece(text));
        }
        assert_eq!(
            [0, 1, 2, 3].map(|at| pieces.get(at).cloned()),
            [Some(piece("a")), Some(piece("b")), Some(piece("c")), None]
        );
        assert_eq!(pieces.pop_front(), Some(piece("a")));
        pieces.push_back(piece("d"));
        assert_eq!(pieces.get(0), Some(&piece("b")));
        pieces.drop_front(1);
        assert_eq!(pieces.iter().cloned().collect::<Vec<_>>(), ["c", "d"]);
        pieces.drop_front(3);
        pieces.push_back(piece("e"));
        assert_eq!((pieces.get(0), pieces.len()), (Some(&piece("e")), 1));
    }

    #[tokio::test]
    async fn every_attempt_sends_everything() {
        let (replay, first) = begin(body(&["one ", "two ", "three"]), 100);
        assert_eq!(read(first).await, b"one two three");
        for _ in 0..2 {
            assert_eq!(read(replay.attempt().unwrap()).await, b"one two three");
        }
    }

    #[tokio::test]
    async fn a_single_message_ends_its_stream() {
        let (_, mut only) = begin(body(&["one"]), 100);
        assert!(!only.is_end_stream());
        only.frame().await.unwrap().unwrap();
        assert!(only.is_end_stream(), "an empty frame would have to follow");
        let (_, mut more) = begin(body(&["one ", "two ", "three"]), 100);
        more.frame().await.unwrap().unwrap();
        assert!(!more.is_end_stream());
        assert_eq!(more.size_hint().lower(), 4, "of what was read ahead");
        assert_eq!(read(more).await, b"two three");
    }

    #[tokio::test]
    async fn a_failed_request_is_not_sent_again() {
        let frames = [Ok("one "), Err(Status::out_of_range("too large")), Ok("three")];
        let frames = frames.map(|frame| frame.map(|piece| Frame::data(Bytes::from_static(piece.as_bytes()))));
        let (replay, mut first) = begin(Body::new(StreamBody::new(futures::stream::iter(frames))), 100);
        first.frame().await.unwrap().unwrap();
        assert!(first.frame().await.unwrap().is_err());
        assert!(!replay.is_replayable() && replay.attempt().is_none());
        assert_eq!(replay.own_error().unwrap().code(), tonic::Code::OutOfRange);
        assert!(first.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_new_attempt_stops_the_earlier_one() {
        let (replay, mut first) = begin(body(&["one ", "two ", "three"]), 100);
        first.frame().await.unwrap().unwrap();
        let second = replay.attempt().unwrap();
        assert!(first.frame().await.unwrap().is_err(), "an earlier attempt must read no more");
        assert_eq!(read(second).await, b"one two three");
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_cannot_be_repeated() {
        let (replay, mut first) = begin(body(&["one ", "two ", "three"]), 4);
        first.frame().await.unwrap().unwrap();
        assert!(replay.is_replayable());
        let sent = first.into_data_stream().map(Result::unwrap).collect::<Vec<_>>().await;
        assert_eq!(sent, ["two ", "three"]);
        assert!(!replay.is_replayable());
    }

    #[tokio::test]
    async fn a_body_read_past_the_limit_is_not_repeated() {
        let (replay, mut first) = begin(body(&["one ", "two ", "three"]), 4);
        first.frame().await.unwrap().unwrap();
        assert!(replay.is_replayable());
        // The connection reads on while the call waits for its next attempt.
        first.frame().await.unwrap().unwrap();
        assert!(replay.attempt().is_none());
    }

    #[tokio::test]
    async fn an_earlier_attempt_that_waits_is_woken() {
        let endless = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Status>>());
        let (replay, mut first) = begin(Body::new(endless), 4);
        // `FuturesUnordered` polls a future only after it was woken.
        let mut waiting = FuturesUnordered::from_iter([first.frame()]);
        assert!(futures::poll!(waiting.next()).is_pending());
        let _second = replay.attempt().unwrap();
        let Poll::Ready(ended) = futures::poll!(waiting.next()) else { panic!("it still waits") };
        assert!(ended.unwrap().unwrap().is_err());
    }

    #[tokio::test]
    async fn a_lent_body_stays_whole_while_it_waits() {
        let (replay, mut first) = begin(body(&["one ", "two ", "three"]), 4);
        first.frame().await.unwrap().unwrap();
        let second = replay.attempt().unwrap();
        assert!(first.frame().await.unwrap().is_err(), "it would read beyond the limit");
        assert_eq!(read(second).await, b"one two three");
    }

    #[tokio::test]
    async fn a_committed_call_frees_sent_data() {
        let buffered = |replay: &Replay| lock(&replay.0).read.iter().map(Bytes::len).sum::<usize>();
        let (replay, mut first) = begin(body(&["one ", "two ", "three ", "four"]), 100);
        for _ in 0..3 {
            first.frame().await.unwrap().unwrap();
        }
        let mut second = replay.attempt().unwrap();
        second.frame().await.unwrap().unwrap();
        assert_eq!(buffered(&replay), 14);
        replay.commit();
        assert_eq!(buffered(&replay), 10, "what the second attempt still has to send");
        assert!(replay.attempt().is_none());
        assert_eq!(read(second).await, b"two three four");
        assert_eq!(buffered(&replay), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_request_is_cancelled_at_its_deadline() {
        let endless = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Status>>());
        let timeout = http::HeaderMap::from_iter([(TIMEOUT, http::HeaderValue::from_static("300m"))]);
        let (replay, mut first) = Replay::begin(Body::new(endless), 4, Deadline::of(&timeout));
        assert!(!replay.is_begun());
        let late = tokio::time::timeout(Duration::from_secs(1), first.frame()).await.unwrap().unwrap().unwrap_err();
        assert!(replay.is_begun());
        let source = std::error::Error::source(&late).and_then(|source| source.downcast_ref());
        assert_eq!(source.and_then(h2::Error::reason), Some(h2::Reason::CANCEL));
    }
}
