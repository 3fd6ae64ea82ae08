//! For backends: the next step of a registration, decided without any I/O.
//!
//! The input is the content of the store under the key, and the state that this registration knows to be its own. The
//! rules are the same for every backend. Nothing foreign is ever overwritten or deleted, unless the options allow it or
//! the foreign key is provably a leftover. Of two live registrations under one key, the newer one stays. An
//! [`Entitlement`] ensures that: terms are fixed, and each replacement of a live registration strictly raises the
//! stored term. Therefore `n` registrations write at most `n` times per absence of the key.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use crate::{
    model::{
        escape::Hidden,
        revision::{LeaseId, Revision},
    },
    registration::options::{OnConflict, OnDelete, RegisterOptions},
};

/// The content of the store under the key.
#[derive(Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain input of a pure function")]
pub struct Found {
    /// Revision at which the key was created.
    pub created: Revision,
    /// Revision at which it was last changed.
    pub modified: Revision,
    /// The lease of the key; `None` if it has none.
    pub lease: Option<LeaseId>,
    /// The owner token in its value.
    pub owner: Option<String>,
    /// The term in its value; `None` in a layout without terms.
    pub term: Option<u64>,
    /// `true` if this registration wrote exactly this value under exactly this lease. Neither alone suffices: several
    /// processes can use one given lease, and several registrations can write the same value.
    pub own: bool,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { created, modified, lease, owner, term, own } = self;
        f.debug_struct("Found")
            .field("created", created)
            .field("modified", modified)
            .field("lease", lease)
            .field("owner", &owner.as_ref().map(|_| Hidden))
            .field("term", term)
            .field("own", own)
            .finish()
    }
}

/// The last write of this registration that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain input of a pure function")]
pub struct Mine {
    /// Revision at which the key was created.
    pub created: Revision,
    /// The lease of the write.
    pub lease: LeaseId,
    /// The generation of the instance that was stored.
    pub generation: u64,
}

/// The right of a registration to replace a foreign key that has an equal owner, or any under
/// [`OnConflict::TakeOver`].
///
/// A registration draws its term at its first claim and keeps it. A first claim therefore exceeds the term it finds,
/// and a later one gives way to any newer registration. In a layout without terms, the first stored write uses up the
/// right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entitlement {
    term: Option<u64>,
    stored: bool,
}

impl Entitlement {
    /// Returns the term for a claim, and draws it if there is none yet: the milliseconds since the Unix epoch, but at
    /// least one more than the `found` term.
    pub fn claim(&mut self, found: Option<u64>, now: SystemTime) -> u64 {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        *self.term.get_or_insert(millis.max(found.map_or(0, |term| term.saturating_add(1))))
    }

    /// Records that the store refused the only claim so far, so that the next one draws again. It must not be called
    /// for a claim of unknown outcome: its registration would have two terms.
    pub fn refused(&mut self) {
        if !self.stored {
            self.term = None;
        }
    }

    /// Records that a write was stored.
    pub fn stored(&mut self) {
        self.stored = true;
    }

    /// Returns `true` once a write was stored.
    pub fn is_stored(&self) -> bool {
        self.stored
    }

    /// Returns `true` if an entitled registration may replace a foreign value with the term `found`.
    pub fn exceeds(self, found: Option<u64>) -> bool {
        match (found, self.term) {
            (Some(found), Some(own)) => found < own,
            // The first claim draws a larger term. Without terms, the first stored write has used up the right.
            _ => !self.stored,
        }
    }
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "every backend has to handle every step")]
pub enum Step {
    /// Create the key, if it is still absent.
    Create,
    /// Replace the key, if it is still at `modified`.
    Replace {
        /// The guard.
        modified: Revision,
    },
    /// No write: the key has the desired content.
    Keep,
    /// Watch the incumbent's lease for a renewal period; see [`after_observation`].
    Observe {
        /// The incumbent's lease.
        lease: LeaseId,
    },
    /// No write: the key belongs to another registration.
    Conflict,
    /// No write: this registration was stored, and another one has replaced it. Wait until the key is free.
    Superseded,
    /// The key was deleted although its lease is alive as far as known, and the options respect deletions. The
    /// registration ends if the store confirms that the lease is alive.
    Evicted,
}

/// Decides the next step of a registration of the instance of `generation` under `lease`.
pub fn step(
    found: Option<&Found>,
    mine: Option<Mine>,
    entitlement: Entitlement,
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
    if found.own {
        let stored = mine.is_some_and(|mine| mine.generation == generation && mine.created == found.created);
        return if stored && found.lease == Some(lease) { Step::Keep } else { Step::Replace { modified } };
    }
    let same_owner = options.owner.is_some() && found.owner == options.owner;
    let entitled = same_owner || options.on_conflict == OnConflict::TakeOver;
    match found.lease {
        _ if entitled && entitlement.exceeds(found.term) => Step::Replace { modified },
        _ if entitlement.stored => Step::Superseded,
        Some(lease) if !entitled => Step::Observe { lease },
        _ => Step::Conflict,
    }
}

/// Result of an observation of the incumbent's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a lease is renewed or not")]
pub enum Observation {
    /// The remaining time grew: the owner is alive.
    Renewed,
    /// The remaining time only fell for a whole renewal period: there is no live owner.
    Falling,
    /// The lease is gone, and its keys with it.
    Gone,
}

/// Returns `true` if a lease was renewed between two looks, given its remaining time at the `first` look and `now`. A
/// store that counts in whole seconds may be off by one `unit` without any renewal.
///
/// `elapsed` must not exceed the real time between the two looks: it counts from the *response* to the first look to
/// the *request* of the second. Measured the other way round, a slow response makes a dead lease look renewed.
///
/// A remaining time of zero proves no renewal: a store may keep a lease for a while after its end.
pub fn is_renewed(first: Duration, elapsed: Duration, now: Duration, unit: Duration) -> bool {
    !now.is_zero() && now + elapsed > first + unit
}

/// Time for which a lease has to be observed: a renewal period of a third of the TTL with a tenth of jitter, plus the
/// error caused by the unit.
pub fn observation_period(granted: Duration, unit: Duration) -> Duration {
    (granted / 3).mul_f64(1.1) + unit * 5 / 2
}

/// Returns the step after an observation of the lease of the key that was `found`.
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

    /// A foreign key.
    fn found(lease: Option<LeaseId>, owner: Option<&str>) -> Found {
        let owner = owner.map(str::to_owned);
        Found { created: Revision::new(5), modified: Revision::new(6), lease, owner, term: Some(0), own: false }
    }

    fn own(lease: LeaseId) -> Found {
        Found { own: true, ..found(Some(lease), None) }
    }

    fn mine(lease: LeaseId) -> Mine {
        Mine { created: Revision::new(5), lease, generation: 1 }
    }

    /// Entitlement of a registration that was stored with the term 10.
    const STORED: Entitlement = Entitlement { term: Some(10), stored: true };

    fn decide(found: Option<&Found>, mine: Option<Mine>, options: &RegisterOptions) -> Step {
        let entitlement = if mine.is_some() { STORED } else { Entitlement::default() };
        step(found, mine, entitlement, LEASE, 1, options)
    }

    const REPLACE: Step = Step::Replace { modified: Revision::new(6) };

    #[test]
    fn an_absent_key_is_created_and_a_deleted_one_restored_unless_that_was_an_eviction() {
        let restore = RegisterOptions::new();
        let respect = RegisterOptions::new().on_delete(OnDelete::Respect);
        assert_eq!(decide(None, None, &respect), Step::Create);
        assert_eq!(decide(None, Some(mine(LEASE)), &restore), Step::Create);
        assert_eq!(decide(None, Some(mine(LEASE)), &respect), Step::Evicted);
        // The old lease ended, and the key with it: that is no eviction.
        assert_eq!(decide(None, Some(mine(OTHER)), &respect), Step::Create);
    }

    #[test]
    fn an_own_key_is_kept_or_brought_up_to_date() {
        let options = RegisterOptions::new();
        assert_eq!(decide(Some(&own(LEASE)), Some(mine(LEASE)), &options), Step::Keep);
        assert_eq!(step(Some(&own(LEASE)), Some(mine(LEASE)), STORED, LEASE, 2, &options), REPLACE);
        // A creation whose response was lost.
        assert_eq!(decide(Some(&own(LEASE)), None, &options), REPLACE);
        // Still under the old lease.
        assert_eq!(decide(Some(&own(OTHER)), Some(mine(OTHER)), &options), REPLACE);
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
    fn truncated_seconds_do_not_hide_a_renewal() {
        let unit = Duration::from_secs(1);
        let latency = 0.1;
        for (ttl, phase) in [3, 9, 15, 60].into_iter().flat_map(|ttl| (0..99).map(move |hundredth| (ttl, hundredth))) {
            let phase = f64::from(phase) / 100.0;
            let granted = Duration::from_secs(ttl);
            let renewal = granted.as_secs_f64() / 3.0 * 1.1;
            let period = observation_period(granted, unit).as_secs_f64();
            // Remaining time, in whole seconds, of a lease that was renewed `phase` before the first look.
            let left = |at: f64, lease: Observation| {
                let since = if lease == Observation::Renewed { (at + phase) % renewal } else { at + phase };
                Duration::from_secs_f64((granted.as_secs_f64() - since).max(0.0).floor())
            };
            let is_seen_renewed = |lease: Observation| {
                let looks = (1..=100).map(|look| period * f64::from(look) / 100.0);
                let mut looks = looks.map(|at| (Duration::from_secs_f64((at - latency).max(0.0)), left(at, lease)));
                looks.any(|(elapsed, now)| is_renewed(left(0.0, lease), elapsed, now, unit))
            };
            assert!(is_seen_renewed(Observation::Renewed), "ttl {ttl}, phase {phase}");
            // The same holds if the lease expires meanwhile and is not removed at once.
            assert!(!is_seen_renewed(Observation::Falling), "ttl {ttl}, phase {phase}");
        }
    }

    #[test]
    fn an_observation_lasts_a_renewal_period_with_jitter() {
        let period = observation_period(Duration::from_secs(30), Duration::from_secs(1));
        assert_eq!(period, Duration::from_millis(13_500));
    }

    #[test]
    fn a_difference_of_one_unit_is_no_renewal() {
        let seconds = Duration::from_secs;
        let at = |elapsed| is_renewed(seconds(10), elapsed, seconds(6), seconds(1));
        assert!(!at(seconds(5)) && at(Duration::from_millis(5001)));
    }

    #[test]
    fn a_stored_registration_whose_key_is_foreign_is_superseded() {
        for options in [RegisterOptions::new(), RegisterOptions::new().on_conflict(OnConflict::Wait)] {
            for lease in [Some(OTHER), Some(LEASE), None] {
                assert_eq!(decide(Some(&found(lease, None)), Some(mine(LEASE)), &options), Step::Superseded);
            }
        }
    }

    #[test]
    fn the_own_lease_alone_does_not_make_a_key_own() {
        // Another process was given the same lease.
        let options = RegisterOptions::new();
        assert_eq!(decide(Some(&found(Some(LEASE), None)), None, &options), Step::Observe { lease: LEASE });
    }

    #[test]
    fn the_owner_token_of_what_was_found_is_not_shown() {
        let shown = format!("{:?}", found(None, Some("s3cret")));
        assert!(!shown.contains("s3cret") && shown.contains("owner: Some"), "{shown}");
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

    #[test]
    fn a_stored_registration_replaces_smaller_terms_only() {
        let entitled = [RegisterOptions::new().owner("me"), RegisterOptions::new().on_conflict(OnConflict::TakeOver)];
        for options in entitled {
            let with_term = |term| Found { term, ..found(Some(OTHER), Some("me")) };
            let decide = |term| decide(Some(&with_term(term)), Some(mine(LEASE)), &options);
            assert_eq!(decide(Some(9)), REPLACE);
            assert_eq!(decide(Some(10)), Step::Superseded);
            assert_eq!(decide(Some(11)), Step::Superseded);
            // In a layout without terms, the first stored write has used up the right.
            assert_eq!(decide(None), Step::Superseded);
            // A claim of unknown outcome that turns out to be older than the stored one.
            let claimed = Entitlement { term: Some(10), stored: false };
            assert_eq!(step(Some(&with_term(Some(10))), None, claimed, LEASE, 1, &options), Step::Conflict);
            assert_eq!(step(Some(&with_term(Some(9))), None, claimed, LEASE, 1, &options), REPLACE);
        }
    }

    #[test]
    fn a_value_is_exceeded_before_the_first_claim_and_then_only_with_a_smaller_term() {
        let mut entitlement = Entitlement::default();
        assert!(entitlement.exceeds(Some(u64::MAX)) && entitlement.exceeds(None));
        let own = entitlement.claim(None, SystemTime::UNIX_EPOCH + Duration::from_millis(50));
        assert!(entitlement.exceeds(Some(own - 1)) && entitlement.exceeds(None));
        assert!(!entitlement.exceeds(Some(own)) && !entitlement.exceeds(Some(own + 1)));
        assert!(!entitlement.is_stored());
        entitlement.stored();
        assert!(entitlement.is_stored());
        assert!(!entitlement.exceeds(None), "without terms the first stored write spends the right");
    }

    #[test]
    fn a_first_claim_exceeds_what_it_finds_and_later_ones_do_not_change() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(50);
        let mut entitlement = Entitlement::default();
        assert_eq!(entitlement.claim(Some(70), now), 71);
        assert_eq!(entitlement.claim(Some(90), now), 71, "the outcome of the first one is unknown");
        entitlement.refused();
        assert_eq!(entitlement.claim(None, now), 50);
        entitlement.stored();
        entitlement.refused();
        assert_eq!(entitlement.claim(Some(90), now), 50, "a stored one is kept");
        assert_eq!(Entitlement::default().claim(Some(u64::MAX), now), u64::MAX);
    }

    /// Any number of registrations with one owner, in any order of looking, write at most once each per absence.
    #[test]
    fn registrations_under_one_key_write_at_most_once_each() {
        let options = RegisterOptions::new().owner("me");
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(50);
        let lease_of = |number: usize| LeaseId::new(i64::try_from(number).unwrap() + 1);
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let count = random.usize(2..6);
            let mut entitlements = vec![Entitlement::default(); count];
            for _absence in 0..3 {
                let mut key: Option<(usize, u64)> = None;
                let mut writes = 0;
                for _look in 0..100 {
                    let me = random.usize(..count);
                    let at = |(writer, term): (usize, u64)| Found {
                        term: Some(term),
                        own: writer == me,
                        ..found(Some(lease_of(writer)), Some("me"))
                    };
                    let (entitlement, lease) = (&mut entitlements[me], lease_of(me));
                    let mine = entitlement.is_stored().then(|| self::mine(lease));
                    match step(key.map(at).as_ref(), mine, *entitlement, lease, 1, &options) {
                        Step::Create | Step::Replace { .. } => {
                            key = Some((me, entitlement.claim(key.map(|(_, term)| term), now)));
                            entitlement.stored();
                            writes += 1;
                        }
                        _ => {}
                    }
                }
                assert!(writes <= count, "{writes} writes of {count}, seed {seed}");
            }
        }
    }
}
