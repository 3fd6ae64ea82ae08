//! The desired state of a registration: written by the user's handle, read by the backend's driver.

use std::sync::Arc;

use crate::model::instance::Instance;

/// Goal of the handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Goal {
    /// The instance is to be published.
    Present,
    /// The instance is to be removed, with a confirmation. A leftover of a dead predecessor with an equal owner is
    /// removed as well.
    Absent,
    /// As `Absent`, but the handle was dropped: a key that this registration never wrote is left alone.
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
    /// The instance is to be absent for now, because its health check fails and the store cannot hold a health. The
    /// backend removes it, reports [`RegistrationState::Withdrawn`](crate::RegistrationState::Withdrawn), and keeps its
    /// claim on the id. It is never used with a store that holds [`Health::NotServing`](crate::Health::NotServing).
    Withdrawn,
}

/// The desired state.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Desired {
    /// The desired instance.
    pub instance: Arc<Instance>,
    /// Number of changes of `instance` and `shown`.
    pub generation: u64,
    /// Goal of the registration.
    pub goal: Goal,
    /// Presence of the instance while the goal is [`Goal::Present`].
    pub shown: Shown,
}
