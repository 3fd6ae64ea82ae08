//! Step 4. Leases: granted, renewed by a task, shared by registrations with equal terms.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Error, LeaseChoice, LeaseId, RegisterOptions,
    backend::{LeaseHandle, LeaseTerms},
};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    client::{Inner, MapClient},
    store::{Data, Granted},
};

/// A lease under which registrations write.
pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    /// Stops the renewals on drop, after which the lease expires. `None` for a lease that the client did not grant.
    _end: Option<DropGuard>,
}

impl Inner {
    /// Grants a lease and renews it until the value is dropped.
    pub(crate) fn grant(&self, terms: LeaseTerms) -> Result<Arc<Lease>, Error> {
        let ttl = terms.ttl();
        let id = self.link.ask(|data| {
            data.last_lease += 1;
            let id = LeaseId::new(data.last_lease);
            data.leases.insert(id, Granted { ttl, deadline: Instant::now() + ttl });
            id
        })?;
        let (end, link) = (CancellationToken::new(), Arc::clone(&self.link));
        let renew = async move {
            loop {
                tokio::time::sleep(terms.renewal_interval(ttl)).await;
                let renew = |data: &mut Data| data.leases.get_mut(&id).map(|one| one.deadline = Instant::now() + ttl);
                if let Ok(None) = link.ask(renew) {
                    return;
                }
            }
        };
        let ended = end.clone();
        self.tasks.spawn_until_stopped("lease", async move { _ = ended.run_until_cancelled(renew).await })?;
        Ok(Arc::new(Lease { id, _end: Some(end.drop_guard()) }))
    }

    /// Returns the lease that the options ask for.
    pub(crate) fn lease(&self, options: &RegisterOptions) -> Result<Arc<Lease>, Error> {
        match options.lease {
            LeaseChoice::Own => self.grant(LeaseTerms::from(options)),
            LeaseChoice::Given(id) => Ok(Arc::new(Lease { id, _end: None })),
            _ => {
                let mut shared = self.shared.lock().unwrap();
                if let Some(lease) = shared.get(&LeaseTerms::from(options)) {
                    return Ok(Arc::clone(lease));
                }
                let lease = self.grant(LeaseTerms::from(options))?;
                shared.insert(LeaseTerms::from(options), Arc::clone(&lease));
                Ok(lease)
            }
        }
    }
}

/// A lease that a user asked for.
pub(crate) struct GrantedLease {
    pub(crate) lease: Arc<Lease>,
    pub(crate) ttl: Duration,
    pub(crate) client: MapClient,
    /// Effect of dropping it.
    pub(crate) on_drop: OnDrop,
}

/// Effect of dropping a [`GrantedLease`].
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum OnDrop {
    Revoke,
    Expire,
}

impl fmt::Debug for GrantedLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GrantedLease").field(&self.lease.id).finish()
    }
}

impl Drop for GrantedLease {
    fn drop(&mut self) {
        if self.on_drop == OnDrop::Revoke {
            // Without an answer the lease expires. Over a network, a task sends this request.
            let _ = self.client.0.link.ask(|data| data.revoke(self.lease.id));
        }
    }
}

#[async_trait]
impl LeaseHandle for GrantedLease {
    fn id(&self) -> LeaseId {
        self.lease.id
    }

    fn ttl(&self) -> Duration {
        self.ttl
    }

    fn is_alive(&self) -> bool {
        // Without an answer the lease counts as alive: its end is not known.
        let granted = self.client.ask(|data| data.leases.contains_key(&self.lease.id));
        !matches!(granted, Ok(false) | Err(Error::Closed))
    }

    async fn lost(&self) {
        let (store, stopped) = (&self.client.0.link.store, self.client.0.tasks.stop_signal());
        let (mut changes, mut cut) = (store.changes.subscribe(), self.client.0.link.cut.subscribe());
        while self.is_alive() {
            tokio::select! {
                () = store.changed(&mut changes) => {}
                _ = cut.changed() => {}
                () = stopped.cancelled() => {}
            }
        }
    }

    async fn revoke(self: Box<Self>) -> Result<(), Error> {
        self.client.ask(|data| data.revoke(self.lease.id)).map(drop)
    }

    fn abandon(mut self: Box<Self>) {
        self.on_drop = OnDrop::Expire;
    }
}
