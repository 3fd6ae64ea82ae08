//! State shared by the two ends of a registration.
//!
//! The user's handle writes the *desired* state, and the backend's driver writes the *reported* one. The handle never
//! waits for the store; the backend reconciles.

use std::{fmt, sync::OnceLock};

use tokio::sync::watch;

use crate::{
    backend::registration::desired_state::{Desired, Goal},
    error::Error,
    model::{
        instance::Instance,
        name::ServiceRef,
        revision::{LeaseId, Revision},
    },
    registration::state::{Deregistered, RegistrationState},
    runtime::task::TaskOwner,
};

#[derive(Clone, Debug)]
pub(crate) struct Reported {
    pub(crate) state: RegistrationState,
    /// The last generation that the store has acknowledged, and its revision.
    pub(crate) stored: Option<(u64, Revision)>,
    /// The lease of that write.
    pub(crate) lease: Option<LeaseId>,
    /// The last generation that the store refused while an earlier one is published, and the reason.
    pub(crate) refused: Option<(u64, Error)>,
    pub(crate) ended: Option<Result<Deregistered, Error>>,
}

/// Desired and reported state of one registration.
pub(crate) struct RegistrationCell {
    pub(crate) service: ServiceRef,
    pub(crate) desired: watch::Sender<Desired>,
    pub(crate) reported: watch::Sender<Reported>,
    /// Check of the content that the store can hold.
    pub(crate) accepts: OnceLock<Accepts>,
    /// The health checks, once there is one.
    pub(crate) checks: OnceLock<TaskOwner>,
}

pub(crate) type Accepts = Box<dyn Fn(&Instance) -> Result<(), Error> + Send + Sync>;

impl RegistrationCell {
    /// Checks that an instance can be held by any store, and by this one.
    pub(crate) fn check(&self, instance: &Instance) -> Result<(), Error> {
        instance.check()?;
        self.accepts.get().map_or(Ok(()), |accepts| accepts(instance))
    }

    pub(crate) fn stop_checks(&self) {
        if let Some(checks) = self.checks.get() {
            checks.stop_signal().cancel();
        }
    }

    /// Returns `true` if the registration is over or about to end.
    pub(crate) fn has_ended(&self) -> bool {
        let unwanted = self.desired.borrow().goal != Goal::Present;
        unwanted || self.reported.borrow().ended.is_some()
    }
}

impl fmt::Debug for RegistrationCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, desired, reported, accepts: _, checks: _ } = self;
        let mut shown = f.debug_struct("RegistrationCell");
        shown.field("service", service).field("desired", desired).field("reported", reported).finish_non_exhaustive()
    }
}

/// The first goal other than `Present` is final: a later one, such as the drop after `abandon`, has no effect.
pub(crate) fn set_goal(cell: &RegistrationCell, goal: Goal) {
    cell.desired.send_if_modified(|desired| {
        let first = desired.goal == Goal::Present;
        if first {
            desired.goal = goal;
        }
        first
    });
}
