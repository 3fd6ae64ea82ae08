//! Reads of the limits of the agent, and of what they have refused.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde::Serialize;

use crate::{
    http::{
        messages::{
            json,
            parameters::{NoQuery, Parameters},
        },
        shared::RequestContext,
    },
    limits::LimitUse,
};

#[derive(Serialize)]
struct LimitsJson {
    limits: Vec<LimitJson>,
}

#[derive(Serialize)]
struct LimitJson {
    name: &'static str,
    max: usize,
    used: Option<usize>,
    refused: u64,
}

impl From<LimitUse> for LimitJson {
    fn from(LimitUse { name, max, used, refused }: LimitUse) -> Self {
        Self { name, max, used, refused }
    }
}

/// Serves the limits of both servers.
pub(crate) async fn limits(
    State(shared): State<Arc<RequestContext>>,
    Parameters(NoQuery {}): Parameters<NoQuery>,
) -> Response {
    json::response(&LimitsJson { limits: shared.limits().into_iter().map(Into::into).collect() })
}
