//! The body of an answer: the call is in flight until it ends, and its end says how the instance did.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Code, Status, body::Body};

use crate::flight::Flight;

/// Counts the call as in flight until `answer` ends or is dropped.
pub(crate) fn tracked(answer: http::Response<Body>, flight: Flight) -> http::Response<Body> {
    if answer.body().is_end_stream() {
        flight.ended(code(answer.headers()).unwrap_or(Code::Ok));
        return answer;
    }
    answer.map(|body| Body::new(Tracked { body, flight: Some(flight) }))
}

/// The status of an answer that has no body, or that of its trailers; `None` if there is none.
pub(crate) fn code(headers: &http::HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|status| Code::from_bytes(status.as_bytes()))
}

struct Tracked {
    body: Body,
    flight: Option<Flight>,
}

impl Tracked {
    fn ended(&mut self, code: Code) {
        if let Some(flight) = self.flight.take() {
            flight.ended(code);
        }
    }
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.ended(code(trailers).unwrap_or(Code::Unknown));
                }
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
