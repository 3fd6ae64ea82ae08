//! Leases that were granted to a session and are not known to be gone.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard},
};

use enlist::{LeaseId, backend::MutexExt as _};

#[derive(Debug, Default)]
struct Issued {
    /// All leases. They are revoked when the session is closed.
    granted: HashSet<LeaseId>,
    /// Leases under which fixed instances are created, to be detached from them.
    detaching: HashSet<LeaseId>,
}

/// Leases that were granted to a session and are not known to be gone.
#[derive(Debug, Default)]
pub(crate) struct IssuedLeases {
    issued: Mutex<Issued>,
}

impl IssuedLeases {
    fn issued(&self) -> MutexGuard<'_, Issued> {
        self.issued.locked()
    }

    pub(crate) fn add(&self, lease: LeaseId) {
        self.issued().granted.insert(lease);
    }

    /// Notes that keys will be detached from `lease`.
    pub(crate) fn add_detaching(&self, lease: LeaseId) {
        self.issued().detaching.insert(lease);
    }

    /// Removes a lease that is left to run out, so that it is not revoked when the session is closed.
    pub(crate) fn abandon(&self, lease: LeaseId) {
        self.issued().granted.remove(&lease);
    }

    /// Removes a lease after the end of its task.
    pub(crate) fn remove(&self, lease: LeaseId) {
        let mut issued = self.issued();
        issued.granted.remove(&lease);
        issued.detaching.remove(&lease);
    }

    pub(crate) fn all(&self) -> Vec<LeaseId> {
        self.issued().granted.iter().copied().collect()
    }

    pub(crate) fn all_detaching(&self) -> HashSet<LeaseId> {
        self.issued().detaching.clone()
    }

    /// Returns `true` if keys are created under `lease` to be detached from it.
    pub(crate) fn is_detaching(&self, lease: LeaseId) -> bool {
        self.issued().detaching.contains(&lease)
    }
}
