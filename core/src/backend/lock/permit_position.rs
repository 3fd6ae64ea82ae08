//! Positions in the queue of a semaphore. Pure data, no I/O.

use crate::{
    lock::{guard::LockGuard, semaphore::PermitGuard},
    model::revision::FencingToken,
};

/// State of an entry in the queue of a semaphore. It is stored in the entry, and only its owner changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "an entry has its permits or it waits for them")]
pub enum PermitState {
    /// It waits for its permits.
    Waiting,
    /// It holds its permits until it leaves the queue.
    Granted,
}

/// One key in the queue of a semaphore, as a backend reads it from its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain input of a pure function")]
pub struct PermitEntry {
    /// Revision at which the entry was created; unique and increasing.
    pub token: FencingToken,
    /// Requested number of permits, which never changes.
    pub permits: u32,
    /// State of the entry.
    pub state: PermitState,
}

/// Position of an entry in the queue of a semaphore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "an entry holds, is first, waits behind another one, or is absent")]
pub enum PermitPosition {
    /// Holds its permits.
    Holder,
    /// Is the first waiting entry, and its permits are free: it may be marked as granted while the number of permits
    /// is unchanged.
    Admissible,
    /// Is the first waiting entry. It waits until holders leave or the number of permits is raised.
    First,
    /// Waits until this entry is granted or gone.
    Behind(FencingToken),
    /// Is not in the queue, or no longer.
    Absent,
}

/// Returns the position of the entry `me` in `queue`, for a semaphore with this number of `permits`. This is the only
/// rule for all backends.
///
/// The longest prefix of the queue whose permits fit together holds. An entry is granted only after all entries before
/// it, so the granted entries are a prefix of the queue, and each grant happens in the order of the tokens. The entries
/// behind `me` have no influence. The entries before `me` can only be granted or disappear, because a new entry has a
/// larger token: a position that was read once `me` existed, and that is [`Admissible`](PermitPosition::Admissible),
/// stays so as long as the number of permits is unchanged.
pub fn permit_position(queue: impl IntoIterator<Item = PermitEntry>, permits: u32, me: FencingToken) -> PermitPosition {
    let (mut mine, mut waiting_before, mut held_before) = (None, None, 0_u64);
    for entry in queue {
        if entry.token == me {
            mine = Some(entry);
        } else if entry.token < me {
            match entry.state {
                PermitState::Granted => held_before += u64::from(entry.permits),
                PermitState::Waiting => waiting_before = waiting_before.max(Some(entry.token)),
            }
        }
    }
    let Some(mine) = mine else { return PermitPosition::Absent };
    match (mine.state, waiting_before) {
        (PermitState::Granted, _) => PermitPosition::Holder,
        (PermitState::Waiting, Some(before)) => PermitPosition::Behind(before),
        (PermitState::Waiting, None) if held_before + u64::from(mine.permits) <= u64::from(permits) => {
            PermitPosition::Admissible
        }
        (PermitState::Waiting, None) => PermitPosition::First,
    }
}

/// Creates the guard of held permits from that of the queue entry.
pub fn permit_guard(guard: LockGuard, permits: u32) -> PermitGuard {
    PermitGuard { guard, permits }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use PermitState::{Granted, Waiting};

    fn queue(entries: &[(u32, PermitState)]) -> Vec<PermitEntry> {
        let entry = |(token, (permits, state)): (u64, &(u32, PermitState))| PermitEntry {
            token: FencingToken::new(token),
            permits: *permits,
            state: *state,
        };
        (1..).zip(entries).map(entry).collect()
    }

    fn position(entries: &[(u32, PermitState)], permits: u32, me: u64) -> PermitPosition {
        permit_position(queue(entries).into_iter().rev(), permits, FencingToken::new(me))
    }

    #[test]
    fn the_longest_prefix_that_fits_is_admitted_one_by_one() {
        let entries = [(2, Granted), (1, Waiting), (1, Waiting)];
        assert_eq!(position(&entries, 3, 1), PermitPosition::Holder);
        assert_eq!(position(&entries, 3, 2), PermitPosition::Admissible);
        assert_eq!(position(&entries, 3, 3), PermitPosition::Behind(FencingToken::new(2)));
        assert_eq!(position(&entries, 3, 4), PermitPosition::Absent);
        assert_eq!(position(&entries, 2, 2), PermitPosition::First);
    }

    #[test]
    fn a_large_request_is_not_overtaken() {
        let entries = [(2, Granted), (3, Waiting), (1, Waiting)];
        assert_eq!(position(&entries, 3, 2), PermitPosition::First);
        assert_eq!(position(&entries, 3, 3), PermitPosition::Behind(FencingToken::new(2)));
    }

    #[test]
    fn fewer_permits_revoke_nothing_and_admit_nothing() {
        let entries = [(2, Granted), (2, Granted), (1, Waiting)];
        assert_eq!(position(&entries, 1, 2), PermitPosition::Holder);
        assert_eq!(position(&entries, 4, 3), PermitPosition::First);
        assert_eq!(position(&entries, 5, 3), PermitPosition::Admissible);
        assert_eq!(position(&[(1, Waiting)], 0, 1), PermitPosition::First);
    }

    #[test]
    fn large_numbers_do_not_overflow() {
        let entries = [(u32::MAX, Granted), (u32::MAX, Waiting)];
        assert_eq!(position(&entries, u32::MAX, 2), PermitPosition::First);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Join {
            permits: u32,
        },
        Leave {
            entry: usize,
        },
        SetPermits {
            permits: u32,
        },
        /// An entry takes its turn, as it saw its position with the queue and number of `ago` steps before.
        TakeTurn {
            entry: usize,
            ago: usize,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1..4u32).prop_map(|permits| Step::Join { permits }),
            2 => (0..8usize).prop_map(|entry| Step::Leave { entry }),
            1 => (0..6u32).prop_map(|permits| Step::SetPermits { permits }),
            6 => (0..8usize, 0..4usize).prop_map(|(entry, ago)| Step::TakeTurn { entry, ago }),
        ]
    }

    /// A store: the queue, the number of permits, and the number of changes of the latter.
    #[derive(Clone, Default)]
    struct Model {
        queue: Vec<PermitEntry>,
        permits: u32,
        changes: u32,
    }

    impl Model {
        fn held(&self) -> u32 {
            self.queue.iter().filter(|entry| entry.state == Granted).map(|entry| entry.permits).sum()
        }

        fn position(&self, me: FencingToken) -> PermitPosition {
            permit_position(self.queue.iter().copied(), self.permits, me)
        }

        /// Marks an entry as granted, as the write of a backend does: guarded by its existence and by the number of
        /// permits.
        fn grant(&mut self, me: FencingToken, changes: u32) {
            let Some(at) = self.queue.iter().position(|entry| entry.token == me) else { return };
            if self.changes != changes {
                return;
            }
            assert!(self.queue[..at].iter().all(|entry| entry.state == Granted), "no entry is overtaken");
            self.queue[at].state = Granted;
            assert!(self.held() <= self.permits, "{} of {} permits are in use", self.held(), self.permits);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        /// Contenders act on outdated reads of the queue, as over a network.
        #[test]
        fn stale_reads_overtake_nothing_and_exceed_nothing(steps in proptest::collection::vec(step(), 1..80)) {
            let mut history = vec![Model::default()];
            let mut last = 0;
            for step in steps {
                let mut now = history.last().cloned().unwrap_or_default();
                match step {
                    Step::Join { permits } => {
                        last += 1;
                        now.queue.push(PermitEntry { token: FencingToken::new(last), permits, state: Waiting });
                    }
                    Step::Leave { entry } if entry < now.queue.len() => drop(now.queue.remove(entry)),
                    Step::SetPermits { permits } => {
                        now.permits = permits;
                        now.changes += 1;
                    }
                    Step::TakeTurn { entry, ago } if entry < now.queue.len() => {
                        let me = now.queue[entry].token;
                        let seen = &history[history.len().saturating_sub(1 + ago)];
                        if seen.position(me) == PermitPosition::Admissible {
                            now.grant(me, seen.changes);
                        }
                    }
                    Step::Leave { .. } | Step::TakeTurn { .. } => {}
                }
                history.push(now);
            }
            // Once the holders leave and the number suffices, every entry gets its turn, in order.
            let mut now = history.pop().unwrap_or_default();
            (now.permits, now.changes) = (3, now.changes + 1);
            for _ in 0..=2 * now.queue.len() {
                let next = now.queue.iter().find(|entry| entry.state == Waiting).map(|entry| entry.token);
                match next.map(|next| (next, now.position(next))) {
                    Some((next, PermitPosition::Admissible)) => now.grant(next, now.changes),
                    Some((_, PermitPosition::First)) => drop(now.queue.remove(0)),
                    other => prop_assert!(other.is_none(), "the first waiting entry is behind nothing: {other:?}"),
                }
            }
            prop_assert!(now.queue.iter().all(|entry| entry.state == Granted), "progress: {:?}", now.queue);
        }
    }
}
