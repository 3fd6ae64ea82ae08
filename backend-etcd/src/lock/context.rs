//! Parts of a session that locks and elections use.

use std::sync::Arc;

use enlist::Counters;

use crate::{
    client::connection::Connection,
    layout::GuardedLocks,
    lock::{key_suffixes::KeySuffixes, local_queue::LocalQueue},
    session::{leases::Leases, lifecycle::Lifecycle, sweep::Sweeps},
    watch::{key_monitors::KeyMonitors, range_watch::Hub},
};

/// Parts of a session that locks and elections use. Holding it keeps the session alive.
#[derive(Debug)]
pub(crate) struct LockContext {
    pub(crate) conn: Arc<Connection>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) hub: Arc<Hub>,
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
        conn: &Arc<Connection>,
        leases: &Arc<Leases>,
        hub: &Arc<Hub>,
        counters: &Arc<Counters>,
        lock_layout: Arc<GuardedLocks>,
    ) -> Self {
        Self {
            conn: Arc::clone(conn),
            leases: Arc::clone(leases),
            hub: Arc::clone(hub),
            lock_layout,
            counters: Arc::clone(counters),
            key_monitors: KeyMonitors::new(hub),
            local_queue: LocalQueue::default(),
            key_suffixes: KeySuffixes::default(),
            sweeps: Arc::new(Sweeps::new(conn, leases, hub)),
        }
    }

    pub(crate) fn lifecycle(&self) -> &Arc<Lifecycle> {
        self.leases.lifecycle()
    }
}
