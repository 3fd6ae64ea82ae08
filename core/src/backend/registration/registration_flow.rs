//! Flow of a registration, from its claim of the key to its end. Every backend uses it; a backend implements
//! [`RegistrationSteps`].
//!
//! ```text
//!          ┌─────────────── another registration of this session gets the key ◄──┐
//!          ▼                                                                     │
//! claim the key ─► reconcile ─► settled, superseded, withdrawn, failed ─► wait ──┤
//!                      ▲                                                         │
//!                      └──────────────── something changed ◄─────────────────────┘
//! ```
//!
//! The decision in each step is made by [`reconcile`](crate::backend::reconcile). The removal of the key is left to the
//! backend: it depends on whether a write can be applied after its request has failed.

use std::{future::Future, hash::Hash, time::Duration};

use crate::{
    backend::registration::{
        desired_state::Goal,
        key_claims::{Approach, Claim, KeyClaims},
        observation::{Look, Observations},
        reconcile::Observation,
        registration_driver::RegistrationDriver,
    },
    error::{Error, Owner},
    model::{
        name::InstanceId,
        revision::{LeaseId, Revision},
    },
    registration::{
        options::{OnConflict, RegisterOptions},
        state::{Deregistered, RegistrationState},
    },
    runtime::{backoff::Backoff, clock::Moment},
};

/// Time for which `deregister` waits for the store before it reports [`Deregistered::LeftBehind`].
pub const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(3);

/// Interval between two looks at a lease of another owner.
const LEASE_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Result of one comparison of the desired with the stored state. `R`: state of another registration's key.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "the flow handles every outcome")]
pub enum StepOutcome<R> {
    /// The store holds the desired state.
    Settled,
    /// Something changed meanwhile. The next comparison follows at once.
    Repeat,
    /// The instance was removed by an operator. The registration is over.
    Evicted,
    /// Another registration has taken the key over.
    Superseded(R),
    /// The instance is to be hidden for now, and its key was absent at the revision.
    Withdrawn(Revision),
}

/// Reason for the end of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the flow handles every reason")]
pub enum Waited {
    /// The next comparison is due.
    Due,
    /// Another registration of this session gets the key.
    Superseded,
}

/// End of a claim by a registration.
enum Ending {
    /// The registration is over.
    Over,
    /// The registration gave way to another one of this session, and waits for the key after that one.
    GaveWay,
}

/// Steps of a registration that depend on the backend.
///
/// # Cancel safety
///
/// All futures are dropped when the session ends. [`wait_unwanted`](Self::wait_unwanted) and
/// [`observation_unneeded`](Self::observation_unneeded) are dropped at any time besides, and must lose nothing then.
pub trait RegistrationSteps: Send + Sync {
    /// Identifier of the key among the claims of this session.
    type Key: Eq + Hash + Clone + Send + Sync;

    /// State of a key that another registration has taken over.
    type Rival: Send;

    /// Resolution of [`time_to_live`](Self::time_to_live).
    const LEASE_RESOLUTION: Duration;

    /// The driver half of the registration.
    fn driver(&self) -> &RegistrationDriver;

    /// Id of the instance.
    fn id(&self) -> &InstanceId;

    /// Options of the registration.
    fn options(&self) -> &RegisterOptions;

    /// The key, as it is claimed.
    fn key(&self) -> &Self::Key;

    /// Delays between failed steps.
    fn backoff(&mut self) -> &mut Backoff;

    /// The claims of keys by registrations of this session.
    fn claims(&self) -> &KeyClaims<Self::Key>;

    /// Observations of leases that other owners have.
    fn observations(&self) -> &Observations<Self::Key>;

    /// Waits until the registration is no longer wanted, and keeps its own state up to date meanwhile.
    fn wait_unwanted(&mut self) -> impl Future<Output = ()> + Send;

    /// Brings the store one step closer to the desired state.
    ///
    /// # Errors
    ///
    /// The reason for which the step failed. It is reported, and another step follows after
    /// [`wait_failed`](Self::wait_failed), unless [`gives_up`](Self::gives_up) ends the registration.
    fn reconcile(&mut self) -> impl Future<Output = Result<StepOutcome<Self::Rival>, Error>> + Send;

    /// Waits until the store may no longer hold the desired state.
    fn wait_settled(&mut self, claim: &Claim<Self::Key>) -> impl Future<Output = Waited> + Send;

    /// Waits until the key that another registration has taken over is free. Returns `Waited::Superseded` as well if
    /// another registration of this session gets the key.
    fn wait_superseded(&mut self, claim: &Claim<Self::Key>, rival: Self::Rival) -> impl Future<Output = Waited> + Send;

    /// Waits until the instance is to be shown again. Its key was absent at the revision.
    fn wait_withdrawn(&mut self, claim: &Claim<Self::Key>, at: Revision) -> impl Future<Output = Waited> + Send;

    /// Reports a failure, and waits until another attempt is worthwhile.
    fn wait_failed(&mut self, claim: &Claim<Self::Key>, error: Error) -> impl Future<Output = Waited> + Send;

    /// Returns `true` if the registration ends with this error, because its options limit the number of attempts.
    fn gives_up(&mut self, error: &Error) -> bool;

    /// Removes the instance, reports the end, and returns once no write of this registration can appear any more.
    /// `gave_up`: the error to report. `claim` is released once the store has confirmed the removal.
    fn remove(&mut self, gave_up: Option<Error>, claim: Option<Claim<Self::Key>>) -> impl Future<Output = ()> + Send;

    /// Ends a registration whose instance was evicted.
    fn evicted(&mut self, claim: Claim<Self::Key>) -> impl Future<Output = ()> + Send;

    /// Ends the registration, and leaves its instance to the end of the lease.
    fn abandon(&mut self);

    /// Records that another registration of this session has the key from now on.
    fn gave_way(&mut self);

    /// Returns the remaining and the granted time of a lease; `None` if the store does not know it.
    ///
    /// # Errors
    ///
    /// The failure of the request. It is one of the step in which the lease is observed.
    fn time_to_live(&self, lease: LeaseId) -> impl Future<Output = Result<Option<(Duration, Duration)>, Error>> + Send;

    /// Waits until an observation is no longer useful: the registration is not wanted any more, or needs another lease.
    fn observation_unneeded(&self) -> impl Future<Output = ()> + Send;

    /// Returns the error for a key that another owner has.
    fn conflict(&self, owner: Option<&str>, revision: Option<Revision>) -> Error {
        let owner = Owner::of(owner, self.options().owner.as_deref());
        Error::AlreadyRegistered { service: self.driver().service().clone(), id: self.id().clone(), owner, revision }
    }

    /// Reports that another registration has taken the key over.
    fn report_superseded(&self, owner: Option<&str>, lease: LeaseId) {
        self.driver().report_superseded(Owner::of(owner, self.options().owner.as_deref()), lease);
    }

    /// Returns `true` if `error` is a conflict that the registration waits out.
    fn waits_out(&self, error: &Error) -> bool {
        let conflict = matches!(error, Error::AlreadyRegistered { .. });
        conflict && self.options().on_conflict == OnConflict::Wait && !self.driver().was_stored()
    }
}

/// Removal of an instance from a store in which a failed request has no effect. Other stores need more, see
/// `registration_task/removal.rs` of `enlist-etcd`.
///
/// # Cancel safety
///
/// All futures are dropped when the session ends, [`reconnected`](Self::reconnected) at any time besides.
pub trait RemovalSteps: RegistrationSteps {
    /// Removes the instance, if it belongs to this registration or was left by a predecessor with an equal owner.
    ///
    /// # Errors
    ///
    /// The failure of the request. The removal is tried again.
    fn try_remove(&mut self) -> impl Future<Output = Result<Deregistered, Error>> + Send;

    /// Waits until another attempt is worthwhile, after one that failed.
    fn reconnected(&mut self) -> impl Future<Output = ()> + Send;
}

/// Tries to remove the instance until the store has confirmed it, and reports the end. A registration that `gave_up`
/// reports that at once: its lease may live on, and would keep the instance for ever.
///
/// # Cancel safety
///
/// Dropping the future ends the attempts. The instance stays until its lease ends, and no end is reported.
pub async fn remove_until_confirmed<S: RemovalSteps>(steps: &mut S, gave_up: Option<Error>) {
    let outcome = |found| gave_up.clone().map_or(Ok(found), Err);
    if gave_up.is_some() {
        steps.driver().report_end(outcome(Deregistered::LeftBehind));
    }
    let begun = Moment::now();
    let mut backoff = steps.options().backoff.start();
    loop {
        match steps.try_remove().await {
            Ok(found) => return steps.driver().report_end(outcome(found)),
            Err(_) if begun.elapsed() >= DEREGISTER_TIMEOUT => {
                steps.driver().report_end(outcome(Deregistered::LeftBehind));
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay().min(DEREGISTER_TIMEOUT / 3)) => {}
            () = steps.reconnected() => {}
        }
    }
}

/// Runs a registration until its end.
///
/// # Cancel safety
///
/// Dropping the future drops `steps`, whose backend decides about the lease. The instance is not removed.
pub async fn run<S: RegistrationSteps>(mut steps: Box<S>) {
    let mut approach = Approach::New;
    while let Some(claim) = claim(&mut *steps, approach).await {
        match keep(&mut *steps, claim).await {
            Ending::Over => return,
            // The registration waits for the key behind its successor.
            Ending::GaveWay => steps.gave_way(),
        }
        approach = Approach::Again;
    }
}

/// Waits until no other registration of this session has the key. Returns `None` if the registration is over.
async fn claim<S: RegistrationSteps>(steps: &mut S, approach: Approach) -> Option<Claim<S::Key>> {
    let (claims, key, options) = (steps.claims().clone(), steps.key().clone(), steps.options().clone());
    let withdrawal = steps.driver().withdrawal();
    let claimed = tokio::select! {
        // A free key is claimed even for a registration that is to leave, because it may have to remove a leftover.
        biased;
        claimed = claims.claim(&key, &options, &withdrawal, approach) => claimed,
        () = steps.wait_unwanted() => {
            match approach {
                Approach::New => steps.driver().report_end(Ok(Deregistered::AlreadyGone)),
                Approach::Again if steps.driver().goal() == Goal::Abandoned => steps.abandon(),
                // The successor may have given up before it wrote anything.
                Approach::Again => steps.remove(None, None).await,
            }
            return None;
        }
    };
    let refused = |revision| {
        let error = steps.conflict(None, revision);
        steps.driver().report(RegistrationState::Refused { cause: error.clone() });
        steps.driver().report_end(Err(error));
    };
    claimed.map_err(refused).ok()
}

/// State of a registration that has claimed its key. `R`: state of another registration's key.
#[derive(Debug)]
enum State<R> {
    /// The desired and the stored state are to be compared.
    Comparing,
    /// The store holds the desired state.
    Settled,
    /// The instance is to be hidden for now. Its key was absent at the revision.
    Withdrawn { at: Revision },
    /// Another registration has taken the key over.
    Superseded { rival: R },
    /// The last step failed.
    Failed { error: Error },
    /// The instance is to be removed. `gave_up`: the error that ended the registration.
    Removing { gave_up: Option<Error> },
    /// The instance was removed by an operator.
    Evicted,
    /// The instance is left to the end of its lease.
    Abandoned,
    /// Another registration of this session gets the key.
    GivingWay,
}

/// Number of attempts that the options of a registration leave after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempts {
    Left,
    Exhausted,
}

/// Returns the state in which a registration with this goal ends; `None` if it goes on.
fn ended_by<R>(goal: Goal) -> Option<State<R>> {
    match goal {
        Goal::Present => None,
        Goal::Absent | Goal::Dropped => Some(State::Removing { gave_up: None }),
        Goal::Abandoned => Some(State::Abandoned),
    }
}

/// Returns the state after a comparison with this outcome.
fn after_step<R>(outcome: Result<StepOutcome<R>, Error>, attempts: Attempts) -> State<R> {
    match (outcome, attempts) {
        (Ok(StepOutcome::Repeat), _) => State::Comparing,
        (Ok(StepOutcome::Settled), _) => State::Settled,
        (Ok(StepOutcome::Withdrawn(at)), _) => State::Withdrawn { at },
        (Ok(StepOutcome::Superseded(rival)), _) => State::Superseded { rival },
        (Ok(StepOutcome::Evicted), _) => State::Evicted,
        (Err(error), Attempts::Left) => State::Failed { error },
        (Err(error), Attempts::Exhausted) => State::Removing { gave_up: Some(error) },
    }
}

/// Returns the state after a wait.
fn after_wait<R>(waited: Waited) -> State<R> {
    match waited {
        Waited::Due => State::Comparing,
        Waited::Superseded => State::GivingWay,
    }
}

/// Keeps the instance present until the end, or until another registration of this session claims the key.
async fn keep<S: RegistrationSteps>(steps: &mut S, claim: Claim<S::Key>) -> Ending {
    let mut state = State::Comparing;
    loop {
        state = match state {
            State::Comparing => match ended_by(steps.driver().goal()) {
                None => compare(steps).await,
                Some(end) => end,
            },
            State::Settled => {
                steps.backoff().reset();
                after_wait(steps.wait_settled(&claim).await)
            }
            State::Withdrawn { at } => {
                steps.backoff().reset();
                after_wait(steps.wait_withdrawn(&claim, at).await)
            }
            State::Failed { error } => after_wait(steps.wait_failed(&claim, error).await),
            State::Superseded { rival } => match steps.wait_superseded(&claim, rival).await {
                Waited::Due => State::Comparing,
                // `wait_superseded` has reported this already.
                Waited::Superseded => return Ending::GaveWay,
            },
            State::GivingWay => {
                report_given_way(steps);
                return Ending::GaveWay;
            }
            State::Removing { gave_up } => {
                steps.remove(gave_up, Some(claim)).await;
                return Ending::Over;
            }
            State::Evicted => {
                steps.evicted(claim).await;
                return Ending::Over;
            }
            State::Abandoned => {
                steps.abandon();
                return Ending::Over;
            }
        }
    }
}

/// Compares the desired with the stored state once.
async fn compare<S: RegistrationSteps>(steps: &mut S) -> State<S::Rival> {
    let outcome = steps.reconcile().await;
    let exhausted = outcome.as_ref().is_err_and(|error| steps.gives_up(error));
    after_step(outcome, if exhausted { Attempts::Exhausted } else { Attempts::Left })
}

/// Reports that another registration of this session gets the key.
fn report_given_way<S: RegistrationSteps>(steps: &S) {
    if steps.driver().was_stored() {
        steps.report_superseded(steps.options().owner.as_deref(), LeaseId::default());
    } else {
        steps.driver().report_failure(steps.conflict(steps.options().owner.as_deref(), None));
    }
}

/// Observes the lease of another owner for one renewal period. Returns `None` if the observation is no longer useful; a
/// later one continues it.
///
/// # Errors
///
/// The failure of [`RegistrationSteps::time_to_live`].
///
/// # Cancel safety
///
/// Dropping the future loses nothing: a later observation of the same lease continues this one.
pub async fn observe<S: RegistrationSteps>(steps: &S, lease: LeaseId) -> Result<Option<Observation>, Error> {
    loop {
        let asked = Moment::now();
        let Some((remaining, granted)) = steps.time_to_live(lease).await? else {
            steps.observations().forget(steps.key());
            return Ok(Some(Observation::Gone));
        };
        let look = Look { lease, remaining, granted, asked, unit: S::LEASE_RESOLUTION };
        let remaining = match steps.observations().look(steps.key(), look) {
            Ok(observation) => return Ok(Some(observation)),
            Err(remaining) => remaining,
        };
        let (service, id) = (steps.driver().service().clone(), steps.id().clone());
        steps.driver().report_trouble(Error::Observing { service, id, left: remaining });
        tokio::select! {
            () = tokio::time::sleep(LEASE_POLL_INTERVAL.min(remaining)) => {}
            () = steps.observation_unneeded() => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(outcome: Result<StepOutcome<()>, Error>, attempts: Attempts) -> State<()> {
        after_step(outcome, attempts)
    }

    #[test]
    fn a_failure_is_tried_again_until_the_attempts_are_exhausted() {
        assert!(matches!(after(Err(Error::LeaseLost), Attempts::Left), State::Failed { .. }));
        let end = after(Err(Error::LeaseLost), Attempts::Exhausted);
        assert!(matches!(end, State::Removing { gave_up: Some(Error::LeaseLost) }), "{end:?}");
    }

    #[test]
    fn each_outcome_has_its_wait() {
        let at = Revision::new(7);
        assert!(matches!(after(Ok(StepOutcome::Repeat), Attempts::Left), State::Comparing));
        assert!(matches!(after(Ok(StepOutcome::Settled), Attempts::Left), State::Settled));
        assert!(matches!(after(Ok(StepOutcome::Superseded(())), Attempts::Left), State::Superseded { .. }));
        assert!(matches!(after(Ok(StepOutcome::Evicted), Attempts::Left), State::Evicted));
        let withdrawn = after(Ok(StepOutcome::Withdrawn(at)), Attempts::Left);
        assert!(matches!(withdrawn, State::Withdrawn { at: known } if known == at), "{withdrawn:?}");
    }

    #[test]
    fn a_goal_other_than_presence_ends_the_registration() {
        assert!(ended_by::<()>(Goal::Present).is_none());
        for goal in [Goal::Absent, Goal::Dropped] {
            assert!(matches!(ended_by::<()>(goal), Some(State::Removing { gave_up: None })));
        }
        assert!(matches!(ended_by::<()>(Goal::Abandoned), Some(State::Abandoned)));
    }

    #[test]
    fn a_wait_ends_with_a_comparison_or_with_the_loss_of_the_claim() {
        assert!(matches!(after_wait::<()>(Waited::Due), State::Comparing));
        assert!(matches!(after_wait::<()>(Waited::Superseded), State::GivingWay));
    }
}
