//! Decoder of the requests of a stream. It keeps no memory between them; that of tonic would keep a buffer as large as
//! the largest request until the stream ends.

use std::{future::poll_fn, pin::Pin};

use bytes::BytesMut;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use http_body::Body as _;
use prost::Message as _;
use tonic::Status;

use super::requests::{HEADER_BYTES, RequestBody};

/// Requests of a client.
#[derive(Debug)]
pub(super) struct Requests {
    body: RequestBody,
    /// Maximum bytes of one.
    max: usize,
    /// Bytes that are not decoded yet.
    buffer: BytesMut,
}

impl Requests {
    pub(super) fn new(body: RequestBody, max: usize) -> Self {
        Self { body, max, buffer: BytesMut::new() }
    }

    /// Returns the next request; `None` once the client has ended them. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// Status with which the stream is to end.
    pub(super) async fn next(&mut self) -> Result<Option<DiscoveryRequest>, Status> {
        loop {
            if let Some(request) = self.decode()? {
                return Ok(Some(request));
            }
            match poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
                Some(frame) => self.buffer.extend_from_slice(&frame?.into_data().unwrap_or_default()),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Status::internal("the last request is not complete")),
            }
        }
    }

    /// Decodes the next request, if all of it has arrived.
    fn decode(&mut self) -> Result<Option<DiscoveryRequest>, Status> {
        let Some(([is_compressed, length @ ..], rest)) = self.buffer.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        if *is_compressed != 0 {
            return Err(Status::internal("a request is compressed, which its stream does not announce"));
        }
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > self.max {
            return Err(Status::out_of_range(format!("a request has {length} bytes; {} are permitted", self.max)));
        }
        let Some((message, rest)) = rest.split_at_checked(length) else {
            self.buffer.reserve(HEADER_BYTES + length - self.buffer.len());
            return Ok(None);
        };
        let request = DiscoveryRequest::decode(message).map_err(|error| Status::internal(error.to_string()))?;
        self.buffer = BytesMut::from(rest);
        Ok(Some(request))
    }
}
