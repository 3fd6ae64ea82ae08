//! The desired state of a registration: written by the user's handle, read by the backend's driver.

use std::sync::Arc;

use crate::model::instance::Instance;

/// Goal of the handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Goal {
    /// The instance is to be published.
    Present,
    /// The instance is to be removed, and this confirmed. So is what a dead predecessor with an equal owner left.
    Absent,
    /// As `Absent`, but the handle was dropped: what this registration never wrote is left alone.
    Dropped,
    /// The instance is to be left alone, and its lease no longer renewed.
    Abandoned,
}

/// Presence of an instance in a store that cannot hold its health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "an instance is in the store or not")]
pub enum Shown {
    /// The instance is to be in the store.
    #[default]
    Yes,
    /// It is not, for now: its health check fails, and the store cannot hold a health. The backend removes it,
    /// reports [`RegistrationState::Withdrawn`](crate::RegistrationState::Withdrawn), and keeps its claim on the id.
    /// Never in a store that holds [`Health::NotServing`](crate::Health::NotServing).
    Withdrawn,
}

/// The desired state.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Desired {
    /// The instance as it should be.
    pub instance: Arc<Instance>,
    /// Counts the changes of `instance` and `shown`.
    pub generation: u64,
    /// Goal of the registration.
    pub goal: Goal,
    /// Its presence as long as the goal is [`Goal::Present`].
    pub shown: Shown,
}
