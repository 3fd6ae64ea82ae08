//! Liveness and readiness.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde::Serialize;

use crate::http::{
    messages::{
        error::ApiError,
        json,
        parameters::{NoQuery, Parameters},
    },
    shared::RequestContext,
};

#[derive(Serialize)]
struct HealthJson {
    status: &'static str,
}

/// Answers while the process works.
pub(crate) async fn healthz(Parameters(NoQuery {}): Parameters<NoQuery>) -> Response {
    json::response(&HealthJson { status: "ok" })
}

/// Answers with status 200 once the store has answered.
pub(crate) async fn readyz(
    State(shared): State<Arc<RequestContext>>,
    Parameters(NoQuery {}): Parameters<NoQuery>,
) -> Result<Response, ApiError> {
    shared.readiness.check(shared.scopes.resolver()).await?;
    Ok(json::response(&HealthJson { status: "ready" }))
}
