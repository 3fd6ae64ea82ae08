//! Reasons for the end of a registration's wait, and their consequences.

use enlist::backend::LeaseState;

/// Changes of the key that end a wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Watched {
    /// Any difference from what was written.
    #[default]
    AnyChange,
    /// Its loss only: the key is known to differ.
    LossOnly,
}

/// Event that ended the wait of a registration.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WakeReason {
    /// The desired state has changed.
    Wanted,
    /// The key may differ, or another attempt is due.
    Look,
    /// The key differs.
    Changed,
    /// etcd answers again.
    Recovered,
    /// The store was restored to an earlier state.
    Restored,
    /// The key, or its lease, is gone.
    Gone,
    /// The lease is retired and has to be replaced.
    Retired,
    /// The watch cannot see the key.
    Unobservable,
    /// Another registration of this session has taken the key over.
    Superseded,
}

impl WakeReason {
    /// Returns the reason after a restore of the store. It depends on the lease: a shared one is retired by then.
    pub(super) fn after_restore(lease: &LeaseState) -> Self {
        if matches!(lease, LeaseState::Retired) { Self::Retired } else { Self::Restored }
    }

    pub(super) fn is_superseded(self) -> bool {
        self == Self::Superseded
    }
}

/// Knowledge of the key after a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyState {
    /// It is as it was stored, as far as is known.
    AsStored,
    /// It has to be read.
    MayDiffer,
}
