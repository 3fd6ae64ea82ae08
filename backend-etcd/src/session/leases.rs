//! Leases of a session. Shared leases are kept for each purpose, TTL and renewal interval until the session ends. A
//! lease that is not shared is revoked when its last use is dropped.
//!
//! Each lease has a task, see `lease_task.rs`.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard},
};

use enlist::{
    Counters, Error, LeaseId, Revision,
    backend::{LeasePoolKey, LeasePurpose, LeaseTerms, MutexExt as _},
};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::{
    client::store_client::StoreClient,
    error::Failure,
    session::{
        issued_leases::IssuedLeases,
        lease::{KeptLease, Lease},
        lease_requests::revoke_for_good,
        lease_task::{LeaseTask, Recipient},
        lifecycle::Lifecycle,
        shared_leases::{LeaseLookup, SharedLeases},
    },
};

/// Maximum number of concurrent grants of unshared leases. While etcd is silent, no more tasks than these wait for it.
const MAX_GRANTS: usize = 16;

/// Leases of a session.
#[derive(Debug)]
pub(crate) struct Leases {
    client: Arc<StoreClient>,
    counters: Arc<Counters>,
    issued: Arc<IssuedLeases>,
    shared: Arc<Mutex<SharedLeases>>,
    /// Number of rollbacks of the store after which the shared leases were retired.
    rolled_back: watch::Sender<u64>,
    /// Limits the number of concurrent grants of leases that are not shared.
    grants: Arc<Semaphore>,
    /// Dropped last: the tasks that revoke the leases need its runtime.
    lifecycle: Arc<Lifecycle>,
}

impl Drop for Leases {
    fn drop(&mut self) {
        // The task that notices restores then finds that the leases are gone, and ends.
        self.client.store.suspect();
    }
}

impl Leases {
    pub(crate) fn new(lifecycle: &Arc<Lifecycle>, client: Arc<StoreClient>, counters: Arc<Counters>) -> Self {
        let grants = Arc::new(Semaphore::new(MAX_GRANTS));
        let lifecycle = Arc::clone(lifecycle);
        Self {
            client,
            counters,
            issued: Arc::default(),
            shared: Arc::default(),
            rolled_back: watch::Sender::new(0),
            grants,
            lifecycle,
        }
    }

    pub(crate) fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.lifecycle
    }

    fn pools(&self) -> MutexGuard<'_, SharedLeases> {
        self.shared.locked()
    }

    /// Returns the leases that were granted to this session and are not known to be gone.
    pub(crate) fn alive(&self) -> Vec<LeaseId> {
        self.issued.all()
    }

    /// Returns a lease that is shared by all keys of this session with the same purpose and terms. Without a usable
    /// lease, all callers wait for one grant and receive its outcome.
    ///
    /// Dropping the future has no effect; the grant continues.
    pub(crate) async fn shared(&self, purpose: LeasePurpose, terms: LeaseTerms) -> Result<Arc<Lease>, Failure> {
        let key: LeasePoolKey = (purpose, terms);
        loop {
            let lookup = self.pools().share(key);
            let mut granting = match lookup {
                LeaseLookup::Usable(lease) => return Ok(lease),
                LeaseLookup::Granting(outcome) => outcome,
                LeaseLookup::Begun(sender, outcome) => {
                    self.begin(terms, Recipient::Pool(key, sender))?;
                    outcome
                }
            };
            let outcome = granting.wait_for(Option::is_some).await;
            // Its task ends with the session only.
            let outcome = outcome.map_err(|_| Failure::Final(Error::Closed))?.clone();
            // More callers than one lease has capacity for may have been waiting: look again.
            outcome.unwrap_or(Ok(()))?;
        }
    }

    /// Returns a lease that is not shared.
    ///
    /// Dropping the future gives the lease up: an unsent request is not sent, and a granted lease is revoked.
    pub(crate) async fn own(&self, terms: LeaseTerms) -> Result<Arc<Lease>, Failure> {
        let (caller, outcome) = oneshot::channel();
        self.begin(terms, Recipient::Caller(caller))?;
        outcome.await.map_err(|_| Failure::Final(Error::Closed))?
    }

    /// Returns a lease for the creation of a key that is detached from it afterwards. Like a [retired](Self::retire)
    /// lease, it is revoked until that is acknowledged, so a creation of unknown outcome leaves no key behind.
    ///
    /// Dropping the future gives the lease up, as that of [`own`](Self::own).
    pub(crate) async fn detaching(&self, terms: LeaseTerms) -> Result<Arc<Lease>, Failure> {
        let lease = self.own(terms).await?;
        lease.mark_retired();
        self.issued.add_detaching(lease.id());
        Ok(lease)
    }

    /// Returns the leases of this session that keys are to be detached from and that are not known to be gone.
    pub(crate) fn all_detaching(&self) -> HashSet<LeaseId> {
        self.issued.all_detaching()
    }

    /// Returns `true` if keys are to be detached from `lease`.
    pub(crate) fn is_detaching(&self, lease: LeaseId) -> bool {
        self.issued.is_detaching(lease)
    }

    /// Takes a lease out of use, because unwanted keys exist, or may still be created, under it. It is revoked once its
    /// last use is dropped. After that a late write is refused, whenever it arrives.
    pub(crate) fn retire(&self, lease: &Arc<Lease>) {
        self.retire_kept(lease.lease());
    }

    fn retire_kept(&self, lease: &Arc<KeptLease>) {
        if !lease.mark_retired() {
            return;
        }
        tracing::info!(lease = lease.id().get(), "lease retired, unwanted keys may be under it");
        self.pools().remove(lease);
        lease.report_retired();
    }

    /// Returns the number of observed rollbacks of the store, see [`store_went_back`](Self::store_went_back).
    pub(crate) fn rollbacks(&self) -> u64 {
        self.pools().rollbacks
    }

    /// Waits until more than `noted` rollbacks were observed and the shared leases were retired after them.
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn rolled_back_since(&self, noted: u64) {
        // The sender lives as long as `self`.
        let _ = self.rolled_back.subscribe().wait_for(|rollbacks| *rollbacks > noted).await;
    }

    /// Takes the shared leases out of use, because the store was restored to an earlier state: keys that this session
    /// has removed since then may exist under them again.
    ///
    /// Registrations move to other leases. The leases of locks are revoked, because their guards belong to a lost
    /// history. `noted`: the number of [rollbacks](Self::rollbacks) at the time of the evidence; a rollback reported
    /// since then is the same one. `now`: the revision of a write that proved it.
    pub(crate) fn store_went_back(&self, noted: u64, now: Revision) {
        let mut pools = self.pools();
        if pools.rollbacks != noted {
            return;
        }
        pools.rollbacks += 1;
        tracing::warn!(revision = now.get(), "the store was restored to an earlier state");
        self.client.store.restored(now);
        let (former, rollbacks) = (pools.take_all(), pools.rollbacks);
        drop(pools);
        for (purpose, lease) in former {
            self.retire_kept(&lease);
            if purpose == LeasePurpose::Lock {
                let client = Arc::clone(&self.client);
                // After the end of the session its leases are revoked anyway.
                let _ = self.lifecycle.tasks.spawn_until_stopped("revoke", async move {
                    revoke_for_good(&client, lease.id()).await;
                    lease.renew_now();
                });
            }
        }
        self.rolled_back.send_replace(rollbacks);
    }

    /// Starts the task of a lease.
    fn begin(&self, terms: LeaseTerms, recipient: Recipient) -> Result<(), Failure> {
        let task = LeaseTask {
            client: Arc::clone(&self.client),
            counters: Arc::clone(&self.counters),
            issued: Arc::clone(&self.issued),
            shared: Arc::downgrade(&self.shared),
            grants: Arc::clone(&self.grants),
            terms,
            recipient,
        };
        let tasks = &self.lifecycle.tasks;
        let stop = tasks.stop_signal();
        let started = tasks.spawn("lease", async move {
            // The end of the session drops the leases as well. That must not revoke them here: the session does so
            // itself.
            stop.run_until_cancelled(task.run()).await;
        });
        started.map_err(Failure::Final)
    }
}
