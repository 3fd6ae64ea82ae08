//! The task behind a registration in several registries.

use futures::{
    FutureExt,
    future::{BoxFuture, join_all, select_all, try_join_all},
};

use super::side::Side;
use crate::{
    backend::{
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

/// The task behind a registration in several sides.
pub(super) struct SideRegistrations {
    pub(super) driver: RegistrationDriver,
    pub(super) sides: Vec<Side>,
    pub(super) held: Vec<Registration>,
    pub(super) own: u32,
}

/// What the sides make of an update: the generation and what each said.
type PendingUpdate = BoxFuture<'static, (u64, Result<Vec<Revision>, Error>)>;

impl SideRegistrations {
    pub(super) async fn run(mut self) {
        let mut states: Vec<_> = self.held.iter().map(Registration::states).collect();
        let mut wanted = self.driver.desired();
        // What was registered is the first generation. A later update takes an earlier one along.
        let mut updating = Some(self.update(wanted.generation));
        let mut news = true;
        loop {
            match wanted.goal {
                Goal::Present => {}
                Goal::Absent => return self.leave().await,
                // Each side is dropped as well.
                Goal::Dropped => return self.driver.report_end(Ok(Deregistered::LeftBehind)),
                Goal::Abandoned => return self.abandon(),
            }
            let state = worst(self.held.iter().map(Registration::state));
            if matches!(state, RegistrationState::Ended) {
                // One was evicted, or given up: the others are not left behind.
                return self.leave().await;
            }
            if news {
                self.report_lease();
                self.driver.report(state);
            }
            let changed = select_all(states.iter_mut().map(|states| states.next().boxed()));
            news = false;
            tokio::select! {
                () = self.driver.changed() => {
                    wanted = self.driver.desired();
                    updating = Some(self.update(wanted.generation));
                }
                _ = changed => news = true,
                (generation, stored) = finished(updating.as_mut()) => {
                    updating = None;
                    match stored {
                        Ok(revisions) => {
                            self.report_lease();
                            self.driver.report_stored(generation, revisions.into_iter().min().unwrap_or_default());
                        }
                        // That one has ended or was superseded shows in its state.
                        Err(Error::Closed | Error::NotOwner { .. }) => {}
                        Err(cause) => self.driver.report_refused(generation, cause),
                    }
                }
            }
        }
    }

    /// Reports the lease that the first side which is written uses.
    fn report_lease(&self) {
        if let Some(lease) = self.held.first().and_then(Registration::lease) {
            self.driver.report_lease(lease);
        }
    }

    /// Brings all sides to what is desired.
    fn update(&mut self, generation: u64) -> PendingUpdate {
        let Desired { instance, shown, .. } = self.driver.desired();
        let each = self.sides.iter().zip(&self.held).map(|(side, held)| {
            let mut target = side.written(&instance, self.own);
            let mut shown = shown;
            if shown == Shown::Withdrawn {
                // A side that can says it instead.
                let unwell = side.written(&(*instance).clone().with_health(Health::NotServing), self.own);
                if unwell.health() == Health::NotServing && held.checker()(&unwell).is_ok() {
                    (target, shown) = (unwell, Shown::Yes);
                }
            }
            held.show(shown);
            held.update(move |draft| draft.make_equal(&target))
        });
        let each = try_join_all(each);
        async move { (generation, each.await) }.boxed()
    }

    async fn leave(self) {
        let outcomes = join_all(self.held.into_iter().map(Registration::deregister)).await;
        let mut all = Ok(Deregistered::AlreadyGone);
        for outcome in outcomes {
            all = match (all, outcome) {
                (Err(error), _) | (_, Err(error)) => Err(error),
                (Ok(Deregistered::LeftBehind), _) | (_, Ok(Deregistered::LeftBehind)) => Ok(Deregistered::LeftBehind),
                (Ok(Deregistered::Removed), _) | (_, Ok(Deregistered::Removed)) => Ok(Deregistered::Removed),
                _ => Ok(Deregistered::AlreadyGone),
            };
        }
        self.driver.report_end(all);
    }

    fn abandon(self) {
        self.held.into_iter().for_each(Registration::abandon);
        self.driver.report_end(Ok(Deregistered::LeftBehind));
    }
}

async fn finished(updating: Option<&mut PendingUpdate>) -> (u64, Result<Vec<Revision>, Error>) {
    match updating {
        Some(updating) => updating.await,
        None => std::future::pending().await,
    }
}

/// The state of all: as bad as the worst of them.
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
