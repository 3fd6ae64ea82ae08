//! New values of a leader.

use tokio::sync::oneshot;

use crate::{error::Error, model::revision::Revision};

/// Request of a leader to publish a new value.
#[derive(Debug)]
#[non_exhaustive]
pub struct Proclamation {
    /// The new value.
    pub value: String,
    /// Channel for its outcome.
    pub reply: oneshot::Sender<Result<Revision, Error>>,
}
