//! One lease and its use by a key. `leases.rs` grants it and hands it out, `lease_task.rs` renews it. Compare
//! `enlist-etcd`'s file of the same name, which also retires leases. [`KeptLease`] exists in both on purpose: a common
//! part would need a line in both for each of its methods.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{
    LeaseId, Moment,
    backend::{LeaseState, LeaseUse, SharedLease},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Use of a lease for one key. The lease is kept alive while there is one, or while it is in a pool.
pub(crate) type Lease = LeaseUse<KeptLease>;

/// A lease that is kept alive until this is dropped.
#[derive(Debug)]
pub(crate) struct KeptLease {
    id: LeaseId,
    ttl: Duration,
    state: watch::Receiver<LeaseState>,
    signals: LeaseSignals,
    /// The store has reported that the lease is gone.
    known_gone: AtomicBool,
}

/// Signals from the holders of a lease to its task.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaseSignals {
    /// The last use was dropped.
    pub(crate) unused: CancellationToken,
    /// The lease is left to run out.
    pub(crate) abandoned: CancellationToken,
}

impl KeptLease {
    pub(crate) fn new(
        id: LeaseId,
        ttl: Duration,
        state: watch::Receiver<LeaseState>,
        signals: &LeaseSignals,
    ) -> Arc<Self> {
        Arc::new(Self { id, ttl, state, signals: signals.clone(), known_gone: AtomicBool::new(false) })
    }

    pub(crate) fn id(&self) -> LeaseId {
        self.id
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    pub(crate) fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// Time at which the last acknowledged renewal was sent; `None` once the lease is lost.
    pub(crate) fn renewed(&self) -> Option<Moment> {
        self.state.borrow().renewed()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.known_gone.load(Ordering::Acquire) || matches!(*self.state.borrow(), LeaseState::Lost)
    }

    /// Records that the store does not know the lease. It is no longer handed out.
    pub(crate) fn mark_gone(&self) {
        self.known_gone.store(true, Ordering::Release);
    }

    /// Stops the renewals and leaves the lease to run out.
    pub(crate) fn abandon(&self) {
        self.signals.abandoned.cancel();
    }

    /// Returns `true` once the lease is left to run out.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.signals.abandoned.is_cancelled()
    }
}

impl SharedLease for KeptLease {
    fn is_alive(&self) -> bool {
        matches!(*self.state.borrow(), LeaseState::Alive { .. })
    }

    fn is_lost(&self) -> bool {
        Self::is_lost(self)
    }
}

impl Drop for KeptLease {
    fn drop(&mut self) {
        self.signals.unused.cancel();
    }
}

/// A lease that another client keeps. It is neither renewed nor revoked by this client.
pub(crate) fn given(id: LeaseId, ttl: Duration) -> Arc<Lease> {
    // The sender is dropped: the receiver keeps the last value.
    let (_, state) = watch::channel(LeaseState::Alive { sent: Moment::now() });
    Arc::new(Lease::unshared(KeptLease::new(id, ttl, state, &LeaseSignals::default())))
}
