//! Checker for the holders of a semaphore: compares their recorded steps, and the changes of the store, with the
//! guarantees of a semaphore.
//!
//! Pure, like [`lock_history`](crate::lock_history), and tested in the same way. The order of the grants and the number
//! of granted permits are checked in the store, revision by revision. The permits in use are checked by the steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::checkers::lock_history::{Excuse, LOSS_NOTICE};

/// Step of a contender, with its time in microseconds on a clock that all contenders share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "plain input of a pure function")]
pub enum PermitStep {
    /// It asked for permits.
    Asked,
    /// It gave up, or its acquisition failed.
    GaveUp,
    /// It was granted its permits. The time is after the grant.
    Granted {
        /// Its fencing token.
        token: u64,
    },
    /// It checked the permits, and they were held. The time is that of the check.
    Believed {
        /// Its fencing token.
        token: u64,
    },
    /// It noticed that it does not hold the permits any more.
    Ended {
        /// Its fencing token.
        token: u64,
    },
}

/// Change of the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "plain input of a pure function")]
pub enum StoredChange {
    /// The number of permits was stored.
    Number(u32),
    /// A queue entry was written.
    Entry {
        /// Its key.
        key: String,
        /// Its fencing token.
        token: u64,
        /// Its permits.
        permits: u32,
        /// `true` if it is marked as granted.
        granted: bool,
    },
    /// A queue entry was deleted.
    Gone {
        /// Its key.
        key: String,
    },
}

/// Events of one semaphore.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SemaphoreHistory {
    /// Changes of the store by revision. A change that is reported twice counts once.
    changes: BTreeMap<u64, BTreeSet<StoredChange>>,
    steps: Vec<(u64, usize, PermitStep)>,
    /// Lease of each queue entry, by token.
    leases: BTreeMap<u64, i64>,
    /// Leases that may have been revoked, and queue entries that may have been deleted, by others than their owners.
    revoked: BTreeMap<i64, Vec<Excuse>>,
    deleted: BTreeMap<u64, Vec<Excuse>>,
    /// Queue entries at the end, after all contenders had finished.
    residue: Vec<String>,
}

/// Violation of a guarantee.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SemaphoreViolation {
    /// An entry was granted although its permits were not free.
    Exceeded {
        /// Its token.
        token: u64,
        /// Permits of all granted entries.
        granted: u64,
        /// Number of permits of the semaphore.
        permits: u32,
    },
    /// An entry was granted before an earlier one.
    OutOfOrder {
        /// Its token.
        token: u64,
        /// Token of the earlier entry.
        overtaken: u64,
    },
    /// A granted entry waited again.
    NoLongerGranted {
        /// Its token.
        token: u64,
    },
    /// A contender held permits without a grant in the store.
    Unconfirmed {
        /// Its token.
        token: u64,
    },
    /// More permits were in use than there were, after this grant.
    InUse {
        /// Token of the grant.
        token: u64,
        /// Permits in use.
        used: u64,
        /// Number of permits of the semaphore.
        permits: u32,
    },
    /// Lost permits were held again.
    Revived {
        /// Their token.
        token: u64,
    },
    /// A contender asked for permits and was neither granted nor refused.
    Starved {
        /// The contender.
        contender: usize,
    },
    /// Queue entries remain at the end.
    Residue(Vec<String>),
}

impl fmt::Display for SemaphoreViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Queue entry in the store.
#[derive(Clone, Copy)]
struct Stored {
    token: u64,
    permits: u32,
    granted: bool,
}

/// Grant in the store.
#[derive(Clone, Copy)]
struct StoredGrant {
    token: u64,
    permits: u32,
    /// Number of permits of the semaphore at that time.
    number: u32,
}

impl SemaphoreHistory {
    /// Records a change of the store.
    pub fn changed(&mut self, revision: u64, change: StoredChange) {
        self.changes.entry(revision).or_default().insert(change);
    }

    /// Records a step of a contender at `micros`.
    pub fn step(&mut self, micros: u64, contender: usize, step: PermitStep) {
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

    /// Records the queue entries at the end.
    pub fn ended(&mut self, residue: Vec<String>) {
        self.residue = residue;
    }

    /// Returns the number of grants that contenders noticed.
    pub fn grants(&self) -> usize {
        self.steps.iter().filter(|(_, _, step)| matches!(step, PermitStep::Granted { .. })).count()
    }

    /// Returns all violations.
    pub fn check(&self) -> Vec<SemaphoreViolation> {
        let (grants, mut violations) = self.replay();
        violations.extend(self.in_use(&grants));
        let granted: BTreeSet<u64> = grants.iter().map(|grant| grant.token).collect();
        let (mut ended, mut waiting) = (BTreeSet::new(), BTreeSet::new());
        for (_, contender, step) in &self.steps {
            match step {
                PermitStep::Asked => drop(waiting.insert(*contender)),
                PermitStep::GaveUp => drop(waiting.remove(contender)),
                PermitStep::Granted { token } => {
                    waiting.remove(contender);
                    if !granted.contains(token) {
                        violations.push(SemaphoreViolation::Unconfirmed { token: *token });
                    }
                }
                PermitStep::Believed { token } if ended.contains(token) => {
                    violations.push(SemaphoreViolation::Revived { token: *token });
                }
                PermitStep::Ended { token } => drop(ended.insert(*token)),
                PermitStep::Believed { .. } => {}
            }
        }
        violations.extend(waiting.into_iter().map(|contender| SemaphoreViolation::Starved { contender }));
        if !self.residue.is_empty() {
            violations.push(SemaphoreViolation::Residue(self.residue.clone()));
        }
        violations
    }

    /// Replays the changes of the store. Returns the grants in order, and the violations among them.
    fn replay(&self) -> (Vec<StoredGrant>, Vec<SemaphoreViolation>) {
        let (mut queue, mut number) = (BTreeMap::<&str, Stored>::new(), 0);
        let (mut grants, mut violations) = (Vec::<StoredGrant>::new(), Vec::new());
        for changes in self.changes.values() {
            let mut new = Vec::new();
            for change in changes {
                match change {
                    StoredChange::Number(permits) => number = *permits,
                    StoredChange::Gone { key } => drop(queue.remove(&**key)),
                    StoredChange::Entry { key, token, permits, granted } => {
                        let entry = Stored { token: *token, permits: *permits, granted: *granted };
                        let before = queue.insert(key, entry).filter(|before| before.token == entry.token);
                        match (before.is_some_and(|before| before.granted), entry.granted) {
                            (false, true) => new.push(entry),
                            (true, false) => {
                                violations.push(SemaphoreViolation::NoLongerGranted { token: entry.token });
                            }
                            _ => {}
                        }
                    }
                }
            }
            new.sort_by_key(|entry| entry.token);
            for Stored { token, permits, .. } in new {
                let waiting = queue.values().filter(|other| !other.granted).map(|other| other.token);
                let last = grants.last().map(|grant| grant.token).filter(|last| *last > token);
                let overtaken = waiting.filter(|other| *other < token).min();
                if let Some(overtaken) = overtaken {
                    violations.push(SemaphoreViolation::OutOfOrder { token, overtaken });
                } else if let Some(last) = last {
                    violations.push(SemaphoreViolation::OutOfOrder { token: last, overtaken: token });
                }
                let granted = queue.values().filter(|other| other.granted && other.token <= token);
                let granted = granted.map(|other| u64::from(other.permits)).sum();
                if granted > u64::from(number) {
                    violations.push(SemaphoreViolation::Exceeded { token, granted, permits: number });
                }
                grants.push(StoredGrant { token, permits, number });
            }
        }
        (grants, violations)
    }

    /// Checks the permits in use after each grant: those of the grant, and those of earlier holders that still held
    /// them, except within the limit for noticing a loss.
    fn in_use(&self, grants: &[StoredGrant]) -> Vec<SemaphoreViolation> {
        let exceeding = self.exceeding(grants, |token, granted| self.held_until(token, granted));
        let violation = |(grant, used): (StoredGrant, u64)| SemaphoreViolation::InUse {
            token: grant.token,
            used,
            permits: grant.number,
        };
        exceeding.into_iter().map(violation).collect()
    }

    /// Returns the number of grants after which more permits were in use than there were, which is excused because
    /// entries of earlier holders may have been ended by others shortly before.
    pub fn excused(&self) -> usize {
        let (grants, _) = self.replay();
        self.exceeding(&grants, |_, granted| granted).len() - self.in_use(&grants).len()
    }

    /// Returns the grants after which more permits were in use than there were, with their number. `held_until` returns
    /// the time until which the holder of a token may hold permits after a grant at a time.
    fn exceeding(&self, grants: &[StoredGrant], held_until: impl Fn(u64, u64) -> u64) -> Vec<(StoredGrant, u64)> {
        let (noticed, last_held) = self.noticed_and_last_held();
        let mut exceeding = Vec::new();
        for (number, grant) in grants.iter().enumerate() {
            let Some(at) = noticed.get(&grant.token) else { continue };
            let still_held = |earlier: &&StoredGrant| {
                last_held.get(&earlier.token).is_some_and(|held| *held > held_until(earlier.token, *at))
            };
            let others = grants[..number].iter().filter(still_held).map(|earlier| u64::from(earlier.permits));
            let used = others.sum::<u64>() + u64::from(grant.permits);
            if used > u64::from(grant.number) {
                exceeding.push((*grant, used));
            }
        }
        exceeding
    }

    /// Returns the time until which the holder of `token` may hold permits that were granted to another contender at
    /// `granted`: the limit for noticing a loss if its entry may have been deleted or its lease revoked shortly before,
    /// otherwise the time of that grant.
    fn held_until(&self, token: u64, granted: u64) -> u64 {
        let deleted = self.deleted.get(&token);
        let revoked = self.leases.get(&token).and_then(|lease| self.revoked.get(lease));
        let was_deleted = deleted.into_iter().chain(revoked).flatten().any(|excuse| excuse.covers(granted));
        if was_deleted { granted + LOSS_NOTICE } else { granted }
    }

    /// Returns the times at which contenders noticed their grants, and the last ones at which they held their permits,
    /// by token.
    fn noticed_and_last_held(&self) -> (BTreeMap<u64, u64>, BTreeMap<u64, u64>) {
        let (mut noticed, mut last_held) = (BTreeMap::<u64, u64>::new(), BTreeMap::<u64, u64>::new());
        for (at, _, step) in &self.steps {
            match step {
                PermitStep::Granted { token } => drop(noticed.entry(*token).or_insert(*at)),
                PermitStep::Believed { token } => {
                    let last = last_held.entry(*token).or_default();
                    *last = (*last).max(*at);
                }
                _ => {}
            }
        }
        (noticed, last_held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(token: u64, permits: u32) -> StoredChange {
        StoredChange::Entry { key: format!("k{token}"), token, permits, granted: false }
    }

    fn granted(token: u64, permits: u32) -> StoredChange {
        StoredChange::Entry { key: format!("k{token}"), token, permits, granted: true }
    }

    fn gone(token: u64) -> StoredChange {
        StoredChange::Gone { key: format!("k{token}") }
    }

    /// Three permits: entries 10 and 11 hold, 12 wants all of them, 13 waits behind it. The number is lowered at last.
    fn good() -> SemaphoreHistory {
        let mut history = SemaphoreHistory::default();
        for (revision, change) in [
            (9, StoredChange::Number(3)),
            (10, waiting(10, 2)),
            (11, waiting(11, 1)),
            (12, waiting(12, 3)),
            (13, waiting(13, 1)),
            (14, granted(10, 2)),
            (15, granted(11, 1)),
            (16, gone(10)),
            (17, gone(11)),
            (18, granted(12, 3)),
            (19, StoredChange::Number(1)),
            (20, gone(12)),
            (21, granted(13, 1)),
            (22, gone(13)),
        ] {
            history.changed(revision, change);
        }
        for (at, contender, step) in [
            (1, 0, PermitStep::Asked),
            (2, 1, PermitStep::Asked),
            (3, 2, PermitStep::Asked),
            (4, 3, PermitStep::Asked),
            // Noticed in the reverse order of the grants.
            (15, 1, PermitStep::Granted { token: 11 }),
            (16, 0, PermitStep::Granted { token: 10 }),
            (17, 0, PermitStep::Believed { token: 10 }),
            (18, 1, PermitStep::Believed { token: 11 }),
            (19, 0, PermitStep::Ended { token: 10 }),
            (20, 1, PermitStep::Ended { token: 11 }),
            (30, 2, PermitStep::Granted { token: 12 }),
            (31, 2, PermitStep::Believed { token: 12 }),
            (32, 2, PermitStep::Ended { token: 12 }),
            (40, 3, PermitStep::Granted { token: 13 }),
            (41, 3, PermitStep::Ended { token: 13 }),
            (42, 4, PermitStep::Asked),
            (43, 4, PermitStep::GaveUp),
        ] {
            history.step(at, contender, step);
        }
        (10..=13).for_each(|token| history.queued(token, 7));
        history
    }

    /// Changes a valid history, and returns the kinds of the violations found.
    fn spoiled(spoil: impl FnOnce(&mut SemaphoreHistory)) -> Vec<String> {
        let mut history = good();
        spoil(&mut history);
        let kind = |violation: &SemaphoreViolation| {
            format!("{violation:?}").split([' ', '(']).next().unwrap_or_default().to_owned()
        };
        history.check().iter().map(kind).collect()
    }

    fn moved(history: &mut SemaphoreHistory, from: u64, to: u64) {
        let changes = history.changes.remove(&from).unwrap_or_default();
        history.changes.entry(to).or_default().extend(changes);
    }

    #[test]
    fn valid_histories_pass_and_each_mutant_is_flagged() {
        assert_eq!(good().check(), []);
        // A change that is reported twice, after the watch was opened again.
        assert_eq!(spoiled(|history| history.changed(15, granted(11, 1))), [""; 0]);
        // The entry that wants everything is granted while another one holds.
        assert_eq!(spoiled(|history| moved(history, 17, 23)), ["Exceeded", "Exceeded"]);
        assert_eq!(spoiled(|history| history.changed(17, StoredChange::Number(2))), ["Exceeded", "InUse"]);
        // The small request overtakes the large one.
        assert_eq!(
            spoiled(|history| {
                history.changed(15, granted(13, 1));
                history.changed(17, gone(13));
            }),
            ["OutOfOrder", "Exceeded", "OutOfOrder"]
        );
        // Entries are granted in the reverse order, each while the other one is gone.
        assert_eq!(
            spoiled(|history| {
                history.changed(24, granted(9, 1));
            }),
            ["OutOfOrder"]
        );
        assert_eq!(spoiled(|history| history.changed(16, waiting(11, 1))), ["NoLongerGranted"]);
        assert_eq!(spoiled(|history| history.step(50, 9, PermitStep::Granted { token: 99 })), ["Unconfirmed"]);
        assert_eq!(
            spoiled(|history| history.step(50, 9, PermitStep::Believed { token: 10 })),
            ["InUse", "InUse", "Revived"]
        );
        assert_eq!(spoiled(|history| history.ended(vec!["key".to_owned()])), ["Residue"]);
        assert_eq!(spoiled(|history| history.steps.truncate(16)), ["Starved"]);
    }

    #[test]
    fn losses_may_be_noticed_within_the_limit() {
        let late = |until: u64, delete: fn(&mut SemaphoreHistory)| {
            spoiled(|history| {
                history.steps.retain(|(_, _, step)| *step != PermitStep::Ended { token: 11 });
                history.steps.retain(|(_, contender, _)| *contender != 3);
                delete(history);
                history.step(until, 1, PermitStep::Believed { token: 11 });
            })
        };
        assert_eq!(late(29, |_| ()), [""; 0], "before the next grant");
        assert_eq!(late(31, |_| ()), ["InUse"]);
        assert_eq!(late(30 + LOSS_NOTICE, |history| history.deleted(1, 11)), [""; 0]);
        assert_eq!(late(30 + LOSS_NOTICE, |history| history.revoked(1, 7)), [""; 0]);
        assert_eq!(late(31 + LOSS_NOTICE, |history| history.deleted(1, 11)), ["InUse"]);
        assert_eq!(late(31, |history| history.deleted(31, 11)), ["InUse"], "it excuses nothing before it");
        assert_eq!(late(31, |history| history.deleted(1, 12)), ["InUse"]);
        assert_eq!(late(31, |history| history.may_be_revoked(1, 30, 7)), [""; 0]);
        assert_eq!(late(31, |history| history.may_be_revoked(1, 29, 7)), ["InUse"], "its time has passed");
    }

    #[test]
    fn excused_grants_are_counted() {
        let mut history = good();
        history.step(31, 1, PermitStep::Believed { token: 11 });
        assert_eq!(history.excused(), 0);
        history.deleted(1, 11);
        assert_eq!(history.excused(), 1);
    }
}
