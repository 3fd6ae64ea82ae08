//! The task behind a registration in several registries.

use futures::{
    FutureExt,
    future::{BoxFuture, join_all, select_all, try_join_all},
};

use super::side::Side;
use crate::{
    backend::registration::{
        desired_state::{Desired, Goal, Shown},
        registration_driver::RegistrationDriver,
    },
    error::Error,
    model::{instance::Health, revision::Revision},
    registration::{
        handle::Registration,
        state::{Deregistered, RegistrationState},
    },
};

/// Task behind a registration on several sides.
pub(super) struct SideRegistrations {
    pub(super) driver: RegistrationDriver,
    pub(super) sides: Vec<Side>,
    pub(super) held: Vec<Registration>,
    pub(super) own: u32,
}

/// Update of the sides in progress: its generation, and their results.
type PendingUpdate = BoxFuture<'static, (u64, Result<Vec<Revision>, Error>)>;

/// State of the task.
enum State {
    /// The sides store an update. A later update includes an earlier one.
    Updating(PendingUpdate),
    /// The sides have stored or refused the latest update.
    Settled,
}

impl State {
    /// Waits for the end of the update; never returns if there is none.
    async fn updated(&mut self) -> (u64, Result<Vec<Revision>, Error>) {
        match self {
            Self::Updating(update) => update.await,
            Self::Settled => std::future::pending().await,
        }
    }
}

/// Next step of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The sides stay registered.
    Follow,
    /// All sides are deregistered.
    Leave,
    /// The registrations of the sides are dropped.
    Drop,
    /// The registrations of the sides are abandoned.
    Abandon,
}

/// Returns the step for a goal while the worst of the sides has this state.
fn next_step(goal: Goal, worst: &RegistrationState) -> Step {
    match (goal, worst) {
        (Goal::Dropped, _) => Step::Drop,
        (Goal::Abandoned, _) => Step::Abandon,
        // One side was evicted or has given up, so the others leave too.
        (Goal::Absent, _) | (Goal::Present, RegistrationState::Ended) => Step::Leave,
        (Goal::Present, _) => Step::Follow,
    }
}

impl SideRegistrations {
    pub(super) async fn run(mut self) {
        let mut states: Vec<_> = self.held.iter().map(Registration::states).collect();
        let mut wanted = self.driver.desired();
        // The registered instance is the first generation.
        let mut state = State::Updating(self.update(wanted.generation));
        let mut news = true;
        loop {
            let worst = worst(self.held.iter().map(Registration::state));
            match next_step(wanted.goal, &worst) {
                Step::Follow => {}
                Step::Leave => return self.leave().await,
                Step::Drop => return self.driver.report_end(Ok(Deregistered::LeftBehind)),
                Step::Abandon => return self.abandon(),
            }
            if news {
                self.report_lease();
                self.driver.report(worst);
            }
            let changed = select_all(states.iter_mut().map(|states| states.next().boxed()));
            news = false;
            tokio::select! {
                () = self.driver.changed() => {
                    wanted = self.driver.desired();
                    state = State::Updating(self.update(wanted.generation));
                }
                _ = changed => news = true,
                (generation, stored) = state.updated() => {
                    state = State::Settled;
                    self.report_update(generation, stored);
                }
            }
        }
    }

    fn report_update(&self, generation: u64, stored: Result<Vec<Revision>, Error>) {
        match stored {
            Ok(revisions) => {
                self.report_lease();
                self.driver.report_stored(generation, revisions.into_iter().min().unwrap_or_default());
            }
            // The state of that side shows that it has ended or was superseded.
            Err(Error::Closed | Error::NotOwner { .. }) => {}
            Err(cause) => self.driver.report_refused(generation, cause),
        }
    }

    /// Reports the lease of the first written side.
    fn report_lease(&self) {
        if let Some(lease) = self.held.first().and_then(Registration::lease) {
            self.driver.report_lease(lease);
        }
    }

    /// Brings all sides to the desired state.
    fn update(&mut self, generation: u64) -> PendingUpdate {
        let Desired { instance, shown, .. } = self.driver.desired();
        let each = self.sides.iter().zip(&self.held).map(|(side, held)| {
            let mut target = side.written(&instance, self.own);
            let mut shown = shown;
            if shown == Shown::Withdrawn {
                // A side that can hold `NotServing` gets that as an update instead.
                let unwell = side.written(&(*instance).clone().with_health(Health::NotServing), self.own);
                if unwell.health() == Health::NotServing && held.checker()(&unwell).is_ok() {
                    (target, shown) = (unwell, Shown::Yes);
                }
            }
            held.show(shown);
            held.update(move |update| update.make_equal(&target))
        });
        let each = try_join_all(each);
        async move { (generation, each.await) }.boxed()
    }

    async fn leave(self) {
        let outcomes = join_all(self.held.into_iter().map(Registration::deregister)).await;
        self.driver.report_end(combined(outcomes));
    }

    fn abandon(self) {
        self.held.into_iter().for_each(Registration::abandon);
        self.driver.report_end(Ok(Deregistered::LeftBehind));
    }
}

/// Returns the outcome for all sides: the first error, or else the least certain removal.
fn combined(outcomes: Vec<Result<Deregistered, Error>>) -> Result<Deregistered, Error> {
    let mut all = Ok(Deregistered::AlreadyGone);
    for outcome in outcomes {
        all = match (all, outcome) {
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(Deregistered::LeftBehind), _) | (_, Ok(Deregistered::LeftBehind)) => Ok(Deregistered::LeftBehind),
            (Ok(Deregistered::Removed), _) | (_, Ok(Deregistered::Removed)) => Ok(Deregistered::Removed),
            _ => Ok(Deregistered::AlreadyGone),
        };
    }
    all
}

/// Returns the combined state: that of the side in the worst state.
fn worst(states: impl Iterator<Item = RegistrationState>) -> RegistrationState {
    let badness = |state: &RegistrationState| match state {
        RegistrationState::Registered { .. } => 0,
        RegistrationState::Suspect { .. } => 1,
        RegistrationState::Withdrawn => 2,
        RegistrationState::Registering { .. } => 3,
        RegistrationState::Reregistering { .. } => 4,
        RegistrationState::Superseded { .. } => 5,
        RegistrationState::Refused { .. } => 6,
        RegistrationState::Ended => 7,
    };
    states.max_by_key(badness).unwrap_or(RegistrationState::Ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_one_side_withdraws_all_and_a_goal_takes_precedence() {
        let registered = RegistrationState::Registered { revision: Revision::new(1) };
        assert_eq!(next_step(Goal::Present, &registered), Step::Follow);
        assert_eq!(next_step(Goal::Present, &RegistrationState::Ended), Step::Leave);
        for (goal, step) in [(Goal::Absent, Step::Leave), (Goal::Dropped, Step::Drop), (Goal::Abandoned, Step::Abandon)]
        {
            assert_eq!(next_step(goal, &registered), step);
            assert_eq!(next_step(goal, &RegistrationState::Ended), step);
        }
    }

    #[test]
    fn the_least_certain_removal_is_the_outcome_for_all_sides() {
        use Deregistered::{AlreadyGone, LeftBehind, Removed};
        let outcome = |outcomes: &[Deregistered]| combined(outcomes.iter().copied().map(Ok).collect()).unwrap();
        assert_eq!(outcome(&[AlreadyGone, AlreadyGone]), AlreadyGone);
        assert_eq!(outcome(&[Removed, AlreadyGone]), Removed);
        assert_eq!(outcome(&[Removed, LeftBehind, Removed]), LeftBehind);
        assert!(matches!(combined(vec![Ok(LeftBehind), Err(Error::Closed)]), Err(Error::Closed)));
    }

    #[test]
    fn the_worst_state_is_shown() {
        let (registered, cause) = (RegistrationState::Registered { revision: Revision::new(1) }, Error::Closed);
        let refused = RegistrationState::Refused { cause };
        let shown = |states: [&RegistrationState; 2]| worst(states.into_iter().cloned());
        assert!(matches!(shown([&refused, &registered]), RegistrationState::Refused { .. }));
        assert!(matches!(shown([&registered, &RegistrationState::Withdrawn]), RegistrationState::Withdrawn));
        assert!(matches!(shown([&RegistrationState::Ended, &refused]), RegistrationState::Ended));
    }
}
