//! Error type of the traits, classified by the caller's next action.
//!
//! A backend maps its client's errors to these in its own `error.rs` and nowhere else. No variant carries a secret or a
//! request body. The messages are [escaped](crate::model::escape), so text from the store cannot forge lines of a log.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use crate::{
    model::{
        escape::escaped,
        name::{InstanceId, NameFault, ServiceRef},
        revision::{LeaseId, Revision},
    },
    runtime::clock::rounded,
};

/// The cause behind an [`Error`], shared so that the error can be cloned.
pub type Cause = Arc<dyn StdError + Send + Sync>;

/// Owner of an instance, relative to the caller. The error does not contain the owner token: a client that knows it can
/// take over the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "tokens are equal or not")]
pub enum Owner {
    /// The instance has the owner token of the caller.
    Same,
    /// The instance has another owner token, or one of the two has none.
    Other,
}

impl Owner {
    /// Compares the token of an instance in the store with that of the caller.
    pub fn of(theirs: Option<&str>, ours: Option<&str>) -> Self {
        if theirs.is_some() && theirs == ours { Self::Same } else { Self::Other }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "the same owner",
            Self::Other => "another owner",
        })
    }
}

/// Unit of a limit on a range of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RangeUnit {
    /// Keys.
    Keys,
    /// Bytes of keys and values.
    Bytes,
}

impl fmt::Display for RangeUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keys => "keys",
            Self::Bytes => "bytes",
        })
    }
}

/// Failure of an operation, classified by the caller's next action.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name was refused before anything was sent.
    #[error("invalid {field}: {fault}")]
    InvalidName {
        /// The name.
        field: &'static str,
        /// The reason.
        fault: NameFault,
    },
    /// An address was refused before anything was sent.
    #[error("invalid address {input:?}: {reason}")]
    InvalidAddress {
        /// The given text.
        input: String,
        /// Reason for the refusal, and the expected form.
        reason: &'static str,
    },
    /// An option was refused before anything was sent.
    #[error("invalid {field}: {}", escaped(reason))]
    InvalidConfig {
        /// The option.
        field: &'static str,
        /// The reason.
        reason: String,
    },
    /// Another client's live instance has this id.
    #[error(
        "instance {} of {} is already registered by {owner}{}",
        escaped(id),
        escaped(service),
        stored_at(*revision)
    )]
    AlreadyRegistered {
        /// The service.
        service: ServiceRef,
        /// The contested id.
        id: InstanceId,
        /// Owner of the other instance.
        owner: Owner,
        /// Revision of the other registration's last known write; `None` if it belongs to this process and has stored
        /// nothing yet. It is not the creation revision of the key, which after a takeover is that of the registration
        /// before.
        revision: Option<Revision>,
    },
    /// Another instance holds this id, and its lease is being observed to distinguish a live instance from a leftover.
    /// The observation goes on while no call waits for it, so a repeated call completes it.
    #[error(
        "instance {} of {} is held by a lease that may be a leftover, which is decided in {}",
        escaped(id),
        escaped(service),
        rounded(*left)
    )]
    Observing {
        /// The service.
        service: ServiceRef,
        /// The contested id.
        id: InstanceId,
        /// Time until the observation is complete.
        left: Duration,
    },
    /// There is no such instance.
    #[error("no instance {} of {}", escaped(id), escaped(service))]
    NotRegistered {
        /// The service.
        service: ServiceRef,
        /// The id that was not found.
        id: InstanceId,
    },
    /// The instance belongs to another client's lease, so it was left alone.
    #[error("instance {} of {} is kept by lease {lease} of {owner}", escaped(id), escaped(service))]
    NotOwner {
        /// The service.
        service: ServiceRef,
        /// The id.
        id: InstanceId,
        /// Owner of the instance.
        owner: Owner,
        /// The lease that keeps it.
        lease: LeaseId,
    },
    /// The content changed between the read and the write.
    #[error("{} was changed by another client at revision {revision}", escaped(what))]
    Conflict {
        /// Name of the changed part.
        what: String,
        /// The revision of the other change.
        revision: Revision,
    },
    /// The lease ended before the call did.
    #[error("the lease was lost")]
    LeaseLost,
    /// No endpoint answered. A write may have been applied nevertheless.
    #[error("store unavailable")]
    Unavailable(#[source] Cause),
    /// The deadline passed. The operation is undone in the background, unless the method states otherwise.
    #[error("{op} took longer than {}", rounded(*limit))]
    Timeout {
        /// Name of the operation that took too long.
        op: &'static str,
        /// The deadline it had.
        limit: Duration,
        /// The last failure before the deadline, if there was one.
        #[source]
        cause: Option<Cause>,
    },
    /// The store rejects these credentials, or requires some.
    #[error("authentication failed")]
    AuthFailed(#[source] Cause),
    /// The credentials do not permit the operation.
    #[error("permission denied for {}", escaped(what))]
    PermissionDenied {
        /// The range of keys or the operation.
        what: String,
    },
    /// A value is too large for the store.
    #[error("{what} has {size} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Name of the part that is too large.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A range of keys exceeds the limit of this client for reads or watches. The last known state of a watched range
    /// stays.
    #[error("the limit of {limit} {unit} is exceeded by {}", escaped(range))]
    RangeTooLarge {
        /// The range.
        range: String,
        /// The limit, in `unit`.
        limit: usize,
        /// Unit of the limit.
        unit: RangeUnit,
    },
    /// The store has no space left. Registered instances stay, but nothing new can be written.
    #[error("the store has no space left")]
    StorageFull,
    /// This backend or layout does not support the operation.
    #[error("{} is not supported", escaped(what))]
    Unsupported {
        /// Name of the unsupported operation.
        what: String,
    },
    /// The handle or its session was closed.
    #[error("closed")]
    Closed,
}

impl Error {
    /// Error for a store in which no endpoint answered, because of `cause`.
    pub fn unavailable(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Unavailable(Arc::from(cause.into()))
    }

    /// Error for the option `field`, which was refused because of `reason`.
    pub fn invalid_config(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidConfig { field, reason: reason.into() }
    }

    /// Returns `true` if the same call, repeated unchanged, can succeed without action by a person or the caller.
    ///
    /// After `Unavailable` and `Timeout` a write may have happened; repeated calls of the traits are safe.
    pub fn is_retryable(&self) -> bool {
        // No `_` arm: the compiler rejects a new variant until it is classified here.
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
            | Self::RangeTooLarge { .. }
            | Self::StorageFull
            | Self::Unsupported { .. }
            | Self::Closed => false,
        }
    }
}

/// Part of a message: the revision of the last write, if known.
fn stored_at(revision: Option<Revision>) -> String {
    revision.map_or_else(String::new, |revision| format!(", stored at revision {revision}"))
}

/// The message of an error and those of its causes, for logs and for people: `store unavailable: connection refused`. A
/// cause that repeats the text before it is left out. The text is [escaped](crate::model::escape), so it is one line.
///
/// ```
/// use enlist::{Error, with_causes};
///
/// let error = Error::unavailable("connection refused");
/// assert_eq!(with_causes(&error).to_string(), "store unavailable: connection refused");
/// ```
pub fn with_causes<'a>(error: &'a (dyn StdError + 'static)) -> WithCauses<'a> {
    WithCauses(error)
}

/// Display of an error with its causes, see [`with_causes`].
#[derive(Clone, Copy, Debug)]
pub struct WithCauses<'a>(&'a (dyn StdError + 'static));

impl fmt::Display for WithCauses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        for cause in std::iter::successors(self.0.source(), |cause| (*cause).source()) {
            let cause = cause.to_string();
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
        escaped(text).fmt(f)
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

    /// Each message is one line of printable text, whatever the store holds, and contains no owner token.
    #[test]
    fn messages_show_no_owner_token() {
        let hostile = "a\n\u{1b}[2J\u{9b}\u{202e}\u{200b}";
        let (id, service) = (InstanceId::parse("a\u{202e}").unwrap(), ServiceRef::parse("s\u{200b}").unwrap());
        let revision = Revision::default();
        for error in [
            Error::InvalidAddress { input: hostile.into(), reason: "x" },
            Error::invalid_config("x", hostile),
            Error::AlreadyRegistered {
                service: service.clone(),
                id: id.clone(),
                owner: Owner::of(Some("secret"), Some("secret")),
                revision: Some(revision),
            },
            Error::NotRegistered { service: service.clone(), id: id.clone() },
            Error::Observing { service: service.clone(), id: id.clone(), left: Duration::from_secs(1) },
            Error::NotOwner { service, id, owner: Owner::of(Some("secret"), None), lease: LeaseId::new(1) },
            Error::Conflict { what: hostile.into(), revision },
            Error::PermissionDenied { what: hostile.into() },
            Error::Unsupported { what: hostile.into() },
        ] {
            let text = error.to_string();
            assert!(!text.contains(crate::model::escape::is_unprintable), "{text:?}");
            assert!(!text.contains("secret") && !format!("{error:?}").contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn a_limit_is_shown_with_its_unit() {
        let text = |unit| Error::RangeTooLarge { range: "a/".to_owned(), limit: 9, unit }.to_string();
        assert_eq!(text(RangeUnit::Keys), "the limit of 9 keys is exceeded by a/");
        assert_eq!(text(RangeUnit::Bytes), "the limit of 9 bytes is exceeded by a/");
    }

    #[test]
    fn a_registration_that_has_stored_nothing_has_no_revision() {
        let (service, id) = (ServiceRef::parse("s").unwrap(), InstanceId::parse("a").unwrap());
        let text = |revision| {
            let (service, id) = (service.clone(), id.clone());
            Error::AlreadyRegistered { service, id, owner: Owner::Other, revision }.to_string()
        };
        assert_eq!(text(None), "instance a of default/s is already registered by another owner");
        let stored = text(Some(Revision::new(7)));
        assert_eq!(stored, "instance a of default/s is already registered by another owner, stored at revision 7");
    }

    #[test]
    fn the_causes_follow_on_one_line_each_once() {
        let refused = Error::unavailable(std::io::Error::other("http://h:1: refused\n\u{1b}[2J"));
        let error = Error::Timeout { op: "acquire", limit: Duration::from_millis(300), cause: Some(Arc::new(refused)) };
        let text = with_causes(&error).to_string();
        assert_eq!(text, r"acquire took longer than 300 ms: store unavailable: http://h:1: refused\n\u{1b}[2J");
        let repeated = Error::unavailable("store unavailable");
        assert_eq!(with_causes(&repeated).to_string(), "store unavailable");
    }

    #[test]
    fn a_limit_is_rounded_in_the_text() {
        let limit = Duration::new(4, 999_837_112);
        let error = Error::Timeout { op: "release", limit, cause: None };
        assert_eq!(error.to_string(), "release took longer than 5 s");
    }

    #[test]
    fn instances_without_a_token_have_no_owner_in_common() {
        assert_eq!(Owner::of(Some("me"), Some("me")), Owner::Same);
        for (theirs, ours) in [(None, None), (Some("me"), None), (None, Some("me")), (Some("me"), Some("you"))] {
            assert_eq!(Owner::of(theirs, ours), Owner::Other);
        }
    }

    #[test]
    fn what_a_person_must_mend_is_not_retryable() {
        assert!(!Error::StorageFull.is_retryable());
        assert!(!Error::PermissionDenied { what: "enlist/".into() }.is_retryable());
        assert!(!Error::Closed.is_retryable());
    }
}
