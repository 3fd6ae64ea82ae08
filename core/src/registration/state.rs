//! States of a registration, as its user reads them, and the result of a deregistration.

use crate::{error::Error, model::revision::Revision};

/// State of a registration.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RegistrationState {
    /// The first write is not acknowledged yet.
    Registering {
        /// Reason for which the last attempt failed, if one did.
        last: Option<Error>,
    },
    /// Published at this revision.
    Registered {
        /// The revision of the last acknowledged write.
        revision: Revision,
    },
    /// Published as far as is known, but its lease or its watch fails, or a change of it could not be stored and is
    /// tried again.
    Suspect {
        /// Cause of the failure.
        cause: Error,
    },
    /// The instance was published, was lost, and is being restored.
    Reregistering {
        /// Reason for the loss, or for the failure of the last attempt.
        cause: Error,
    },
    /// The instance was published, and another registration has replaced it: a newer one, or one with
    /// [`OnConflict::TakeOver`](crate::OnConflict::TakeOver). This registration writes nothing, watches the key, and
    /// publishes again when the key is free.
    Superseded {
        /// [`Error::NotOwner`], with the lease of the other one.
        cause: Error,
    },
    /// Removed because its health check fails, in a store that holds no health. It is registered again when a check
    /// passes.
    Withdrawn,
    /// Not published for a reason that an operator has to repair. It is tried again at a slow pace.
    Refused {
        /// The reason.
        cause: Error,
    },
    /// The registration is over and writes nothing any more.
    Ended,
}

/// Result of a deregistration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Deregistered {
    /// The instance was there and was removed.
    Removed,
    /// The instance was gone already, or another client's instance has its key, which was left alone.
    AlreadyGone,
    /// The store has not confirmed the removal, or has not confirmed that an earlier write without a response can no
    /// longer restore the instance. The session goes on until it has; the lease expires at the latest.
    LeftBehind,
}

pub(crate) fn is_observing(error: &Error) -> bool {
    matches!(error, Error::Observing { .. })
}

/// Returns `true` if two states are the same for a reader. Causes are compared by their text, and the remaining time of
/// an observation is ignored.
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
