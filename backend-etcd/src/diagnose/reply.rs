//! Reply to one request of an examination, which has a deadline.

use std::time::Duration;

use etcd_client::Error;

use crate::error::answers;

/// Reply to a request, or its absence at the deadline.
#[derive(Debug)]
pub(super) enum Reply<T> {
    /// The request succeeded.
    Success(T),
    /// The request failed.
    Failure(Error),
    /// Nothing arrived in time.
    Silence,
}

impl<T> Reply<T> {
    /// Waits at most `limit` for the reply to `request`.
    pub(super) async fn within(limit: Duration, request: impl Future<Output = Result<T, Error>>) -> Self {
        match tokio::time::timeout(limit, request).await {
            Ok(Ok(value)) => Self::Success(value),
            Ok(Err(error)) => Self::Failure(error),
            Err(_) => Self::Silence,
        }
    }

    /// Reduces the reply to its failure.
    pub(super) fn verdict(&self) -> Result<(), String> {
        match self {
            Self::Success(_) => Ok(()),
            Self::Failure(error) => Err(answers::text(error)),
            Self::Silence => Err("no answer in time".to_owned()),
        }
    }
}
