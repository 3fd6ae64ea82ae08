//! Responses to a client as the body of an HTTP response. Each is encoded into bytes of its own, which are free once
//! they are sent. tonic's encoder keeps a buffer of the size of the largest response for each client.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use http_body::Frame;
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::{
    Status,
    codegen::http::{HeaderMap, HeaderValue},
};

use super::{client_stream::QueuedResponse, requests::HEADER_BYTES};

/// Responses until their sender is dropped, or sends a status.
#[derive(Debug)]
pub(super) struct Responses {
    queue: mpsc::Receiver<QueuedResponse>,
    has_ended: bool,
}

impl Responses {
    pub(super) fn new(queue: mpsc::Receiver<QueuedResponse>) -> Self {
        Self { queue, has_ended: false }
    }
}

impl http_body::Body for Responses {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let encoded = match ready!(self.queue.poll_recv(cx)).map(|response| *response) {
            Some(response) => response.and_then(|response| encoded(&response)),
            None => Err(Status::ok("")),
        };
        let frame = encoded.map(Frame::data).or_else(|status| {
            self.has_ended = true;
            trailers(&status).map(Frame::trailers)
        });
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }
}

/// Returns a response as a message of gRPC: the flag for compression, the length, and the content.
fn encoded(response: &DiscoveryResponse) -> Result<Bytes, Status> {
    let length = response.encoded_len();
    let too_long = |_| Status::resource_exhausted("the response is too long for gRPC");
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).map_err(too_long)?);
    response.encode(&mut bytes).map_err(|error| Status::internal(error.to_string()))?;
    Ok(bytes.freeze())
}

fn trailers(status: &Status) -> Result<HeaderMap<HeaderValue>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(trailers)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn response() -> DiscoveryResponse {
        DiscoveryResponse { nonce: "1".to_owned(), ..DiscoveryResponse::default() }
    }

    async fn all(sent: Vec<Result<DiscoveryResponse, Status>>) -> (Vec<u8>, HeaderMap<HeaderValue>) {
        let sent_count = sent.len();
        let (sender, queue) = mpsc::channel(sent_count);
        for one in sent {
            sender.send(Box::new(one)).await.unwrap();
        }
        drop(sender);
        let (mut body, mut frames) = (Responses::new(queue), Vec::new());
        // One more than there can be: a body that does not end is shown by its trailers.
        for _ in 0..sent_count + 2 {
            frames.extend(body.frame().await);
        }
        let (mut content, mut trailers) = (Vec::new(), Vec::new());
        for frame in frames {
            match frame.unwrap().into_data() {
                Ok(data) => content.extend(data),
                Err(frame) => trailers.push(frame.into_trailers().unwrap()),
            }
        }
        assert!(http_body::Body::is_end_stream(&body));
        let [trailers] = <[_; 1]>::try_from(trailers).unwrap();
        (content, trailers)
    }

    #[tokio::test]
    async fn each_response_is_a_message() {
        let (content, trailers) = all(vec![Ok(response()), Ok(DiscoveryResponse::default())]).await;
        let mut message = response().encode_to_vec();
        let length = u8::try_from(message.len()).unwrap();
        let mut expected = vec![0, 0, 0, 0, length];
        expected.append(&mut message);
        expected.extend([0; HEADER_BYTES]);
        assert_eq!(content, expected);
        assert_eq!(trailers["grpc-status"], "0");
    }

    #[tokio::test]
    async fn a_status_ends_the_responses() {
        let (content, trailers) = all(vec![Err(Status::unavailable("the agent stops")), Ok(response())]).await;
        assert!(content.is_empty());
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "the%20agent%20stops");
    }
}
