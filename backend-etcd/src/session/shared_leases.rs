//! Shared leases of a session, and pending grants of further ones.

use std::{collections::HashMap, sync::Arc};

use enlist::backend::{LeasePoolKey, LeasePools, LeasePurpose};
use tokio::sync::watch;

use crate::{
    error::Failure,
    session::lease::{KeptLease, Lease},
};

/// Outcome of the grant of a shared lease, which is then in its pool; `None` while the grant is pending.
pub(crate) type GrantOutcome = Option<Result<(), Failure>>;

/// Usable shared lease, or the grant to wait for.
pub(crate) enum LeaseLookup {
    Usable(Arc<Lease>),
    Granting(watch::Receiver<GrantOutcome>),
    /// A new grant, which the caller starts. Its outcome goes to the sender.
    Begun(watch::Sender<GrantOutcome>, watch::Receiver<GrantOutcome>),
}

/// Shared leases of a session, and pending grants of further ones.
#[derive(Debug, Default)]
pub(crate) struct SharedLeases {
    pools: LeasePools<KeptLease>,
    /// At most one pending grant for each pool, shared by all callers.
    granting: HashMap<LeasePoolKey, watch::Receiver<GrantOutcome>>,
    /// Number of observed rollbacks of the store.
    pub(crate) rollbacks: u64,
}

impl SharedLeases {
    /// Returns a lease of the pool, or the grant to wait for.
    pub(crate) fn share(&mut self, key: LeasePoolKey) -> LeaseLookup {
        if let Some(lease) = self.pools.share(key) {
            return LeaseLookup::Usable(lease);
        }
        // Without a sender no grant is pending.
        if let Some(outcome) = self.granting.get(&key).filter(|outcome| outcome.has_changed().is_ok()) {
            return LeaseLookup::Granting(outcome.clone());
        }
        let (sender, outcome) = watch::channel(None);
        self.granting.insert(key, outcome.clone());
        LeaseLookup::Begun(sender, outcome)
    }

    /// Adds the lease that was granted for a pool; `None` if the grant failed.
    pub(crate) fn finish_grant(&mut self, key: LeasePoolKey, granted: Option<Arc<KeptLease>>) {
        self.granting.remove(&key);
        if let Some(lease) = granted {
            self.pools.add(key, lease);
        }
    }

    /// Takes a lease out of its pool.
    pub(crate) fn remove(&mut self, lease: &Arc<KeptLease>) {
        self.pools.remove(lease);
    }

    /// Takes all leases out of their pools.
    pub(crate) fn take_all(&mut self) -> Vec<(LeasePurpose, Arc<KeptLease>)> {
        self.pools.take_all()
    }
}
