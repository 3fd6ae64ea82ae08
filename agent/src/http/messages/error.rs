//! Errors of the HTTP server: a status, and a JSON object with a code that programs can compare.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use enlist::{Error, escape::escaped, with_causes};
use serde::Serialize;

use super::json;

/// Seconds after which a client is asked to repeat a request that may succeed later.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Cause of an unsuccessful response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    BodyNotAllowed,
    ForbiddenHost,
    ForbiddenOrigin,
    Internal,
    InvalidName,
    InvalidParameter,
    MethodNotAllowed,
    NotFound,
    NotReady,
    StoreRefused,
    StoreUnavailable,
    TooManyEventClients,
    TooManyViews,
    Unauthorized,
    Unsupported,
    UriTooLong,
}

impl Code {
    /// All codes.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 16] = [
        Self::BodyNotAllowed,
        Self::ForbiddenHost,
        Self::ForbiddenOrigin,
        Self::Internal,
        Self::InvalidName,
        Self::InvalidParameter,
        Self::MethodNotAllowed,
        Self::NotFound,
        Self::NotReady,
        Self::StoreRefused,
        Self::StoreUnavailable,
        Self::TooManyEventClients,
        Self::TooManyViews,
        Self::Unauthorized,
        Self::Unsupported,
        Self::UriTooLong,
    ];

    /// Returns the text in the response and the status. Both are part of the interface.
    pub(crate) fn parts(self) -> (&'static str, StatusCode) {
        match self {
            Self::BodyNotAllowed => ("body_not_allowed", StatusCode::PAYLOAD_TOO_LARGE),
            Self::ForbiddenHost => ("forbidden_host", StatusCode::MISDIRECTED_REQUEST),
            Self::ForbiddenOrigin => ("forbidden_origin", StatusCode::FORBIDDEN),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR),
            Self::InvalidName => ("invalid_name", StatusCode::BAD_REQUEST),
            Self::InvalidParameter => ("invalid_parameter", StatusCode::BAD_REQUEST),
            Self::MethodNotAllowed => ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED),
            Self::NotFound => ("not_found", StatusCode::NOT_FOUND),
            Self::NotReady => ("not_ready", StatusCode::SERVICE_UNAVAILABLE),
            Self::StoreRefused => ("store_refused", StatusCode::BAD_GATEWAY),
            Self::StoreUnavailable => ("store_unavailable", StatusCode::SERVICE_UNAVAILABLE),
            Self::TooManyEventClients => ("too_many_event_clients", StatusCode::SERVICE_UNAVAILABLE),
            Self::TooManyViews => ("too_many_views", StatusCode::SERVICE_UNAVAILABLE),
            Self::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED),
            Self::Unsupported => ("unsupported", StatusCode::NOT_IMPLEMENTED),
            Self::UriTooLong => ("uri_too_long", StatusCode::URI_TOO_LONG),
        }
    }

    /// Returns the code of an error of the store.
    fn of_store(error: &Error) -> Self {
        match error {
            Error::InvalidName { .. } => Self::InvalidName,
            Error::Unsupported { .. } => Self::Unsupported,
            Error::AuthFailed(_) | Error::PermissionDenied { .. } => Self::StoreRefused,
            Error::Unavailable(_) | Error::Timeout { .. } | Error::Closed | Error::LeaseLost => Self::StoreUnavailable,
            _ => Self::Internal,
        }
    }
}

/// An unsuccessful response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    code: Code,
    message: String,
}

impl ApiError {
    /// Creates an error. Unprintable characters of the message are escaped.
    pub(crate) fn new(code: Code, message: impl std::fmt::Display) -> Self {
        Self { code, message: escaped(message).to_string() }
    }

    /// Returns the error for a failure of the store.
    pub(crate) fn of_store(error: &Error) -> Self {
        Self::new(Code::of_store(error), with_causes(error))
    }

    /// Returns the error for a service, or a list of services, that is not known yet.
    pub(crate) fn not_ready() -> Self {
        Self::new(Code::NotReady, "the store has not answered yet")
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> Code {
        self.code
    }
}

#[derive(Serialize)]
struct Body<'a> {
    error: Content<'a>,
}

#[derive(Serialize)]
struct Content<'a> {
    code: &'static str,
    message: &'a str,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (code, status) = self.code.parts();
        let mut response = json::response(&Body { error: Content { code, message: &self.message } });
        *response.status_mut() = status;
        let headers = response.headers_mut();
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER);
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_of_the_store_has_a_status() {
        for (error, status) in [
            (Error::unavailable("refused"), 503),
            (Error::Closed, 503),
            (Error::PermissionDenied { what: "enlist/".to_owned() }, 502),
            (Error::Unsupported { what: "listing".to_owned() }, 501),
            (enlist::Namespace::parse("").unwrap_err(), 400),
            (Error::StorageFull, 500),
        ] {
            let response = ApiError::of_store(&error).into_response();
            assert_eq!(response.status().as_u16(), status, "{error}");
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), status == 503);
        }
    }
}
