//! Reasons for which the wait of a registration ends, and its consequences.

use enlist::backend::LeaseState;

/// Changes of the key that end a wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Watched {
    /// Any difference from what was written.
    #[default]
    AnyChange,
    /// Its loss only: it is known to have changed.
    LossOnly,
}

/// Event that ended the wait of a registration.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WakeReason {
    /// Something else is wanted.
    Wanted,
    /// The key may be different, or it is time for another try.
    Look,
    /// The key is different.
    Changed,
    /// etcd answers again.
    Recovered,
    /// The store was restored to an earlier state.
    Restored,
    /// The key, or its lease, is gone.
    Gone,
    /// The lease is to be left for another one.
    Retired,
    /// The watch cannot see the key.
    Unobservable,
    /// Another registration of this session has taken the key over.
    Superseded,
}

impl WakeReason {
    /// Returns the reason after a restore of the store, by the state of the lease: a shared one is retired by then.
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
