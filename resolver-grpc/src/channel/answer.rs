//! The body of an answer: the call is in flight until it ends, at its deadline at the latest, and its end says how the instance
//! did.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{Code, Status, body::Body, metadata::MetadataMap};

use crate::{
    channel::{
        deadline::{Deadline, Expiry},
        flight::InFlightCall,
    },
    retry::failure,
};

/// Counts the call as in flight until `answer` ends or is dropped, and ends it at `deadline`, which `expiry` waits for. `only_status` is
/// what [`only_status`] says of the answer.
///
/// # Errors
///
/// The status that an error of HTTP stands for.
pub(crate) fn tracked(
    answer: http::Response<Body>,
    only_status: Option<Code>,
    flight: InFlightCall,
    deadline: Deadline,
    expiry: Expiry,
) -> Result<http::Response<Body>, Status> {
    if let Some(code) = only_status {
        flight.ended(code);
        let is_error = is_http_error(&answer);
        return if is_error { Err(http_error(&answer, &flight.subchannel().to_string())) } else { Ok(answer) };
    }
    let http = answer.status();
    let tracked = |body| Tracked { body, http, flight: Some(flight), deadline, expiry, is_stalled: true };
    Ok(answer.map(|body| Body::new(tracked(body))))
}

/// The status of an answer that is nothing else: the only kind that gRFC A6 lets a client repeat.
pub(crate) fn only_status<B: http_body::Body>(answer: &http::Response<B>) -> Option<Code> {
    let ends = || answer.body().is_end_stream() || is_http_error(answer);
    code(answer.headers()).or_else(|| ends().then(|| http_code(answer.status())))
}

/// The status in the head of an answer, or in its trailers; `None` if there is none.
pub(crate) fn code(headers: &http::HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|status| Code::from_bytes(status.as_bytes()))
}

/// Returns `true` for an answer of something that is no gRPC server, such as a proxy.
fn is_http_error<B: http_body::Body>(answer: &http::Response<B>) -> bool {
    if answer.status() == http::StatusCode::OK {
        return false;
    }
    let content = answer.headers().get(http::header::CONTENT_TYPE);
    let is_grpc = content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc"));
    // The trailers of one may still have a status.
    let may_follow = is_grpc && !answer.body().is_end_stream();
    code(answer.headers()).is_none() && !may_follow
}

fn http_error(answer: &http::Response<Body>, instance: &str) -> Status {
    let message = format!("instance {instance} answered with HTTP status {} and no gRPC status", answer.status());
    let metadata = MetadataMap::from_headers(answer.headers().clone());
    Status::with_metadata(http_code(answer.status()), message, metadata)
}

/// The code of an answer without a gRPC status
/// (<https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>).
pub(crate) fn http_code(status: http::StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

struct Tracked {
    body: Body,
    /// Status of the call if no gRPC status comes.
    http: http::StatusCode,
    /// Until it is known how the call ended.
    flight: Option<InFlightCall>,
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
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &mut frame {
            Some(Ok(frame)) => match frame.trailers_ref() {
                Some(trailers) => {
                    let code = code(trailers).unwrap_or_else(|| http_code(self.http));
                    self.ended(code);
                }
                None => self.is_stalled = false,
            },
            // Both sides cancel what is late, and either one may be first.
            Some(Err(_)) | None if self.flight.is_some() && self.deadline.is_past() => {
                return Poll::Ready(self.end_late());
            }
            Some(Err(status)) => {
                if let Some(flight) = self.flight.take() {
                    let instance = flight.subchannel().to_string();
                    *status = failure::broken_off(std::mem::replace(status, Status::ok("")), &instance);
                    flight.ended(status.code());
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

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[test]
    fn errors_of_http_have_the_codes_of_the_specification() {
        let code = |status: u16| http_code(http::StatusCode::from_u16(status).unwrap());
        assert_eq!([400, 401, 403].map(code), [Code::Internal, Code::Unauthenticated, Code::PermissionDenied]);
        assert_eq!([429, 502, 503, 504].map(code), [Code::Unavailable; 4]);
        assert_eq!((code(404), [200, 302, 500].map(code)), (Code::Unimplemented, [Code::Unknown; 3]));
    }

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: Body) -> http::Response<Body> {
        let mut answer = http::Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        answer.body(body).unwrap()
    }

    #[test]
    fn a_grpc_status_counts_more_than_that_of_http() {
        let open = || Body::new(http_body_util::Full::from("x").map_err(|never| match never {}));
        let (grpc, html) = (("content-type", "application/grpc+proto"), ("content-type", "text/html"));
        let cases = [
            (answer(503, &[html, ("grpc-status", "5")], open()), Some(Code::NotFound), false),
            (answer(503, &[html], open()), Some(Code::Unavailable), true),
            (answer(503, &[], Body::empty()), Some(Code::Unavailable), true),
            (answer(503, &[grpc], Body::empty()), Some(Code::Unavailable), true),
            // A status may follow.
            (answer(503, &[grpc], open()), None, false),
            (answer(200, &[grpc], open()), None, false),
            // None will.
            (answer(200, &[grpc], Body::empty()), Some(Code::Unknown), false),
            (answer(200, &[grpc, ("grpc-status", "0")], Body::empty()), Some(Code::Ok), false),
        ];
        for (answer, code, is_error) in cases {
            assert_eq!((only_status(&answer), is_http_error(&answer)), (code, is_error), "{answer:?}");
        }
    }
}
