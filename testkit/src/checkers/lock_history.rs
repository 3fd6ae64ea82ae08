//! Checker for the holders of a lock: compares their recorded steps with the guarantees of a lock.
//!
//! Pure, like [`history`](crate::history), and tested in the same way.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use enlist::LockMode;
use serde::{Deserialize, Serialize};

/// Maximum time until a holder notices a revoked lease or a deleted key, in microseconds. It has to notice every other
/// loss before another contender is granted the lock.
pub const LOSS_NOTICE: u64 = 1_000_000;

/// Time after a request to revoke a lease or to delete a key in which it may end a queue entry unnoticed by the
/// holder, in microseconds: etcd gives a request 7 s, and a holder whose watch is late notices the loss within 15 s.
/// A lock that another contender is granted later than that has to be free.
pub const EXCUSED: u64 = 22_000_000;

/// Period in which another client, or etcd itself, may end a queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Excuse {
    pub(crate) from: u64,
    pub(crate) until: u64,
}

impl Excuse {
    pub(crate) fn after(micros: u64) -> Self {
        Self { from: micros, until: micros.saturating_add(EXCUSED) }
    }

    /// Returns `true` if it covers a grant at this time.
    pub(crate) fn covers(self, granted: u64) -> bool {
        (self.from..=self.until).contains(&granted)
    }
}

/// Step of a contender, with its time in microseconds on a clock that all contenders share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "plain input of a pure function")]
pub enum Step {
    /// It asked for the lock.
    Asked,
    /// It gave up, or its acquisition failed.
    GaveUp,
    /// It was granted the lock. The time is after the grant.
    Granted {
        /// Its fencing token.
        token: u64,
        /// `true` in shared mode.
        shared: bool,
    },
    /// It checked the lock, and the lock was held. The time is that of the check.
    Believed {
        /// Its fencing token.
        token: u64,
    },
    /// It noticed that it does not hold the lock any more.
    Ended {
        /// Its fencing token.
        token: u64,
    },
    /// The resource accepted its write.
    Wrote {
        /// Its fencing token.
        token: u64,
    },
}

/// Events of one lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHistory {
    steps: Vec<(u64, usize, Step)>,
    /// Lease of each queue entry, by token.
    leases: BTreeMap<u64, i64>,
    /// Leases that may have been revoked, and queue entries that may have been deleted, by others than their owners.
    revoked: BTreeMap<i64, Vec<Excuse>>,
    deleted: BTreeMap<u64, Vec<Excuse>>,
    /// Value of the resource at the end.
    value: u64,
    /// Queue entries at the end, after all contenders had finished.
    residue: Vec<String>,
}

/// Violation of a guarantee.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockViolation {
    /// A contender held a lock that had been granted to another one.
    Overlap {
        /// Token of the earlier holder.
        token: u64,
        /// Token of the contender that the lock had been granted to.
        successor: u64,
        /// Time since the grant, in microseconds.
        after: u64,
    },
    /// A queue entry was granted the lock twice.
    GrantedTwice {
        /// Its token.
        token: u64,
    },
    /// A later queue entry was granted the lock before an earlier one.
    OutOfOrder {
        /// Token of the earlier entry, which was granted the lock second.
        token: u64,
        /// Token of the later entry, which was granted the lock first.
        overtaken_by: u64,
    },
    /// A lost lock was held again.
    Revived {
        /// Its token.
        token: u64,
    },
    /// The resource accepted a write with a smaller token than that of an earlier write.
    FenceBroken {
        /// Its token.
        token: u64,
        /// Token of an earlier write.
        after: u64,
    },
    /// The value of the resource differs from the number of accepted writes.
    LostUpdates {
        /// Number of accepted writes.
        written: u64,
        /// Value of the resource.
        value: u64,
    },
    /// A contender asked for the lock and was neither granted nor refused.
    Starved {
        /// The contender.
        contender: usize,
    },
    /// Queue entries remain at the end.
    Residue(Vec<String>),
}

impl fmt::Display for LockViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

#[derive(Clone, Copy)]
struct Grant {
    at: u64,
    token: u64,
    shared: bool,
}

impl Grant {
    fn excludes(self, other: Self) -> bool {
        !(self.shared && other.shared)
    }
}

impl LockHistory {
    /// Records a step of a contender at `micros`.
    pub fn step(&mut self, micros: u64, contender: usize, step: Step) {
        self.steps.push((micros, contender, step));
    }

    /// Records that the queue entry of `token` is under `lease`.
    pub fn queued(&mut self, token: u64, lease: i64) {
        self.leases.insert(token, lease);
    }

    /// Records that another client requests the revocation of `lease` after `micros`.
    pub fn revoked(&mut self, micros: u64, lease: i64) {
        self.revoked.entry(lease).or_default().push(Excuse::after(micros));
    }

    /// Records that etcd itself may revoke `lease` between two times, although it is renewed.
    pub fn may_be_revoked(&mut self, from: u64, until: u64, lease: i64) {
        self.revoked.entry(lease).or_default().push(Excuse { from, until });
    }

    /// Records that another client requests the deletion of the queue entry of `token` after `micros`.
    pub fn deleted(&mut self, micros: u64, token: u64) {
        self.deleted.entry(token).or_default().push(Excuse::after(micros));
    }

    /// Records the end: the resource has `value`, and the queue has the entries `residue`.
    pub fn ended(&mut self, value: u64, residue: Vec<String>) {
        self.value = value;
        self.residue = residue;
    }

    /// Returns the number of grants in `mode`.
    pub fn grants(&self, mode: LockMode) -> usize {
        self.granted().iter().filter(|grant| grant.shared == (mode == LockMode::Shared)).count()
    }

    /// Returns the first time at which a grant to `token` was noticed.
    pub fn granted_at(&self, token: u64) -> Option<u64> {
        self.granted().into_iter().find(|grant| grant.token == token).map(|grant| grant.at)
    }

    /// Returns the number of writes that the resource accepted.
    pub fn writes(&self) -> usize {
        self.steps.iter().filter(|(_, _, step)| matches!(step, Step::Wrote { .. })).count()
    }

    fn granted(&self) -> Vec<Grant> {
        let mut grants: Vec<Grant> = self
            .steps
            .iter()
            .filter_map(|(at, _, step)| match *step {
                Step::Granted { token, shared } => Some(Grant { at: *at, token, shared }),
                _ => None,
            })
            .collect();
        grants.sort_by_key(|grant| grant.at);
        grants
    }

    /// Returns `true` if others may have deleted the entry of `token`, or revoked its lease, shortly before the grant
    /// to `successor`.
    fn may_have_ended(&self, token: u64, successor: &Grant) -> bool {
        let deleted = self.deleted.get(&token);
        let revoked = self.leases.get(&token).and_then(|lease| self.revoked.get(lease));
        deleted.into_iter().chain(revoked).flatten().any(|excuse| excuse.covers(successor.at))
    }

    /// Returns the time until which the holder of `token` may hold the lock after it was granted to `successor`: the
    /// limit for noticing a loss if its entry may have ended shortly before, otherwise the time of that grant.
    fn held_until(&self, token: u64, successor: &Grant) -> u64 {
        if self.may_have_ended(token, successor) { successor.at + LOSS_NOTICE } else { successor.at }
    }

    /// Returns the time until which the contender of `token` may learn of its grant: the answer to the confirmation of
    /// its turn may be late, but the request has a time limit.
    fn granted_until(&self, token: u64, successor: &Grant) -> u64 {
        if self.may_have_ended(token, successor) { successor.at + EXCUSED } else { successor.at }
    }

    /// Returns the first grant among those that are later in the queue than `grant` and exclude it.
    fn successor(grants: &[Grant], grant: Grant) -> Option<&Grant> {
        grants.iter().find(|later| later.token > grant.token && later.excludes(grant))
    }

    /// Returns all violations.
    pub fn check(&self) -> Vec<LockViolation> {
        let grants = self.granted();
        let mut violations = self.order(&grants);
        violations.extend(self.overlaps(&grants));
        violations.extend(self.resource());
        let mut ended = BTreeSet::new();
        let mut waiting = BTreeSet::new();
        for (_, contender, step) in &self.steps {
            match step {
                Step::Asked => drop(waiting.insert(*contender)),
                Step::GaveUp | Step::Granted { .. } => drop(waiting.remove(contender)),
                Step::Believed { token } if ended.contains(token) => {
                    violations.push(LockViolation::Revived { token: *token });
                }
                Step::Ended { token } => drop(ended.insert(*token)),
                Step::Believed { .. } | Step::Wrote { .. } => {}
            }
        }
        violations.extend(waiting.into_iter().map(|contender| LockViolation::Starved { contender }));
        if !self.residue.is_empty() {
            violations.push(LockViolation::Residue(self.residue.clone()));
        }
        violations
    }

    /// Checks that each queue entry is granted the lock once, and in the order of the queue where one grant excludes
    /// the other. A contender whose entry was deleted after its turn was confirmed may learn of its grant after that of
    /// its successor; it must not hold the lock then, which [`overlaps`](Self::overlaps) checks.
    fn order(&self, grants: &[Grant]) -> Vec<LockViolation> {
        let mut violations = Vec::new();
        let mut seen = BTreeSet::new();
        for grant in grants {
            if !seen.insert(grant.token) {
                violations.push(LockViolation::GrantedTwice { token: grant.token });
            }
            if let Some(first) = Self::successor(grants, *grant)
                && grant.at > self.granted_until(grant.token, first)
            {
                violations.push(LockViolation::OutOfOrder { token: grant.token, overtaken_by: first.token });
            }
        }
        violations
    }

    /// Returns the time of the last check at which each contender held the lock, by token.
    fn last_held(&self) -> BTreeMap<u64, u64> {
        let mut last_held = BTreeMap::<u64, u64>::new();
        for (at, _, step) in &self.steps {
            if let Step::Believed { token } = step {
                let last = last_held.entry(*token).or_default();
                *last = (*last).max(*at);
            }
        }
        last_held
    }

    /// Checks that no contender holds a lock that was granted to another one, except within the limit for noticing a
    /// loss.
    fn overlaps(&self, grants: &[Grant]) -> Vec<LockViolation> {
        let last_held = self.last_held();
        let mut violations = Vec::new();
        for grant in grants {
            let Some(held) = last_held.get(&grant.token) else { continue };
            // The first successor decides, also if this contender noticed its grant after it.
            if let Some(successor) = Self::successor(grants, *grant)
                && *held > self.held_until(grant.token, successor)
            {
                let after = held - successor.at;
                let (token, successor) = (grant.token, successor.token);
                violations.push(LockViolation::Overlap { token, successor, after });
            }
        }
        violations
    }

    /// Returns the number of holders that held the lock, or were granted it, after the first successor had been granted
    /// it, and are excused because their entry may have been ended by others shortly before.
    pub fn excused(&self) -> usize {
        let (grants, last_held) = (self.granted(), self.last_held());
        let is_excused = |grant: &&Grant| {
            let held = last_held.get(&grant.token).copied().unwrap_or_default();
            Self::successor(&grants, **grant).is_some_and(|first| {
                held.max(grant.at) > first.at
                    && held <= self.held_until(grant.token, first)
                    && grant.at <= self.granted_until(grant.token, first)
            })
        };
        grants.iter().filter(is_excused).count()
    }

    fn resource(&self) -> Vec<LockViolation> {
        let mut violations = Vec::new();
        let mut written = 0;
        let mut highest = 0;
        for (_, _, step) in &self.steps {
            if let Step::Wrote { token } = *step {
                written += 1;
                if token < highest {
                    violations.push(LockViolation::FenceBroken { token, after: highest });
                }
                highest = highest.max(token);
            }
        }
        if written != self.value {
            violations.push(LockViolation::LostUpdates { written, value: self.value });
        }
        violations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> LockHistory {
        let mut history = LockHistory::default();
        let exclusive = |token| Step::Granted { token, shared: false };
        let shared = |token| Step::Granted { token, shared: true };
        for (at, contender, step) in [
            (1, 0, Step::Asked),
            (2, 0, exclusive(10)),
            (3, 1, Step::Asked),
            (4, 2, Step::Asked),
            (5, 3, Step::Asked),
            (6, 4, Step::Asked),
            (7, 0, Step::Wrote { token: 10 }),
            (8, 0, Step::Believed { token: 10 }),
            (9, 0, Step::Ended { token: 10 }),
            // Two readers, which are granted the lock in the reverse order of the queue.
            (10, 2, shared(12)),
            (11, 1, shared(11)),
            (12, 1, Step::Believed { token: 11 }),
            (13, 2, Step::Believed { token: 12 }),
            (14, 1, Step::Ended { token: 11 }),
            (15, 2, Step::Ended { token: 12 }),
            (16, 3, exclusive(13)),
            (17, 3, Step::Wrote { token: 13 }),
            (18, 3, Step::Ended { token: 13 }),
            (19, 4, Step::GaveUp),
        ] {
            history.step(at, contender, step);
        }
        for token in 10..=13 {
            history.queued(token, 7);
        }
        history.ended(2, Vec::new());
        history
    }

    /// Changes a valid history, and returns the kinds of the violations found.
    fn spoiled(spoil: impl FnOnce(&mut LockHistory)) -> Vec<String> {
        let mut history = good();
        spoil(&mut history);
        let kind = |violation: &LockViolation| {
            format!("{violation:?}").split([' ', '(']).next().unwrap_or_default().to_owned()
        };
        history.check().iter().map(kind).collect()
    }

    #[test]
    fn valid_histories_pass_and_each_mutant_is_flagged() {
        assert_eq!(good().check(), []);
        let holds = |at, token| move |history: &mut LockHistory| history.step(at, 0, Step::Believed { token });
        // The writer holds the lock while readers have it, and a reader while a writer has it.
        assert_eq!(
            spoiled(|history| {
                history.steps.retain(|(_, _, step)| *step != Step::Ended { token: 10 });
                holds(11, 10)(history);
            }),
            ["Overlap"]
        );
        assert_eq!(
            spoiled(|history| {
                history.steps.retain(|(_, _, step)| *step != Step::Ended { token: 12 });
                holds(17, 12)(history);
            }),
            ["Overlap"]
        );
        assert_eq!(spoiled(holds(9, 10)), ["Revived"]);
        let grant =
            |at, token, shared| move |history: &mut LockHistory| history.step(at, 9, Step::Granted { token, shared });
        assert_eq!(spoiled(grant(18, 13, false)), ["GrantedTwice"]);
        assert_eq!(spoiled(grant(20, 9, false)), ["OutOfOrder"]);
        assert_eq!(spoiled(grant(20, 12, true)), ["GrantedTwice", "OutOfOrder"]);
        // A writer that is granted the lock before earlier readers.
        assert_eq!(spoiled(|history| history.steps[15].0 = 9), ["OutOfOrder", "OutOfOrder", "Overlap", "Overlap"]);
        assert_eq!(spoiled(|history| history.step(20, 0, Step::Wrote { token: 10 })), ["FenceBroken", "LostUpdates"]);
        assert_eq!(spoiled(|history| history.ended(1, Vec::new())), ["LostUpdates"]);
        assert_eq!(spoiled(|history| history.ended(2, vec!["key".to_owned()])), ["Residue"]);
        assert_eq!(spoiled(|history| history.steps.truncate(18)), ["Starved"]);
    }

    /// The answer to the confirmation of a turn arrives after the entry was deleted.
    #[test]
    fn a_late_grant_of_a_deleted_entry_may_not_be_held() {
        let late = |at, held: bool| {
            spoiled(|history| {
                history.deleted(1, 9);
                history.step(at, 9, Step::Granted { token: 9, shared: false });
                if held {
                    history.step(at, 9, Step::Believed { token: 9 });
                }
                history.step(at, 9, Step::Ended { token: 9 });
            })
        };
        assert_eq!(late(20, false), [""; 0]);
        assert_eq!(late(20, true), [""; 0], "within the limit for noticing a loss");
        assert_eq!(late(LOSS_NOTICE + 20, true), ["Overlap"]);
        assert_eq!(late(EXCUSED + 2, false), [""; 0]);
        assert_eq!(late(EXCUSED + 3, false), ["OutOfOrder"]);
    }

    #[test]
    fn deleted_entries_may_be_noticed_within_the_limit() {
        let late = |after: u64, delete: fn(&mut LockHistory)| {
            spoiled(|history| {
                history.steps.retain(|(_, _, step)| *step != Step::Ended { token: 10 });
                delete(history);
                history.step(10 + after, 0, Step::Believed { token: 10 });
            })
        };
        assert_eq!(late(LOSS_NOTICE, |history| history.revoked(1, 7)), Vec::<String>::new());
        assert_eq!(late(LOSS_NOTICE, |history| history.deleted(1, 10)), Vec::<String>::new());
        assert_eq!(late(LOSS_NOTICE + 1, |history| history.deleted(1, 10)), ["Overlap"]);
        assert_eq!(late(1, |history| history.revoked(1, 8)), ["Overlap"]);
        assert_eq!(late(1, |history| history.deleted(1, 11)), ["Overlap"]);
    }
    /// Returns the violations of an exclusive lock without writes, one entry of which was deleted.
    fn violations(deleted: (u64, u64), steps: impl IntoIterator<Item = (u64, Step)>) -> Vec<LockViolation> {
        let mut history = LockHistory::default();
        history.deleted(deleted.0, deleted.1);
        for (at, step) in steps {
            history.step(at, 0, step);
        }
        history.ended(0, Vec::new());
        history.check()
    }

    fn granted(token: u64) -> Step {
        Step::Granted { token, shared: false }
    }

    #[test]
    fn a_deletion_excuses_nothing_before_it() {
        let two_hold_it = [
            (10, granted(12)),
            (500_000, granted(10)),
            (600_000, Step::Believed { token: 10 }),
            (600_001, Step::Believed { token: 12 }),
            (700_000, Step::Ended { token: 12 }),
            (60_000_000, Step::Ended { token: 10 }),
        ];
        let found = violations((59_000_000, 10), two_hold_it.clone());
        let reordered = LockViolation::OutOfOrder { token: 10, overtaken_by: 12 };
        assert_eq!(found, [reordered, LockViolation::Overlap { token: 10, successor: 12, after: 599_990 }]);
        assert_eq!(violations((9, 10), two_hold_it), []);
    }

    #[test]
    fn an_excuse_ends_after_its_time() {
        let overlap = |granted_at: u64| {
            let mut history = LockHistory::default();
            history.queued(10, 7);
            history.step(1, 0, granted(10));
            history.step(granted_at, 1, granted(12));
            history.step(granted_at + 1, 0, Step::Believed { token: 10 });
            history
        };
        let excused = |history: &LockHistory| (history.overlaps(&history.granted()).len(), history.excused());
        let second = 1_000_000;
        let mut history = overlap(30 * second);
        assert_eq!(excused(&history), (1, 0));
        history.may_be_revoked(25 * second, 29 * second, 7);
        history.revoked(30 * second - EXCUSED - 1, 7);
        history.deleted(30 * second - EXCUSED - 1, 10);
        assert_eq!(excused(&history), (1, 0), "the time of each has passed");
        history.may_be_revoked(25 * second, 30 * second, 7);
        assert_eq!(excused(&history), (0, 1));
        let mut history = overlap(30 * second);
        history.revoked(30 * second - EXCUSED, 7);
        assert_eq!(excused(&history), (0, 1));
    }

    #[test]
    fn late_holders_of_a_deleted_entry_are_limited() {
        let held = |until: u64| {
            violations(
                (1, 10),
                [(10, granted(12)), (20, granted(10)), (until, Step::Believed { token: 10 })]
                    .into_iter()
                    .chain([(until, Step::Ended { token: 10 }), (until, Step::Ended { token: 12 })]),
            )
        };
        assert_eq!(held(10 + LOSS_NOTICE), []);
        let after = LOSS_NOTICE + 1;
        assert_eq!(held(11 + LOSS_NOTICE), [LockViolation::Overlap { token: 10, successor: 12, after }]);
    }
}
