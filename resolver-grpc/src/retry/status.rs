//! The code of a response: from its gRPC status, or from that of HTTP. Pure.

use tonic::{Code, Status};

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
pub(crate) fn is_http_error<B: http_body::Body>(answer: &http::Response<B>) -> bool {
    if answer.status() == http::StatusCode::OK {
        return false;
    }
    let content = answer.headers().get(http::header::CONTENT_TYPE);
    let is_grpc = content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc"));
    // The trailers of one may still have a status.
    let may_follow = is_grpc && !answer.body().is_end_stream();
    code(answer.headers()).is_none() && !may_follow
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

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tonic::body::Body;

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
