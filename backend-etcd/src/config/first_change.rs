//! Search for the first change of a key after a known state. Plain data, no I/O.
//!
//! A key that was changed last at revision `expected` stays in this state until its first change, and never returns to
//! it. So a binary search over reads at older revisions finds the revision of that change.

use enlist::Revision;

/// State of the key at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its last change was at the expected revision.
    Expected,
    /// It is absent, or its last change was at another revision.
    Other,
    /// The revision has been compacted.
    Compacted,
}

/// Result of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstChange {
    /// The first change was at this revision.
    At(Revision),
    /// The key was not in the expected state, not even at the expected revision.
    NeverExpected,
    /// The history that would show it is compacted.
    Compacted,
}

/// A search in progress: the first change is after `low` and not after `high`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Search {
    low: u64,
    high: u64,
    /// State at `low`; `Other` before the first read that moved it.
    at_low: State,
    /// The next revision to read.
    probe: u64,
}

impl Search {
    /// Begins a search for the first change after `expected`. The key is known not to be in that state at `changed`.
    /// The revision before that is read first, because most often there was one change only.
    pub(crate) fn new(expected: Revision, changed: Revision) -> Self {
        let (low, high) = (expected.get().saturating_sub(1), changed.get());
        Self { low, high, at_low: State::Other, probe: high.saturating_sub(1) }
    }

    /// Returns the revision to read next, or the result.
    pub(crate) fn next(&self) -> Result<Revision, FirstChange> {
        if self.low + 1 < self.high {
            return Ok(Revision::new(self.probe));
        }
        Err(match self.at_low {
            State::Expected => FirstChange::At(Revision::new(self.high)),
            State::Other => FirstChange::NeverExpected,
            State::Compacted => FirstChange::Compacted,
        })
    }

    /// Notes the state at the revision of [`next`](Self::next).
    pub(crate) fn note(&mut self, state: State) {
        match state {
            State::Other => self.high = self.probe,
            State::Expected | State::Compacted => (self.low, self.at_low) = (self.probe, state),
        }
        self.probe = self.low + (self.high - self.low) / 2;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Searches in a history: the key changed at these revisions, and `compacted` is the last one that cannot be read.
    fn search(changes: &[u64], expected: u64, compacted: u64, now: u64) -> (FirstChange, usize) {
        let mut reads = 0;
        let mut search = Search::new(Revision::new(expected), Revision::new(now));
        loop {
            let at = match search.next() {
                Ok(at) => at.get(),
                Err(found) => return (found, reads),
            };
            reads += 1;
            assert!(reads < 100, "it does not end: {search:?}");
            let last = changes.iter().copied().filter(|change| *change <= at).max();
            search.note(match last {
                _ if at <= compacted => State::Compacted,
                Some(last) if last == expected => State::Expected,
                _ => State::Other,
            });
        }
    }

    fn at(revision: u64) -> FirstChange {
        FirstChange::At(Revision::new(revision))
    }

    #[test]
    fn the_only_change_takes_one_read() {
        assert_eq!(search(&[5, 9], 5, 0, 9), (at(9), 1));
        assert_eq!(search(&[5, 9], 5, 7, 9), (at(9), 1));
    }

    #[test]
    fn a_change_among_many_takes_few_reads() {
        let changes: Vec<u64> = std::iter::once(5).chain(7000..1_000_000).collect();
        let (found, reads) = search(&changes, 5, 0, 999_999);
        assert!(found == at(7000) && reads <= 22, "{found:?} after {reads} reads");
    }

    #[test]
    fn an_absent_state_differs_from_a_compacted_one() {
        assert_eq!(search(&[4, 9], 5, 0, 9).0, FirstChange::NeverExpected);
        assert_eq!(search(&[4, 9], 20, 0, 9).0, FirstChange::NeverExpected);
        assert_eq!(search(&[5, 9, 12], 5, 10, 12).0, FirstChange::Compacted);
        assert_eq!(search(&[5, 9], 5, 8, 9).0, FirstChange::Compacted);
        assert_eq!(search(&[5, 9], 5, 7, 12).0, at(9));
    }

    proptest! {
        #[test]
        fn what_is_found_is_the_first_change(
            changes in proptest::collection::btree_set(2u64..60, 1..12),
            number in any::<prop::sample::Index>(),
            compacted in 0u64..60,
            more in 0u64..10,
        ) {
            let changes: Vec<u64> = changes.into_iter().collect();
            let index = number.index(changes.len());
            let expected = changes[index];
            let now = changes[changes.len() - 1] + more;
            prop_assume!(index + 1 < changes.len());
            let first = changes[index + 1];
            let (found, _) = search(&changes, expected, compacted, now);
            if compacted + 1 < first {
                prop_assert_eq!(found, at(first));
            } else {
                prop_assert_eq!(found, FirstChange::Compacted);
            }
        }
    }
}
