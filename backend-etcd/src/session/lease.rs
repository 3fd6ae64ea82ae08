//! One lease and its use by a key. `lease_task.rs` grants and renews it, `leases.rs` hands it out. Compare
//! `enlist-memory`'s file of the same name, which retires no leases. [`KeptLease`] exists in both on purpose: a common
//! part would need a line in both for each of its methods.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{
    LeaseId, Moment,
    backend::{LeaseState, LeaseUse, SharedLease},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::session::issued_leases::IssuedLeases;

/// Use of a lease for one key. The lease is kept alive while there is one, or while it is in a pool.
pub(crate) type Lease = LeaseUse<KeptLease>;

/// A lease that is kept alive until this is dropped.
#[derive(Debug)]
pub(crate) struct KeptLease {
    id: LeaseId,
    /// TTL that the store granted. It may be longer than the requested one.
    ttl: Duration,
    /// State after each renewal.
    state: watch::Receiver<LeaseState>,
    /// State that changes only with trouble, retirement and the end, not with each renewal.
    phase: watch::Sender<LeaseState>,
    signals: Arc<LeaseSignals>,
    issued: Weak<IssuedLeases>,
    revoked: watch::Receiver<bool>,
    /// The store has reported that the lease is gone.
    known_gone: AtomicBool,
}

/// Signals from the holders of a lease to its task.
#[derive(Debug, Default)]
pub(crate) struct LeaseSignals {
    /// The last use was dropped.
    pub(crate) unused: CancellationToken,
    /// The lease is left to run out.
    pub(crate) abandoned: CancellationToken,
    /// The lease is to be revoked until that is acknowledged.
    pub(crate) retired: AtomicBool,
    /// The lease may be gone; it is renewed at once.
    pub(crate) renewal_wanted: Notify,
}

/// Senders of the state of a lease, owned by its task.
#[derive(Debug)]
pub(crate) struct LeaseReports {
    pub(crate) state: watch::Sender<LeaseState>,
    pub(crate) phase: watch::Sender<LeaseState>,
    pub(crate) revoked: watch::Sender<bool>,
}

impl LeaseReports {
    pub(crate) fn new(sent: Moment) -> Self {
        let alive = LeaseState::Alive { sent };
        let (state, phase) = (watch::Sender::new(alive.clone()), watch::Sender::new(alive));
        Self { state, phase, revoked: watch::Sender::new(false) }
    }

    /// Reports the state after a renewal.
    pub(crate) fn report(&self, state: LeaseState) {
        self.phase.send_if_modified(|last| {
            // A retired lease stays retired until it is lost.
            if matches!(last, LeaseState::Retired) && !matches!(state, LeaseState::Lost) {
                return false;
            }
            let changed = std::mem::discriminant(last) != std::mem::discriminant(&state);
            *last = state.clone();
            changed
        });
        self.state.send_replace(state);
    }
}

impl KeptLease {
    pub(crate) fn new(
        id: LeaseId,
        ttl: Duration,
        reports: &LeaseReports,
        signals: &Arc<LeaseSignals>,
        issued: Weak<IssuedLeases>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            ttl,
            state: reports.state.subscribe(),
            phase: reports.phase.clone(),
            signals: Arc::clone(signals),
            issued,
            revoked: reports.revoked.subscribe(),
            known_gone: AtomicBool::new(false),
        })
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

    /// Returns the state that does not change with renewals: new values only for trouble, retirement and the end.
    pub(crate) fn phase(&self) -> watch::Receiver<LeaseState> {
        self.phase.subscribe()
    }

    /// Takes the lease out of use for new keys, without a report. Returns `false` if it was retired before.
    pub(crate) fn mark_retired(&self) -> bool {
        !self.signals.retired.swap(true, Ordering::AcqRel)
    }

    /// Reports the retirement, unless the lease is lost.
    pub(crate) fn report_retired(&self) {
        self.phase.send_if_modified(|phase| {
            let lives = !matches!(phase, LeaseState::Lost);
            if lives {
                *phase = LeaseState::Retired;
            }
            lives
        });
    }

    /// Returns `true` once the lease is retired: no new key may use it.
    pub(crate) fn is_retired(&self) -> bool {
        self.signals.retired.load(Ordering::Acquire)
    }

    /// Becomes `true` once the store has acknowledged the end of the lease. From then on no write under it is applied.
    /// Only for a lease that was [retired](super::leases::Leases::retire) or [given up](give_up).
    pub(crate) fn revoked(&self) -> Revoked {
        Revoked { acknowledged: self.revoked.clone() }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.known_gone.load(Ordering::Acquire) || matches!(*self.state.borrow(), LeaseState::Lost)
    }

    /// Time at which the last acknowledged renewal was sent; `None` once the lease is lost.
    pub(crate) fn renewed(&self) -> Option<Moment> {
        self.state.borrow().renewed()
    }

    /// Stops the renewals and leaves the lease to run out, also if the session ends before its task has ended.
    pub(crate) fn abandon(&self) {
        self.signals.abandoned.cancel();
        if let Some(issued) = self.issued.upgrade() {
            issued.abandon(self.id);
        }
    }

    /// Records that the store does not know the lease. It is no longer handed out, and its task renews it at once.
    pub(crate) fn mark_gone(&self) {
        self.known_gone.store(true, Ordering::Release);
        self.renew_now();
    }

    /// Requests a renewal now: a key under the lease is gone, so the lease may be gone as well.
    pub(crate) fn renew_now(&self) {
        self.signals.renewal_wanted.notify_one();
    }
}

impl SharedLease for KeptLease {
    fn is_alive(&self) -> bool {
        !self.is_lost() && matches!(*self.state.borrow(), LeaseState::Alive { .. })
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

/// Acknowledgement of the end of a retired lease. It does not keep the lease alive.
#[derive(Clone, Debug)]
pub(crate) struct Revoked {
    acknowledged: watch::Receiver<bool>,
}

impl Revoked {
    pub(crate) fn is_acknowledged(&self) -> bool {
        *self.acknowledged.borrow()
    }

    /// Waits until the store has acknowledged the end. Never returns for a lease that this session never revokes.
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn acknowledged(&mut self) {
        if self.acknowledged.wait_for(|acknowledged| *acknowledged).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Drops a lease without another holder, and returns the acknowledgement of its end. The lease is revoked until that is
/// acknowledged.
#[expect(clippy::needless_pass_by_value, reason = "dropping it is what ends it")]
pub(crate) fn give_up(lease: Arc<Lease>) -> Revoked {
    lease.mark_retired();
    lease.revoked()
}

/// A lease that another process keeps. It is neither renewed nor revoked by this session.
pub(crate) fn given(id: LeaseId, ttl: Duration) -> Arc<Lease> {
    // The senders are dropped: the receivers keep the last value.
    let kept = KeptLease::new(id, ttl, &LeaseReports::new(Moment::now()), &Arc::default(), Weak::new());
    Arc::new(Lease::unshared(kept))
}

/// Waits until a lease is retired or lost. Never returns without a lease.
///
/// Dropping the future has no effect.
pub(crate) async fn unusable(lease: Option<&Arc<Lease>>) {
    let Some(lease) = lease else { return std::future::pending().await };
    let is_over = |phase: &LeaseState| matches!(phase, LeaseState::Retired | LeaseState::Lost);
    // The sender lives as long as the lease.
    let _ = lease.phase().wait_for(is_over).await;
}
