//! The description of the interface, as a document of `OpenAPI`. Tests compare it with the routes.

use axum::{body::Body, response::Response};

use crate::http::messages::{
    json::{self, MEDIA_TYPE},
    parameters::{NoQuery, Parameters},
};

/// The document.
pub(crate) const DOCUMENT: &str = include_str!("openapi.json");

/// Serves the document.
pub(crate) async fn document(Parameters(NoQuery {}): Parameters<NoQuery>) -> Response {
    json::with_media_type(Body::from(DOCUMENT), MEDIA_TYPE)
}
