//! Leases of one client. Shared leases are kept for each purpose, TTL and renewal interval until the session ends. A
//! lease that is not shared is revoked when its last use is dropped.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use enlist::{
    Error, Moment, TaskOwner,
    backend::{LeasePools, LeasePurpose, LeaseState, LeaseTerms, MutexExt as _},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    session::{
        lease::{KeptLease, Lease, LeaseSignals},
        lease_task::LeaseTask,
    },
    store::Store,
    watch::shared_store::Link,
};

#[derive(Debug, Default)]
struct Granted {
    shared: LeasePools<KeptLease>,
    /// All granted leases that may be alive, for the end of the session.
    all: Vec<Weak<KeptLease>>,
}

/// Leases of one client.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    granted: Mutex<Granted>,
}

/// Request for a lease, sent at `sent`.
struct Request<'a> {
    link: &'a Link,
    tasks: &'a TaskOwner,
    terms: LeaseTerms,
    sent: Moment,
}

impl Leases {
    fn granted(&self) -> MutexGuard<'_, Granted> {
        self.granted.locked()
    }

    /// Returns the leases that this session holds.
    pub(crate) fn alive(&self) -> Vec<Arc<KeptLease>> {
        self.granted().all.iter().filter_map(Weak::upgrade).collect()
    }

    /// Returns a lease that is not shared.
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn own(&self, link: &Link, tasks: &TaskOwner, terms: LeaseTerms) -> Result<Arc<Lease>, Error> {
        let request = Request { link, tasks, terms, sent: Moment::now() };
        let granted = link.ask(|store, now| self.grant(store, now, &request)).await?;
        granted.map(|kept| Arc::new(Lease::unshared(kept)))
    }

    /// Returns a lease that is shared by all keys of this client with the same purpose and terms.
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn shared(
        &self,
        link: &Link,
        tasks: &TaskOwner,
        purpose: LeasePurpose,
        terms: LeaseTerms,
    ) -> Result<Arc<Lease>, Error> {
        let key = (purpose, terms);
        let usable = self.granted().shared.share(key);
        if let Some(lease) = usable {
            return Ok(lease);
        }
        let request = Request { link, tasks, terms, sent: Moment::now() };
        let granted = link.ask(|store, now| {
            // The first of many concurrent requests grants the lease for all of them.
            let usable = self.granted().shared.share(key);
            if let Some(lease) = usable {
                return Ok(lease);
            }
            let kept = self.grant(store, now, &request)?;
            let mut granted = self.granted();
            granted.shared.add(key, kept);
            granted.shared.share(key).ok_or(Error::LeaseLost)
        });
        granted.await?
    }

    /// Grants a lease, and starts its task.
    fn grant(&self, store: &mut Store, now: Instant, request: &Request<'_>) -> Result<Arc<KeptLease>, Error> {
        let Request { link, tasks, terms, sent } = request;
        let ttl = terms.ttl();
        let id = store.grant(ttl, now);
        let (reports, state) = watch::channel(LeaseState::Alive { sent: *sent });
        let signals = LeaseSignals::default();
        let lease = KeptLease::new(id, ttl, state, &signals);
        let interval = terms.renewal_interval(ttl);
        let task = LeaseTask { link: (*link).clone(), id, ttl, interval, granted: *sent, reports, signals };
        let stop = tasks.stop_signal();
        tasks.spawn("lease", async move {
            tokio::select! {
                // The end of the session drops the leases as well. That must not revoke them: stop first.
                biased;
                () = stop.cancelled() => {}
                () = task.run() => {}
            }
        })?;
        let mut granted = self.granted();
        granted.all.retain(|lease| lease.strong_count() > 0);
        granted.all.push(Arc::downgrade(&lease));
        Ok(lease)
    }
}
