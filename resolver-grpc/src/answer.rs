//! The body of an answer: the call is in flight until it ends, at its deadline at the latest, and its end says how the instance
//! did.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Code, Status, body::Body};

use crate::{
    deadline::{Deadline, Expiry},
    failure,
    flight::Flight,
};

/// Counts the call as in flight until `answer` ends or is dropped, and ends it at `deadline`, which `expiry` waits for.
pub(crate) fn tracked(
    answer: http::Response<Body>,
    flight: Flight,
    deadline: Deadline,
    expiry: Expiry,
) -> http::Response<Body> {
    if answer.body().is_end_stream() {
        flight.ended(code(answer.headers()).unwrap_or(Code::Ok));
        return answer;
    }
    answer.map(|body| Body::new(Tracked { body, flight: Some(flight), deadline, expiry, is_stalled: true }))
}

/// The status of an answer that has no body, or that of its trailers; `None` if there is none.
pub(crate) fn code(headers: &http::HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|status| Code::from_bytes(status.as_bytes()))
}

struct Tracked {
    body: Body,
    /// Until it is known how the call ended.
    flight: Option<Flight>,
    deadline: Deadline,
    expiry: Expiry,
    /// Nothing followed the head of the answer.
    is_stalled: bool,
}

impl Tracked {
    fn ended(&mut self, code: Code) {
        if let Some(flight) = self.flight.take() {
            flight.ended(code);
        }
    }

    /// Ends the call at its deadline, and with its body the stream.
    fn end_late(&mut self) -> Option<Result<Frame<Bytes>, Status>> {
        self.body = Body::empty();
        let flight = self.flight.take()?;
        let late = failure::late(&flight.subchannel().to_string());
        // A stream that was begun may well last until its deadline: that speaks against nobody.
        if self.is_stalled {
            flight.ended(late.code());
        }
        Some(Err(late))
    }
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.flight.is_some() && self.expiry.poll(cx).is_ready() {
            return Poll::Ready(self.end_late());
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => match frame.trailers_ref() {
                Some(trailers) => self.ended(code(trailers).unwrap_or(Code::Unknown)),
                None => self.is_stalled = false,
            },
            // Both sides cancel what is late, and either one may be first.
            Some(Err(_)) | None if self.flight.is_some() && self.deadline.is_past() => {
                return Poll::Ready(self.end_late());
            }
            Some(Err(status)) => self.ended(status.code()),
            None => self.ended(Code::Unknown),
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
