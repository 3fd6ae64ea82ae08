//! States of a contender and the transition after the wait. Pure data, no I/O.

use super::protocol::{Caller, Grant, LeaveReason, Turn};
use crate::error::Error;

/// State of a contender between two steps.
#[derive(Debug)]
pub(super) enum State<E, C = Caller> {
    /// It has no entry. The next step creates one.
    Joining { caller: C },
    /// Its entry is in the queue. The next step waits for its turn.
    Waiting { entry: E, caller: C },
    /// It is its turn. The next step hands the guard over and keeps it current.
    Holding { entry: E, caller: C, grant: Grant },
    /// The next step removes its entry.
    Leaving { entry: E, leaving: Leaving<C> },
}

/// Reason to leave without having held the lock, with the caller that is still to be answered.
#[derive(Debug)]
pub(super) enum Leaving<C = Caller> {
    /// The caller is not answered: the contender joins the queue again.
    EntryLost {
        caller: C,
    },
    /// The caller is answered before the removal.
    Failed {
        caller: C,
        error: Error,
    },
    /// The caller is answered after the removal: its next attempt must not find this entry.
    NotGranted {
        caller: C,
    },
    CallerGone,
}

impl<C> Leaving<C> {
    pub(super) fn reason(&self) -> LeaveReason {
        match self {
            Self::EntryLost { .. } => LeaveReason::EntryLost,
            Self::Failed { .. } => LeaveReason::Failed,
            Self::NotGranted { .. } => LeaveReason::NotGranted,
            Self::CallerGone => LeaveReason::CallerGone,
        }
    }
}

/// Reaction to the loss of an entry before its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnLostEntry {
    JoinAgain,
    Fail,
}

/// Returns the state after the wait of `entry`, which ended with a turn, an error, or without a caller (`None`).
/// Without a `grant` the lease is not alive any more, so a turn is worth nothing.
pub(super) fn after_wait<E, C>(
    entry: E,
    caller: C,
    waited: Option<Result<Turn, Error>>,
    grant: Option<Grant>,
    on_lost_entry: OnLostEntry,
) -> State<E, C> {
    let leaving = match (waited, grant) {
        (Some(Ok(Turn::Granted)), Some(grant)) => return State::Holding { entry, caller, grant },
        (Some(Ok(Turn::Granted)), None) | (Some(Err(Error::LeaseLost)), _) => match on_lost_entry {
            OnLostEntry::JoinAgain => Leaving::EntryLost { caller },
            OnLostEntry::Fail => Leaving::Failed { caller, error: Error::LeaseLost },
        },
        (Some(Ok(Turn::NotGranted)), _) => Leaving::NotGranted { caller },
        (Some(Err(error)), _) => Leaving::Failed { caller, error },
        (None, _) => Leaving::CallerGone,
    };
    State::Leaving { entry, leaving }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::revision::FencingToken, runtime::clock::Moment};
    use std::{sync::Arc, time::Duration};

    fn grant() -> Grant {
        let (sent, token) = (Moment::now(), FencingToken::new(7));
        Grant { sent, ttl: Duration::from_secs(15), token, source: Arc::new(()) }
    }

    fn after(waited: Option<Result<Turn, Error>>, grant: Option<Grant>, on_lost_entry: OnLostEntry) -> State<(), ()> {
        after_wait((), (), waited, grant, on_lost_entry)
    }

    #[test]
    fn a_turn_under_a_live_lease_holds() {
        let state = after(Some(Ok(Turn::Granted)), Some(grant()), OnLostEntry::JoinAgain);
        assert!(matches!(state, State::Holding { .. }), "{state:?}");
    }

    #[test]
    fn a_lost_entry_joins_again_or_fails() {
        for waited in [Ok(Turn::Granted), Err(Error::LeaseLost)] {
            let again = after(Some(waited.clone()), None, OnLostEntry::JoinAgain);
            assert!(matches!(again, State::Leaving { leaving: Leaving::EntryLost { .. }, .. }), "{again:?}");
            let failed = after(Some(waited), None, OnLostEntry::Fail);
            let State::Leaving { leaving: Leaving::Failed { error: Error::LeaseLost, .. }, .. } = failed else {
                panic!("{failed:?}");
            };
        }
        let known = after(Some(Err(Error::LeaseLost)), Some(grant()), OnLostEntry::JoinAgain);
        assert!(
            matches!(known, State::Leaving { leaving: Leaving::EntryLost { .. }, .. }),
            "the key is gone: {known:?}"
        );
    }

    #[test]
    fn other_ends_of_the_wait_leave_the_queue() {
        for (waited, reason) in [
            (Some(Ok(Turn::NotGranted)), LeaveReason::NotGranted),
            (Some(Err(Error::Closed)), LeaveReason::Failed),
            (None, LeaveReason::CallerGone),
        ] {
            let state = after(waited, Some(grant()), OnLostEntry::JoinAgain);
            let State::Leaving { leaving, .. } = state else { panic!("{state:?}") };
            assert_eq!(leaving.reason(), reason);
        }
    }
}
