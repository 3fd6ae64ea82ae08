//! Parts of a session that locks and elections use.

use std::sync::Arc;

use enlist::Counters;

use crate::{
    client::store_client::StoreClient,
    layout::GuardedLocks,
    lock::{key_suffixes::KeySuffixes, local_queue::LocalQueue},
    session::{leases::Leases, lifecycle::Lifecycle, sweep::Sweeps},
    watch::{key_monitors::KeyMonitors, range_watch::RangeWatches},
};

/// Parts of a session that locks and elections use. Holding it keeps the session alive.
#[derive(Debug)]
pub(crate) struct LockContext {
    pub(crate) client: Arc<StoreClient>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) range_watches: Arc<RangeWatches>,
    pub(crate) lock_layout: Arc<GuardedLocks>,
    pub(crate) counters: Arc<Counters>,
    /// Monitors of this session's queue entries.
    pub(crate) key_monitors: KeyMonitors,
    pub(crate) local_queue: LocalQueue,
    /// Suffixes that distinguish the queue entries of this session.
    pub(crate) key_suffixes: KeySuffixes,
    /// Searches for queue entries that may yet be created.
    pub(crate) sweeps: Arc<Sweeps>,
}

impl LockContext {
    pub(crate) fn new(
        client: &Arc<StoreClient>,
        leases: &Arc<Leases>,
        range_watches: &Arc<RangeWatches>,
        counters: &Arc<Counters>,
        lock_layout: Arc<GuardedLocks>,
    ) -> Self {
        Self {
            client: Arc::clone(client),
            leases: Arc::clone(leases),
            range_watches: Arc::clone(range_watches),
            lock_layout,
            counters: Arc::clone(counters),
            key_monitors: KeyMonitors::new(range_watches),
            local_queue: LocalQueue::default(),
            key_suffixes: KeySuffixes::default(),
            sweeps: Arc::new(Sweeps::new(client, leases, range_watches)),
        }
    }

    pub(crate) fn lifecycle(&self) -> &Arc<Lifecycle> {
        self.leases.lifecycle()
    }
}
