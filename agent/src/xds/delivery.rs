//! Responses on their way to a client, and the time for which it has taken none of them. A client can answer pings and
//! send requests although it does not read: its connection shows nothing of that.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use enlist::backend::MutexExt as _;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use futures::Stream;
use prost::Message as _;
use tokio::{sync::mpsc, time::Instant};
use tonic::Status;

use crate::connections::STALL;

/// Responses that wait for a client to take them. Later ones are made when it does.
const RESPONSES: usize = 1;

/// Bytes of a response that a client takes in a second at least, after [`STALL`].
const BYTES_PER_SECOND: u64 = 16 << 10;

/// A response, or the end of the stream.
type Item = Result<DiscoveryResponse, Status>;

/// Sender of responses to a client.
#[derive(Clone, Debug)]
pub(super) struct Responses {
    pub(super) sender: mpsc::Sender<Item>,
    taking: Taking,
}

/// Responses that the server takes when the client can receive more.
#[derive(Debug)]
pub(super) struct Delivery {
    receiver: mpsc::Receiver<Item>,
    taking: Taking,
}

/// Deadline at which the client must have taken what was sent; `None` if nothing was.
#[derive(Clone, Debug, Default)]
struct Taking(Arc<Mutex<Option<Instant>>>);

impl Responses {
    /// Creates both ends.
    pub(super) fn new() -> (Self, Delivery) {
        let ((sender, receiver), taking) = (mpsc::channel(RESPONSES), Taking::default());
        (Self { sender, taking: taking.clone() }, Delivery { receiver, taking })
    }

    /// Sends a response.
    pub(super) fn send(&self, slot: mpsc::Permit<'_, Item>, response: DiscoveryResponse) {
        // Before the other end can take it.
        self.taking.0.locked().get_or_insert_with(|| Instant::now() + STALL);
        slot.send(Ok(response));
    }

    /// Deadline at which the client must have taken what was sent; `None` if nothing was.
    pub(super) fn deadline(&self) -> Option<Instant> {
        *self.taking.0.locked()
    }

    /// Returns `true` if the client has taken nothing for too long.
    pub(super) fn is_late(&self) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= Instant::now())
    }
}

impl Stream for Delivery {
    type Item = Item;

    /// The server has at most one response that is on its way to the client when it asks for the next one.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let next = self.receiver.poll_recv(cx);
        *self.taking.0.locked() = match &next {
            Poll::Ready(Some(Ok(response))) => Some(Instant::now() + allowed(response.encoded_len())),
            Poll::Ready(Some(Err(_)) | None) | Poll::Pending => None,
        };
        next
    }
}

/// Returns the time in which a client takes a response of this size.
fn allowed(bytes: usize) -> Duration {
    STALL + Duration::from_secs(u64::try_from(bytes).unwrap_or(u64::MAX) / BYTES_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt as _, StreamExt as _};

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_late() {
        let (responses, mut delivery) = Responses::new();
        assert_eq!(responses.deadline(), None);
        responses.send(responses.sender.reserve().await.unwrap(), DiscoveryResponse::default());
        tokio::time::advance(STALL / 2).await;
        assert!(delivery.next().await.is_some() && !responses.is_late());
        // The second one waits while the first one is being sent.
        responses.send(responses.sender.reserve().await.unwrap(), DiscoveryResponse::default());
        tokio::time::advance(STALL * 9 / 10).await;
        assert!(!responses.is_late());
        tokio::time::advance(STALL / 10).await;
        assert!(responses.is_late());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_without_responses_is_never_late() {
        let (responses, mut delivery) = Responses::new();
        responses.send(responses.sender.reserve().await.unwrap(), DiscoveryResponse::default());
        assert!(delivery.next().await.is_some());
        assert!(delivery.next().now_or_never().is_none());
        tokio::time::advance(10 * STALL).await;
        assert!(!responses.is_late());
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_response_has_more_time() {
        let (responses, mut delivery) = Responses::new();
        let nonce = "x".repeat(3 << 20);
        let large = DiscoveryResponse { nonce, ..DiscoveryResponse::default() };
        responses.send(responses.sender.reserve().await.unwrap(), large);
        assert!(delivery.next().await.is_some());
        tokio::time::advance(4 * STALL).await;
        assert!(!responses.is_late());
        tokio::time::advance(STALL).await;
        assert!(responses.is_late());
    }
}
