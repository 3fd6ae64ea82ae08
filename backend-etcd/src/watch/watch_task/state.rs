//! States of a range watch, and the transition at the end of a step. Plain data, no I/O.

use enlist::Error;

use crate::error::Failure;

/// Number of watches in a row without a sign of life after which the range is listed again. Some messages, such as
/// large ones over a slow connection, never arrive over a watch, while a list is read page by page.
pub(super) const MAX_SILENCES: u32 = 2;

/// State of a range watch between two steps. `W` is the open watch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State<W> {
    /// Nothing is known, except possibly the list of one member. The next step lists the range.
    Unsynced,
    /// The replica cannot be continued, for this reason. The next step lists the range again.
    Resyncing(Resync),
    /// The range was listed. The next step opens a watch at its revision.
    Listed,
    /// The content was known at the start. The next step opens the first watch.
    Known,
    /// The replica may be behind. The next step opens a watch at its revision.
    Suspect,
    /// A watch is open. The next step follows it to its end.
    Live(W),
}

/// Reason for which a range is listed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resync {
    Compacted,
    WentBack,
    Wrong,
    TooLarge,
    Oversized,
    Silent,
}

/// End of a step.
#[derive(Debug)]
pub(super) enum WatchEnd {
    /// The history after the last revision is gone.
    Compacted,
    /// The store's revision is lower than it was.
    WentBack,
    /// An audit found this number of keys that differ from etcd.
    Wrong(usize),
    /// A message of the watch is larger than the limit, and would be at each resumption.
    TooLarge,
    /// The range exceeds its limits.
    Oversized(Error),
    /// This number of watches in a row gave no sign of life. The last one failed with this.
    Silent(u32, Failure),
    /// A restore was noticed since the watch was opened, so its revisions may belong to the lost history.
    Outdated,
    /// A request failed, or the stream ended.
    Broken(Failure),
}

impl WatchEnd {
    /// Returns the end of a step whose list failed.
    pub(super) fn of_list(failure: Failure) -> Self {
        match failure {
            Failure::Compacted | Failure::FutureRevision => Self::Compacted,
            Failure::Final(error @ Error::RangeTooLarge { .. }) => Self::Oversized(error),
            failure => Self::Broken(failure),
        }
    }

    /// Returns `true` if etcd refused the watch, which may be because of an expired token: etcd 3.5 reports one on a
    /// watch as a missing permission. A fresh token distinguishes them.
    pub(super) const fn is_refusal(&self) -> bool {
        matches!(self, Self::Broken(Failure::StaleAuthToken(_) | Failure::NoUser(_) | Failure::Denied))
    }
}

/// Returns the state after `end`: resync if the history is gone, or if a list is due that has not succeeded yet;
/// otherwise resume.
pub(super) fn recover<W>(state: State<W>, end: &WatchEnd) -> State<W> {
    match (end, state) {
        (WatchEnd::Compacted, _) => State::Resyncing(Resync::Compacted),
        (WatchEnd::WentBack, _) => State::Resyncing(Resync::WentBack),
        (WatchEnd::Wrong(_), _) => State::Resyncing(Resync::Wrong),
        (WatchEnd::TooLarge, _) => State::Resyncing(Resync::TooLarge),
        (_, due @ (State::Unsynced | State::Resyncing(_))) => due,
        (WatchEnd::Oversized(_), _) => State::Resyncing(Resync::Oversized),
        (WatchEnd::Silent(MAX_SILENCES.., _), _) => State::Resyncing(Resync::Silent),
        (WatchEnd::Silent(..) | WatchEnd::Outdated | WatchEnd::Broken(_), _) => State::Suspect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::text_cause;

    fn lost() -> Failure {
        Failure::Lost(text_cause("lost"))
    }

    fn states() -> Vec<State<()>> {
        let resyncing = State::Resyncing(Resync::Wrong);
        vec![State::Unsynced, resyncing, State::Listed, State::Known, State::Suspect, State::Live(())]
    }

    #[test]
    fn a_history_that_is_gone_is_listed_again_from_every_state() {
        for (end, reason) in [
            (WatchEnd::Compacted, Resync::Compacted),
            (WatchEnd::WentBack, Resync::WentBack),
            (WatchEnd::Wrong(3), Resync::Wrong),
            (WatchEnd::TooLarge, Resync::TooLarge),
        ] {
            for state in states() {
                assert_eq!(recover(state, &end), State::Resyncing(reason));
            }
        }
    }

    #[test]
    fn a_list_that_failed_stays_due_for_its_reason() {
        for end in [WatchEnd::Broken(lost()), WatchEnd::Silent(9, lost()), WatchEnd::Oversized(Error::Closed)] {
            assert_eq!(recover(State::<()>::Unsynced, &end), State::Unsynced);
            assert_eq!(recover(State::<()>::Resyncing(Resync::Silent), &end), State::Resyncing(Resync::Silent));
        }
    }

    #[test]
    fn a_broken_watch_is_resumed() {
        for state in [State::Listed, State::Known, State::Suspect, State::Live(())] {
            assert_eq!(recover(state, &WatchEnd::Broken(lost())), State::Suspect);
        }
        assert_eq!(recover(State::Live(()), &WatchEnd::Outdated), State::Suspect);
    }

    #[test]
    fn only_repeated_silence_lists_again() {
        assert_eq!(recover(State::Live(()), &WatchEnd::Silent(1, lost())), State::Suspect);
        let silent = WatchEnd::Silent(MAX_SILENCES, lost());
        assert_eq!(recover(State::Live(()), &silent), State::Resyncing(Resync::Silent));
    }

    #[test]
    fn an_oversized_range_is_listed_again() {
        let oversized = WatchEnd::Oversized(Error::Closed);
        assert_eq!(recover(State::Live(()), &oversized), State::Resyncing(Resync::Oversized));
    }
}
