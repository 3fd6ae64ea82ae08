//! Results of operations: errors and losses that a fault has to explain, and acknowledged writes.
//!
//! The parts of a run record what they saw. [`OperationRecord::judge`] decides at the end, when all faults are known.

use std::collections::{BTreeMap, BTreeSet};

use enlist::{Deregistered, Error, RegistrationState, Released};
use enlist_testkit::{KeyChange, losses::LossHistory};

use crate::verdicts::{Invariant, Verdict};

/// Weight of an instance without one in its value.
const DEFAULT_WEIGHT: u32 = 100;

/// Fault that explains a failure or a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excuse {
    /// None does.
    Nothing,
    /// One that may delay messages or requests.
    Disturbed,
    /// A denial of access.
    Denial,
    /// A disturbance, or the end of the queue entry of this token by another client.
    EntryEnded(u64),
    /// A disturbance, or the removal of an instance or of a lease by another client.
    Removal,
}

/// Failure or loss that violates an invariant unless its excuse applies between two times.
#[derive(Clone, Debug)]
pub(crate) struct Suspicion {
    pub(crate) invariant: Invariant,
    pub(crate) detail: String,
    pub(crate) excuse: Excuse,
    pub(crate) from: u64,
    pub(crate) until: u64,
}

/// Acknowledged write of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Acknowledged {
    /// `register` returned while the store was at this revision.
    Registered { id: String, by: u64 },
    /// The instance was reported to be stored at this revision.
    Stored { id: String, at: u64 },
    /// `update` reported that the weight was stored at this revision.
    Updated { id: String, at: u64, weight: u32 },
}

/// Instance in the view of a watcher.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shown {
    pub(crate) id: String,
    /// Revision of its last change.
    pub(crate) modified: u64,
    pub(crate) weight: u32,
}

/// Record of the results of operations. Times are in microseconds.
#[derive(Debug, Default)]
pub(crate) struct OperationRecord {
    pub(crate) suspicions: Vec<Suspicion>,
    pub(crate) acknowledged: Vec<Acknowledged>,
    /// Instances in the views of watchers.
    pub(crate) shown: BTreeSet<Shown>,
    /// Times at which others deleted an instance or revoked a lease.
    pub(crate) removals: BTreeSet<u64>,
    denials: Vec<(u64, u64)>,
}

impl OperationRecord {
    /// Records that access is denied from `micros` on.
    pub(crate) fn denied(&mut self, micros: u64) {
        self.denials.push((micros, u64::MAX));
    }

    /// Records that access is permitted again.
    pub(crate) fn permitted(&mut self, micros: u64) {
        if let Some((_, until)) = self.denials.last_mut() {
            *until = micros.min(*until);
        }
    }

    fn is_excused(&self, losses: &LossHistory, suspicion: &Suspicion) -> bool {
        let Suspicion { excuse, from, until, .. } = suspicion;
        let disturbed = losses.is_disturbed(*from, *until);
        match excuse {
            Excuse::Nothing => false,
            Excuse::Disturbed => disturbed,
            Excuse::Denial => self.denials.iter().any(|(begun, ended)| begun <= until && ended >= from),
            Excuse::EntryEnded(token) => disturbed || losses.ended_by_others(*token).is_some_and(|at| at <= *until),
            Excuse::Removal => disturbed || self.removals.range(from..=until).next().is_some(),
        }
    }

    /// Returns the violations. The keys of instances begin with `prefix`.
    pub(crate) fn judge(&self, losses: &LossHistory, journal: &[KeyChange], prefix: &str) -> Vec<Verdict> {
        let suspicions = self.suspicions.iter().filter(|suspicion| !self.is_excused(losses, suspicion));
        let mut verdicts: Vec<_> = suspicions.map(|it| Verdict::of(it.invariant, &it.detail)).collect();
        let written = written(journal, prefix);
        verdicts.extend(self.acknowledged.iter().filter_map(|acknowledged| not_stored(acknowledged, &written)));
        verdicts.extend(self.shown.iter().filter_map(|shown| not_as_stored(shown, &written)));
        verdicts
    }
}

/// Weights that were written, by instance and revision.
type Written = BTreeMap<String, BTreeMap<u64, u32>>;

fn written(journal: &[KeyChange], prefix: &str) -> Written {
    let mut written = Written::new();
    for change in journal {
        let key = String::from_utf8_lossy(&change.key);
        if let (Some(id), Some(value)) = (key.strip_prefix(prefix), &change.value)
            && let Ok(value) = serde_json::from_slice::<serde_json::Value>(value)
        {
            let weight = value["weight"].as_u64().and_then(|weight| u32::try_from(weight).ok());
            let weights = written.entry(id.to_owned()).or_default();
            weights.insert(u64::try_from(change.revision).unwrap_or(0), weight.unwrap_or(DEFAULT_WEIGHT));
        }
    }
    written
}

/// Returns the violation of an acknowledged write that was not made.
fn not_stored(acknowledged: &Acknowledged, written: &Written) -> Option<Verdict> {
    let weights = |id: &String| written.get(id).cloned().unwrap_or_default();
    let (invariant, is_stored) = match acknowledged {
        Acknowledged::Registered { id, by } => {
            (Invariant::RegistrationStored, weights(id).range(..=by).next().is_some())
        }
        Acknowledged::Stored { id, at } => (Invariant::RegistrationStored, weights(id).contains_key(at)),
        Acknowledged::Updated { id, at, weight } => (Invariant::UpdateStored, weights(id).get(at) == Some(weight)),
    };
    (!is_stored).then(|| Verdict::of(invariant, format!("{acknowledged:?}, which was not written")))
}

/// Returns the violation of an instance in a view whose value was not stored at its revision.
fn not_as_stored(shown: &Shown, written: &Written) -> Option<Verdict> {
    let Shown { id, modified, weight } = shown;
    let stored = written.get(id).and_then(|weights| weights.get(modified));
    let detail = || format!("{id} was shown with weight {weight} of revision {modified}, where {stored:?} is stored");
    (stored != Some(weight)).then(|| Verdict::of(Invariant::ValuesExist, detail()))
}

/// Returns the excuse for an error of a single request.
pub(crate) fn of_request(error: &Error) -> Excuse {
    match error {
        Error::Unavailable(_) | Error::Timeout { .. } => Excuse::Disturbed,
        Error::PermissionDenied { .. } => Excuse::Denial,
        _ => Excuse::Nothing,
    }
}

/// Returns the excuse for an error of `register`, which waits for a time. Ids are unique, so there is no other owner.
pub(crate) fn of_register(error: &Error) -> Excuse {
    match error {
        Error::Timeout { cause, .. } => {
            let cause = cause.as_ref().and_then(|cause| cause.downcast_ref::<Error>());
            let is_contested = matches!(cause, Some(Error::Observing { .. } | Error::AlreadyRegistered { .. }));
            if is_contested { Excuse::Nothing } else { Excuse::Disturbed }
        }
        Error::PermissionDenied { .. } => Excuse::Denial,
        _ => Excuse::Nothing,
    }
}

/// Returns the excuse for an error of `update`, which waits without a limit.
pub(crate) fn of_update(error: &Error) -> Excuse {
    match error {
        Error::PermissionDenied { .. } => Excuse::Denial,
        _ => Excuse::Nothing,
    }
}

/// Returns the excuse for the state of a registration that is wanted, at any time; `None` if it needs none. A refused
/// registration is tried again at a slow pace, so access may have been denied at any time before.
fn of_state(state: &RegistrationState) -> Option<Excuse> {
    match state {
        RegistrationState::Registering { .. }
        | RegistrationState::Registered { .. }
        | RegistrationState::Suspect { .. }
        | RegistrationState::Reregistering { .. } => None,
        RegistrationState::Refused { cause: Error::PermissionDenied { .. } } => Some(Excuse::Denial),
        _ => Some(Excuse::Nothing),
    }
}

/// Confirmation of a write of an instance, with which its owner reads the state of its registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confirmation {
    /// Nothing has confirmed the last write yet.
    Missing,
    /// A call that began at this time has just confirmed it.
    Since(u64),
}

/// Returns the excuse for the state of a registration that is wanted, and the time from which it may apply; `None` if
/// the state needs none. When a call has just confirmed the last write, the registration is registered.
pub(crate) fn of_confirmed(state: &RegistrationState, confirmation: Confirmation) -> Option<(Excuse, u64)> {
    use RegistrationState::{Registering, Reregistering, Suspect};
    match (state, confirmation) {
        (Registering { .. } | Suspect { .. } | Reregistering { .. }, Confirmation::Since(from)) => {
            Some((Excuse::Removal, from))
        }
        _ => of_state(state).map(|excuse| (excuse, 0)),
    }
}

/// Returns the excuse for the result of a deregistration; `None` if it needs none.
pub(crate) fn of_deregister(outcome: &Result<Deregistered, Error>) -> Option<Excuse> {
    match outcome {
        Ok(Deregistered::Removed | Deregistered::AlreadyGone) => None,
        Ok(Deregistered::LeftBehind) => Some(Excuse::Disturbed),
        _ => Some(Excuse::Nothing),
    }
}

/// Limit of an acquisition, as far as its error is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deadline {
    /// It waits without a limit.
    Unlimited,
    /// The time is not over.
    Running,
    Over,
}

/// Returns the excuse for an error of `acquire`; `None` if it needs none.
pub(crate) fn of_acquire(error: &Error, deadline: Deadline) -> Option<Excuse> {
    match error {
        Error::Timeout { .. } if deadline == Deadline::Over => None,
        Error::PermissionDenied { .. } => Some(Excuse::Denial),
        _ => Some(Excuse::Nothing),
    }
}

/// State of a lock before its release, as the guard reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BeforeRelease {
    Held { token: u64 },
    Lost,
}

/// Returns the excuse for the result of a release; `None` if it needs none.
pub(crate) fn of_release(before: BeforeRelease, released: &Result<Released, Error>) -> Option<Excuse> {
    match (released, before) {
        (Ok(Released::Released), BeforeRelease::Held { .. }) | (Ok(_), BeforeRelease::Lost) => None,
        (Ok(_), BeforeRelease::Held { token }) => Some(Excuse::EntryEnded(token)),
        (Err(Error::Timeout { .. }), _) => Some(Excuse::Disturbed),
        (Err(_), _) => Some(Excuse::Nothing),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use enlist_testkit::losses::EndCause;

    use super::*;

    fn timeout(cause: Option<Error>) -> Error {
        let cause = cause.map(|error| Arc::new(error) as enlist::Cause);
        Error::Timeout { op: "register", limit: Duration::from_secs(10), cause }
    }

    fn denied() -> Error {
        Error::PermissionDenied { what: "a key".to_owned() }
    }

    fn broken(record: &OperationRecord, losses: &LossHistory) -> Vec<Invariant> {
        record.judge(losses, &[], "").into_iter().filter_map(|verdict| verdict.invariant).collect()
    }

    fn suspect(excuse: Excuse) -> OperationRecord {
        let detail = "it failed".to_owned();
        let suspicion = Suspicion { invariant: Invariant::ErrorsJustified, detail, excuse, from: 50, until: 60 };
        OperationRecord { suspicions: vec![suspicion], ..OperationRecord::default() }
    }

    #[test]
    fn a_failure_is_wrong_unless_a_fault_explains_it() {
        let wrong = vec![Invariant::ErrorsJustified];
        let calm = LossHistory::default();
        let mut disturbed = LossHistory::default();
        disturbed.disturbed(10, 20, 30);
        let mut before = LossHistory::default();
        before.disturbed(10, 20, 29);
        let all = [Excuse::Nothing, Excuse::Disturbed, Excuse::Denial, Excuse::EntryEnded(7), Excuse::Removal];
        for excuse in all {
            assert_eq!(broken(&suspect(excuse), &calm), wrong, "{excuse:?}");
            assert_eq!(broken(&suspect(excuse), &before), wrong, "{excuse:?}");
            let explained = !matches!(excuse, Excuse::Nothing | Excuse::Denial);
            assert_eq!(broken(&suspect(excuse), &disturbed).is_empty(), explained, "{excuse:?}");
        }
    }

    #[test]
    fn each_excuse_has_its_own_fault() {
        let calm = LossHistory::default();
        let mut denied = suspect(Excuse::Denial);
        denied.denied(10);
        assert_eq!(broken(&denied, &calm), []);
        denied.permitted(49);
        denied.permitted(70);
        assert_eq!(broken(&denied, &calm), [Invariant::ErrorsJustified], "it had ended before");
        let mut removed = suspect(Excuse::Removal);
        removed.removals.insert(60);
        assert_eq!(broken(&removed, &calm), []);
        let mut ended = LossHistory::default();
        ended.entry_ended(55, 7, EndCause::Revoked);
        ended.entry_ended(55, 8, EndCause::ExpiredOrRemoved);
        assert_eq!(broken(&suspect(Excuse::EntryEnded(7)), &ended), []);
        assert_eq!(broken(&suspect(Excuse::EntryEnded(8)), &ended), [Invariant::ErrorsJustified]);
        let mut later = LossHistory::default();
        later.entry_ended(61, 7, EndCause::Revoked);
        assert_eq!(broken(&suspect(Excuse::EntryEnded(7)), &later), [Invariant::ErrorsJustified], "it was not known");
    }

    #[test]
    fn errors_have_their_excuses() {
        let contested = timeout(Some(Error::Closed));
        assert_eq!(of_register(&contested), Excuse::Disturbed);
        assert_eq!(of_register(&timeout(None)), Excuse::Disturbed);
        assert_eq!(of_register(&denied()), Excuse::Denial);
        assert_eq!(of_register(&Error::Closed), Excuse::Nothing);
        assert_eq!((of_update(&denied()), of_update(&timeout(None))), (Excuse::Denial, Excuse::Nothing));
        assert_eq!((of_request(&timeout(None)), of_request(&denied())), (Excuse::Disturbed, Excuse::Denial));
        assert_eq!(of_request(&Error::StorageFull), Excuse::Nothing);
        assert_eq!(of_acquire(&timeout(None), Deadline::Over), None);
        for deadline in [Deadline::Running, Deadline::Unlimited] {
            assert_eq!(of_acquire(&timeout(None), deadline), Some(Excuse::Nothing));
        }
        assert_eq!(of_acquire(&denied(), Deadline::Over), Some(Excuse::Denial));
    }

    #[test]
    fn another_owner_of_a_unique_id_is_wrong() {
        let service = enlist::ServiceRef::parse("svc").unwrap();
        let id = enlist::InstanceId::parse("a").unwrap();
        let observing = Error::Observing { service: service.clone(), id: id.clone(), left: Duration::ZERO };
        assert_eq!(of_register(&timeout(Some(observing))), Excuse::Nothing);
        let owner = enlist::Owner::Other;
        let registered = Error::AlreadyRegistered { service, id, owner, revision: None };
        assert_eq!(of_register(&registered), Excuse::Nothing);
        assert_eq!(of_register(&timeout(Some(registered.clone()))), Excuse::Nothing);
        assert_eq!(of_state(&RegistrationState::Superseded { cause: registered.clone() }), Some(Excuse::Nothing));
        assert_eq!(of_state(&RegistrationState::Refused { cause: registered }), Some(Excuse::Nothing));
        assert_eq!(of_state(&RegistrationState::Refused { cause: denied() }), Some(Excuse::Denial));
        assert_eq!(of_state(&RegistrationState::Ended), Some(Excuse::Nothing));
        assert_eq!(of_state(&RegistrationState::Registering { last: None }), None);
    }

    #[test]
    fn a_state_after_a_confirmation_has_its_excuse() {
        let (confirmed, removal) = (Confirmation::Since(7), Some((Excuse::Removal, 7)));
        for state in [
            RegistrationState::Registering { last: None },
            RegistrationState::Suspect { cause: timeout(None) },
            RegistrationState::Reregistering { cause: Error::LeaseLost },
        ] {
            assert_eq!(of_confirmed(&state, confirmed), removal, "{state:?}");
            assert_eq!(of_confirmed(&state, Confirmation::Missing), None, "{state:?}");
        }
        let refused = RegistrationState::Refused { cause: denied() };
        assert_eq!(of_confirmed(&refused, confirmed), Some((Excuse::Denial, 0)), "access may have been denied before");
        assert_eq!(
            of_confirmed(&RegistrationState::Registered { revision: enlist::Revision::new(7) }, confirmed),
            None
        );
    }

    #[test]
    fn results_of_ends_have_their_excuses() {
        assert_eq!(of_deregister(&Ok(Deregistered::AlreadyGone)), None);
        assert_eq!(of_deregister(&Ok(Deregistered::LeftBehind)), Some(Excuse::Disturbed));
        assert_eq!(of_deregister(&Err(Error::Closed)), Some(Excuse::Nothing));
        let held = BeforeRelease::Held { token: 7 };
        assert_eq!(of_release(held, &Ok(Released::Released)), None);
        assert_eq!(of_release(held, &Ok(Released::AlreadyLost)), Some(Excuse::EntryEnded(7)));
        assert_eq!(of_release(BeforeRelease::Lost, &Ok(Released::AlreadyLost)), None);
        assert_eq!(of_release(held, &Err(timeout(None))), Some(Excuse::Disturbed));
        assert_eq!(of_release(BeforeRelease::Lost, &Err(Error::Closed)), Some(Excuse::Nothing));
    }

    #[test]
    fn an_acknowledged_write_has_to_be_stored() {
        let written = Written::from([("a".to_owned(), BTreeMap::from([(5, 100), (7, 30)]))]);
        let invariant = |acknowledged| not_stored(&acknowledged, &written).and_then(|verdict| verdict.invariant);
        let id = || "a".to_owned();
        assert_eq!(invariant(Acknowledged::Registered { id: id(), by: 5 }), None);
        assert_eq!(invariant(Acknowledged::Registered { id: id(), by: 4 }), Some(Invariant::RegistrationStored));
        let other = Acknowledged::Registered { id: "b".to_owned(), by: 9 };
        assert_eq!(invariant(other), Some(Invariant::RegistrationStored));
        assert_eq!(invariant(Acknowledged::Stored { id: id(), at: 7 }), None);
        assert_eq!(invariant(Acknowledged::Stored { id: id(), at: 6 }), Some(Invariant::RegistrationStored));
        assert_eq!(invariant(Acknowledged::Updated { id: id(), at: 7, weight: 30 }), None);
        assert_eq!(invariant(Acknowledged::Updated { id: id(), at: 5, weight: 30 }), Some(Invariant::UpdateStored));
    }

    #[test]
    fn a_view_has_to_show_stored_values() {
        let written = Written::from([("a".to_owned(), BTreeMap::from([(5, 100), (7, 30)]))]);
        let invariant = |modified, weight| {
            not_as_stored(&Shown { id: "a".to_owned(), modified, weight }, &written)
                .and_then(|verdict| verdict.invariant)
        };
        assert_eq!((invariant(5, 100), invariant(7, 30)), (None, None));
        assert_eq!(invariant(7, 100), Some(Invariant::ValuesExist), "the value before");
        assert_eq!(invariant(6, 30), Some(Invariant::ValuesExist));
    }
}
