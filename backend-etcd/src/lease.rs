//! Leases: granted once per purpose and TTL, renewed by a task each, revoked when nobody needs
//! them: one of its own with its instance, a shared one with the session.
//!
//! Each renewal is a stream of its own with one request: its reply has a deadline, and when that passes the next one goes
//! to another member at once. A long-lived stream can be stuck behind a frozen leader for as long as the lease lives.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{
    Backoff, BackoffPolicy, Counter, Counters, Error, LeaseId, Moment, TaskOwner,
    registry::whole_seconds,
    telemetry::{Timer, measured},
};
use etcd_client::LeaseGrantOptions;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio_util::sync::CancellationToken;

use crate::{connection::Connection, error::Failure};

/// The most keys that share a lease. Revoking one is one revision, and a revision of 100,000 keys chokes watchers.
const MAX_KEYS: usize = 1000;

/// The longest that a renewal waits for its reply.
const MAX_REPLY: Duration = Duration::from_secs(2);

/// What a lease is for; locks never share one with registrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    Registration,
    Lock,
}

#[derive(Clone, Debug)]
pub(crate) enum LeaseState {
    /// Renewed by a request sent at `sent`.
    Alive { sent: Moment },
    /// Last renewed by a request sent at `sent`, and not in time since, for this reason; it may still be alive.
    Suspect { sent: Moment, cause: Error },
    /// The store says it is gone.
    Lost,
}

/// A lease that is kept alive for as long as somebody holds this.
#[derive(Debug)]
pub(crate) struct Lease {
    id: LeaseId,
    /// What the store granted, which may be more than was asked for.
    ttl: Duration,
    state: watch::Receiver<LeaseState>,
    phase: watch::Receiver<LeaseState>,
    end: CancellationToken,
    abandoned: CancellationToken,
    /// Told by whoever has a reason to think that the lease may be gone.
    doubted: Arc<tokio::sync::Notify>,
    /// Set by whoever heard from the store that it is.
    condemned: AtomicBool,
}

impl Lease {
    pub(crate) fn id(&self) -> LeaseId {
        self.id
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    pub(crate) fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// The state for those who do not want to hear of each renewal, only of trouble and of its end.
    pub(crate) fn phase(&self) -> watch::Receiver<LeaseState> {
        self.phase.clone()
    }

    fn is_alive(&self) -> bool {
        !self.is_lost() && matches!(*self.state.borrow(), LeaseState::Alive { .. })
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.condemned.load(Ordering::Acquire) || matches!(*self.state.borrow(), LeaseState::Lost)
    }

    /// When the last acknowledged renewal was sent; `None` once the lease is lost.
    pub(crate) fn renewed(&self) -> Option<Moment> {
        match *self.state.borrow() {
            LeaseState::Alive { sent } | LeaseState::Suspect { sent, .. } => Some(sent),
            LeaseState::Lost => None,
        }
    }

    /// Stops renewing it and leaves it to run out.
    pub(crate) fn abandon(&self) {
        self.abandoned.cancel();
    }

    /// Notes that the store does not know it. It is handed out no more, and its keeper finds out at once.
    pub(crate) fn condemn(&self) {
        self.condemned.store(true, Ordering::Release);
        self.doubt();
    }

    /// Asks for a renewal now: a key that it keeps is gone, so it may be gone itself.
    pub(crate) fn doubt(&self) {
        self.doubted.notify_one();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// A pool keeps its leases for as long as the session lives: the next lock or instance needs no grant, and a waiter can
/// tell a release, after which the lease lives on, from a crash.
type Slot = Arc<AsyncMutex<Vec<Arc<Lease>>>>;

/// Hands out leases.
#[derive(Debug)]
pub(crate) struct Leases {
    conn: Arc<Connection>,
    counters: Arc<Counters>,
    pools: Mutex<HashMap<(Purpose, Duration), Slot>>,
    /// All that were granted and may be alive, for the end of the session.
    granted: Mutex<Vec<Weak<Lease>>>,
}

impl Leases {
    pub(crate) fn new(conn: Arc<Connection>, counters: Arc<Counters>) -> Self {
        Self { conn, counters, pools: Mutex::default(), granted: Mutex::default() }
    }

    /// The leases that this session holds.
    pub(crate) fn alive(&self) -> Vec<LeaseId> {
        let granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        granted.iter().filter_map(Weak::upgrade).map(|lease| lease.id()).collect()
    }

    /// A lease shared by all of this session that have the same purpose and TTL.
    pub(crate) async fn shared(
        &self,
        tasks: &TaskOwner,
        purpose: Purpose,
        ttl: Duration,
    ) -> Result<Arc<Lease>, Failure> {
        let slot = {
            let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(pools.entry((purpose, whole_seconds(ttl))).or_default())
        };
        // Held over the grant, so that a thousand waiters make one lease.
        let mut leases = slot.lock().await;
        leases.retain(|lease| !lease.is_lost());
        // The pool itself holds one count.
        let usable = |lease: &&Arc<Lease>| lease.is_alive() && Arc::strong_count(lease) <= MAX_KEYS;
        if let Some(lease) = leases.iter().find(usable) {
            return Ok(Arc::clone(lease));
        }
        let lease = self.own(tasks, ttl).await?;
        leases.push(Arc::clone(&lease));
        Ok(lease)
    }

    /// A lease of its own.
    pub(crate) async fn own(&self, tasks: &TaskOwner, ttl: Duration) -> Result<Arc<Lease>, Failure> {
        let asked = whole_seconds(ttl);
        let sent = Moment::now();
        let (id, ttl) = self.grant(asked).await?;
        if ttl != asked {
            tracing::warn!(lease = id.get(), asked = ?asked, granted = ?ttl, "lease granted with another TTL");
        }
        let (report, state) = watch::channel(LeaseState::Alive { sent });
        let (turn, phase) = watch::channel(LeaseState::Alive { sent });
        let (end, abandoned, doubted) = (CancellationToken::new(), CancellationToken::new(), Arc::default());
        let keeper = Keeper {
            conn: Arc::clone(&self.conn),
            counters: Arc::clone(&self.counters),
            id,
            ttl,
            renewed: sent,
            report,
            turn,
            doubted: Arc::clone(&doubted),
        };
        let lease = Arc::new(Lease {
            id,
            ttl,
            state,
            phase,
            end: end.clone(),
            abandoned: abandoned.clone(),
            doubted,
            condemned: AtomicBool::new(false),
        });
        let stop = tasks.stop_signal();
        let kept = tasks.spawn("lease", async move {
            let conn = Arc::clone(&keeper.conn);
            tokio::select! {
                // A session that stops drops its leases as well, and that must not revoke them: stop first.
                biased;
                () = stop.cancelled() => {}
                () = abandoned.cancelled() => {}
                () = end.cancelled() => revoke(&conn, id).await,
                () = keeper.keep() => {}
            }
        });
        kept.map_err(Failure::Final)?;
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        granted.retain(|lease| lease.strong_count() > 0);
        granted.push(Arc::downgrade(&lease));
        Ok(lease)
    }
}

impl Leases {
    /// Grants a lease under an id chosen here, so that a grant whose answer was lost can be repeated without making two.
    async fn grant(&self, asked: Duration) -> Result<(LeaseId, Duration), Failure> {
        let seconds = i64::try_from(asked.as_secs()).unwrap_or(i64::MAX);
        let id = fastrand::i64(1..);
        let grant = |mut clients: crate::connection::Clients| async move {
            clients.lease.grant(seconds, Some(LeaseGrantOptions::new().with_id(id))).await
        };
        let mut repeated = false;
        loop {
            match self.conn.fast.call("lease grant", grant).await {
                Ok(granted) => return Ok((LeaseId::new(id), Duration::from_secs(granted.ttl().unsigned_abs()))),
                Err(failure) if failure.is_ambiguous() && !repeated => repeated = true,
                Err(Failure::LeaseExists) if repeated => {
                    let id = LeaseId::new(id);
                    let (_, ttl) = self.conn.time_to_live(id).await?.ok_or(Failure::LeaseNotFound)?;
                    return Ok((id, ttl));
                }
                Err(failure) => return Err(failure),
            }
        }
    }
}

/// Revokes a lease; if the store does not answer, it runs out.
pub(crate) async fn revoke(conn: &Connection, id: LeaseId) {
    let revoke = |mut clients: crate::connection::Clients| async move { clients.lease.revoke(id.get()).await };
    match conn.fast.call("lease revoke", revoke).await {
        Ok(_) | Err(Failure::LeaseNotFound) => {}
        Err(failure) => tracing::debug!(lease = id.get(), ?failure, "lease not revoked, it runs out"),
    }
}

/// A lease that somebody else keeps; it is neither renewed nor revoked from here.
pub(crate) fn given(id: LeaseId, ttl: Duration) -> Arc<Lease> {
    // The sender may go: the receiver keeps the last value.
    let (_, state) = watch::channel(LeaseState::Alive { sent: Moment::now() });
    let phase = state.clone();
    let (end, abandoned) = (CancellationToken::new(), CancellationToken::new());
    let (doubted, condemned) = (Arc::default(), AtomicBool::new(false));
    Arc::new(Lease { id, ttl, state, phase, end, abandoned, doubted, condemned })
}

struct Keeper {
    conn: Arc<Connection>,
    counters: Arc<Counters>,
    id: LeaseId,
    ttl: Duration,
    /// When the last acknowledged renewal was sent.
    renewed: Moment,
    report: watch::Sender<LeaseState>,
    /// For those who want to hear of changes only.
    turn: watch::Sender<LeaseState>,
    doubted: Arc<tokio::sync::Notify>,
}

/// How long a renewal waits for its reply: short against the TTL, so that several fit before the lease runs out.
fn reply_limit(ttl: Duration) -> Duration {
    (ttl / 6).min(MAX_REPLY)
}

/// When to renew next: every third of the TTL with 10 % jitter, and after a failure soon, then more and more slowly.
fn pause(ttl: Duration, failed: Option<&mut Backoff>) -> Duration {
    match failed {
        None => (ttl / 3).mul_f64(0.9 + 0.2 * fastrand::f64()),
        Some(backoff) => backoff.next_delay(),
    }
}

impl Keeper {
    /// Renews until the store says that the lease is gone. The old lease is tried for ever: after a restart etcd
    /// gives it its full TTL again.
    async fn keep(mut self) {
        let first = (self.ttl / 50).max(Duration::from_millis(20));
        let policy = BackoffPolicy::new(first, (self.ttl / 6).max(first)).unwrap_or_default();
        let mut backoff = policy.start();
        let mut wait = pause(self.ttl, None);
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.doubted.notified() => {}
            }
            let sent = Moment::now();
            match self.renew().await {
                Ok(()) => {
                    backoff.reset();
                    self.counters.count(Counter::Renewals);
                    measured(Timer::Renewal, sent.elapsed());
                    self.renewed = sent;
                    wait = pause(self.ttl, None);
                    self.tell(LeaseState::Alive { sent });
                }
                Err(Failure::LeaseNotFound) => {
                    tracing::warn!(lease = self.id.get(), "lease lost");
                    self.counters.count(Counter::LeaseLosses);
                    self.tell(LeaseState::Lost);
                    return;
                }
                Err(failure) => {
                    wait = pause(self.ttl, Some(&mut backoff));
                    let cause = failure.into_error("lease renewal");
                    tracing::debug!(lease = self.id.get(), %cause, "lease not renewed");
                    self.tell(LeaseState::Suspect { sent: self.renewed, cause });
                }
            }
        }
    }

    fn tell(&self, state: LeaseState) {
        self.turn.send_if_modified(|last| {
            let turned = std::mem::discriminant(last) != std::mem::discriminant(&state);
            *last = state.clone();
            turned
        });
        self.report.send_replace(state);
    }

    async fn renew(&self) -> Result<(), Failure> {
        let id = self.id.get();
        let renew = |mut clients: crate::connection::Clients| async move { clients.lease.keep_alive(id).await };
        self.conn.fast.call_within("lease renewal", reply_limit(self.ttl), renew).await.map(|_| ())
    }
}

/// Waits for the next state of the lease; a keeper that is gone says nothing more.
pub(crate) async fn lease_changed(state: &mut watch::Receiver<LeaseState>) -> LeaseState {
    if state.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    state.borrow_and_update().clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_renewals_fit_into_a_ttl_even_if_each_goes_unanswered() {
        for seconds in [2, 5, 15, 60] {
            let ttl = Duration::from_secs(seconds);
            assert!(pause(ttl, None) + reply_limit(ttl) * 2 < ttl);
            assert!(reply_limit(ttl) <= MAX_REPLY);
        }
    }
}
