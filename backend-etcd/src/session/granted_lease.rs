//! Lease that a user requested, built on one of the session's. Its task renews and revokes it, see `lease_task.rs`.
//! Compare `enlist-memory`'s file of the same name: here the outcome of a revocation can be unknown.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Error, LeaseId,
    backend::{LeaseHandle, LeaseState},
};

use crate::session::{
    lease::{Lease, give_up},
    leases::Leases,
};

/// Maximum time that a caller waits for a revocation. Afterwards it continues in the background.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Lease that a user requested. Dropping it revokes the lease.
#[derive(Debug)]
pub(crate) struct GrantedLease {
    lease: Arc<Lease>,
    leases: Arc<Leases>,
}

impl GrantedLease {
    pub(crate) fn new(lease: Arc<Lease>, leases: &Arc<Leases>) -> Self {
        Self { lease, leases: Arc::clone(leases) }
    }
}

#[async_trait]
impl LeaseHandle for GrantedLease {
    fn id(&self) -> LeaseId {
        self.lease.id()
    }

    fn ttl(&self) -> Duration {
        self.lease.ttl()
    }

    fn is_alive(&self) -> bool {
        !self.lease.is_lost() && !self.leases.lifecycle().tasks.stop_signal().is_cancelled()
    }

    async fn lost(&self) {
        // Not the phase: it changes shortly before the state that `is_alive` reads.
        let (mut state, stopped) = (self.lease.state(), self.leases.lifecycle().tasks.stop_signal());
        tokio::select! {
            // An error means that its task has ended.
            _ = state.wait_for(|state| matches!(state, LeaseState::Lost)) => {}
            () = stopped.cancelled() => {}
        }
    }

    async fn revoke(self: Box<Self>) -> Result<(), Error> {
        self.leases.lifecycle().check_open()?;
        let Self { lease, leases } = *self;
        let mut revoked = give_up(lease);
        let stopped = leases.lifecycle().tasks.stop_signal();
        tokio::select! {
            () = revoked.acknowledged() => Ok(()),
            () = stopped.cancelled() => Err(Error::Closed),
            () = tokio::time::sleep(REVOKE_TIMEOUT) => {
                Err(Error::Timeout { op: "lease revoke", limit: REVOKE_TIMEOUT, cause: None })
            }
        }
    }

    fn abandon(self: Box<Self>) {
        self.lease.abandon();
    }
}
