//! Responses to a client as the body of an HTTP response. They are encoded while they are sent, in parts: a large
//! resource is a part that all clients share, so a response that its client does not read costs little. tonic's encoder
//! copies each response as a whole.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    vec,
};

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use http_body::Frame;
use prost::{Message as _, encode_length_delimiter, length_delimiter_len};
use tokio::sync::mpsc;
use tonic::{
    Status,
    codegen::http::{HeaderMap, HeaderValue},
};

use super::{
    requests::HEADER_BYTES,
    resource::{Resource, ResourceType, Version},
};

/// Bytes from which a resource is sent without a copy, and from which a part with copies is complete.
const PART_BYTES: usize = 4 << 10;

/// Key of the field `resources` of `DiscoveryResponse`: the number 2, with a length.
const RESOURCES_KEY: u8 = 2 << 3 | 2;

/// Response that waits for its client. Boxed, because a channel has room for 32 of them from the beginning.
pub(super) type QueuedResponse = Box<Result<Response, Status>>;

/// Sender of responses to a client.
pub(super) type ResponseSender = mpsc::Sender<QueuedResponse>;

/// A response. Its resources are shared with other clients.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) kind: ResourceType,
    pub(super) version: Version,
    pub(super) nonce: u64,
    pub(super) resources: Vec<Resource>,
}

impl Response {
    /// Returns everything but the resources. Protocol buffers permit any order of fields.
    fn envelope(&self) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: self.version.to_string(),
            type_url: self.kind.url().to_owned(),
            nonce: self.nonce.to_string(),
            ..DiscoveryResponse::default()
        }
    }
}

/// The rest of a response that is being sent.
#[derive(Debug)]
struct Parts {
    /// Bytes that precede the resources.
    begun: BytesMut,
    resources: vec::IntoIter<Resource>,
    /// Resource whose key has been sent.
    whole: Option<Bytes>,
}

impl Parts {
    /// Returns the parts of a message of gRPC: the flag for compression, the length, and the content.
    ///
    /// # Errors
    ///
    /// If the response is too long for gRPC.
    fn new(response: Response) -> Result<Self, Status> {
        let envelope = response.envelope();
        let size = |one: &Resource| 1 + length_delimiter_len(one.any().len()) + one.any().len();
        let length = envelope.encoded_len() + response.resources.iter().map(size).sum::<usize>();
        let too_long = |_| Status::resource_exhausted("the response is too long for gRPC");
        let mut begun = BytesMut::with_capacity(HEADER_BYTES + length.min(PART_BYTES));
        begun.put_u8(0);
        begun.put_u32(u32::try_from(length).map_err(too_long)?);
        envelope.encode(&mut begun).map_err(internal)?;
        Ok(Self { begun, resources: response.resources.into_iter(), whole: None })
    }

    /// Returns the next part; `None` at the end.
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        if let Some(whole) = self.whole.take() {
            return Ok(Some(whole));
        }
        let mut part = mem::take(&mut self.begun);
        while part.len() < PART_BYTES {
            let Some(resource) = self.resources.next() else { break };
            let any = resource.any();
            part.put_u8(RESOURCES_KEY);
            encode_length_delimiter(any.len(), &mut part).map_err(internal)?;
            if any.len() >= PART_BYTES {
                self.whole = Some(any.clone());
                break;
            }
            part.extend_from_slice(any);
        }
        Ok(Some(part.freeze()).filter(|part| !part.is_empty()))
    }
}

/// Responses until their sender is dropped, or sends a status.
#[derive(Debug)]
pub(super) struct Responses {
    queue: mpsc::Receiver<QueuedResponse>,
    /// The response that is being sent.
    parts: Option<Parts>,
    has_ended: bool,
}

impl Responses {
    pub(super) fn new(queue: mpsc::Receiver<QueuedResponse>) -> Self {
        Self { queue, parts: None, has_ended: false }
    }

    /// Returns the next part of a response, or the status at the end of all.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        loop {
            if let Some(parts) = &mut self.parts
                && let Some(part) = parts.next()?
            {
                return Poll::Ready(Ok(part));
            }
            // Not before the end of the former one: the next one is made when there is room for it.
            self.parts = None;
            match ready!(self.queue.poll_recv(cx)).map(|response| *response) {
                Some(response) => self.parts = Some(Parts::new(response?)?),
                None => return Poll::Ready(Err(Status::ok(""))),
            }
        }
    }
}

impl http_body::Body for Responses {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let frame = ready!(self.poll_part(cx)).map(Frame::data).or_else(|status| {
            self.has_ended = true;
            trailers(&status).map(Frame::trailers)
        });
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }
}

fn internal(error: prost::EncodeError) -> Status {
    Status::internal(error.to_string())
}

fn trailers(status: &Status) -> Result<HeaderMap<HeaderValue>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(trailers)
}

#[cfg(test)]
pub(super) mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use http_body_util::BodyExt as _;

    use super::*;

    /// Returns a response as clients decode it.
    pub(in crate::xds) fn decoded(response: Response) -> DiscoveryResponse {
        let (mut parts, mut bytes) = (Parts::new(response).unwrap(), Vec::new());
        while let Some(part) = parts.next().unwrap() {
            bytes.extend_from_slice(&part);
        }
        let (header, message) = bytes.split_at(HEADER_BYTES);
        assert_eq!(header, [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes()].concat());
        DiscoveryResponse::decode(message).unwrap()
    }

    /// Clusters whose names have these lengths.
    fn response(lengths: &[usize]) -> Response {
        let cluster = |length: &usize| {
            let name = "x".repeat(*length);
            Resource::new(&name, &Cluster { name: name.clone(), ..Cluster::default() })
        };
        let resources: Vec<_> = lengths.iter().map(cluster).collect();
        Response { kind: ResourceType::Cluster, version: Version::of_set(&resources), nonce: 7, resources }
    }

    async fn all(sent: Vec<Result<Response, Status>>) -> (Vec<u8>, HeaderMap<HeaderValue>) {
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

    #[test]
    fn a_response_is_decoded_as_it_was() {
        const PART: usize = PART_BYTES;
        for lengths in [&[][..], &[1], &[0, 1, 2], &[PART], &[PART, PART], &[1, PART, 1], &[300; 100], &[PART - 60; 3]]
        {
            let (decoded, expected) = (decoded(response(lengths)), response(lengths));
            assert_eq!(decoded.version_info, expected.version.to_string());
            assert_eq!((decoded.type_url.as_str(), decoded.nonce.as_str()), (ResourceType::Cluster.url(), "7"));
            let names = decoded.resources.iter().map(|any| Cluster::decode(&any.value[..]).unwrap().name.len());
            assert_eq!(names.collect::<Vec<_>>(), lengths, "{lengths:?}");
            assert!(decoded.resources.iter().all(|any| any.type_url == ResourceType::Cluster.url()));
        }
    }

    #[test]
    fn a_large_resource_is_sent_without_a_copy() {
        let response = response(&[1, 10 * PART_BYTES]);
        let large = response.resources[1].any().clone();
        let mut parts = Parts::new(response).unwrap();
        parts.next().unwrap().unwrap();
        let shared = parts.next().unwrap().unwrap();
        assert_eq!((shared.as_ptr(), shared.len()), (large.as_ptr(), large.len()));
        assert_eq!(parts.next().unwrap(), None);
    }

    #[test]
    fn many_small_resources_are_sent_in_parts() {
        let mut parts = Parts::new(response(&[300; 100])).unwrap();
        while let Some(part) = parts.next().unwrap() {
            assert!(part.len() < PART_BYTES + 400, "{} bytes", part.len());
        }
    }

    #[tokio::test]
    async fn each_response_is_a_message() {
        let (content, trailers) = all(vec![Ok(response(&[1])), Ok(response(&[]))]).await;
        let one = usize::from(content[HEADER_BYTES - 1]);
        let second = HEADER_BYTES + one;
        let first = DiscoveryResponse::decode(&content[HEADER_BYTES..second]).unwrap();
        assert_eq!(first.resources.len(), 1);
        assert_eq!(usize::from(content[second + HEADER_BYTES - 1]), content.len() - second - HEADER_BYTES);
        assert_eq!(trailers["grpc-status"], "0");
    }

    #[tokio::test]
    async fn a_status_ends_the_responses() {
        let (content, trailers) = all(vec![Err(Status::unavailable("the agent stops")), Ok(response(&[1]))]).await;
        assert!(content.is_empty());
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "the%20agent%20stops");
    }
}
