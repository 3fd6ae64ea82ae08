//! Leases: granted once per purpose, TTL and renewal interval, renewed by a task each, revoked when nobody needs
//! them: one of its own with its instance, a shared one with the session.
//!
//! Each renewal is a stream of its own with one request: its reply has a deadline, and when that passes the next one goes
//! to another member at once. A long-lived stream can be stuck behind a frozen leader for as long as the lease lives.

use std::{
    collections::{HashMap, HashSet},
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{
    Backoff, BackoffPolicy, Counter, Counters, Error, LeaseId, Moment, Revision,
    backend::{LeaseTerms, Timer, measured, whole_seconds},
    with_causes,
};
use etcd_client::LeaseGrantOptions;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    client::{connection::Connection, response::header_revision},
    defects::Defect,
    error::Failure,
    session::lifecycle::Lifecycle,
};

/// The most keys that share a lease. Revoking one is one revision, and a revision of 100,000 keys chokes watchers.
const MAX_KEYS: usize = 1000;

/// The longest that a renewal waits for its reply.
const MAX_REPLY: Duration = Duration::from_secs(2);

/// Number of leases, other than shared ones, that are granted at a time. While etcd is silent no more tasks than these wait for it.
const MAX_GRANTS: usize = 16;

/// TTL of a lease that is granted for the revision at which that is done. It is revoked at once, if that arrives.
const PROOF_TTL: Duration = Duration::from_secs(5);

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
    /// A write of unknown outcome may yet create a key under it. Registrations move to another lease, and it is revoked once
    /// nothing needs it any more. Only in [`Lease::phase`].
    Retired,
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
    fn unshared(kept: Arc<KeptLease>) -> Self {
        Self { kept, _permit: None }
    }

    /// Lets go of a lease that nobody else holds, and returns what tells that it is gone. It is revoked until that is acknowledged.
    #[expect(clippy::needless_pass_by_value, reason = "dropping it is what ends it")]
    pub(crate) fn give_up(lease: Arc<Self>) -> Revoked {
        lease.retired.store(true, Ordering::Release);
        lease.revoked()
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
    /// TTL that the store granted, which may be more than was asked for.
    ttl: Duration,
    state: watch::Receiver<LeaseState>,
    phase: watch::Sender<LeaseState>,
    end: CancellationToken,
    abandoned: CancellationToken,
    /// The leases that it is one of.
    leased: Weak<Mutex<Leased>>,
    retired: Arc<AtomicBool>,
    revoked: watch::Receiver<bool>,
    /// Told by whoever has a reason to think that the lease may be gone.
    doubted: Arc<tokio::sync::Notify>,
    /// Set by whoever heard from the store that it is.
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

    /// The state for those who do not want to hear of each renewal, only of trouble and of its end.
    pub(crate) fn phase(&self) -> watch::Receiver<LeaseState> {
        self.phase.subscribe()
    }

    /// Returns `true` once it is not to be used for new keys any more.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Becomes `true` once the store has acknowledged that it is gone. From then on no write under it is done. Only for a lease that
    /// was [retired](Leases::retire) or [given up](Lease::give_up).
    pub(crate) fn revoked(&self) -> Revoked {
        Revoked { acknowledged: self.revoked.clone() }
    }

    fn is_alive(&self) -> bool {
        !self.is_lost() && matches!(*self.state.borrow(), LeaseState::Alive { .. })
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.condemned.load(Ordering::Acquire) || matches!(*self.state.borrow(), LeaseState::Lost)
    }

    /// Time at which the last acknowledged renewal was sent; `None` once the lease is lost.
    pub(crate) fn renewed(&self) -> Option<Moment> {
        match *self.state.borrow() {
            LeaseState::Alive { sent } | LeaseState::Suspect { sent, .. } => Some(sent),
            LeaseState::Retired | LeaseState::Lost => None,
        }
    }

    /// Stops renewing it and leaves it to run out, also if the session ends before its keeper hears of that.
    pub(crate) fn abandon(&self) {
        self.abandoned.cancel();
        if let Some(leased) = self.leased.upgrade() {
            locked(&leased).granted.remove(&self.id);
        }
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

/// Tells whether a retired lease is gone for good. Does not keep it alive.
#[derive(Clone, Debug)]
pub(crate) struct Revoked {
    acknowledged: watch::Receiver<bool>,
}

impl Revoked {
    pub(crate) fn is_acknowledged(&self) -> bool {
        *self.acknowledged.borrow()
    }

    /// Waits until the store has acknowledged it. Never returns for a lease that is never revoked from here.
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn acknowledged(&mut self) {
        if self.acknowledged.wait_for(|acknowledged| *acknowledged).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for KeptLease {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// The leases of one purpose with equal terms that a session shares, kept for as long as the session lives: the next lock or instance needs
/// no grant, and a waiter can tell a release, after which the lease lives on, from a crash.
#[derive(Debug, Default)]
struct Pool {
    leases: Vec<Pooled>,
    /// The outcome of the grant that is under way; all that want such a lease wait for it. Without a sender there is none.
    granting: Option<watch::Receiver<GrantOutcome>>,
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
        if !self.kept.is_alive() {
            return None;
        }
        let permit = Arc::clone(&self.capacity).try_acquire_owned().ok()?;
        Some(Arc::new(Lease { kept: Arc::clone(&self.kept), _permit: Some(permit) }))
    }
}

/// Outcome of the grant of a shared lease, which is in its pool then; `None` while it is under way.
type GrantOutcome = Option<Result<(), Failure>>;

type PoolKey = (Purpose, LeaseTerms);

/// Leases of a session.
#[derive(Debug, Default)]
struct Leased {
    pools: HashMap<PoolKey, Pool>,
    /// All that were granted and are not known to be gone, for the end of the session.
    granted: HashSet<LeaseId>,
    /// Those of them that fixed instances are created under, and then detached from.
    detaching: HashSet<LeaseId>,
    /// Number of times that the store was seen to have gone back.
    rollbacks: u64,
}

/// A shared lease that can be used, or the outcome to wait for.
enum Sharing {
    Usable(Arc<Lease>),
    Granting(watch::Receiver<GrantOutcome>),
}

/// Hands out leases.
#[derive(Debug)]
pub(crate) struct Leases {
    conn: Arc<Connection>,
    counters: Arc<Counters>,
    leased: Arc<Mutex<Leased>>,
    /// So many leases that are not shared are granted at a time.
    turns: Arc<Semaphore>,
    /// Dropped last: the tasks that revoke the leases need its runtime.
    lifecycle: Arc<Lifecycle>,
}

impl Leases {
    pub(crate) fn new(lifecycle: &Arc<Lifecycle>, conn: Arc<Connection>, counters: Arc<Counters>) -> Self {
        let turns = Arc::new(Semaphore::new(MAX_GRANTS));
        Self { conn, counters, leased: Arc::default(), turns, lifecycle: Arc::clone(lifecycle) }
    }

    pub(crate) fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.lifecycle
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.conn
    }

    /// The leases that this session holds.
    pub(crate) fn alive(&self) -> Vec<LeaseId> {
        locked(&self.leased).granted.iter().copied().collect()
    }

    /// Takes a lease out of use, because keys may be, or may yet be created, under it that are not wanted. It is revoked once nobody holds
    /// it any more; after that a late write is refused, whenever it arrives.
    pub(crate) fn retire(&self, lease: &Arc<Lease>) {
        self.retire_kept(&lease.kept);
    }

    fn retire_kept(&self, lease: &Arc<KeptLease>) {
        if lease.retired.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::info!(lease = lease.id.get(), "lease retired, keys may be under it that are not wanted");
        for pool in locked(&self.leased).pools.values_mut() {
            pool.leases.retain(|pooled| !Arc::ptr_eq(&pooled.kept, lease));
        }
        lease.phase.send_if_modified(|phase| {
            let lives = !matches!(phase, LeaseState::Lost);
            if lives {
                *phase = LeaseState::Retired;
            }
            lives
        });
    }

    /// Number of times that the store was seen to have gone back, see [`store_went_back`](Self::store_went_back).
    pub(crate) fn rollbacks(&self) -> u64 {
        locked(&self.leased).rollbacks
    }

    /// Takes the shared leases out of use, because the store was restored to an earlier state: keys that this session has removed since
    /// may be under them again. Registrations move to other leases; the leases of locks are revoked, because what their guards believe
    /// is of a history that is lost. `noted`: the [rollbacks](Self::rollbacks) at the time of what showed this one; a later one is known
    /// already.
    pub(crate) fn store_went_back(&self, noted: u64) {
        let mut leased = locked(&self.leased);
        if leased.rollbacks != noted {
            return;
        }
        leased.rollbacks += 1;
        let pooled = |((purpose, _), pool): (&PoolKey, &mut Pool)| {
            let purpose = *purpose;
            std::mem::take(&mut pool.leases).into_iter().map(move |pooled| (purpose, pooled.kept)).collect::<Vec<_>>()
        };
        let former: Vec<_> = leased.pools.iter_mut().flat_map(pooled).collect();
        drop(leased);
        for (purpose, lease) in former {
            self.retire_kept(&lease);
            if purpose == Purpose::Lock {
                let conn = Arc::clone(&self.conn);
                // After the end of the session its leases are revoked anyway.
                let _ = self.lifecycle.tasks.spawn_until_stopped("revoke", async move {
                    revoke_for_good(&conn, lease.id()).await;
                    lease.doubt();
                });
            }
        }
    }

    /// A lease shared by all of this session that have the same purpose and terms. Whoever asks while none can be used waits for one
    /// grant, and hears of its failure.
    ///
    /// Dropping the future costs nothing; the grant goes on.
    pub(crate) async fn shared(&self, purpose: Purpose, terms: LeaseTerms) -> Result<Arc<Lease>, Failure> {
        loop {
            let mut granting = match self.share((purpose, terms))? {
                Sharing::Usable(lease) => return Ok(lease),
                Sharing::Granting(outcome) => outcome,
            };
            let outcome = granting.wait_for(Option::is_some).await;
            // Its task ends with the session only.
            let outcome = outcome.map_err(|_| Failure::Final(Error::Closed))?.clone();
            // A thousand may have been waiting, which is more than one lease is for: look again.
            outcome.unwrap_or(Ok(()))?;
        }
    }

    fn share(&self, key: PoolKey) -> Result<Sharing, Failure> {
        let mut leased = locked(&self.leased);
        let pool = leased.pools.entry(key).or_default();
        pool.leases.retain(|pooled| !pooled.kept.is_lost());
        if let Some(lease) = pool.leases.iter().find_map(Pooled::share) {
            return Ok(Sharing::Usable(lease));
        }
        if let Some(outcome) = pool.granting.as_ref().filter(|outcome| outcome.has_changed().is_ok()) {
            return Ok(Sharing::Granting(outcome.clone()));
        }
        let (tell, outcome) = watch::channel(None);
        pool.granting = Some(outcome.clone());
        drop(leased);
        self.begin(key.1, Waiting::Pool(key, tell))?;
        Ok(Sharing::Granting(outcome))
    }

    /// A lease of its own.
    ///
    /// Dropping the future gives it up: what was not sent is not sent, and what was granted is revoked.
    pub(crate) async fn own(&self, terms: LeaseTerms) -> Result<Arc<Lease>, Failure> {
        let (tell, outcome) = oneshot::channel();
        self.begin(terms, Waiting::One(tell))?;
        outcome.await.map_err(|_| Failure::Final(Error::Closed))?
    }

    /// A lease to create a key under that is to outlive it, once it is detached from it. It is revoked as a [retired](Self::retire) one
    /// is, whatever became of that: neither the creation nor the key is to be found later, if its caller is gone or has no answer.
    ///
    /// Dropping the future gives it up, as that of [`own`](Self::own).
    pub(crate) async fn detaching(&self, terms: LeaseTerms) -> Result<Arc<Lease>, Failure> {
        let lease = self.own(terms).await?;
        lease.retired.store(true, Ordering::Release);
        locked(&self.leased).detaching.insert(lease.id());
        Ok(lease)
    }

    /// The leases of this session that keys are to be detached from and that are not known to be gone.
    pub(crate) fn all_detaching(&self) -> HashSet<LeaseId> {
        locked(&self.leased).detaching.clone()
    }

    /// Returns `true` if it is one of them.
    pub(crate) fn is_detaching(&self, lease: LeaseId) -> bool {
        locked(&self.leased).detaching.contains(&lease)
    }

    /// Grants a lease that nobody renews: what is put under it ends once `ttl` has passed.
    pub(crate) async fn unrenewed(&self, ttl: Duration) -> Result<LeaseId, Failure> {
        let seconds = i64::try_from(whole_seconds(ttl).as_secs()).unwrap_or(i64::MAX);
        let grant = |mut clients: crate::client::request_channel::Clients| async move {
            clients.lease.grant(seconds, None).await
        };
        Ok(LeaseId::new(self.conn.fast.call("lease grant", grant).await?.id()))
    }

    /// Starts the task of a lease, which gets it granted and keeps it.
    fn begin(&self, terms: LeaseTerms, waiting: Waiting) -> Result<(), Failure> {
        let granting = Granting {
            conn: Arc::clone(&self.conn),
            counters: Arc::clone(&self.counters),
            leased: Arc::downgrade(&self.leased),
            turns: Arc::clone(&self.turns),
            asked: terms,
            waiting,
        };
        let tasks = &self.lifecycle.tasks;
        let stop = tasks.stop_signal();
        let kept = tasks.spawn("lease", async move {
            // A session that stops drops its leases as well, and that must not revoke them here: it does so itself.
            stop.run_until_cancelled(granting.grant_and_keep()).await;
        });
        kept.map_err(Failure::Final)
    }
}

fn locked(leased: &Mutex<Leased>) -> MutexGuard<'_, Leased> {
    leased.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those that a lease is granted for.
enum Waiting {
    /// One, that has it to itself.
    One(oneshot::Sender<Result<Arc<Lease>, Failure>>),
    /// All that share those of a pool.
    Pool(PoolKey, watch::Sender<GrantOutcome>),
}

impl Waiting {
    /// Returns `true` if anybody still waits.
    fn is_wanted(&self) -> bool {
        match self {
            Self::One(tell) => !tell.is_closed(),
            // The pool itself holds one.
            Self::Pool(_, tell) => tell.receiver_count() > 1,
        }
    }

    /// Hands the lease over, or the failure. One that nobody takes is dropped, which revokes it.
    fn deliver(self, outcome: Result<Arc<KeptLease>, Failure>, leased: &Weak<Mutex<Leased>>) {
        let leased = leased.upgrade();
        let mut leased = leased.as_deref().map(locked);
        if let (Ok(lease), Some(leased)) = (&outcome, &mut leased) {
            leased.granted.insert(lease.id());
        }
        match self {
            // Whoever waited may be gone.
            Self::One(tell) => drop(tell.send(outcome.map(|kept| Arc::new(Lease::unshared(kept))))),
            Self::Pool(key, tell) => {
                if let Some(pool) = leased.as_mut().and_then(|leased| leased.pools.get_mut(&key)) {
                    pool.granting = None;
                    pool.leases.extend(outcome.as_ref().ok().cloned().map(Pooled::new));
                }
                tell.send_replace(Some(outcome.map(drop)));
            }
        }
    }
}

/// A lease that is about to be granted.
struct Granting {
    conn: Arc<Connection>,
    counters: Arc<Counters>,
    /// Not the leases themselves, which end with the session.
    leased: Weak<Mutex<Leased>>,
    turns: Arc<Semaphore>,
    asked: LeaseTerms,
    waiting: Waiting,
}

/// Parts that keep a granted lease, and the signals that end it.
struct Granted {
    keeper: Keeper,
    leased: Weak<Mutex<Leased>>,
    end: CancellationToken,
    abandoned: CancellationToken,
    retired: Arc<AtomicBool>,
    revoked: watch::Sender<bool>,
}

/// Reason for the end of a lease's renewals.
enum End {
    /// Nobody holds it any more.
    Unused,
    /// It is left to run out.
    Abandoned,
    /// The store says that it is gone.
    Lost,
}

impl Granted {
    async fn keep(self) {
        let Self { keeper, leased, end, abandoned, retired, revoked } = self;
        let (id, ttl, conn) = (keeper.id, keeper.ttl, Arc::clone(&keeper.conn));
        let ended = tokio::select! {
            biased;
            () = abandoned.cancelled() => End::Abandoned,
            () = end.cancelled() => End::Unused,
            () = keeper.keep() => End::Lost,
        };
        if matches!(ended, End::Lost) {
            // It may be retired yet by those that hold it.
            end.cancelled().await;
        }
        match ended {
            // Only a write through the log proves that no later one is done under it.
            End::Unused | End::Lost if retired.load(Ordering::Acquire) => {
                revoke_for_good(&conn, id).await;
                revoked.send_replace(true);
            }
            End::Unused if Defect::LeasesLeaked.is_on() => {}
            // By then it has run out, and nobody needs to know.
            End::Unused => drop(tokio::time::timeout(ttl, revoke_for_good(&conn, id)).await),
            End::Abandoned | End::Lost => {}
        }
        if let Some(leased) = leased.upgrade() {
            let mut leased = locked(&leased);
            leased.granted.remove(&id);
            leased.detaching.remove(&id);
        }
    }
}

impl Granting {
    async fn grant_and_keep(self) {
        if let Some(granted) = self.run().await {
            granted.keep().await;
        }
    }

    /// Gets the lease granted and hands it over. `None`: there is none to keep.
    async fn run(mut self) -> Option<Granted> {
        let turn = Arc::clone(&self.turns);
        let turn = match &mut self.waiting {
            Waiting::Pool(..) => None,
            Waiting::One(tell) => tokio::select! {
                turn = turn.acquire_owned() => turn.ok(),
                // Nothing was sent for it.
                () = tell.closed() => return None,
            },
        };
        let sent = Moment::now();
        let granted = self.grant().await;
        drop(turn);
        let Self { conn, counters, leased, asked, waiting, .. } = self;
        let (id, ttl) = match granted {
            Ok(granted) => granted,
            Err(failure) => {
                waiting.deliver(Err(failure), &leased);
                return None;
            }
        };
        if ttl != asked.ttl() {
            tracing::warn!(lease = id.get(), asked = ?asked.ttl(), granted = ?ttl, "lease granted with another TTL");
        }
        let (report, state) = watch::channel(LeaseState::Alive { sent });
        let phase = watch::Sender::new(LeaseState::Alive { sent });
        let (end, abandoned, doubted) = (CancellationToken::new(), CancellationToken::new(), Arc::default());
        let (retired, revoked) = (Arc::<AtomicBool>::default(), watch::Sender::new(false));
        let turn = phase.clone();
        let interval = asked.renewal_interval(ttl);
        let keeper =
            Keeper { conn, counters, id, ttl, interval, renewed: sent, report, turn, doubted: Arc::clone(&doubted) };
        let lease = Arc::new(KeptLease {
            id,
            ttl,
            state,
            phase,
            end: end.clone(),
            abandoned: abandoned.clone(),
            leased: leased.clone(),
            retired: Arc::clone(&retired),
            revoked: revoked.subscribe(),
            doubted,
            condemned: AtomicBool::new(false),
        });
        waiting.deliver(Ok(lease), &leased);
        Some(Granted { keeper, leased, end, abandoned, retired, revoked })
    }

    /// Grants a lease under an id chosen here, so that a grant whose answer was lost can be repeated without making two. Nothing is
    /// repeated for nobody: what may have been granted is revoked then.
    async fn grant(&self) -> Result<(LeaseId, Duration), Failure> {
        let seconds = i64::try_from(self.asked.ttl().as_secs()).unwrap_or(i64::MAX);
        let id = LeaseId::new(fastrand::i64(1..));
        let grant = |mut clients: crate::client::request_channel::Clients| async move {
            clients.lease.grant(seconds, Some(LeaseGrantOptions::new().with_id(id.get()))).await
        };
        let mut repeated = false;
        loop {
            match self.conn.fast.call("lease grant", grant).await {
                Ok(granted) => return Ok((id, Duration::from_secs(granted.ttl().unsigned_abs()))),
                Err(failure) if failure.is_ambiguous() && !self.waiting.is_wanted() => {
                    revoke(&self.conn, id).await;
                    return Err(failure);
                }
                Err(failure) if failure.is_ambiguous() && !repeated => repeated = true,
                Err(Failure::LeaseExists) if repeated => {
                    let (_, ttl) = self.conn.time_to_live(id).await?.ok_or(Failure::LeaseNotFound)?;
                    return Ok((id, ttl));
                }
                Err(failure) => return Err(failure),
            }
        }
    }
}

/// The revision of the store as a write finds it, which, unlike a read, is never stale: the grant of a lease, which is revoked again.
pub(crate) async fn revision_by_a_write(conn: &Connection) -> Result<Revision, Failure> {
    let seconds = i64::try_from(PROOF_TTL.as_secs()).unwrap_or(i64::MAX);
    let grant =
        |mut clients: crate::client::request_channel::Clients| async move { clients.lease.grant(seconds, None).await };
    let granted = conn.fast.call("lease grant", grant).await?;
    revoke(conn, LeaseId::new(granted.id())).await;
    Ok(header_revision(granted.header()))
}

/// Revokes a lease; if the store does not answer, it runs out.
pub(crate) async fn revoke(conn: &Connection, id: LeaseId) {
    let revoke =
        |mut clients: crate::client::request_channel::Clients| async move { clients.lease.revoke(id.get()).await };
    match conn.fast.ask("lease revoke", revoke).await {
        Ok(_) | Err(Failure::LeaseNotFound) => {}
        Err(failure) => tracing::debug!(lease = id.get(), cause = %failure, "lease not revoked, it runs out"),
    }
}

/// Revokes a lease until the store has acknowledged that it is gone, or that it does not know it.
async fn revoke_for_good(conn: &Connection, id: LeaseId) {
    let revoke =
        |mut clients: crate::client::request_channel::Clients| async move { clients.lease.revoke(id.get()).await };
    let mut backoff = BackoffPolicy::default().start();
    loop {
        match conn.fast.call("lease revoke", revoke).await {
            Ok(_) | Err(Failure::LeaseNotFound) => return,
            Err(failure) => tracing::debug!(lease = id.get(), cause = %failure, "lease not revoked yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = conn.fast.recovered() => {}
        }
    }
}

/// A lease that somebody else keeps; it is neither renewed nor revoked from here.
pub(crate) fn given(id: LeaseId, ttl: Duration) -> Arc<Lease> {
    // The sender may go: the receiver keeps the last value.
    let (_, state) = watch::channel(LeaseState::Alive { sent: Moment::now() });
    let phase = watch::Sender::new(LeaseState::Alive { sent: Moment::now() });
    let (end, abandoned) = (CancellationToken::new(), CancellationToken::new());
    let (_, revoked) = watch::channel(false);
    let (doubted, condemned, retired) = (Arc::default(), AtomicBool::new(false), Arc::default());
    let leased = Weak::new();
    let kept = KeptLease { id, ttl, state, phase, end, abandoned, leased, retired, revoked, doubted, condemned };
    Arc::new(Lease::unshared(Arc::new(kept)))
}

struct Keeper {
    conn: Arc<Connection>,
    counters: Arc<Counters>,
    id: LeaseId,
    ttl: Duration,
    /// Time from one renewal to the next.
    interval: Duration,
    /// Time at which the last acknowledged renewal was sent.
    renewed: Moment,
    report: watch::Sender<LeaseState>,
    /// For those who want to hear of changes only.
    turn: watch::Sender<LeaseState>,
    doubted: Arc<tokio::sync::Notify>,
}

/// Time for which a renewal waits for its reply: short against the TTL, so that several fit before the lease runs out.
fn reply_limit(ttl: Duration) -> Duration {
    (ttl / 6).min(MAX_REPLY)
}

/// Time until the next renewal: after the interval with 10 % jitter, and after a failure soon, then more and more slowly.
fn pause(interval: Duration, failed: Option<&mut Backoff>) -> Duration {
    match failed {
        None if Defect::RenewedTooLate.is_on() => interval * 4,
        None => interval.mul_f64(0.9 + 0.2 * fastrand::f64()),
        Some(backoff) => backoff.next_delay(),
    }
}

/// The delays after failures: short against the TTL, and no longer than the interval.
fn delays(ttl: Duration, interval: Duration) -> BackoffPolicy {
    let longest = (ttl / 6).min(interval);
    let first = (ttl / 50).max(Duration::from_millis(20)).min(longest);
    BackoffPolicy::new(first, longest).unwrap_or_default()
}

impl Keeper {
    /// Renews until the store says that the lease is gone. The old lease is tried for ever: after a restart etcd
    /// gives it its full TTL again.
    async fn keep(mut self) {
        let mut backoff = delays(self.ttl, self.interval).start();
        let mut wait = pause(self.interval, None);
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
                    wait = pause(self.interval, None);
                    self.tell(LeaseState::Alive { sent });
                }
                Err(Failure::LeaseNotFound) => {
                    tracing::warn!(lease = self.id.get(), "lease lost");
                    self.counters.count(Counter::LeaseLosses);
                    self.tell(LeaseState::Lost);
                    return;
                }
                Err(failure) => {
                    wait = pause(self.interval, Some(&mut backoff));
                    let cause = failure.into_error("lease renewal");
                    tracing::debug!(lease = self.id.get(), cause = %with_causes(&cause), "lease not renewed");
                    self.tell(LeaseState::Suspect { sent: self.renewed, cause });
                }
            }
        }
    }

    fn tell(&self, state: LeaseState) {
        self.turn.send_if_modified(|last| {
            // What is retired stays so, until it is lost.
            if matches!(last, LeaseState::Retired) && !matches!(state, LeaseState::Lost) {
                return false;
            }
            let turned = std::mem::discriminant(last) != std::mem::discriminant(&state);
            *last = state.clone();
            turned
        });
        self.report.send_replace(state);
    }

    async fn renew(&self) -> Result<(), Failure> {
        let id = self.id.get();
        let renew =
            |mut clients: crate::client::request_channel::Clients| async move { clients.lease.keep_alive(id).await };
        self.conn.fast.ask_within("lease renewal", reply_limit(self.ttl), renew).await.map(|_| ())
    }
}

/// Waits until a lease is not to be used any more: it was retired, or is lost. Never returns without one.
///
/// Dropping the future has no effect.
pub(crate) async fn unusable(lease: Option<&Arc<Lease>>) {
    let Some(lease) = lease else { return std::future::pending().await };
    let is_over = |phase: &LeaseState| matches!(phase, LeaseState::Retired | LeaseState::Lost);
    // The sender lives as long as the lease.
    let _ = lease.phase().wait_for(is_over).await;
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
    fn a_shared_lease_has_a_permit_for_each_of_a_thousand_keys() {
        let given = given(LeaseId::new(1), Duration::from_secs(15));
        let pooled = Pooled::new(Arc::clone(&given.kept));
        let mut shares: Vec<_> = (0..MAX_KEYS).map(|_| pooled.share().unwrap()).collect();
        // Another reference is no other key.
        let clone = Arc::clone(&shares[0]);
        assert!(pooled.share().is_none());
        shares.swap_remove(0);
        assert!(pooled.share().is_none(), "its key is still kept");
        drop(clone);
        assert!(pooled.share().is_some());
        given.condemn();
        assert!(pooled.share().is_none(), "a lost lease is not shared");
    }

    #[test]
    fn several_renewals_fit_into_a_ttl_even_if_each_goes_unanswered() {
        for seconds in [2, 5, 15, 60] {
            let ttl = Duration::from_secs(seconds);
            let interval = LeaseTerms::new(ttl, None).renewal_interval(ttl);
            assert!(pause(interval, None) + reply_limit(ttl) * 2 < ttl);
            assert!(reply_limit(ttl) <= MAX_REPLY);
        }
    }

    #[test]
    fn a_failed_renewal_is_repeated_no_later_than_the_next_one_is_due() {
        for seconds in [2, 15, 3600] {
            let ttl = Duration::from_secs(seconds);
            for interval in [Duration::from_millis(500), ttl / 3] {
                let mut backoff = delays(ttl, interval).start();
                assert!((0..20).all(|_| pause(interval, Some(&mut backoff)) <= interval), "{ttl:?}, {interval:?}");
            }
        }
    }
}
