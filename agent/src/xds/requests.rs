//! Requests of which a part has arrived. They occupy memory until they are complete: large ones share a budget, and
//! each has a deadline. One that finds no room waits, and its client can send no more than the window of its
//! stream.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tonic::{Status, body::Body};

use crate::limits::{Limit, LimitUse};

/// Maximum time until a request that has begun is complete, from the time at which it has room.
const COMPLETION: Duration = Duration::from_secs(10);

/// Maximum time for which a request waits for room.
const WAIT: Duration = Duration::from_secs(30);

/// Maximum bytes of a request that needs no room in the budget. Requests of clients with up to a hundred names are
/// smaller.
const SMALL: usize = 16 << 10;

/// Maximum bytes of all larger requests together that are not complete.
const BUDGET: usize = 64 << 20;

/// Bytes before each message of gRPC: a flag, and the length.
pub(super) const HEADER_BYTES: usize = 5;

/// Bytes that incomplete requests may occupy together.
#[derive(Clone, Debug)]
pub(super) struct RequestBudget {
    /// Maximum bytes of one request. The decoder refuses longer ones.
    max: usize,
    free: Arc<Semaphore>,
    late: Arc<Limit>,
}

impl RequestBudget {
    /// Creates the budget of a server for requests of at most `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        let free = Arc::new(Semaphore::new(BUDGET.max(max).min(Semaphore::MAX_PERMITS)));
        let late = Limit::new("xds_request_bytes", free.available_permits());
        Self { max, free, late }
    }

    /// Maximum bytes of one request.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Returns the use of the budget. Refused are requests that were not complete in time.
    pub(super) fn usage(&self) -> LimitUse {
        self.late.usage(Some(self.late.max().saturating_sub(self.free.available_permits())))
    }

    /// Returns room for a request of this length, if it needs any.
    fn room(&self, length: usize) -> Option<WaitForRoom> {
        if length <= SMALL || length > self.max {
            return None;
        }
        let (free, length) = (Arc::clone(&self.free), u32::try_from(length).unwrap_or(u32::MAX));
        Some(Box::pin(async move { free.acquire_many_owned(length).await.ok() }))
    }
}

/// Future of room in the budget; `None` once the budget is closed, which does not occur.
type WaitForRoom = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// Body of a stream of requests.
pub(super) struct RequestBody {
    body: Body,
    budget: RequestBudget,
    position: Position,
    /// Frame that is passed on once there is room.
    held: Option<Frame<Bytes>>,
    waiting: Option<WaitForRoom>,
    room: Option<OwnedSemaphorePermit>,
    /// Of the request that is not complete.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(super) fn new(body: Body, budget: RequestBudget) -> Self {
        let position = Position::default();
        Self { body, budget, position, held: None, waiting: None, room: None, deadline: None }
    }

    /// Accounts for bytes that have arrived.
    fn account(&mut self, bytes: &[u8]) {
        let complete = self.position.complete;
        self.position.advance(bytes);
        if self.position.complete != complete {
            (self.room, self.deadline) = (None, None);
        }
        if self.position.is_between() {
            return;
        }
        if self.room.is_none() {
            self.waiting = self.budget.room(self.position.length);
        }
        if self.waiting.is_some() {
            self.deadline = Some(Box::pin(tokio::time::sleep(WAIT)));
        } else {
            self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(COMPLETION)));
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(deadline) = &mut self.deadline
                && deadline.as_mut().poll(cx).is_ready()
            {
                self.budget.late.refuse();
                return Poll::Ready(Some(Err(Status::deadline_exceeded("the request is not complete"))));
            }
            if let Some(waiting) = &mut self.waiting {
                self.room = ready!(waiting.as_mut().poll(cx));
                (self.waiting, self.deadline) = (None, Some(Box::pin(tokio::time::sleep(COMPLETION))));
                // The deadline has to be polled.
                continue;
            }
            if let Some(frame) = self.held.take() {
                return Poll::Ready(Some(Ok(frame)));
            }
            let frame = match ready!(http_body::Body::poll_frame(Pin::new(&mut self.body), cx)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            if let Some(bytes) = frame.data_ref() {
                self.account(bytes);
            }
            self.held = Some(frame);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && http_body::Body::is_end_stream(&self.body)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Position in the messages of a body.
#[derive(Debug, Default)]
struct Position {
    header: [u8; HEADER_BYTES],
    /// Number of bytes of the header that have arrived.
    header_bytes: usize,
    /// Length of the message without its header; 0 until that is known.
    length: usize,
    /// Number of its bytes that have not arrived.
    missing: usize,
    /// Number of messages that are complete.
    complete: u64,
}

impl Position {
    fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = if self.header_bytes < HEADER_BYTES {
                self.advance_in_header(bytes)
            } else {
                let count = self.missing.min(bytes.len());
                self.missing -= count;
                count
            };
            bytes = &bytes[count..];
            if self.header_bytes == HEADER_BYTES && self.missing == 0 {
                *self = Self { complete: self.complete + 1, ..Self::default() };
            }
        }
    }

    fn advance_in_header(&mut self, bytes: &[u8]) -> usize {
        let missing = &mut self.header[self.header_bytes..];
        let count = missing.len().min(bytes.len());
        missing[..count].copy_from_slice(&bytes[..count]);
        self.header_bytes += count;
        if self.header_bytes == HEADER_BYTES {
            let [_, length @ ..] = self.header;
            self.length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            self.missing = self.length;
        }
        count
    }

    /// Returns `true` if no message has begun that is not complete.
    fn is_between(&self) -> bool {
        self.header_bytes == 0
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").field("position", &self.position).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    const MAX: usize = 1 << 20;

    fn message(length: usize, present: usize) -> Bytes {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        bytes.extend(vec![b'x'; present]);
        bytes.into()
    }

    /// Returns a body, and what sends its frames.
    fn body(budget: &RequestBudget) -> (mpsc::Sender<Result<Frame<Bytes>, Status>>, RequestBody) {
        let (sender, frames) = mpsc::channel(8);
        (sender, RequestBody::new(Body::new(StreamBody::new(ReceiverStream::new(frames))), budget.clone()))
    }

    async fn send(sender: &mpsc::Sender<Result<Frame<Bytes>, Status>>, bytes: Bytes) {
        sender.send(Ok(Frame::data(bytes))).await.unwrap();
    }

    #[test]
    fn messages_are_found_at_any_division() {
        let all = [message(3, 3), message(0, 0), message(300, 300), message(7, 6)].concat();
        for size in 1..all.len() {
            let mut position = Position::default();
            all.chunks(size).for_each(|chunk| position.advance(chunk));
            assert_eq!((position.complete, position.length, position.missing), (3, 7, 1), "parts of {size} bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_incomplete_request_ends_its_stream() {
        let budget = RequestBudget::new(MAX);
        let (sender, mut body) = body(&budget);
        send(&sender, message(10, 10)).await;
        assert!(body.frame().await.unwrap().is_ok());
        let idle = tokio::time::timeout(10 * COMPLETION, body.frame()).await;
        assert!(idle.is_err(), "between requests there is no deadline");
        send(&sender, message(10, 9)).await;
        assert!(body.frame().await.unwrap().is_ok());
        let late = tokio::time::timeout(2 * COMPLETION, body.frame()).await.unwrap().unwrap().unwrap_err();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn large_requests_wait_for_room() {
        let budget = RequestBudget::new(MAX);
        let mut begun = Vec::new();
        for _ in 0..BUDGET / MAX {
            let (sender, mut body) = body(&budget);
            send(&sender, message(MAX, 1)).await;
            assert!(body.frame().await.unwrap().is_ok());
            begun.push((sender, body));
        }
        let (small, mut small_body) = body(&budget);
        send(&small, message(SMALL, 1)).await;
        assert!(small_body.frame().await.unwrap().is_ok(), "a small one does not wait");
        let (large, mut large_body) = body(&budget);
        send(&large, message(MAX, 1)).await;
        assert!(tokio::time::timeout(COMPLETION / 2, large_body.frame()).await.is_err());
        // One of the others is complete.
        let (sender, body) = &mut begun[0];
        send(sender, vec![0; MAX - 1].into()).await;
        assert!(body.frame().await.unwrap().is_ok());
        assert!(tokio::time::timeout(COMPLETION / 4, large_body.frame()).await.unwrap().unwrap().is_ok());
        // The time of its wait does not count.
        tokio::time::advance(COMPLETION * 9 / 10).await;
        send(&large, vec![0; MAX - 1].into()).await;
        assert!(large_body.frame().await.unwrap().is_ok());
    }
}
