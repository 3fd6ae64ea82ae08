//! Numbers of responses.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::StatusCode;

/// Numbers of responses, by the first digit of their status.
#[derive(Debug, Default)]
pub(crate) struct ResponseCounts([AtomicU64; 6]);

impl ResponseCounts {
    /// Counts a response.
    pub(crate) fn count(&self, status: StatusCode) {
        if let Some(counter) = self.0.get(usize::from(status.as_u16() / 100)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the numbers, each with its digit.
    pub(crate) fn read(&self) -> impl Iterator<Item = (usize, u64)> {
        self.0.iter().map(|counter| counter.load(Ordering::Relaxed)).enumerate().skip(1)
    }
}
