//! States of a registration, as its user reads them, and the result of a deregistration.

use crate::{error::Error, model::revision::Revision};

/// State of a registration.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RegistrationState {
    /// Not yet acknowledged for the first time.
    Registering {
        /// Reason for which the last attempt failed, if one did.
        last: Option<Error>,
    },
    /// Published, at this revision.
    Registered {
        /// The revision of the last acknowledged write.
        revision: Revision,
    },
    /// Published as far as is known, but its lease or its watch is in trouble, or a change of it could not be stored
    /// and is tried again.
    Suspect {
        /// Cause of the trouble.
        cause: Error,
    },
    /// It was published, is not any more, and is being put back.
    Reregistering {
        /// Reason for which it was lost, or why the last attempt failed.
        cause: Error,
    },
    /// It was published, and another registration has the key since: a newer one, or one with the option to take over.
    /// This one writes nothing, watches the key, and is published again when that is free.
    Superseded {
        /// [`Error::NotOwner`], with the lease of the other one.
        cause: Error,
    },
    /// Removed because its health check fails, in a store that holds no health; it is registered again when one passes.
    Withdrawn,
    /// Not published for a reason that an operator has to repair; it is tried again at a slow pace.
    Refused {
        /// The reason.
        cause: Error,
    },
    /// Over: nothing will be written any more.
    Ended,
}

/// Result of a deregistration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Deregistered {
    /// The instance was there and was removed.
    Removed,
    /// It was not there any more, or another client's instance has its place, which was left alone.
    AlreadyGone,
    /// The store has not confirmed the removal, or that an earlier write whose answer was lost can no longer bring the
    /// instance back. The session goes on until it has; at the latest the lease runs out.
    LeftBehind,
}

pub(crate) fn is_observing(error: &Error) -> bool {
    matches!(error, Error::Observing { .. })
}

/// Returns `true` if two states are the same for a reader. Causes are compared by their text, and the time that an
/// observation still takes makes no difference.
pub(crate) fn alike(old: &RegistrationState, new: &RegistrationState) -> bool {
    use RegistrationState as S;
    let text = |error: &Error| error.to_string();
    match (old, new) {
        (S::Registering { last: Some(a) }, S::Registering { last: Some(b) }) if is_observing(a) => is_observing(b),
        (S::Registering { last: a }, S::Registering { last: b }) => a.as_ref().map(text) == b.as_ref().map(text),
        (S::Registered { revision: a }, S::Registered { revision: b }) => a == b,
        (S::Suspect { cause: a }, S::Suspect { cause: b })
        | (S::Reregistering { cause: a }, S::Reregistering { cause: b })
        | (S::Superseded { cause: a }, S::Superseded { cause: b })
        | (S::Refused { cause: a }, S::Refused { cause: b }) => text(a) == text(b),
        (S::Withdrawn, S::Withdrawn) | (S::Ended, S::Ended) => true,
        _ => false,
    }
}
