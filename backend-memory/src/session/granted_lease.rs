//! A lease that a user holds, over one of the client's. What renews and revokes it is in [`crate::session::lease`].

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Error, LeaseId,
    backend::{LeaseHandle, LeaseState},
};

use crate::{client::Inner, session::lease::Lease};

/// Dropping it lets go of the lease, which revokes it.
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
            // An error means that nobody renews it any more.
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
