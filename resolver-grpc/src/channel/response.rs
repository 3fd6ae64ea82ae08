//! The body of a response. The call is in flight until the body ends, at its deadline at the latest. Its code counts
//! for or against the instance.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{Code, Status, body::Body, metadata::MetadataMap};

use crate::{
    channel::in_flight::InFlightCall,
    retry::{
        deadline::{Deadline, Expiry},
        failure,
        status::{code, http_code, is_http_error},
    },
};

/// Counts the call as in flight until `response` ends or is dropped, and ends it at `deadline`, which `expiry` waits
/// for. `only_status` is the result of [`only_status`](crate::retry::status::only_status) for the response.
///
/// # Errors
///
/// The status that corresponds to an HTTP error.
pub(crate) fn tracked(
    response: http::Response<Body>,
    only_status: Option<Code>,
    in_flight: InFlightCall,
    deadline: Deadline,
    expiry: Expiry,
) -> Result<http::Response<Body>, Status> {
    if let Some(code) = only_status {
        in_flight.ended(code);
        let is_error = is_http_error(&response);
        return if is_error { Err(http_error(&response, &in_flight.subchannel().to_string())) } else { Ok(response) };
    }
    let http = response.status();
    let tracked = |body| Tracked { body, http, in_flight: Some(in_flight), deadline, expiry, is_stalled: true };
    Ok(response.map(|body| Body::new(tracked(body))))
}

fn http_error(response: &http::Response<Body>, instance: &str) -> Status {
    let message = format!("instance {instance} responded with HTTP status {} and no gRPC status", response.status());
    let metadata = MetadataMap::from_headers(response.headers().clone());
    Status::with_metadata(http_code(response.status()), message, metadata)
}

struct Tracked {
    body: Body,
    /// Status of the call if no gRPC status follows.
    http: http::StatusCode,
    /// Present until the end of the call is known.
    in_flight: Option<InFlightCall>,
    deadline: Deadline,
    expiry: Expiry,
    /// Nothing followed the head of the response.
    is_stalled: bool,
}

impl Tracked {
    fn ended(&mut self, code: Code) {
        if let Some(in_flight) = self.in_flight.take() {
            in_flight.ended(code);
        }
    }

    /// Ends the call at its deadline. Dropping the body ends the stream.
    fn end_late(&mut self) -> Option<Result<Frame<Bytes>, Status>> {
        self.body = Body::empty();
        let in_flight = self.in_flight.take()?;
        let late = failure::late(&in_flight.subchannel().to_string());
        // A stream that has begun may last until its deadline: that is no evidence against the instance.
        if self.is_stalled {
            in_flight.ended(late.code());
        }
        Some(Err(late))
    }
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.in_flight.is_some() && self.expiry.poll(cx).is_ready() {
            return Poll::Ready(self.end_late());
        }
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &mut frame {
            Some(Ok(frame)) => match frame.trailers_ref() {
                Some(trailers) => {
                    let code = code(trailers).unwrap_or_else(|| http_code(self.http));
                    self.ended(code);
                }
                None => self.is_stalled = false,
            },
            // Both sides cancel a late call, and either one may be first.
            Some(Err(_)) | None if self.in_flight.is_some() && self.deadline.is_past() => {
                return Poll::Ready(self.end_late());
            }
            Some(Err(status)) => {
                if let Some(in_flight) = self.in_flight.take() {
                    let instance = in_flight.subchannel().to_string();
                    *status = failure::broken_off(std::mem::replace(status, Status::ok("")), &instance);
                    in_flight.ended(status.code());
                }
            }
            None => {
                let code = http_code(self.http);
                self.ended(code);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
