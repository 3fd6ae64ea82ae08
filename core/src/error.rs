//! The one error of the traits, divided by what a caller can do next.
//!
//! A backend maps its client's errors to these in its own `error.rs` and nowhere else. No variant carries a secret or
//! a request body.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use crate::{
    name::{InstanceId, ServiceRef},
    revision::{LeaseId, Revision},
};

/// The cause behind an [`Error`], shared so that the error can be cloned.
pub type Cause = Arc<dyn StdError + Send + Sync>;

/// What is wrong with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameFault {
    /// It has no characters.
    Empty,
    /// It has more than 255 bytes of UTF-8.
    TooLong {
        /// How many it has.
        bytes: usize,
    },
    /// It holds a control character.
    ControlCharacter {
        /// Byte position of the first one.
        at: usize,
    },
    /// The store's layout cannot carry this character.
    NotCarried {
        /// The character that would change the key.
        character: char,
    },
}

impl fmt::Display for NameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::TooLong { bytes } => write!(f, "it has {bytes} bytes, at most 255 are allowed"),
            Self::ControlCharacter { at } => write!(f, "it has a control character at byte {at}"),
            Self::NotCarried { character } => write!(f, "the layout cannot carry {character:?}"),
        }
    }
}

/// What went wrong, by what a caller can do next.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name was refused before anything was sent.
    #[error("invalid {field}: {fault}")]
    InvalidName {
        /// Which name.
        field: &'static str,
        /// Why.
        fault: NameFault,
    },
    /// An address was refused before anything was sent.
    #[error("invalid address {input:?}: {reason}")]
    InvalidAddress {
        /// What was given.
        input: String,
        /// Why it is refused, and what to give instead.
        reason: &'static str,
    },
    /// An option was refused before anything was sent.
    #[error("invalid {field}: {reason}")]
    InvalidConfig {
        /// Which option.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// Somebody else's live instance has this id.
    #[error("instance {id} of {service} is already registered by {} since revision {created}", owner.as_deref().unwrap_or("another owner"))]
    AlreadyRegistered {
        /// The service.
        service: ServiceRef,
        /// The contested id.
        id: InstanceId,
        /// The owner token of the other instance, if it has one.
        owner: Option<String>,
        /// When the other instance was created.
        created: Revision,
    },
    /// Another instance holds this id, and its lease is being observed to tell a live one from a leftover. The observation
    /// goes on while no call waits for it, so a repeated call completes it.
    #[error("instance {id} of {service} is held by a lease that may be a leftover, which is decided in {:.1} s", left.as_secs_f64())]
    Observing {
        /// The service.
        service: ServiceRef,
        /// The contested id.
        id: InstanceId,
        /// Time until the observation is complete.
        left: Duration,
    },
    /// There is no such instance.
    #[error("no instance {id} of {service}")]
    NotRegistered {
        /// The service.
        service: ServiceRef,
        /// The id that was not found.
        id: InstanceId,
    },
    /// The instance belongs to somebody else's lease, so it was left alone.
    #[error("instance {id} of {service} is kept by lease {lease} of {}", owner.as_deref().unwrap_or("another owner"))]
    NotOwner {
        /// The service.
        service: ServiceRef,
        /// The id.
        id: InstanceId,
        /// The owner token, if it has one.
        owner: Option<String>,
        /// The lease that keeps it.
        lease: LeaseId,
    },
    /// What was read had changed by the time it was to be written.
    #[error("{what} was changed by somebody else at revision {revision}")]
    Conflict {
        /// What changed.
        what: String,
        /// The revision of the other change.
        revision: Revision,
    },
    /// The lease ended before the call did.
    #[error("the lease was lost")]
    LeaseLost,
    /// No endpoint answered. A write may have been applied all the same.
    #[error("store unavailable")]
    Unavailable(#[source] Cause),
    /// The deadline passed. What was begun is undone in the background, unless the method says otherwise.
    #[error("{op} took longer than {limit:?}")]
    Timeout {
        /// What took too long.
        op: &'static str,
        /// The deadline it had.
        limit: Duration,
        /// The last trouble before the deadline, if there was any.
        #[source]
        cause: Option<Cause>,
    },
    /// The store does not accept these credentials, or wants some.
    #[error("authentication failed")]
    AuthFailed(#[source] Cause),
    /// The credentials do not allow this.
    #[error("permission denied for {what}")]
    PermissionDenied {
        /// The range of keys or the operation.
        what: String,
    },
    /// A value is too large for the store.
    #[error("{what} has {size} bytes, at most {limit} are allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The store has no space left. What is registered stays so; nothing new can be written.
    #[error("the store has no space left")]
    StorageFull,
    /// This backend or layout cannot do that.
    #[error("{what} is not supported")]
    Unsupported {
        /// What cannot be done.
        what: String,
    },
    /// The handle or its session was closed.
    #[error("closed")]
    Closed,
}

impl Error {
    /// No endpoint answered, because of `cause`.
    pub fn unavailable(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Unavailable(Arc::from(cause.into()))
    }

    /// `field` was refused because of `reason`.
    pub fn invalid_config(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidConfig { field, reason: reason.into() }
    }

    /// Says whether the same call, repeated unchanged, can succeed without a person or the caller acting.
    ///
    /// After `Unavailable` and `Timeout` a write may have happened; the calls of the traits are built so that repeating
    /// them is safe.
    pub fn is_retryable(&self) -> bool {
        // No `_` arm, so that a new variant has to decide.
        match self {
            Self::Observing { .. }
            | Self::Conflict { .. }
            | Self::LeaseLost
            | Self::Unavailable(_)
            | Self::Timeout { .. } => true,
            Self::InvalidName { .. }
            | Self::InvalidAddress { .. }
            | Self::InvalidConfig { .. }
            | Self::AlreadyRegistered { .. }
            | Self::NotRegistered { .. }
            | Self::NotOwner { .. }
            | Self::AuthFailed(_)
            | Self::PermissionDenied { .. }
            | Self::TooLarge { .. }
            | Self::StorageFull
            | Self::Unsupported { .. }
            | Self::Closed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_kept_and_not_repeated_in_the_message() {
        let error = Error::unavailable("connection refused");
        assert_eq!(error.to_string(), "store unavailable");
        assert_eq!(error.source().unwrap().to_string(), "connection refused");
        assert!(error.is_retryable());
    }

    #[test]
    fn what_a_person_must_mend_is_not_retryable() {
        assert!(!Error::StorageFull.is_retryable());
        assert!(!Error::PermissionDenied { what: "enlist/".into() }.is_retryable());
        assert!(!Error::Closed.is_retryable());
    }
}
