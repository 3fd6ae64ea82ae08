//! The code of a response: from its gRPC status, or from that of HTTP. Pure.

use tonic::{Code, Status};

/// The status of a response that is nothing else: the only kind that gRFC A6 lets a client repeat.
pub(crate) fn only_status<B: http_body::Body>(response: &http::Response<B>) -> Option<Code> {
    let ends = || response.body().is_end_stream() || is_http_error(response);
    code(response.headers()).or_else(|| ends().then(|| http_code(response.status())))
}

/// The status in the head of a response, or in its trailers; `None` if there is none.
pub(crate) fn code(headers: &http::HeaderMap) -> Option<Code> {
    value(headers, &Status::GRPC_STATUS).map(|status| Code::from_bytes(status.as_bytes()))
}

/// The first value of a header. Heads and trailers of calls have few headers: to compare the names takes half of the
/// time of their hash.
pub(crate) fn value<'a>(headers: &'a http::HeaderMap, name: &http::HeaderName) -> Option<&'a http::HeaderValue> {
    headers.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
}

/// Returns `true` for a response of a peer that is no gRPC server, such as a proxy.
pub(crate) fn is_http_error<B: http_body::Body>(response: &http::Response<B>) -> bool {
    if response.status() == http::StatusCode::OK {
        return false;
    }
    let content = response.headers().get(http::header::CONTENT_TYPE);
    let is_grpc = content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc"));
    // The trailers of a gRPC response may still have a status.
    let may_follow = is_grpc && !response.body().is_end_stream();
    code(response.headers()).is_none() && !may_follow
}

/// The code of a response without a gRPC status
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

    fn response(status: u16, headers: &[(&'static str, &'static str)], body: Body) -> http::Response<Body> {
        let mut response = http::Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(body).unwrap()
    }

    #[test]
    fn a_grpc_status_counts_more_than_that_of_http() {
        let open = || Body::new(http_body_util::Full::from("x").map_err(|never| match never {}));
        let (grpc, html) = (("content-type", "application/grpc+proto"), ("content-type", "text/html"));
        let cases = [
            (response(503, &[html, ("grpc-status", "5")], open()), Some(Code::NotFound), false),
            (response(503, &[html], open()), Some(Code::Unavailable), true),
            (response(503, &[], Body::empty()), Some(Code::Unavailable), true),
            (response(503, &[grpc], Body::empty()), Some(Code::Unavailable), true),
            // A status may follow.
            (response(503, &[grpc], open()), None, false),
            (response(200, &[grpc], open()), None, false),
            // None will.
            (response(200, &[grpc], Body::empty()), Some(Code::Unknown), false),
            (response(200, &[grpc, ("grpc-status", "0")], Body::empty()), Some(Code::Ok), false),
        ];
        for (response, code, is_error) in cases {
            assert_eq!((only_status(&response), is_http_error(&response)), (code, is_error), "{response:?}");
        }
    }
}
