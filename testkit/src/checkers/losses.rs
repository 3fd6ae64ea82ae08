//! Checker for losses: the holder of a lock notices that its queue entry is gone, and a registered instance whose key
//! is gone returns, each within its documented bound (`docs/guarantees.md`, `docs/locks.md`).
//!
//! Pure, like [`history`](crate::history), and tested in the same way.
//!
//! | lost by | bound without a disturbance | bound with one |
//! |---|---|---|
//! | a lock, by expiry of its lease | it ends before | the same |
//! | a lock, by revocation of its lease | [`LOSS_NOTICE`] | the TTL: no later renewal is acknowledged |
//! | a lock, by deletion of its key | [`LOSS_NOTICE`] | the same after its end and the recovery |
//! | an instance, in any way | [`RETURN`], once its key is 0.5 s old | the same after its end and the recovery |

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::checkers::lock_history::LOSS_NOTICE;

/// Maximum time until an instance that was lost is stored again, in microseconds: 2 s, and the time in which its write
/// may wait for others.
pub const RETURN: u64 = 2_100_000;

/// Age from which the key of an instance is watched, in microseconds. Its loss before counts from then.
const WATCHED_FROM: u64 = 500_000;

/// Maximum time after a disturbance until a client has noticed that a connection or a watch was silent, and has
/// repeated a request that was refused, in microseconds.
pub const RECOVERY: u64 = 15_000_000;

/// Cause of the end of a queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "plain input of a pure function")]
pub enum EndCause {
    /// Its lease expired, or its own client removed it.
    ExpiredOrRemoved,
    /// Another client revoked its lease.
    Revoked,
    /// Another client deleted its key.
    Deleted,
}

/// Losses of a run. All times are in microseconds on one clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossHistory {
    disturbances: Vec<Incident>,
    /// Periods in which no range can be listed and then watched.
    unwatchable: Vec<Incident>,
    /// Holders by token.
    holders: BTreeMap<u64, Holder>,
    /// Instances by id.
    instances: BTreeMap<String, Published>,
    /// End of the run.
    ended: u64,
}

/// Period in which a fault may delay messages to clients, or requests, or prevent watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Incident {
    from: u64,
    until: u64,
    /// Time after its end in which it may still have an effect.
    recovery: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    /// TTL of its lease.
    ttl: u64,
    last_held: Option<u64>,
    end: Option<(u64, EndCause)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Published {
    from: Option<u64>,
    /// Time at which its owner began to withdraw it.
    until: Option<u64>,
    stored: BTreeSet<u64>,
    gone: BTreeSet<u64>,
}

/// Violation of a bound.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LossViolation {
    /// A holder still held its lock this long after its queue entry was gone.
    HeldTooLong {
        /// Its token.
        token: u64,
        /// Cause of the end of its entry.
        cause: EndCause,
        /// Time since the end of the entry, in microseconds.
        after: u64,
        /// Time within which the holder had to notice it, in microseconds.
        bound: u64,
    },
    /// A registered instance was lost, and was not stored again in time.
    StayedAway {
        /// Its id.
        id: String,
        /// Time of the loss, in microseconds.
        lost: u64,
        /// Time within which it had to return, in microseconds.
        bound: u64,
    },
}

impl fmt::Display for LossViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Numbers of losses that were judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JudgedLosses {
    /// Queue entries that ended although their holder had not released the lock.
    pub holders: usize,
    /// Of these, those without a disturbance.
    pub undisturbed_holders: usize,
    /// Registered instances that were lost.
    pub instances: usize,
    /// Of these, those without a disturbance.
    pub undisturbed_instances: usize,
}

impl LossHistory {
    /// Records a fault that may delay messages to clients, or requests, and has effects until `recovery` after its end.
    pub fn disturbed(&mut self, from: u64, until: u64, recovery: u64) {
        self.disturbances.push(Incident { from, until, recovery });
    }

    /// Records a period in which no range can be listed and then watched, with effects until `recovery` after its end.
    /// It delays the notice of losses, and no request.
    pub fn unwatchable(&mut self, from: u64, until: u64, recovery: u64) {
        self.unwatchable.push(Incident { from, until, recovery });
    }

    /// Records a grant of the lock under a lease with this TTL.
    pub fn granted(&mut self, token: u64, ttl: u64) {
        self.holders.entry(token).or_default().ttl = ttl;
    }

    /// Records that the lock of `token` was held at `micros`.
    pub fn held(&mut self, micros: u64, token: u64) {
        let last = &mut self.holders.entry(token).or_default().last_held;
        *last = (*last).max(Some(micros));
    }

    /// Records the end of a queue entry.
    pub fn entry_ended(&mut self, micros: u64, token: u64, cause: EndCause) {
        self.holders.entry(token).or_default().end.get_or_insert((micros, cause));
    }

    /// Records that an instance is registered from `micros` on.
    pub fn registered(&mut self, micros: u64, id: impl Into<String>) {
        self.instances.entry(id.into()).or_default().from.get_or_insert(micros);
    }

    /// Records that the owner of an instance begins to withdraw it.
    pub fn withdrawn(&mut self, micros: u64, id: impl Into<String>) {
        self.instances.entry(id.into()).or_default().until.get_or_insert(micros);
    }

    /// Records that the key of an instance was written.
    pub fn stored(&mut self, micros: u64, id: impl Into<String>) {
        self.instances.entry(id.into()).or_default().stored.insert(micros);
    }

    /// Records that the key of an instance was deleted.
    pub fn gone(&mut self, micros: u64, id: impl Into<String>) {
        self.instances.entry(id.into()).or_default().gone.insert(micros);
    }

    /// Returns `true` if a fault may have delayed messages to clients, or requests, at some time between two times.
    pub fn is_disturbed(&self, from: u64, until: u64) -> bool {
        self.disturbances.iter().any(|it| it.from <= until && it.until + it.recovery >= from)
    }

    /// Returns the time at which another client ended the queue entry of `token`, by its key or its lease.
    pub fn ended_by_others(&self, token: u64) -> Option<u64> {
        let (at, cause) = self.holders.get(&token)?.end?;
        (cause != EndCause::ExpiredOrRemoved).then_some(at)
    }

    /// Records the end of the run.
    pub fn ended(&mut self, micros: u64) {
        self.ended = micros;
    }

    /// Returns all violations.
    pub fn check(&self) -> Vec<LossViolation> {
        let mut violations = Vec::new();
        for (token, holder) in &self.holders {
            let (Some((end, cause)), Some(held)) = (holder.end, holder.last_held) else { continue };
            let limit = self.notice_limit(end, cause, holder.ttl);
            if held > limit {
                let (after, bound) = (held - end, limit - end);
                violations.push(LossViolation::HeldTooLong { token: *token, cause, after, bound });
            }
        }
        for (id, lost, instance) in self.lost_instances() {
            let (limit, _) = self.return_limit(instance, lost);
            let back = instance.stored.range(lost..).next().copied();
            let settled = [back, instance.until, Some(self.ended)].into_iter().flatten().min();
            if settled.is_none_or(|settled| settled > limit) {
                violations.push(LossViolation::StayedAway { id: id.clone(), lost, bound: limit - lost });
            }
        }
        violations
    }

    /// Returns the numbers of losses that [`check`](Self::check) judges.
    pub fn judged(&self) -> JudgedLosses {
        let mut judged = JudgedLosses::default();
        for holder in self.holders.values() {
            let (Some((end, cause)), Some(_)) = (holder.end, holder.last_held) else { continue };
            if cause != EndCause::ExpiredOrRemoved {
                judged.holders += 1;
                judged.undisturbed_holders += usize::from(self.limit(end, LOSS_NOTICE) == end + LOSS_NOTICE);
            }
        }
        for (_, lost, instance) in self.lost_instances() {
            let (limit, undisturbed) = self.return_limit(instance, lost);
            judged.instances += 1;
            judged.undisturbed_instances += usize::from(limit == undisturbed);
        }
        judged
    }

    /// Returns the losses of registered instances: the id, the time, and the instance.
    fn lost_instances(&self) -> impl Iterator<Item = (&String, u64, &Published)> {
        self.instances.iter().flat_map(|(id, instance)| {
            let from = instance.from.unwrap_or(u64::MAX);
            let until = instance.until.unwrap_or(u64::MAX);
            instance.gone.range(from.min(until)..until).map(move |lost| (id, *lost, instance))
        })
    }

    /// Returns the time until which an instance has to be stored again after it was lost, and that time without a
    /// disturbance.
    fn return_limit(&self, instance: &Published, lost: u64) -> (u64, u64) {
        let written = instance.stored.range(..=lost).next_back().copied().unwrap_or_default();
        let from = lost.max(written + WATCHED_FROM);
        (self.limit(from, RETURN), from + RETURN)
    }

    /// Returns the time until which a holder may hold its lock whose queue entry ended.
    fn notice_limit(&self, end: u64, cause: EndCause, ttl: u64) -> u64 {
        match cause {
            EndCause::ExpiredOrRemoved => end,
            EndCause::Revoked => self.limit(end, LOSS_NOTICE).min(end + ttl.max(LOSS_NOTICE)),
            EndCause::Deleted => self.limit(end, LOSS_NOTICE),
        }
    }

    /// Returns the time `bound` after `at`. If a disturbance, or a period without watches, may still have had an effect
    /// at `at`, or began before that time, it counts from the end of its recovery.
    fn limit(&self, at: u64, bound: u64) -> u64 {
        let mut limit = at + bound;
        loop {
            let concerns = |it: &&Incident| it.from <= limit && it.until + it.recovery >= at;
            let incidents = self.disturbances.iter().chain(&self.unwatchable);
            let later = incidents.filter(concerns).map(|it| it.until + it.recovery + bound).max();
            match later {
                Some(later) if later > limit => limit = later,
                _ => return limit,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// Returns the violation of a holder with a TTL of 5 s, whose entry ended after 10 s.
    fn held(until: u64, cause: EndCause, disturbed: Option<(u64, u64)>) -> Vec<LossViolation> {
        let mut history = LossHistory::default();
        history.granted(7, 5 * SECOND);
        history.held(SECOND, 7);
        history.entry_ended(10 * SECOND, 7, cause);
        history.held(until, 7);
        if let Some((from, until)) = disturbed {
            history.disturbed(from, until, RECOVERY);
        }
        history.check()
    }

    fn too_long(cause: EndCause, after: u64, bound: u64) -> Vec<LossViolation> {
        vec![LossViolation::HeldTooLong { token: 7, cause, after, bound }]
    }

    #[test]
    fn an_expired_lock_is_not_held() {
        let cause = EndCause::ExpiredOrRemoved;
        assert_eq!(held(10 * SECOND, cause, None), []);
        assert_eq!(held(10 * SECOND + 1, cause, None), too_long(cause, 1, 0));
        let disturbed = Some((SECOND, 60 * SECOND));
        assert_eq!(held(10 * SECOND + 1, cause, disturbed), too_long(cause, 1, 0), "no fault excuses it");
    }

    #[test]
    fn a_lock_taken_away_is_noticed_within_a_second() {
        for cause in [EndCause::Revoked, EndCause::Deleted] {
            assert_eq!(held(11 * SECOND, cause, None), []);
            assert_eq!(held(11 * SECOND + 1, cause, None), too_long(cause, SECOND + 1, SECOND));
            // A fault that begins later excuses nothing.
            let later = Some((11 * SECOND + 1, 60 * SECOND));
            assert_eq!(held(11 * SECOND + 1, cause, later), too_long(cause, SECOND + 1, SECOND));
        }
    }

    #[test]
    fn a_revoked_lock_ends_with_its_ttl_at_the_latest() {
        let disturbed = Some((9 * SECOND, 60 * SECOND));
        assert_eq!(held(15 * SECOND, EndCause::Revoked, disturbed), []);
        let late = held(15 * SECOND + 1, EndCause::Revoked, disturbed);
        assert_eq!(late, too_long(EndCause::Revoked, 5 * SECOND + 1, 5 * SECOND));
    }

    #[test]
    fn a_deleted_key_is_noticed_after_the_disturbance() {
        let disturbed = Some((9 * SECOND, 20 * SECOND));
        let limit = 20 * SECOND + RECOVERY + LOSS_NOTICE;
        assert_eq!(held(limit, EndCause::Deleted, disturbed), []);
        let late = held(limit + 1, EndCause::Deleted, disturbed);
        assert_eq!(late, too_long(EndCause::Deleted, limit + 1 - 10 * SECOND, limit - 10 * SECOND));
    }

    /// Returns an instance that is registered after 1 s and lost after 10 s.
    fn lost() -> LossHistory {
        let mut history = LossHistory::default();
        history.stored(SECOND, "a");
        history.registered(SECOND, "a");
        history.gone(10 * SECOND, "a");
        history.ended(60 * SECOND);
        history
    }

    #[test]
    fn a_lost_instance_returns_in_time() {
        let away = [LossViolation::StayedAway { id: "a".to_owned(), lost: 10 * SECOND, bound: RETURN }];
        assert_eq!(lost().check(), away);
        let mut back = lost();
        back.stored(10 * SECOND + RETURN, "a");
        assert_eq!(back.check(), []);
        let mut late = lost();
        late.stored(10 * SECOND + RETURN + 1, "a");
        assert_eq!(late.check(), away);
        // A key that is lost before it is watched.
        let mut young = late.clone();
        young.stored(10 * SECOND - WATCHED_FROM + 1, "a");
        assert_eq!(young.check(), []);
        let mut disturbed = late.clone();
        disturbed.disturbed(9 * SECOND, 11 * SECOND, 0);
        assert_eq!(disturbed.check(), []);
        // A fault whose effects have ended before excuses nothing.
        let mut over = late;
        over.disturbed(2 * SECOND, 3 * SECOND, 7 * SECOND - 1);
        assert_eq!(over.check(), away);
    }

    #[test]
    fn a_withdrawn_instance_need_not_return() {
        let mut history = lost();
        history.withdrawn(11 * SECOND, "a");
        assert_eq!(history.check(), []);
        let mut before = LossHistory::default();
        before.registered(SECOND, "a");
        before.withdrawn(9 * SECOND, "a");
        before.gone(10 * SECOND, "a");
        before.ended(60 * SECOND);
        assert_eq!((before.check(), before.judged()), (vec![], JudgedLosses::default()));
    }

    #[test]
    fn a_disturbance_lasts_until_its_recovery() {
        let mut history = LossHistory::default();
        history.disturbed(10, 20, 5);
        assert!(history.is_disturbed(25, 30) && history.is_disturbed(1, 10) && history.is_disturbed(1, 90));
        assert!(!history.is_disturbed(26, 30) && !history.is_disturbed(1, 9));
    }

    #[test]
    fn a_period_without_watches_delays_notices_only() {
        let mut history = LossHistory::default();
        history.granted(7, 5 * SECOND);
        history.held(16 * SECOND, 7);
        history.entry_ended(10 * SECOND, 7, EndCause::Deleted);
        assert_eq!(history.check(), too_long(EndCause::Deleted, 6 * SECOND, SECOND));
        history.unwatchable(2 * SECOND, 3 * SECOND, 7 * SECOND - 1);
        assert_eq!(history.check(), too_long(EndCause::Deleted, 6 * SECOND, SECOND), "it was over");
        history.unwatchable(9 * SECOND, 12 * SECOND, 3 * SECOND);
        assert_eq!(history.check(), []);
        assert!(!history.is_disturbed(0, 60 * SECOND), "it explains no failed request");
        history.held(16 * SECOND + 1, 7);
        assert_eq!(history.check(), too_long(EndCause::Deleted, 6 * SECOND + 1, 6 * SECOND));
    }

    #[test]
    fn only_others_end_an_entry_unexpectedly() {
        let mut history = LossHistory::default();
        history.entry_ended(10, 1, EndCause::Revoked);
        history.entry_ended(20, 2, EndCause::Deleted);
        history.entry_ended(30, 3, EndCause::ExpiredOrRemoved);
        let ended = [1, 2, 3, 4].map(|token| history.ended_by_others(token));
        assert_eq!(ended, [Some(10), Some(20), None, None]);
    }

    #[test]
    fn losses_are_counted() {
        let mut history = lost();
        history.granted(7, 5 * SECOND);
        history.held(SECOND, 7);
        history.entry_ended(2 * SECOND, 7, EndCause::Deleted);
        history.disturbed(9 * SECOND, 11 * SECOND, 0);
        let judged = JudgedLosses { holders: 1, undisturbed_holders: 1, instances: 1, undisturbed_instances: 0 };
        assert_eq!(history.judged(), judged);
    }
}
