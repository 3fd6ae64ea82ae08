//! Errors of a call through a pool.

use crate::{balancing::candidate_table::PickError, error::Error, model::name::InstanceId};

/// An attempt of a call that failed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FailedAttempt<E> {
    /// The instance that was called.
    pub id: InstanceId,
    /// The error of the call.
    pub cause: E,
}

/// Reason for which a call failed. Each variant lists the attempts that failed before, in order.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError<E> {
    /// There was no instance to call.
    #[error("no instance to call")]
    PickError {
        /// The reason.
        #[source]
        cause: PickError,
        /// The attempts before.
        previous: Vec<FailedAttempt<E>>,
    },
    /// The client for the instance could not be created.
    #[error("no client for {id}")]
    NoClient {
        /// The instance.
        id: InstanceId,
        /// The reason.
        #[source]
        cause: Error,
        /// The attempts before.
        previous: Vec<FailedAttempt<E>>,
    },
    /// The last attempt failed.
    #[error("the call failed after {attempts} attempts, the last one at {id}")]
    Failed {
        /// Number of attempts.
        attempts: u32,
        /// The instance of the last one.
        id: InstanceId,
        /// Error of the last one.
        #[source]
        cause: E,
        /// The attempts before the last one.
        previous: Vec<FailedAttempt<E>>,
    },
    /// The deadline passed during an attempt, which was dropped but may have been executed. With 0 attempts the
    /// deadline had passed before the first attempt, which was not made.
    #[error("the deadline passed during attempt {attempts}, at {id}")]
    Deadline {
        /// Number of attempts.
        attempts: u32,
        /// The instance of the last one, or of the one that was not made.
        id: InstanceId,
        /// The attempts before the last one.
        previous: Vec<FailedAttempt<E>>,
    },
}

impl<E> PoolError<E> {
    /// The attempts that failed before the end of the call, in order. The last attempt is the error itself.
    pub fn previous(&self) -> &[FailedAttempt<E>] {
        match self {
            Self::PickError { previous, .. }
            | Self::NoClient { previous, .. }
            | Self::Failed { previous, .. }
            | Self::Deadline { previous, .. } => previous,
        }
    }
}

pub(super) fn was_tried<E>(previous: &[FailedAttempt<E>], id: &InstanceId) -> bool {
    previous.iter().any(|attempt| attempt.id == *id)
}
