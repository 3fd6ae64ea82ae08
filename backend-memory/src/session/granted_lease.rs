//! Lease that a user requested, built on one of the client's. Its task renews and revokes it, see `lease_task.rs`.
//! Compare `enlist-etcd`'s file of the same name: there the outcome of a revocation can be unknown.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Error, LeaseId,
    backend::{LeaseHandle, LeaseState},
};

use crate::{client::Inner, session::lease::Lease};

/// Lease that a user requested. Dropping it revokes the lease.
#[derive(Debug)]
pub(crate) struct GrantedLease {
    lease: Arc<Lease>,
    client: Arc<Inner>,
}

impl GrantedLease {
    pub(crate) fn new(lease: Arc<Lease>, client: &Arc<Inner>) -> Self {
        Self { lease, client: Arc::clone(client) }
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
        !self.lease.is_lost() && !self.client.tasks.stop_signal().is_cancelled()
    }

    async fn lost(&self) {
        let (mut state, stopped) = (self.lease.state(), self.client.tasks.stop_signal());
        tokio::select! {
            // An error means that its task has ended.
            _ = state.wait_for(|state| matches!(state, LeaseState::Lost)) => {}
            () = stopped.cancelled() => {}
        }
    }

    async fn revoke(self: Box<Self>) -> Result<(), Error> {
        self.client.check_open()?;
        self.client.link.ask(|store, _| store.revoke(self.lease.id())).await.map(drop)
    }

    fn abandon(self: Box<Self>) {
        self.lease.abandon();
    }
}
