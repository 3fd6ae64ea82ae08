//! Judges what the holders of a lock believed and did against what a lock promises.
//!
//! Pure, as [`history`](crate::history) is, and tested in the same way.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use enlist::LockMode;
use serde::{Deserialize, Serialize};

/// Time for which whoever was robbed of a lock may believe in it, in microseconds: a revoked lease and a deleted key
/// are signalled within this time. Whoever loses a lock in any other way must know before it is granted to another.
pub const ROBBED: u64 = 1_000_000;

/// What a contender did or believed, and when: microseconds on a clock that all contenders share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "plain input of a pure function")]
pub enum Step {
    /// It got in line.
    Asked,
    /// It no longer wants the lock, or was refused.
    GaveUp,
    /// It was granted the lock; noted after that.
    Granted {
        /// Its fencing token.
        token: u64,
        /// `true` if it shares the lock.
        shared: bool,
    },
    /// It asked whether it still holds the lock, and the answer was yes; the time is that of the question.
    Believed {
        /// Its fencing token.
        token: u64,
    },
    /// It knows that it holds the lock no more.
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
    /// The lease that keeps each place, by token.
    leases: BTreeMap<u64, i64>,
    /// Leases that were revoked and places that were deleted by force, each with a time before that was asked for.
    revoked: BTreeMap<i64, u64>,
    deleted: BTreeMap<u64, u64>,
    /// The value of the resource at the end.
    value: u64,
    /// Keys that were in line at the end, when nobody wanted the lock any more.
    residue: Vec<String>,
}

/// Promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockViolation {
    /// Somebody believed in a lock that had been granted to somebody else.
    Overlap {
        /// Token of the believer.
        token: u64,
        /// Token of the contender that had been granted it.
        successor: u64,
        /// Time since the grant, in microseconds.
        after: u64,
    },
    /// A place was granted the lock twice.
    GrantedTwice {
        /// Its token.
        token: u64,
    },
    /// A later place was granted the lock before an earlier one.
    OutOfOrder {
        /// The earlier place, which came second.
        token: u64,
        /// The later one, which came first.
        overtaken_by: u64,
    },
    /// A lost lock was believed in again.
    Revived {
        /// Its token.
        token: u64,
    },
    /// The resource accepted a write of somebody who was overtaken.
    FenceBroken {
        /// Its token.
        token: u64,
        /// The token of an earlier write.
        after: u64,
    },
    /// The resource does not hold as much as was written.
    LostUpdates {
        /// Accepted writes.
        written: u64,
        /// Value that it holds.
        value: u64,
    },
    /// Somebody got in line and never heard of it again.
    Starved {
        /// The contender.
        contender: usize,
    },
    /// Something is left in line.
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
    /// A contender made a step at `micros`.
    pub fn step(&mut self, micros: u64, contender: usize, step: Step) {
        self.steps.push((micros, contender, step));
    }

    /// The place of `token` is kept by `lease`.
    pub fn placed(&mut self, token: u64, lease: i64) {
        self.leases.insert(token, lease);
    }

    /// Somebody who has no business there asks for the revocation of `lease`, later than at `micros`.
    pub fn revoked(&mut self, micros: u64, lease: i64) {
        self.revoked.entry(lease).or_insert(micros);
    }

    /// Somebody who has no business there asks for the deletion of the place of `token`, later than at `micros`.
    pub fn deleted(&mut self, micros: u64, token: u64) {
        self.deleted.entry(token).or_insert(micros);
    }

    /// At the end the resource holds `value`, and `residue` is in line.
    pub fn ended(&mut self, value: u64, residue: Vec<String>) {
        self.value = value;
        self.residue = residue;
    }

    /// Number of times that the lock was granted in `mode`.
    pub fn grants(&self, mode: LockMode) -> usize {
        self.granted().iter().filter(|grant| grant.shared == (mode == LockMode::Shared)).count()
    }

    /// Number of writes that the resource accepted.
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

    /// Until when the holder of `token` may be told, and believe, after `successor` was granted the lock: for a moment,
    /// if it was robbed before that; else not at all.
    fn believes_until(&self, token: u64, successor: &Grant) -> u64 {
        let deleted = self.deleted.get(&token);
        let revoked = self.leases.get(&token).and_then(|lease| self.revoked.get(lease));
        let robbed = deleted.into_iter().chain(revoked).any(|at| *at <= successor.at);
        if robbed { successor.at + ROBBED } else { successor.at }
    }

    /// The first to be granted the lock of those that come after `grant` in line and exclude it.
    fn successor(grants: &[Grant], grant: Grant) -> Option<&Grant> {
        grants.iter().find(|later| later.token > grant.token && later.excludes(grant))
    }

    /// Everything that was broken.
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

    /// Each place once, and in the order of the line where one excludes the other. A contender that was robbed of its
    /// place after its turn was confirmed may hear of its grant after that of its successor, for as long as it may
    /// believe in it.
    fn order(&self, grants: &[Grant]) -> Vec<LockViolation> {
        let mut violations = Vec::new();
        let mut seen = BTreeSet::new();
        for grant in grants {
            if !seen.insert(grant.token) {
                violations.push(LockViolation::GrantedTwice { token: grant.token });
            }
            if let Some(first) = Self::successor(grants, *grant)
                && grant.at > self.believes_until(grant.token, first)
            {
                violations.push(LockViolation::OutOfOrder { token: grant.token, overtaken_by: first.token });
            }
        }
        violations
    }

    /// Nobody believes in a lock that was granted to another since; whoever was robbed may for a moment.
    fn overlaps(&self, grants: &[Grant]) -> Vec<LockViolation> {
        let mut last_belief = BTreeMap::<u64, u64>::new();
        for (at, _, step) in &self.steps {
            if let Step::Believed { token } = step {
                let last = last_belief.entry(*token).or_default();
                *last = (*last).max(*at);
            }
        }
        let mut violations = Vec::new();
        for grant in grants {
            let Some(believed) = last_belief.get(&grant.token) else { continue };
            // Of the later ones the first says it all, also if this one heard of its grant after it.
            if let Some(successor) = Self::successor(grants, *grant)
                && *believed > self.believes_until(grant.token, successor)
            {
                let after = believed - successor.at;
                let (token, successor) = (grant.token, successor.token);
                violations.push(LockViolation::Overlap { token, successor, after });
            }
        }
        violations
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
            // Two readers, in no order among themselves, one behind the other's back.
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
            history.placed(token, 7);
        }
        history.ended(2, Vec::new());
        history
    }

    /// Spoils a good history, and tells the kinds of what is found.
    fn spoiled(spoil: impl FnOnce(&mut LockHistory)) -> Vec<String> {
        let mut history = good();
        spoil(&mut history);
        let kind = |violation: &LockViolation| {
            format!("{violation:?}").split([' ', '(']).next().unwrap_or_default().to_owned()
        };
        history.check().iter().map(kind).collect()
    }

    #[test]
    fn a_good_history_passes_and_each_mutant_is_flagged() {
        assert_eq!(good().check(), []);
        let believes = |at, token| move |history: &mut LockHistory| history.step(at, 0, Step::Believed { token });
        // The writer believes in it while readers have it, a reader while a writer has it.
        assert_eq!(
            spoiled(|history| {
                history.steps.retain(|(_, _, step)| *step != Step::Ended { token: 10 });
                believes(11, 10)(history);
            }),
            ["Overlap"]
        );
        assert_eq!(
            spoiled(|history| {
                history.steps.retain(|(_, _, step)| *step != Step::Ended { token: 12 });
                believes(17, 12)(history);
            }),
            ["Overlap"]
        );
        assert_eq!(spoiled(believes(9, 10)), ["Revived"]);
        let grant =
            |at, token, shared| move |history: &mut LockHistory| history.step(at, 9, Step::Granted { token, shared });
        assert_eq!(spoiled(grant(18, 13, false)), ["GrantedTwice"]);
        assert_eq!(spoiled(grant(20, 9, false)), ["OutOfOrder"]);
        assert_eq!(spoiled(grant(20, 12, true)), ["GrantedTwice", "OutOfOrder"]);
        // One that was robbed may hear of its grant late, but not for ever.
        let robbed = |at| {
            move |history: &mut LockHistory| {
                history.deleted(1, 9);
                history.step(at, 9, Step::Granted { token: 9, shared: false });
                history.step(at, 9, Step::Ended { token: 9 });
            }
        };
        assert_eq!(spoiled(robbed(20)), Vec::<String>::new());
        assert_eq!(spoiled(robbed(ROBBED + 20)), ["OutOfOrder"]);
        // A writer that overtakes readers.
        assert_eq!(spoiled(|history| history.steps[15].0 = 9), ["OutOfOrder", "OutOfOrder", "Overlap", "Overlap"]);
        assert_eq!(spoiled(|history| history.step(20, 0, Step::Wrote { token: 10 })), ["FenceBroken", "LostUpdates"]);
        assert_eq!(spoiled(|history| history.ended(1, Vec::new())), ["LostUpdates"]);
        assert_eq!(spoiled(|history| history.ended(2, vec!["key".to_owned()])), ["Residue"]);
        assert_eq!(spoiled(|history| history.steps.truncate(18)), ["Starved"]);
    }

    #[test]
    fn whoever_was_robbed_may_believe_for_a_moment() {
        let late = |after: u64, rob: fn(&mut LockHistory)| {
            spoiled(|history| {
                history.steps.retain(|(_, _, step)| *step != Step::Ended { token: 10 });
                rob(history);
                history.step(10 + after, 0, Step::Believed { token: 10 });
            })
        };
        assert_eq!(late(ROBBED, |history| history.revoked(1, 7)), Vec::<String>::new());
        assert_eq!(late(ROBBED, |history| history.deleted(1, 10)), Vec::<String>::new());
        assert_eq!(late(ROBBED + 1, |history| history.deleted(1, 10)), ["Overlap"]);
        assert_eq!(late(1, |history| history.revoked(1, 8)), ["Overlap"]);
        assert_eq!(late(1, |history| history.deleted(1, 11)), ["Overlap"]);
    }
    /// A history of an exclusive lock, without writes.
    fn violations(robbed: (u64, u64), steps: impl IntoIterator<Item = (u64, Step)>) -> Vec<LockViolation> {
        let mut history = LockHistory::default();
        history.deleted(robbed.0, robbed.1);
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
    fn a_robbery_excuses_nothing_that_happened_before_it() {
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
    fn a_robbed_holder_that_is_told_late_has_a_moment_after_its_first_successor() {
        // The lock changes hands every 100 ms meanwhile.
        let told = |after: u64| {
            let others = (0..600).flat_map(|number| {
                let (at, token) = (10 + 100_000 * number, 11 + number);
                [(at, granted(token)), (at + 1, Step::Ended { token })]
            });
            let mut steps: Vec<_> = others.chain([(after, granted(10)), (after, Step::Ended { token: 10 })]).collect();
            steps.sort_by_key(|(at, _)| *at);
            violations((1, 10), steps)
        };
        assert_eq!(told(10 + ROBBED), []);
        assert_eq!(told(11 + ROBBED), [LockViolation::OutOfOrder { token: 10, overtaken_by: 11 }]);
    }

    #[test]
    fn a_robbed_holder_that_is_told_late_does_not_believe_for_ever() {
        let believes = |until: u64| {
            violations(
                (1, 10),
                [(10, granted(12)), (20, granted(10)), (until, Step::Believed { token: 10 })]
                    .into_iter()
                    .chain([(until, Step::Ended { token: 10 }), (until, Step::Ended { token: 12 })]),
            )
        };
        assert_eq!(believes(10 + ROBBED), []);
        let after = ROBBED + 1;
        assert_eq!(believes(11 + ROBBED), [LockViolation::Overlap { token: 10, successor: 12, after }]);
    }
}
