//! Requests of a stream, and the memory that they take until they are complete: large ones share a budget, and each has
//! a deadline. One that finds no room waits, and its client can send no more than the window of its stream. Nothing is
//! kept between requests; tonic's decoder would keep a buffer as large as the largest one until the stream ends.

use std::{fmt, future::poll_fn, pin::Pin, sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use http_body::Body as _;
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
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
    /// Maximum bytes of one request. Longer ones are refused.
    max: usize,
    free: Arc<Semaphore>,
    limit: Arc<Limit>,
}

impl RequestBudget {
    /// Creates the budget of a server for requests of at most `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        let free = Arc::new(Semaphore::new(BUDGET.max(max).min(Semaphore::MAX_PERMITS)));
        let limit = Limit::new("xds_request_bytes", free.available_permits());
        Self { max, free, limit }
    }

    /// Counts a request that was not complete in time. Returns the status with which its stream ends.
    fn late(&self) -> Status {
        self.limit.refuse();
        Status::deadline_exceeded("the request is not complete")
    }

    /// Returns the use of the budget. Refused are requests that were not complete in time.
    pub(super) fn usage(&self) -> LimitUse {
        self.limit.usage(Some(self.limit.max().saturating_sub(self.free.available_permits())))
    }

    /// Returns room for a request of this length once there is some.
    fn room(&self, length: usize) -> WaitForRoom {
        let (free, length) = (Arc::clone(&self.free), u32::try_from(length).unwrap_or(u32::MAX));
        Box::pin(async move { free.acquire_many_owned(length).await.ok() })
    }
}

/// Future of room in the budget; `None` once the budget is closed, which does not occur.
type WaitForRoom = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// Requests of a stream.
pub(super) struct Requests {
    body: Body,
    budget: RequestBudget,
    /// Bytes that are not decoded yet.
    buffer: BytesMut,
    /// Wait of the present request for room, and its deadline.
    waiting: Option<(WaitForRoom, Instant)>,
    /// Room of the present request.
    room: Option<OwnedSemaphorePermit>,
    /// Time at which the present request has to be complete; `None` before it has begun.
    deadline: Option<Instant>,
}

impl Requests {
    /// Creates the requests in a body.
    pub(super) fn new(body: Body, budget: RequestBudget) -> Self {
        Self { body, budget, buffer: BytesMut::new(), waiting: None, room: None, deadline: None }
    }

    /// Returns the next request; `None` once the client has ended them. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// Status with which the stream is to end.
    pub(super) async fn next(&mut self) -> Result<Option<DiscoveryRequest>, Status> {
        loop {
            if let Some(length) = self.length()? {
                if self.buffer.len() >= HEADER_BYTES + length {
                    return self.decode(length).map(Some);
                }
                self.take_room(length).await?;
                self.reserve(HEADER_BYTES + length);
            }
            match self.frame().await? {
                Some(bytes) => {
                    self.reserve(self.buffer.len() + bytes.len());
                    self.buffer.extend_from_slice(&bytes);
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Status::internal("the last request is not complete")),
            }
        }
    }

    /// Returns the length of the present request without its header; `None` if the header is not complete.
    fn length(&self) -> Result<Option<usize>, Status> {
        let Some([is_compressed, length @ ..]) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        if *is_compressed != 0 {
            return Err(Status::internal("a request is compressed, which its stream does not announce"));
        }
        let (length, max) = (usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX), self.budget.max);
        if length > max {
            return Err(Status::out_of_range(format!("a request has {length} bytes; {max} are permitted")));
        }
        Ok(Some(length))
    }

    /// Decodes the present request, which is complete.
    fn decode(&mut self, length: usize) -> Result<DiscoveryRequest, Status> {
        let message = &self.buffer[HEADER_BYTES..HEADER_BYTES + length];
        let request = DiscoveryRequest::decode(message).map_err(|error| Status::internal(error.to_string()))?;
        self.buffer.advance(HEADER_BYTES + length);
        if self.buffer.is_empty() || length > SMALL {
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        (self.room, self.deadline) = (None, None);
        Ok(request)
    }

    /// Waits for room for the present request, if it needs any.
    async fn take_room(&mut self, length: usize) -> Result<(), Status> {
        if length <= SMALL || self.room.is_some() {
            return Ok(());
        }
        let budget = &self.budget;
        let (room, deadline) = self.waiting.get_or_insert_with(|| (budget.room(length), Instant::now() + WAIT));
        let room = timeout_at(*deadline, room).await.map_err(|_| budget.late())?;
        (self.room, self.waiting, self.deadline) = (room, None, Some(Instant::now() + COMPLETION));
        Ok(())
    }

    /// Grows the buffer to exactly this size, if it is smaller: by itself it would double, with decoded bytes included.
    fn reserve(&mut self, bytes: usize) {
        if self.buffer.capacity() < bytes {
            let mut buffer = BytesMut::with_capacity(bytes);
            buffer.extend_from_slice(&self.buffer);
            self.buffer = buffer;
        }
    }

    /// Returns the next bytes; `None` at the end.
    async fn frame(&mut self) -> Result<Option<Bytes>, Status> {
        let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx));
        let frame = if self.buffer.is_empty() {
            frame.await
        } else {
            let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + COMPLETION);
            timeout_at(deadline, frame).await.map_err(|_| self.budget.late())?
        };
        Ok(frame.transpose()?.map(|frame| frame.into_data().unwrap_or_default()))
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("buffered", &self.buffer.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist_testkit::soon;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::Code;

    const MAX: usize = 1 << 20;

    type Frames = mpsc::Sender<Result<Frame<Bytes>, Status>>;

    /// Returns a request that has this length.
    fn request(length: usize) -> DiscoveryRequest {
        let name = |bytes| DiscoveryRequest { type_url: "x".repeat(bytes), ..DiscoveryRequest::default() };
        let request = (0..=length).rev().map(name).find(|request| request.encoded_len() <= length).unwrap();
        assert_eq!(request.encoded_len(), length);
        request
    }

    /// Returns a message with a request of this length.
    fn message(length: usize) -> Bytes {
        let header = [&[0][..], &u32::try_from(length).unwrap().to_be_bytes()].concat();
        [header, request(length).encode_to_vec()].concat().into()
    }

    /// Returns requests, and what sends their frames.
    fn requests(budget: &RequestBudget) -> (Frames, Requests) {
        let (sender, frames) = mpsc::channel(8);
        (sender, Requests::new(Body::new(StreamBody::new(ReceiverStream::new(frames))), budget.clone()))
    }

    async fn send(sender: &Frames, bytes: impl Into<Bytes>) {
        sender.send(Ok(Frame::data(bytes.into()))).await.unwrap();
    }

    /// Returns the status that ends the requests after these bytes.
    async fn refusal(bytes: impl Into<Bytes>) -> Status {
        let (sender, mut requests) = requests(&RequestBudget::new(MAX));
        send(&sender, bytes).await;
        drop(sender);
        requests.next().await.unwrap_err()
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_found_at_any_division() {
        const LENGTHS: [usize; 4] = [3, 0, 300, 7];
        let all = LENGTHS.map(message).concat();
        for size in 1..=all.len() {
            let (sender, mut requests) = requests(&RequestBudget::new(MAX));
            let send_all = async {
                for chunk in all.chunks(size) {
                    send(&sender, chunk.to_vec()).await;
                }
                drop(sender);
            };
            let receive = async {
                for length in LENGTHS {
                    assert_eq!(requests.next().await.unwrap(), Some(request(length)), "parts of {size} bytes");
                }
                assert_eq!(requests.next().await.unwrap(), None);
            };
            tokio::join!(send_all, receive);
        }
    }

    #[tokio::test]
    async fn invalid_requests_end_their_stream() {
        let whole = message(10);
        let changed = |at: usize, byte| {
            let mut bytes = whole.to_vec();
            bytes[at] = byte;
            bytes
        };
        for (bytes, code) in [
            (changed(0, 1), Code::Internal),
            (changed(1, 1), Code::OutOfRange),
            (changed(HEADER_BYTES, 0xff), Code::Internal),
            (whole[..whole.len() - 1].to_vec(), Code::Internal),
            (whole[..3].to_vec(), Code::Internal),
        ] {
            let status = refusal(bytes.clone()).await;
            assert_eq!(status.code(), code, "{status:?} after {bytes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_incomplete_request_ends_its_stream() {
        let (sender, mut requests) = requests(&RequestBudget::new(MAX));
        let whole = message(10);
        send(&sender, whole.slice(..9)).await;
        assert!(tokio::time::timeout(COMPLETION / 2, requests.next()).await.is_err());
        send(&sender, whole.slice(9..)).await;
        assert!(requests.next().await.unwrap().is_some());
        let idle = tokio::time::timeout(10 * COMPLETION, requests.next()).await;
        assert!(idle.is_err(), "between requests there is no deadline");
        send(&sender, whole.slice(..9)).await;
        let begun = Instant::now();
        // The task of the stream looks at other events meanwhile.
        assert!(tokio::time::timeout(COMPLETION / 2, requests.next()).await.is_err());
        assert_eq!(requests.next().await.unwrap_err().code(), Code::DeadlineExceeded);
        assert_eq!(begun.elapsed(), COMPLETION);
    }

    /// Returns requests of which the first one, of the maximum length, lacks its last byte.
    async fn begun(budget: &RequestBudget) -> (Frames, Requests) {
        let (sender, mut requests) = requests(budget);
        let message = message(MAX);
        for part in [message.slice(..1), message.slice(1..HEADER_BYTES + MAX - 1)] {
            send(&sender, part).await;
        }
        assert!(tokio::time::timeout(COMPLETION / 100, requests.next()).await.is_err());
        (sender, requests)
    }

    /// Returns the last byte of a request of the maximum length.
    fn last_byte() -> Bytes {
        message(MAX).slice(HEADER_BYTES + MAX - 1..)
    }

    #[tokio::test(start_paused = true)]
    async fn large_requests_wait_for_room() {
        let budget = RequestBudget::new(MAX);
        let mut all = Vec::new();
        for _ in 0..BUDGET / MAX {
            all.push(begun(&budget).await);
        }
        assert_eq!(budget.free.available_permits(), 0);
        assert!(all.iter().all(|(_, requests)| requests.buffer.capacity() == HEADER_BYTES + MAX));
        let (small, mut small_requests) = requests(&budget);
        send(&small, message(SMALL)).await;
        assert!(small_requests.next().await.unwrap().is_some(), "a small one does not wait");
        let (large, mut large_requests) = begun(&budget).await;
        assert!(tokio::time::timeout(2 * COMPLETION, large_requests.next()).await.is_err());
        // One of the others is complete.
        let (sender, requests) = &mut all[0];
        send(sender, last_byte()).await;
        assert!(requests.next().await.unwrap().is_some());
        assert!(tokio::time::timeout(COMPLETION * 9 / 10, large_requests.next()).await.is_err());
        assert_eq!(budget.free.available_permits(), 0, "it has room");
        send(&large, last_byte()).await;
        assert!(large_requests.next().await.unwrap().is_some(), "the time of its wait does not count");
        drop(all);
        assert_eq!(budget.free.available_permits(), BUDGET);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_room_ends_its_stream() {
        let budget = RequestBudget::new(MAX);
        let all = Arc::clone(&budget.free).acquire_many_owned(u32::try_from(BUDGET).unwrap()).await.unwrap();
        let start = Instant::now();
        let (_sender, mut requests) = begun(&budget).await;
        assert_eq!(requests.next().await.unwrap_err().code(), Code::DeadlineExceeded);
        assert_eq!((start.elapsed(), budget.usage().refused), (WAIT, 1));
        drop(all);
    }

    /// The frame with its end is that with the beginning of the next one, for which there is no room.
    #[tokio::test(start_paused = true)]
    async fn a_complete_request_is_not_held_back() {
        let budget = RequestBudget::new(MAX);
        let (sender, mut requests) = begun(&budget).await;
        let rest = BUDGET - MAX + 1;
        let (free, rest) = (Arc::clone(&budget.free), u32::try_from(rest).unwrap());
        let others = async { free.acquire_many_owned(rest).await.unwrap() };
        let first = async {
            send(&sender, [&last_byte()[..], &message(MAX)[..HEADER_BYTES]].concat()).await;
            requests.next().await.unwrap()
        };
        let (_others, first) = soon("both", async { tokio::join!(others, first) }).await;
        assert!(first.is_some());
        // The capacity does not include decoded bytes.
        assert!(!requests.buffer.try_reclaim(SMALL), "its memory is free");
        let next = tokio::time::timeout(WAIT / 2, requests.next()).await;
        assert!(next.is_err(), "there is no room for the next one");
    }
}
