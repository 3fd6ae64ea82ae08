//! Progress of clients with what is sent to them. A client can answer pings and send requests although it does not
//! read: its connection shows nothing of that.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tonic::Status;

use crate::connections::STALL;

/// Maximum bytes that are passed to the connection at a time. With whole responses, a slow client could not be told
/// from one that reads nothing.
const PART_BYTES: usize = 64 << 10;

/// Progress of a client with a stream of responses: the deadline at which it must have taken the last part; `None` if
/// there is none that it has not taken.
#[derive(Clone, Debug)]
pub(super) struct Progress(watch::Receiver<Option<Instant>>);

/// End of a stream of responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeliveryEnd {
    /// The connection has passed it on, or the stream or the connection has ended.
    Complete,
    /// The client has taken nothing for [`STALL`].
    Stalled,
}

impl Progress {
    /// Waits for the end. Dropping the future loses nothing.
    pub(super) async fn end(&mut self) -> DeliveryEnd {
        loop {
            let deadline = *self.0.borrow_and_update();
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return DeliveryEnd::Stalled;
            }
            tokio::select! {
                changed = self.0.changed() => if changed.is_err() {
                    return DeliveryEnd::Complete;
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            }
        }
    }
}

/// The last byte of a frame. The connection drops it once it has copied it into its own buffer, or the stream has
/// ended. Not a part of the frame, which would keep the whole one in memory.
struct LastByte {
    byte: [u8; 1],
    _delivery: watch::Sender<Option<Instant>>,
}

impl AsRef<[u8]> for LastByte {
    fn as_ref(&self) -> &[u8] {
        &self.byte
    }
}

/// Body of a stream of responses, which is sent in parts.
pub(super) struct ResponseBody<B> {
    body: B,
    /// Bytes that have not been passed on.
    rest: Bytes,
    deadline: watch::Sender<Option<Instant>>,
}

impl<B> ResponseBody<B> {
    /// Returns the body with these responses, and the progress of its client.
    pub(super) fn tracked(body: B) -> (Self, Progress) {
        let (deadline, progress) = watch::channel(None);
        (Self { body, rest: Bytes::new(), deadline }, Progress(progress))
    }

    /// Takes the last byte of a frame. The delivery is not complete before the connection drops it.
    fn last_byte(&mut self) -> Bytes {
        let byte = [mem::take(&mut self.rest)[0]];
        Bytes::from_owner(LastByte { byte, _delivery: self.deadline.clone() })
    }

    /// Sets the deadline. Only its beginning wakes what waits for the end: at a former deadline that looks again.
    fn set_deadline(&self, deadline: Option<Instant>) {
        self.deadline.send_if_modified(|known| {
            let begins = known.is_none() && deadline.is_some();
            *known = deadline;
            begins
        });
    }
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = Status;

    /// The connection asks for the next frame once the client can receive the first byte of the last one. The last byte
    /// of a frame is a part of its own, so that the client can receive everything before it.
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if !self.rest.is_empty() {
                let part = match self.rest.len() - 1 {
                    0 => self.last_byte(),
                    bytes => self.rest.split_to(bytes.min(PART_BYTES)),
                };
                self.set_deadline(Some(Instant::now() + STALL));
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            let next = Pin::new(&mut self.body).poll_frame(cx);
            match next {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => {
                        // For the last byte, if the connection still has it.
                        self.set_deadline(Some(Instant::now() + STALL));
                        return Poll::Ready(Some(Ok(trailers)));
                    }
                },
                other => {
                    self.set_deadline(None);
                    return other;
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::codegen::http::HeaderMap;

    use super::*;
    use enlist_testkit::soon;

    type Frames = mpsc::Sender<Result<Frame<Bytes>, Status>>;

    fn body() -> (Frames, ResponseBody<impl Body<Data = Bytes, Error = Status> + Unpin>, Progress) {
        let (sender, frames) = mpsc::channel(8);
        let (body, progress) = ResponseBody::tracked(StreamBody::new(ReceiverStream::new(frames)));
        (sender, body, progress)
    }

    async fn send(sender: &Frames, bytes: usize) {
        sender.send(Ok(Frame::data(vec![b'x'; bytes].into()))).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn parts_are_complete() {
        let (sender, body, _progress) = body();
        for bytes in [1, PART_BYTES, PART_BYTES + 1, 10 * PART_BYTES] {
            send(&sender, bytes).await;
        }
        drop(sender);
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 12 * PART_BYTES + 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_stalled() {
        let (sender, mut body, mut progress) = body();
        send(&sender, 1).await;
        body.frame().await.unwrap().unwrap();
        let begun = Instant::now();
        assert_eq!(progress.end().await, DeliveryEnd::Stalled);
        assert_eq!(begun.elapsed(), STALL);
        drop(sender);
    }

    /// The connection has the last byte.
    #[tokio::test(start_paused = true)]
    async fn a_delivery_lasts_until_its_last_byte_is_sent() {
        let (sender, mut body, mut progress) = body();
        send(&sender, 2).await;
        body.frame().await.unwrap().unwrap();
        let last = body.frame().await.unwrap().unwrap();
        assert!(body.frame().now_or_never().is_none(), "there is nothing to send");
        sender.send(Ok(Frame::trailers(HeaderMap::new()))).await.unwrap();
        body.frame().await.unwrap().unwrap();
        drop(body);
        let mut other = progress.clone();
        assert!(tokio::time::timeout(STALL * 9 / 10, progress.end()).await.is_err());
        assert_eq!(soon("the end", other.end()).await, DeliveryEnd::Stalled);
        drop(last);
        assert!(soon("the end", progress.0.changed()).await.is_err(), "the delivery is complete");
    }

    /// It takes a part a minute.
    #[tokio::test(start_paused = true)]
    async fn a_slow_client_is_not_stalled() {
        let (sender, mut body, mut progress) = body();
        send(&sender, 10 * PART_BYTES).await;
        // The last byte is a part of its own.
        for _ in 0..=10 {
            body.frame().await.unwrap().unwrap();
            assert!(tokio::time::timeout(STALL.mul_f64(0.9), progress.end()).await.is_err());
        }
        assert!(body.frame().now_or_never().is_none(), "everything was taken");
        assert!(tokio::time::timeout(10 * STALL, progress.end()).await.is_err());
        drop(body);
        assert_eq!(progress.end().await, DeliveryEnd::Complete);
    }
}
