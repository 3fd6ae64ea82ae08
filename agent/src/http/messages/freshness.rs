//! Freshness of the shown data, in the body of a response and in its headers.

use std::time::Duration;

use axum::{
    http::{HeaderName, HeaderValue},
    response::Response,
};
use enlist::{Freshness, with_causes};
use serde::Serialize;

/// Header with the state of the shown data: `live` or `stale`.
const STATE: HeaderName = HeaderName::from_static("x-enlist-freshness");

/// Header with the age of the shown data in milliseconds.
const AGE: HeaderName = HeaderName::from_static("x-enlist-age-ms");

/// Age and state of shown data.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FreshnessJson {
    pub(crate) state: &'static str,
    pub(crate) age_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<String>,
}

impl FreshnessJson {
    /// Freshness of data that were confirmed this long ago, and whose changes arrive.
    pub(crate) fn live(age: Duration) -> Self {
        Self { state: "live", age_ms: millis(age), cause: None }
    }

    /// Adds the freshness to a response, for clients that do not read its body.
    pub(crate) fn mark(&self, mut response: Response) -> Response {
        response.headers_mut().insert(STATE, HeaderValue::from_static(self.state));
        response.headers_mut().insert(AGE, self.age_ms.into());
        response
    }
}

impl From<&Freshness> for FreshnessJson {
    fn from(freshness: &Freshness) -> Self {
        let cause = match freshness {
            Freshness::Stale { cause, .. } => Some(with_causes(cause).to_string()),
            _ => None,
        };
        Self { state: if freshness.is_live() { "live" } else { "stale" }, age_ms: millis(freshness.age()), cause }
    }
}

/// Returns whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
