//! Routes, and the checks and headers that all of them share.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
};

use super::{
    api::{clients, health, limits, openapi, queues, services},
    console,
    events::stream,
    messages::{
        error::{ApiError, Code},
        guard::{RequestHead, admit},
    },
    prometheus::{metrics, targets},
    shared::RequestContext,
};

/// Policy for responses that are not pages.
const NO_CONTENT_POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");

/// Returns the routes.
pub(super) fn router(shared: Arc<RequestContext>) -> Router {
    Router::new()
        .route("/", get(console::page))
        .route("/console/{file}", get(console::file))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::metrics))
        .route("/v1/namespaces", get(services::namespaces))
        .route("/v1/services", get(services::services))
        .route("/v1/services/{namespace}/{service}", get(services::service))
        .route("/v1/events", get(stream::events))
        .route("/v1/locks", get(queues::locks))
        .route("/v1/elections", get(queues::elections))
        .route("/v1/clients", get(clients::clients))
        .route("/v1/limits", get(limits::limits))
        .route("/v1/openapi.json", get(openapi::document))
        .route("/v1/prometheus/targets", get(targets::targets))
        .fallback(async || ApiError::new(Code::NotFound, "there is no such path"))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), check))
        .with_state(shared)
}

/// Checks a request, serves it, and adds headers to the response.
async fn check(State(shared): State<Arc<RequestContext>>, request: Request, next: Next) -> Response {
    let refused = refusal(&shared, &request);
    let mut response = match refused {
        Some(error) => error.into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(NO_CONTENT_POLICY);
    shared.responses.count(response.status());
    response
}

/// Returns the reason for which a request is refused.
fn refusal(shared: &RequestContext, request: &Request) -> Option<ApiError> {
    let (headers, uri) = (request.headers(), request.uri());
    let refused = admit(&head(headers, uri), &shared.hosts).err();
    if refused.is_some() {
        return refused;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Some(ApiError::new(Code::MethodNotAllowed, "the registry can only be read"));
    }
    let authorization = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let admitted = shared.token.as_ref().is_none_or(|token| token.admits(authorization));
    (!admitted && !is_open(uri.path())).then(|| ApiError::new(Code::Unauthorized, "a valid token is required"))
}

/// Returns `true` for a path that is served without a token: it contains no data.
fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/healthz" | "/readyz") || path.starts_with("/console/")
}

/// Returns the parts of a request that its admission depends on.
fn head<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> RequestHead<'a> {
    let all = |name: HeaderName| headers.get_all(name).iter().map(|value| value.to_str().ok()).collect();
    let one = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    RequestHead {
        hosts: all(header::HOST),
        target: uri.authority().map(axum::http::uri::Authority::as_str),
        origins: all(header::ORIGIN),
        fetch_site: one(HeaderName::from_static("sec-fetch-site")),
        fetch_dest: one(HeaderName::from_static("sec-fetch-dest")),
        uri_bytes: uri.path_and_query().map_or(0, |path| path.as_str().len()),
        content_length: one(header::CONTENT_LENGTH),
        transfer_encoding: one(header::TRANSFER_ENCODING),
    }
}
