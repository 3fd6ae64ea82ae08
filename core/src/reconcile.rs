//! For backends: what a registration has to do next, decided without any I/O.
//!
//! The input is what the store holds under the key and what this registration knows to be its own. The rules are the same
//! for every backend: nothing foreign is ever overwritten or deleted, except where the options say so or the foreign key
//! is provably a leftover.

use std::time::Duration;

use crate::{
    registry::{OnConflict, OnDelete, RegisterOptions},
    revision::{LeaseId, Revision},
};

/// What the store holds under the key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain input of a pure function")]
pub struct Found {
    /// When the key was created.
    pub created: Revision,
    /// When it was last changed.
    pub modified: Revision,
    /// The lease that keeps it; `None` if it is fixed.
    pub lease: Option<LeaseId>,
    /// The owner token in its value.
    pub owner: Option<String>,
}

/// What this registration wrote and nobody has changed since, as far as it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain input of a pure function")]
pub struct Mine {
    /// When the key was created.
    pub created: Revision,
    /// The lease it was put under.
    pub lease: LeaseId,
    /// The generation of the instance that was stored.
    pub generation: u64,
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "every backend has to handle every step")]
pub enum Step {
    /// Create the key, if it is still absent.
    Create,
    /// Write over the key, if it is still at `modified`.
    Replace {
        /// The guard.
        modified: Revision,
    },
    /// Nothing: the key is as it should be.
    Keep,
    /// Watch the incumbent's lease for a renewal period; see [`after_observation`].
    Observe {
        /// The incumbent's lease.
        lease: LeaseId,
    },
    /// Leave it: somebody else has the key.
    Conflict,
    /// End: somebody evicted the instance, and the options say to respect that.
    Evicted,
}

/// Says whether what was found is this registration's own: by its lease, which no other process writes under, and by the
/// creation where an earlier lease kept it. Keys of one session are serialised before this is asked.
pub fn is_mine(found: &Found, mine: Option<Mine>, lease: LeaseId) -> bool {
    let same = |mine: Mine| found.created == mine.created && found.lease == Some(mine.lease);
    found.lease == Some(lease) || mine.is_some_and(same)
}

/// Decides the next step of a registration that wants to be present under `lease` with the instance of `generation`.
pub fn step(
    found: Option<&Found>,
    mine: Option<Mine>,
    lease: LeaseId,
    generation: u64,
    options: &RegisterOptions,
) -> Step {
    let Some(found) = found else {
        let deleted_under_a_live_lease = mine.is_some_and(|mine| mine.lease == lease);
        return match options.on_delete {
            OnDelete::Respect if deleted_under_a_live_lease => Step::Evicted,
            OnDelete::Respect | OnDelete::Restore => Step::Create,
        };
    };
    let modified = found.modified;
    if is_mine(found, mine, lease) {
        let stored = mine.is_some_and(|mine| mine.generation == generation && mine.created == found.created);
        return if stored && found.lease == Some(lease) { Step::Keep } else { Step::Replace { modified } };
    }
    let same_owner = options.owner.is_some() && found.owner == options.owner;
    match (found.lease, options.on_conflict) {
        _ if same_owner => Step::Replace { modified },
        (_, OnConflict::TakeOver) => Step::Replace { modified },
        (Some(lease), OnConflict::Refuse | OnConflict::Wait) => Step::Observe { lease },
        (None, OnConflict::Refuse | OnConflict::Wait) => Step::Conflict,
    }
}

/// What an observation of the incumbent's lease showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a lease is renewed or not")]
pub enum Observation {
    /// Its remaining time grew: somebody is alive behind it.
    Renewed,
    /// It only fell for a whole renewal period: nobody is.
    Falling,
    /// It is gone, and its keys with it.
    Gone,
}

/// Says whether a lease was renewed since it was first looked at, from what it had left then and `now`. A store that counts
/// in whole seconds may be off by one `unit` without any renewal.
///
/// `elapsed` must not be more than what really passed between the two looks: it counts from the *answer* of the first to
/// the *question* of the second. Counted the other way round, a slow answer makes a dead lease look renewed.
pub fn is_renewed(first: Duration, elapsed: Duration, now: Duration, unit: Duration) -> bool {
    now + elapsed > first + unit
}

/// How long a lease has to be looked at to tell: a renewal period of a third of the TTL with a tenth of jitter, and what the
/// unit hides of it.
pub fn observation_period(granted: Duration, unit: Duration) -> Duration {
    (granted / 3).mul_f64(1.1) + unit * 5 / 2
}

/// The step after an observation of what was `found`.
pub fn after_observation(found: &Found, seen: Observation) -> Step {
    match seen {
        Observation::Renewed => Step::Conflict,
        Observation::Falling => Step::Replace { modified: found.modified },
        Observation::Gone => Step::Create,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: LeaseId = LeaseId::new(7);
    const OTHER: LeaseId = LeaseId::new(8);

    fn found(lease: Option<LeaseId>, owner: Option<&str>) -> Found {
        let owner = owner.map(str::to_owned);
        Found { created: Revision::new(5), modified: Revision::new(6), lease, owner }
    }

    fn mine(lease: LeaseId) -> Mine {
        Mine { created: Revision::new(5), lease, generation: 1 }
    }

    fn decide(found: Option<&Found>, mine: Option<Mine>, options: &RegisterOptions) -> Step {
        step(found, mine, LEASE, 1, options)
    }

    const REPLACE: Step = Step::Replace { modified: Revision::new(6) };

    #[test]
    fn an_absent_key_is_created_and_a_deleted_one_restored_unless_that_was_an_eviction() {
        let restore = RegisterOptions::new();
        let respect = RegisterOptions::new().on_delete(OnDelete::Respect);
        assert_eq!(decide(None, None, &respect), Step::Create);
        assert_eq!(decide(None, Some(mine(LEASE)), &restore), Step::Create);
        assert_eq!(decide(None, Some(mine(LEASE)), &respect), Step::Evicted);
        // The old lease died, and the key with it: that is no eviction.
        assert_eq!(decide(None, Some(mine(OTHER)), &respect), Step::Create);
    }

    #[test]
    fn an_own_key_is_kept_or_brought_up_to_date() {
        let options = RegisterOptions::new();
        assert_eq!(decide(Some(&found(Some(LEASE), None)), Some(mine(LEASE)), &options), Step::Keep);
        assert_eq!(step(Some(&found(Some(LEASE), None)), Some(mine(LEASE)), LEASE, 2, &options), REPLACE);
        // A creation whose answer was lost.
        assert_eq!(decide(Some(&found(Some(LEASE), None)), None, &options), REPLACE);
        // Still under the old lease.
        assert_eq!(decide(Some(&found(Some(OTHER), None)), Some(mine(OTHER)), &options), REPLACE);
    }

    #[test]
    fn a_foreign_key_is_observed_before_anything_else() {
        let options = RegisterOptions::new();
        let foreign = found(Some(OTHER), Some("them"));
        assert_eq!(decide(Some(&foreign), None, &options), Step::Observe { lease: OTHER });
        assert_eq!(after_observation(&foreign, Observation::Renewed), Step::Conflict);
        assert_eq!(after_observation(&foreign, Observation::Falling), REPLACE);
        assert_eq!(after_observation(&foreign, Observation::Gone), Step::Create);
    }

    #[test]
    fn a_lease_that_is_renewed_is_told_from_one_that_falls_although_seconds_are_truncated() {
        let unit = Duration::from_secs(1);
        let latency = 0.1;
        for (ttl, phase) in [3, 9, 15, 60].into_iter().flat_map(|ttl| (0..99).map(move |hundredth| (ttl, hundredth))) {
            let phase = f64::from(phase) / 100.0;
            let granted = Duration::from_secs(ttl);
            let renewal = granted.as_secs_f64() / 3.0 * 1.1;
            let period = observation_period(granted, unit).as_secs_f64();
            // What is left, in whole seconds, of a lease that was renewed `phase` before the first look.
            let left = |at: f64, renewed: bool| {
                let since = if renewed { (at + phase) % renewal } else { at + phase };
                Duration::from_secs_f64((granted.as_secs_f64() - since).max(0.0).floor())
            };
            let seen = |renewed: bool| {
                let looks = (1..=100).map(|look| period * f64::from(look) / 100.0);
                let mut looks = looks.map(|at| (Duration::from_secs_f64((at - latency).max(0.0)), left(at, renewed)));
                looks.any(|(elapsed, now)| is_renewed(left(0.0, renewed), elapsed, now, unit))
            };
            assert!(seen(true), "ttl {ttl}, phase {phase}");
            assert!(!seen(false) || granted.as_secs_f64() < period + phase, "ttl {ttl}, phase {phase}");
        }
    }

    #[test]
    fn a_key_overwritten_under_another_lease_is_foreign_although_its_creation_is_the_same() {
        let options = RegisterOptions::new();
        assert_eq!(
            decide(Some(&found(Some(OTHER), None)), Some(mine(LEASE)), &options),
            Step::Observe { lease: OTHER }
        );
        assert_eq!(decide(Some(&found(None, None)), Some(mine(LEASE)), &options), Step::Conflict);
    }

    #[test]
    fn an_equal_owner_or_the_option_takes_over_at_once() {
        let foreign = found(Some(OTHER), Some("me"));
        assert_eq!(decide(Some(&foreign), None, &RegisterOptions::new().owner("me")), REPLACE);
        assert_eq!(decide(Some(&foreign), None, &RegisterOptions::new().owner("you")), Step::Observe { lease: OTHER });
        let take = RegisterOptions::new().on_conflict(OnConflict::TakeOver);
        assert_eq!(decide(Some(&foreign), None, &take), REPLACE);
        // Two instances without an owner token are not the same owner.
        assert_eq!(
            decide(Some(&found(Some(OTHER), None)), None, &RegisterOptions::new()),
            Step::Observe { lease: OTHER }
        );
    }
}
