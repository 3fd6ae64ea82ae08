//! Leases of one client: granted once per purpose, TTL and renewal interval, renewed by a task each, revoked when nobody needs
//! them: one of its own with its instance, a shared one with the session.

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{BackoffPolicy, Error, LeaseId, Moment, TaskOwner, backend::LeaseTerms};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    store::Store,
    watch::hub::{Link, up},
};

/// The most keys that share a lease: revoking one is one revision, and a huge one chokes watchers.
const MAX_KEYS: usize = 1000;

/// Purpose of a lease; locks never share one with registrations.
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

/// Use of a lease for one key. The lease is kept alive while there is one, or while it is in a pool.
#[derive(Debug)]
pub(crate) struct Lease {
    kept: Arc<KeptLease>,
    /// Part of the capacity of a shared lease.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Lease {
    /// A use of a lease that is not shared.
    fn unshared(kept: Arc<KeptLease>) -> Arc<Self> {
        Arc::new(Self { kept, _permit: None })
    }
}

impl Deref for Lease {
    type Target = KeptLease;

    fn deref(&self) -> &KeptLease {
        &self.kept
    }
}

/// A lease that is kept alive until this is dropped.
#[derive(Debug)]
pub(crate) struct KeptLease {
    id: LeaseId,
    ttl: Duration,
    state: watch::Receiver<LeaseState>,
    /// Told to the keeper at the end; it revokes the lease unless it was abandoned.
    end: CancellationToken,
    abandoned: CancellationToken,
    /// Set by whoever heard from the store that it is gone.
    condemned: AtomicBool,
}

impl KeptLease {
    pub(crate) fn id(&self) -> LeaseId {
        self.id
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    pub(crate) fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// Returns `true` if the last renewal was acknowledged.
    fn is_alive(&self) -> bool {
        matches!(*self.state.borrow(), LeaseState::Alive { .. })
    }

    /// Time at which the last acknowledged renewal was sent; `None` once the lease is lost.
    pub(crate) fn renewed(&self) -> Option<Moment> {
        match *self.state.borrow() {
            LeaseState::Alive { sent } | LeaseState::Suspect { sent, .. } => Some(sent),
            LeaseState::Lost => None,
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.condemned.load(Ordering::Acquire) || matches!(*self.state.borrow(), LeaseState::Lost)
    }

    /// Notes that the store does not know it. It is handed out no more.
    pub(crate) fn condemn(&self) {
        self.condemned.store(true, Ordering::Release);
    }

    /// Stops renewing it and leaves it to run out.
    pub(crate) fn abandon(&self) {
        self.abandoned.cancel();
    }
}

impl Drop for KeptLease {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// A shared lease and its capacity.
#[derive(Debug)]
struct Pooled {
    kept: Arc<KeptLease>,
    /// A permit for each key that it can take yet.
    capacity: Arc<Semaphore>,
}

impl Pooled {
    fn new(kept: Arc<KeptLease>) -> Self {
        Self { kept, capacity: Arc::new(Semaphore::new(MAX_KEYS)) }
    }

    /// Returns a use of the lease; `None` if it is in trouble or has no capacity left.
    fn share(&self) -> Option<Arc<Lease>> {
        if !self.kept.is_alive() || self.kept.is_lost() {
            return None;
        }
        let permit = Arc::clone(&self.capacity).try_acquire_owned().ok()?;
        Some(Arc::new(Lease { kept: Arc::clone(&self.kept), _permit: Some(permit) }))
    }
}

/// Leases of a client.
#[derive(Debug, Default)]
struct Leased {
    /// Shared ones, kept for as long as the session lives: the next lock or instance needs no grant, and a waiter can tell a
    /// release, after which the lease lives on, from a crash.
    pools: HashMap<(Purpose, LeaseTerms), Vec<Pooled>>,
    /// All that were granted and may be alive, for the end of the session.
    granted: Vec<Weak<KeptLease>>,
}

impl Leased {
    fn usable(&mut self, key: (Purpose, LeaseTerms)) -> Option<Arc<Lease>> {
        let pool = self.pools.entry(key).or_default();
        pool.retain(|pooled| !pooled.kept.is_lost());
        pool.iter().find_map(Pooled::share)
    }
}

/// Hands out leases.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    leased: Mutex<Leased>,
}

impl Leases {
    fn leased(&self) -> MutexGuard<'_, Leased> {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leases that this session holds.
    pub(crate) fn alive(&self) -> Vec<LeaseId> {
        self.leased().granted.iter().filter_map(Weak::upgrade).map(|lease| lease.id()).collect()
    }

    /// A lease of its own.
    ///
    /// Dropping the future costs nothing.
    pub(crate) async fn own(&self, link: &Link, tasks: &TaskOwner, terms: LeaseTerms) -> Result<Arc<Lease>, Error> {
        let sent = Moment::now();
        let granted = link.ask(|store, now| self.grant(store, now, sent, link, tasks, terms)).await?;
        granted.map(Lease::unshared)
    }

    /// A lease shared by all of this client that have the same purpose and terms.
    ///
    /// Dropping the future costs nothing.
    pub(crate) async fn shared(
        &self,
        link: &Link,
        tasks: &TaskOwner,
        purpose: Purpose,
        terms: LeaseTerms,
    ) -> Result<Arc<Lease>, Error> {
        let key = (purpose, terms);
        if let Some(lease) = self.leased().usable(key) {
            return Ok(lease);
        }
        let sent = Moment::now();
        let granted = link.ask(|store, now| {
            // Of a thousand that ask at the same time the first makes the lease of all.
            if let Some(lease) = self.leased().usable(key) {
                return Ok(lease);
            }
            let pooled = Pooled::new(self.grant(store, now, sent, link, tasks, terms)?);
            let lease = pooled.share().ok_or(Error::LeaseLost)?;
            self.leased().pools.entry(key).or_default().push(pooled);
            Ok(lease)
        });
        granted.await?
    }

    /// Grants a lease by a request sent at `sent`, and starts the task that keeps it.
    fn grant(
        &self,
        store: &mut Store,
        now: Instant,
        sent: Moment,
        link: &Link,
        tasks: &TaskOwner,
        terms: LeaseTerms,
    ) -> Result<Arc<KeptLease>, Error> {
        let ttl = terms.ttl();
        let id = store.grant(ttl, now);
        let (report, state) = watch::channel(LeaseState::Alive { sent });
        let (end, abandoned) = (CancellationToken::new(), CancellationToken::new());
        let keeper =
            Keeper { link: link.clone(), id, ttl, interval: terms.renewal_interval(ttl), granted: sent, report };
        let condemned = AtomicBool::new(false);
        let lease = Arc::new(KeptLease { id, ttl, state, end: end.clone(), abandoned: abandoned.clone(), condemned });
        let stop = tasks.stop_signal();
        tasks.spawn("lease", async move {
            tokio::select! {
                // A session that stops drops its leases as well, and that must not revoke them: stop first.
                biased;
                () = stop.cancelled() => {}
                () = abandoned.cancelled() => {}
                () = end.cancelled() => keeper.revoke().await,
                () = keeper.keep() => {}
            }
        })?;
        let mut leased = self.leased();
        leased.granted.retain(|lease| lease.strong_count() > 0);
        leased.granted.push(Arc::downgrade(&lease));
        Ok(lease)
    }
}

/// A lease that somebody else keeps; it is neither renewed nor revoked from here.
pub(crate) fn given(id: LeaseId, ttl: Duration) -> Arc<Lease> {
    // The sender may go: the receiver keeps the last value.
    let (_, state) = watch::channel(LeaseState::Alive { sent: Moment::now() });
    let (end, abandoned) = (CancellationToken::new(), CancellationToken::new());
    Lease::unshared(Arc::new(KeptLease { id, ttl, state, end, abandoned, condemned: AtomicBool::new(false) }))
}

struct Keeper {
    link: Link,
    id: LeaseId,
    ttl: Duration,
    /// Time from one renewal to the next.
    interval: Duration,
    /// Time at which the grant was sent.
    granted: Moment,
    report: watch::Sender<LeaseState>,
}

impl Keeper {
    /// Renews until the store says that the lease is gone.
    async fn keep(&self) {
        let pace = self.interval;
        let policy = BackoffPolicy::new(pace / 10, pace).unwrap_or_default();
        let mut backoff = policy.start();
        let mut pause = pace;
        let mut renewed = self.granted;
        loop {
            tokio::time::sleep(pause).await;
            let sent = Moment::now();
            match self.link.ask(|store, now| store.keep_alive(self.id, now)).await {
                Ok(Some(_)) => {
                    backoff.reset();
                    pause = pace;
                    renewed = sent;
                    self.report.send_replace(LeaseState::Alive { sent });
                }
                Ok(None) => {
                    self.report.send_replace(LeaseState::Lost);
                    return;
                }
                Err(cause) => {
                    pause = backoff.next_delay();
                    self.report.send_replace(LeaseState::Suspect { sent: renewed, cause });
                }
            }
        }
    }

    /// Revokes the lease once the store answers; by the end of its TTL it has run out.
    async fn revoke(&self) {
        let mut link = self.link.watch();
        let revoking = async {
            while self.link.ask(|store, _| store.revoke(self.id)).await.is_err() {
                up(&mut link).await;
            }
        };
        let _ = tokio::time::timeout(self.ttl, revoking).await;
    }
}

/// Waits for the next state of the lease; a keeper that is gone says nothing more.
pub(crate) async fn lease_changed(state: &mut watch::Receiver<LeaseState>) -> LeaseState {
    if state.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    state.borrow_and_update().clone()
}
