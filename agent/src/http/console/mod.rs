//! The web console: static files, served under a policy that permits nothing but them and the API of the agent.

use axum::{
    body::Body,
    extract::Path,
    http::{HeaderValue, header},
    response::Response,
};

use crate::http::messages::{
    error::{ApiError, Code},
    json,
};

/// Policy of the page: files and data of the agent only, no code in the page, and no assignment of HTML by scripts.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(concat!(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; ",
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
));

/// Media types of the files.
const SCRIPT: HeaderValue = HeaderValue::from_static("text/javascript; charset=utf-8");
const STYLE: HeaderValue = HeaderValue::from_static("text/css; charset=utf-8");
const PAGE: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// Serves the page.
pub(crate) async fn page() -> Response {
    let mut response = json::with_media_type(Body::from(include_str!("index.html")), PAGE);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, PAGE_POLICY);
    response
}

/// Serves a file of the page.
pub(crate) async fn file(Path(name): Path<String>) -> Result<Response, ApiError> {
    let (media_type, content) = match &*name {
        "console.css" => (STYLE, include_str!("console.css")),
        "console.js" => (SCRIPT, include_str!("console.js")),
        "connection.js" => (SCRIPT, include_str!("connection.js")),
        "elements.js" => (SCRIPT, include_str!("elements.js")),
        "registry.js" => (SCRIPT, include_str!("registry.js")),
        "rendering.js" => (SCRIPT, include_str!("rendering.js")),
        "status.js" => (SCRIPT, include_str!("status.js")),
        "view.js" => (SCRIPT, include_str!("view.js")),
        "views.js" => (SCRIPT, include_str!("views.js")),
        _ => return Err(ApiError::new(Code::NotFound, "there is no such file")),
    };
    Ok(json::with_media_type(Body::from(content), media_type))
}
