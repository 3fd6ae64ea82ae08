//! A request body that can be sent again as long as little of it was read.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Status, body::Body};

/// The body of a call, lent to one attempt after the other.
pub(crate) struct Replay(Arc<Mutex<Kept>>);

struct Kept {
    source: Body,
    /// What was read of the source so far.
    read: Vec<Bytes>,
    /// How many bytes may be kept.
    room: usize,
    /// More was read than may be kept.
    overflown: bool,
    ended: bool,
    /// Which attempt may read: an earlier one may still be held by its connection.
    attempt: u32,
}

impl Replay {
    /// Keeps at most `limit` bytes of what is read of `source`.
    pub(crate) fn new(source: Body, limit: usize) -> Self {
        let ended = source.is_end_stream();
        let kept = Kept { source, read: Vec::new(), room: limit, overflown: false, ended, attempt: 0 };
        Self(Arc::new(Mutex::new(kept)))
    }

    /// The whole body, from its beginning, as long as it [is replayable](Self::is_replayable); earlier attempts read no more.
    pub(crate) fn attempt(&self) -> Body {
        let mut kept = lock(&self.0);
        kept.attempt += 1;
        let attempt = Attempt { kept: Arc::clone(&self.0), number: kept.attempt, sent: 0 };
        drop(kept);
        Body::new(attempt)
    }

    /// Says whether there can be another attempt.
    pub(crate) fn is_replayable(&self) -> bool {
        !lock(&self.0).overflown
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    fn keep(&mut self, data: &Bytes) {
        if data.len() > self.room {
            self.overflown = true;
            self.read = Vec::new();
        } else if !self.overflown {
            self.room -= data.len();
            self.read.push(data.clone());
        }
    }
}

struct Attempt {
    kept: Arc<Mutex<Kept>>,
    number: u32,
    /// How many of the kept pieces were sent.
    sent: usize,
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut kept = lock(&this.kept);
        if kept.attempt != this.number {
            return Poll::Ready(Some(Err(Status::cancelled("the call was tried again"))));
        }
        if let Some(data) = kept.read.get(this.sent) {
            this.sent += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if kept.ended {
            return Poll::Ready(None);
        }
        let Some(frame) = ready!(Pin::new(&mut kept.source).poll_frame(cx)?) else {
            kept.ended = true;
            return Poll::Ready(None);
        };
        match frame.data_ref() {
            Some(data) => {
                kept.keep(data);
                kept.ended = kept.source.is_end_stream();
                this.sent += 1;
            }
            // Clients of gRPC send none; if one does, that is the end and it is sent once.
            None => kept.overflown = true,
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let kept = lock(&self.kept);
        kept.ended && (kept.overflown || self.sent >= kept.read.len())
    }

    fn size_hint(&self) -> SizeHint {
        let kept = lock(&self.kept);
        let unsent = kept.read.get(self.sent..).unwrap_or_default().iter().map(Bytes::len).sum::<usize>() as u64;
        let source = if kept.ended { SizeHint::with_exact(0) } else { kept.source.size_hint() };
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
    use futures::StreamExt;
    use http_body_util::{BodyExt, StreamBody};

    fn body(pieces: &[&'static str]) -> Body {
        let frames = pieces.iter().map(|piece| Ok::<_, Status>(Frame::data(Bytes::from_static(piece.as_bytes()))));
        Body::new(StreamBody::new(futures::stream::iter(frames.collect::<Vec<_>>())))
    }

    async fn read(body: Body) -> Vec<u8> {
        body.collect().await.unwrap().to_bytes().to_vec()
    }

    #[tokio::test]
    async fn every_attempt_sends_everything() {
        let replay = Replay::new(body(&["one ", "two ", "three"]), 100);
        for _ in 0..3 {
            assert_eq!(read(replay.attempt()).await, b"one two three");
        }
    }

    #[tokio::test]
    async fn an_attempt_goes_on_where_the_last_one_stopped_reading() {
        let replay = Replay::new(body(&["one ", "two ", "three"]), 100);
        let mut first = replay.attempt();
        first.frame().await.unwrap().unwrap();
        let second = replay.attempt();
        assert!(first.frame().await.unwrap().is_err(), "an earlier attempt must read no more");
        assert_eq!(read(second).await, b"one two three");
    }

    #[tokio::test]
    async fn what_was_read_beyond_the_limit_cannot_be_sent_again() {
        let replay = Replay::new(body(&["one ", "two ", "three"]), 4);
        let mut first = replay.attempt();
        first.frame().await.unwrap().unwrap();
        assert!(replay.is_replayable());
        let sent = first.into_data_stream().map(Result::unwrap).collect::<Vec<_>>().await;
        assert_eq!(sent, ["two ", "three"]);
        assert!(!replay.is_replayable());
    }
}
