//! Writes of a registration under its key: the acknowledged one, and those of unknown outcome. They distinguish the own
//! key from that of another registration. Read [`super::removal`] next: it removes late effects.

use std::sync::Arc;

use enlist::{
    LeaseId, Revision,
    backend::{
        Withdrawal,
        reconcile::{Entitlement, Mine},
    },
};

use crate::{
    deliberate_defects::DeliberateDefect,
    session::{lease::Lease, sweep::Impossible},
    watch::record::Record,
};

/// Maximum number of recorded writes of unknown outcome. Each update during an outage can add one. Evicted values count
/// as those of other registrations.
const MAX_UNKNOWN: usize = 32;

/// The writes of one registration.
#[derive(Default)]
pub(super) struct OwnWrites {
    pub(super) entitlement: Entitlement,
    /// The key was removed, or may still be removed, because the instance was not to be shown. Its absence is no
    /// eviction.
    pub(super) withdrawing: bool,
    stored: Option<Stored>,
    /// Writes of unknown outcome.
    unknown: Vec<Sent>,
}

/// Acknowledged write.
struct Stored {
    record: Record,
    /// Generation of the instance in it.
    generation: u64,
    key: StoredKey,
}

/// Key of an acknowledged write, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoredKey {
    MayExist,
    /// The write is kept, because the cause of the key's absence may still have to be determined.
    Gone,
}

/// Write that was applied, or may still be.
struct Sent {
    value: Vec<u8>,
    lease: Option<LeaseId>,
    effect: Effect,
}

/// Effect that a write of unknown outcome can have when it arrives late.
pub(super) enum Effect {
    /// No effect, once the changed key is removed.
    Change,
    /// Claims the key for this registration: creates it, or replaces the value of another registration. Its lease is
    /// kept until the outcome is known, even if the registration uses another one by now, because it may have to be
    /// retired.
    Claim(Arc<Lease>),
    /// The same, after a read that did not show the claim. Contains the proof to wait for that it has become
    /// impossible.
    LateClaim(Impossible),
}

/// Another registration of this session that has claimed the key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Claimant {
    /// There is none.
    Absent,
    /// None of its writes was acknowledged.
    Silent,
    /// Its last acknowledged write was at this revision.
    Wrote(Revision),
}

impl From<Option<Withdrawal>> for Claimant {
    fn from(claimant: Option<Withdrawal>) -> Self {
        claimant.map_or(Self::Absent, |claimant| claimant.stored().map_or(Self::Silent, Self::Wrote))
    }
}

/// Author of a value that is found by a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Author {
    /// This registration.
    This,
    /// Another registration.
    Another,
    /// This registration, or another one of this session with a write of unknown outcome.
    Unclear,
}

impl Sent {
    /// Returns `true` while the write can claim the key for this registration.
    fn may_claim(&self) -> bool {
        match &self.effect {
            Effect::Change => false,
            Effect::Claim(_) => true,
            Effect::LateClaim(impossible) => !impossible.is_proved(),
        }
    }
}

impl OwnWrites {
    /// Returns `true` if this registration wrote exactly this record, according to its recorded writes.
    pub(super) fn is_own(&self, record: &Record) -> bool {
        let is_it = |sent: &Sent| sent.lease == record.lease && sent.value == record.value;
        self.is_stored(record) || self.unknown.iter().any(is_it)
    }

    /// Returns `true` if this is the last acknowledged write. Bytes and lease alone do not identify it: without terms,
    /// another registration of this session may have written the same since.
    fn is_stored(&self, record: &Record) -> bool {
        self.stored().is_some_and(|stored| {
            (stored.modified, stored.lease, &stored.value) == (record.modified, record.lease, &record.value)
        })
    }

    /// Returns `true` if the record is older than the last acknowledged write of this registration: the store was
    /// restored to an earlier state. Only for a lease that no other registration uses.
    pub(super) fn is_former(&self, record: &Record) -> bool {
        self.stored().is_some_and(|stored| stored.lease == record.lease && record.modified < stored.modified)
    }

    /// Returns the author of a record: this registration, according to its recorded writes, or the `claimant`. With a
    /// `term` no two registrations write the same value.
    pub(super) fn author(&self, record: &Record, term: Option<u64>, claimant: Claimant) -> Author {
        match claimant {
            _ if !self.is_own(record) => Author::Another,
            Claimant::Wrote(at) if at == record.modified => Author::Another,
            Claimant::Wrote(_) | Claimant::Silent if term.is_none() && !self.is_stored(record) => Author::Unclear,
            Claimant::Absent | Claimant::Silent | Claimant::Wrote(_) => Author::This,
        }
    }

    /// Returns the last acknowledged write, unless it was replaced since.
    pub(super) fn stored(&self) -> Option<&Record> {
        self.stored.as_ref().map(|stored| &stored.record)
    }

    /// Returns `true` while the key of the last acknowledged write may exist.
    pub(super) fn may_be_stored(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.key == StoredKey::MayExist)
    }

    /// Records the content of the key, as it was found.
    pub(super) fn note_key(&mut self, found: Option<&Record>) {
        if let Some(stored) = &mut self.stored {
            stored.key = if found.is_some() { StoredKey::MayExist } else { StoredKey::Gone };
        }
    }

    /// Returns the same as input of a decision.
    pub(super) fn mine(&self) -> Option<Mine> {
        let Stored { record, generation, key: _ } = self.stored.as_ref()?;
        let Record { created, lease, .. } = record;
        Some(Mine { created: *created, lease: lease.unwrap_or_default(), generation: *generation })
    }

    /// Returns the lease of the last write of unknown outcome.
    pub(super) fn last_unknown(&self) -> Option<LeaseId> {
        self.unknown.last().map(|sent| sent.lease.unwrap_or_default())
    }

    /// Returns `true` if the key may exist under `lease`, as far as is known. Late claims do not count.
    pub(super) fn may_be_under(&self, lease: LeaseId) -> bool {
        let unknown = self.unknown.iter().filter(|sent| !matches!(sent.effect, Effect::LateClaim(_)));
        let mut leases = self.stored().map(|stored| stored.lease).into_iter().chain(unknown.map(|sent| sent.lease));
        leases.any(|under| under == Some(lease))
    }

    /// Records that the store contains `record`, with the instance of `generation`.
    pub(super) fn acknowledge(&mut self, record: Record, generation: u64) {
        self.entitlement.stored();
        self.stored = Some(Stored { record, generation, key: StoredKey::MayExist });
    }

    /// Records that the store contains `record`, an own write. It may be later than the last acknowledged one.
    pub(super) fn renew(&mut self, record: &Record) {
        if let Some(stored) = self.stored.as_mut().filter(|stored| stored.record != *record) {
            // The generation of a different value is unknown.
            let generation = if stored.record.value == record.value { stored.generation } else { 0 };
            *stored = Stored { record: record.clone(), generation, key: StoredKey::MayExist };
        }
    }

    /// Drops writes that a later acknowledged one has made impossible.
    pub(super) fn forget_changes(&mut self) {
        self.unknown.retain(Sent::may_claim);
    }

    /// Drops the stored write: it was replaced, so its absence is no eviction.
    pub(super) fn disown(&mut self) {
        self.stored = None;
    }

    /// Records that the store refused a claim. The next one may use another term, unless an earlier claim may still be
    /// applied.
    pub(super) fn refused(&mut self) {
        if self.unknown.is_empty() {
            self.entitlement.refused();
        }
    }

    /// Records a write of unknown outcome. If its value is found later, it belongs to this registration.
    pub(super) fn remember(&mut self, value: Vec<u8>, lease: Option<LeaseId>, effect: Effect) {
        if DeliberateDefect::UnknownWritesForgotten.is_on() {
            return;
        }
        let changes = |sent: &Sent| matches!(sent.effect, Effect::Change);
        let known = self.unknown.iter().any(|sent| changes(sent) && sent.lease == lease && sent.value == value);
        if known && matches!(effect, Effect::Change) {
            return;
        }
        if self.unknown.len() >= MAX_UNKNOWN
            && let Some(oldest) = self.unknown.iter().position(changes).or_else(|| self.repeated_claim())
        {
            self.unknown.remove(oldest);
        }
        self.unknown.push(Sent { value, lease, effect });
    }

    /// Returns the first late claim that shares its lease, and therefore its proof, with a later one. Only a given
    /// lease has several.
    fn repeated_claim(&self) -> Option<usize> {
        let is_late = |sent: &Sent| matches!(sent.effect, Effect::LateClaim(_));
        let mut positions = self.unknown.iter().enumerate().filter(|(_, sent)| is_late(sent));
        let is_repeated = |(index, sent): &(usize, &Sent)| {
            self.unknown[index + 1..].iter().any(|later| is_late(later) && later.lease == sent.lease)
        };
        positions.find(is_repeated).map(|(index, _)| index)
    }

    /// Compares the key, as it was found, with claims of unknown outcome. A claim that is found is settled. Another one
    /// may still be applied, until the proof that `late` returns for its lease is complete. A reported loss of the
    /// lease is no such proof.
    pub(super) fn settle(&mut self, found: Option<&Record>, mut late: impl FnMut(&Arc<Lease>) -> Impossible) {
        for sent in &mut self.unknown {
            let Effect::Claim(lease) = &sent.effect else { continue };
            let done = found.is_some_and(|found| found.lease == sent.lease && found.value == sent.value);
            sent.effect = if done || DeliberateDefect::LateCreationForgotten.is_on() {
                Effect::Change
            } else {
                Effect::LateClaim(late(lease))
            };
        }
    }

    /// Returns `true` while the key was not read since a claim of unknown outcome.
    pub(super) fn is_unsettled(&self) -> bool {
        self.unknown.iter().any(|sent| matches!(sent.effect, Effect::Claim(_)))
    }

    /// Returns `true` while a write can still claim the key for this registration, although the key was found
    /// otherwise.
    pub(super) fn may_claim(&self) -> bool {
        self.unknown.iter().any(Sent::may_claim)
    }

    /// Returns the proof to wait for: that the first of the late claims is impossible.
    pub(super) fn late_claim(&self) -> Option<&Impossible> {
        let late = self.unknown.iter().find(|sent| sent.may_claim())?;
        match &late.effect {
            Effect::LateClaim(impossible) => Some(impossible),
            Effect::Change | Effect::Claim(_) => None,
        }
    }

    /// Records that the first of the late claims is impossible.
    pub(super) fn impossible(&mut self) {
        if let Some(sent) = self.unknown.iter_mut().find(|sent| sent.may_claim()) {
            sent.effect = Effect::Change;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::session::lease;

    const LEASE: LeaseId = LeaseId::new(7);
    const OTHER: LeaseId = LeaseId::new(8);

    fn record(value: &str, lease: LeaseId) -> Record {
        let (key, at) = (b"k"[..].into(), Revision::new(5));
        Record { key, value: value.into(), created: at, modified: at, lease: Some(lease) }
    }

    fn claim(lease: LeaseId) -> Effect {
        Effect::Claim(lease::given(lease, Duration::from_secs(15)))
    }

    fn ended(lease: &Arc<Lease>) -> Impossible {
        Impossible::Ended(lease.id())
    }

    #[test]
    fn an_absent_key_is_not_stored_until_the_next_write() {
        let mut writes = OwnWrites::default();
        writes.note_key(Some(&record("v", LEASE)));
        assert!(!writes.may_be_stored(), "nothing was written");
        writes.acknowledge(record("v", LEASE), 1);
        assert!(writes.may_be_stored());
        writes.note_key(None);
        assert!(!writes.may_be_stored() && writes.stored().is_some());
        writes.acknowledge(record("v", LEASE), 2);
        assert!(writes.may_be_stored());
    }

    #[test]
    fn what_was_written_before_the_last_write_shows_a_restored_store() {
        let mut writes = OwnWrites::default();
        let at = |modified, lease| Record { modified: Revision::new(modified), ..record("v", lease) };
        assert!(!writes.is_former(&at(5, LEASE)), "nothing was written");
        writes.acknowledge(at(7, LEASE), 1);
        assert!(writes.is_former(&at(5, LEASE)));
        assert!(!writes.is_former(&at(7, LEASE)) && !writes.is_former(&at(9, LEASE)));
        assert!(!writes.is_former(&at(5, OTHER)), "another's");
    }

    #[test]
    fn a_key_is_own_by_its_lease_and_its_bytes() {
        let mut writes = OwnWrites::default();
        writes.acknowledge(record("stored", LEASE), 1);
        assert_eq!(writes.last_unknown(), None);
        writes.remember(b"unknown".to_vec(), Some(OTHER), Effect::Change);
        assert_eq!(writes.last_unknown(), Some(OTHER));
        assert!(writes.is_own(&record("stored", LEASE)) && writes.is_own(&record("unknown", OTHER)));
        assert!(!writes.is_own(&record("stored", OTHER)) && !writes.is_own(&record("unknown", LEASE)));
        let again = Record { modified: Revision::new(6), ..record("stored", LEASE) };
        assert!(!writes.is_own(&again), "the same, written by another registration of this session");
        writes.disown();
        assert!(!writes.is_own(&record("stored", LEASE)) && writes.mine().is_none());
    }

    #[test]
    fn writes_of_other_registrations_are_recognized_by_revision() {
        let mut writes = OwnWrites::default();
        writes.acknowledge(record("stored", LEASE), 1);
        writes.remember(b"unknown".to_vec(), Some(LEASE), Effect::Change);
        let (stored, unknown) = (record("stored", LEASE), record("unknown", LEASE));
        let wrote = Claimant::Wrote(Revision::new(5));
        for term in [None, Some(1)] {
            let author = |record: &Record, claimant| writes.author(record, term, claimant);
            assert_eq!(author(&record("theirs", LEASE), Claimant::Absent), Author::Another);
            assert_eq!(author(&stored, Claimant::Absent), Author::This);
            assert_eq!(author(&unknown, Claimant::Absent), Author::This);
            assert_eq!((author(&stored, wrote), author(&unknown, wrote)), (Author::Another, Author::Another));
            assert_eq!(author(&stored, Claimant::Silent), Author::This);
            assert_eq!(author(&stored, Claimant::Wrote(Revision::new(4))), Author::This, "it wrote before");
        }
        assert_eq!(writes.author(&unknown, Some(1), Claimant::Silent), Author::This);
        assert_eq!(writes.author(&unknown, None, Claimant::Silent), Author::Unclear);
    }

    #[test]
    fn a_claim_that_the_key_shows_is_settled_and_another_one_stays_until_it_is_impossible() {
        let mut writes = OwnWrites::default();
        writes.remember(b"one".to_vec(), Some(LEASE), claim(LEASE));
        assert!(writes.may_claim());
        writes.settle(Some(&record("one", LEASE)), |_| unreachable!("it was done"));
        assert!(!writes.may_claim());
        for found in [None, Some(record("theirs", OTHER)), Some(record("two", OTHER))] {
            writes.remember(b"two".to_vec(), Some(LEASE), claim(LEASE));
            assert!(writes.late_claim().is_none(), "not settled yet");
            writes.settle(found.as_ref(), ended);
            assert!(writes.may_claim());
            assert!(matches!(writes.late_claim(), Some(Impossible::Ended(LEASE))));
            writes.forget_changes();
            assert!(writes.is_own(&record("two", LEASE)), "should it be done late");
            writes.impossible();
            assert!(!writes.may_claim());
            writes.forget_changes();
            assert!(!writes.is_own(&record("two", LEASE)));
        }
    }

    #[test]
    fn an_own_key_that_was_found_is_the_one_to_look_after_whichever_generation_it_is() {
        let mut writes = OwnWrites::default();
        writes.renew(&record("one", LEASE));
        assert!(writes.stored().is_none(), "it was never acknowledged");
        writes.acknowledge(record("one", LEASE), 3);
        let again = Record { modified: Revision::new(6), ..record("one", LEASE) };
        writes.renew(&again);
        assert_eq!((writes.stored(), writes.mine().unwrap().generation), (Some(&again), 3));
        let other = Record { modified: Revision::new(7), ..record("two", LEASE) };
        writes.renew(&other);
        assert_eq!((writes.stored(), writes.mine().unwrap().generation), (Some(&other), 0));
    }

    #[test]
    fn a_claim_is_late_until_the_end_of_its_own_lease_is_proved_also_if_that_is_said_to_be_lost() {
        let mut writes = OwnWrites::default();
        let lost = lease::given(LEASE, Duration::from_secs(15));
        lost.mark_gone();
        writes.remember(b"one".to_vec(), Some(LEASE), Effect::Claim(Arc::clone(&lost)));
        assert_eq!(Arc::strong_count(&lost), 2, "it may have to be retired");
        let mut asked = Vec::new();
        writes.settle(None, |lease| {
            asked.push(lease.id());
            ended(lease)
        });
        assert!(writes.may_claim());
        assert_eq!((asked, Arc::strong_count(&lost)), (vec![LEASE], 1), "a late claim keeps no lease alive");
    }

    #[test]
    fn a_key_may_be_under_a_lease_by_what_was_stored_or_may_have_been_but_not_by_what_would_be_late() {
        let mut writes = OwnWrites::default();
        assert!(!writes.may_be_under(LEASE), "nothing was written");
        writes.acknowledge(record("one", LEASE), 1);
        assert!(writes.may_be_under(LEASE) && !writes.may_be_under(OTHER));
        writes.remember(b"two".to_vec(), Some(OTHER), claim(OTHER));
        assert!(writes.may_be_under(LEASE) && writes.may_be_under(OTHER) && writes.is_unsettled());
        writes.settle(None, ended);
        writes.disown();
        assert!(!writes.may_be_under(LEASE) && !writes.may_be_under(OTHER) && !writes.is_unsettled());
    }

    #[test]
    fn a_value_under_two_leases_is_two_writes() {
        let mut writes = OwnWrites::default();
        for lease in [LEASE, OTHER] {
            writes.remember(b"one".to_vec(), Some(lease), Effect::Change);
        }
        assert!(writes.is_own(&record("one", LEASE)) && writes.is_own(&record("one", OTHER)));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_claims_are_kept() {
        let mut writes = OwnWrites::default();
        writes.remember(b"claim".to_vec(), Some(LEASE), claim(LEASE));
        for number in 0..MAX_UNKNOWN * 2 {
            writes.remember(number.to_string().into_bytes(), Some(LEASE), Effect::Change);
            writes.remember(number.to_string().into_bytes(), Some(LEASE), Effect::Change);
        }
        assert_eq!(writes.unknown.len(), MAX_UNKNOWN);
        assert!(writes.may_claim());
        assert!(!writes.is_own(&record("0", LEASE)) && writes.is_own(&record("63", LEASE)));
    }

    #[test]
    fn late_claims_under_one_lease_are_bounded_and_their_proof_is_kept() {
        let mut writes = OwnWrites::default();
        for number in 0..MAX_UNKNOWN * 2 {
            writes.remember(number.to_string().into_bytes(), Some(LEASE), claim(LEASE));
            writes.settle(None, ended);
        }
        assert_eq!(writes.unknown.len(), MAX_UNKNOWN);
        assert!(writes.may_claim() && writes.is_own(&record("63", LEASE)) && !writes.is_own(&record("0", LEASE)));
        // Each retired lease has its own proof.
        let mut writes = OwnWrites::default();
        for number in 1..=64 {
            writes.remember(b"one".to_vec(), Some(LeaseId::new(number)), claim(LeaseId::new(number)));
            writes.settle(None, ended);
        }
        assert_eq!(writes.unknown.len(), 64);
    }

    #[test]
    fn the_term_is_drawn_again_only_if_nothing_may_yet_be_done() {
        let now = std::time::SystemTime::UNIX_EPOCH;
        let mut writes = OwnWrites::default();
        assert_eq!(writes.entitlement.claim(Some(4), now), 5);
        writes.refused();
        assert_eq!(writes.entitlement.claim(Some(6), now), 7);
        writes.remember(b"claim".to_vec(), Some(LEASE), claim(LEASE));
        writes.refused();
        assert_eq!(writes.entitlement.claim(Some(9), now), 7);
    }
}
