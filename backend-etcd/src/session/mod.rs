//! The session: the leases of a client and all that hangs on them, on a runtime of its own.
//!
//! By default that runtime has its own thread, so a program that starves its runtime loses neither leases nor locks.
//! Registrations, guards and watchers hold the session; when the last of them and the client are gone, it ends.

pub(crate) mod granted_lease;
pub(crate) mod lease;
pub(crate) mod probe;
pub(crate) mod recovery;
pub(crate) mod sweep;

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize},
    time::Duration,
};

use enlist::{
    BackoffPolicy, Counters, Error, Moment, Revision, TaskOwner,
    backend::{Departures, KeyClaims, Observations},
};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, oneshot},
};

use crate::{
    client::connection::Connection,
    layout::{GuardedLocks, Layout, Part},
    lock::{key_suffixes::KeySuffixes, local_queue::LocalQueue},
    session::{
        lease::{Leases, revoke},
        probe::Probes,
        sweep::Sweeps,
    },
    watch::{key_monitors::KeyMonitors, malformed::MalformedValues, range_watch::Hub},
};

/// Time for which the end of a session waits for what is under way: leases being revoked, withdrawals being confirmed.
const LINGER: Duration = Duration::from_secs(2);

/// Time for which a close waits for the removal of instances on given leases.
const LEAVE: Duration = Duration::from_secs(3);

/// Time for which the lease of an instance that has left is kept where its layout has no mark for that: watchers ask for it.
const DEPARTURE: Duration = Duration::from_secs(1);

/// Number of registrations that may look at their key at the same time, so that thousands that lost their watch together do not
/// stampede.
const MAX_READS: usize = 16;

/// Runtime of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionRuntime {
    /// On a thread of its own, so that starving the caller's runtime does not stop renewals.
    #[default]
    OwnThread,
    /// On the runtime that the client is made in, for instance one with a paused clock.
    Caller,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) conn: Arc<Connection>,
    pub(crate) tasks: Arc<TaskOwner>,
    pub(crate) leases: Leases,
    pub(crate) key_claims: KeyClaims<Arc<[u8]>>,
    /// Of leases behind keys that registrations of this session want.
    pub(crate) observations: Observations<Arc<[u8]>>,
    pub(crate) hub: Hub,
    pub(crate) key_monitors: KeyMonitors,
    /// The same for places in line.
    pub(crate) own_places: KeyMonitors,
    pub(crate) heirs: LocalQueue,
    /// KeySuffixes that tell places of this session apart.
    pub(crate) key_suffixes: KeySuffixes,
    /// Searches for queue entries that may yet be created.
    pub(crate) sweeps: Sweeps,
    /// So many registrations look at their key at a time.
    pub(crate) reads: Semaphore,
    /// Number of registrations.
    pub(crate) registrations: AtomicUsize,
    /// Those of them whose leases are not this session's to revoke.
    pub(crate) departures: Departures,
    /// Time of the last removal of an instance that left without a mark.
    unmarked: Mutex<Option<Moment>>,
    pub(crate) layout: Arc<dyn Layout>,
    pub(crate) lock_layout: Arc<GuardedLocks>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) malformed: Arc<MalformedValues>,
    /// Interval at which watched ranges are audited.
    pub(crate) audit: Option<Duration>,
    /// After so long without a linearizable list the first picture of a range is that of one member.
    pub(crate) serializable_first_list: Option<Duration>,
    pub(crate) probes: Probes,
    runtime: Handle,
    /// Dropping it tells the thread to end.
    _thread: Option<oneshot::Sender<()>>,
}

/// A runtime for a session, and what ends it.
pub(crate) struct RuntimeHandle {
    pub(crate) runtime: Handle,
    pub(crate) tasks: Arc<TaskOwner>,
    thread: Option<oneshot::Sender<()>>,
}

impl RuntimeHandle {
    pub(crate) fn new(kind: SessionRuntime) -> Result<Self, Error> {
        match kind {
            SessionRuntime::OwnThread => Self::own_thread(),
            SessionRuntime::Caller => {
                let runtime = Handle::try_current()
                    .map_err(|_| Error::invalid_config("runtime", "`Caller` needs a tokio runtime to be in"))?;
                Ok(Self { tasks: Arc::new(TaskOwner::on(runtime.clone())), runtime, thread: None })
            }
        }
    }

    fn own_thread() -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::invalid_config("runtime", format!("no thread: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let tasks = Arc::new(TaskOwner::on(handle.clone()));
        let (thread, ended) = oneshot::channel();
        let lingering = Arc::clone(&tasks);
        std::thread::Builder::new()
            .name("enlist-session".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    // An error means that the session was dropped, which is the signal.
                    let _ = ended.await;
                    lingering.drain(LINGER).await;
                });
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Self { runtime: handle, tasks, thread: Some(thread) })
    }
}

impl Session {
    pub(crate) fn new(
        ground: RuntimeHandle,
        conn: Connection,
        layout: Arc<dyn Layout>,
        lock_layout: Arc<GuardedLocks>,
        audit: Option<Duration>,
        serializable_first_list: Option<Duration>,
        probe: Option<Duration>,
    ) -> Arc<Self> {
        let conn = Arc::new(conn);
        let counters = Arc::<Counters>::default();
        let RuntimeHandle { runtime, tasks, thread } = ground;
        Arc::new(Self {
            leases: Leases::new(Arc::clone(&conn), Arc::clone(&counters)),
            conn,
            tasks,
            key_claims: KeyClaims::default(),
            observations: Observations::default(),
            hub: Hub::default(),
            key_monitors: KeyMonitors::default(),
            own_places: KeyMonitors::default(),
            heirs: LocalQueue::default(),
            key_suffixes: KeySuffixes::default(),
            sweeps: Sweeps::default(),
            reads: Semaphore::new(MAX_READS),
            registrations: AtomicUsize::new(0),
            departures: Departures::default(),
            unmarked: Mutex::default(),
            layout,
            lock_layout,
            malformed: Arc::new(MalformedValues::new(Arc::clone(&counters))),
            counters,
            audit,
            serializable_first_list,
            probes: Probes::new(probe),
            runtime,
            _thread: thread,
        })
    }

    pub(crate) fn runtime(&self) -> Handle {
        self.runtime.clone()
    }

    /// Refuses calls after the end, and calls from outside a runtime, where waiting would panic.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        Handle::try_current().map_err(|_| Error::Closed)?;
        let closed = self.departures.has_begun() || self.tasks.stop_signal().is_cancelled();
        if closed { Err(Error::Closed) } else { Ok(()) }
    }

    /// Notes that an instance was removed. Where its layout has no mark for that, its lease is what tells the removal from a death.
    pub(crate) fn note_departure(&self) {
        if !self.layout.carries().contains(&Part::Health) {
            *self.unmarked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Moment::now());
        }
    }

    /// Waits until watchers have had time to ask for the leases of instances that left without a mark.
    pub(crate) async fn outlast_departures(&self) {
        let last = *self.unmarked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last {
            tokio::time::sleep(last.remaining(DEPARTURE)).await;
        }
    }

    /// Notes that a key was found, and written over, as it was before its last acknowledged write: the store was restored to an earlier
    /// state, see [`Leases::store_went_back`].
    pub(crate) fn store_went_back(&self, noted: u64) {
        self.leases.store_went_back(&self.tasks, noted);
    }

    /// Looks into a read that was answered at a lower revision than `seen`: some releases answer stale reads under stress
    /// (etcd-io/etcd#20418), so only a write shows that the store went back.
    pub(crate) fn may_have_gone_back(self: &Arc<Self>, seen: Revision, noted: u64) {
        let (conn, session) = (Arc::clone(&self.conn), Arc::downgrade(self));
        let confirm = async move {
            let mut backoff = BackoffPolicy::default().start();
            loop {
                match lease::revision_by_a_write(&conn).await {
                    Ok(now) if now < seen => break,
                    Ok(_) => return,
                    Err(failure) => tracing::debug!(cause = %failure, "not known yet whether the store went back"),
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
            if let Some(session) = session.upgrade() {
                session.store_went_back(noted);
            }
        };
        // After the end of the session its leases are revoked anyway.
        let _ = self.tasks.spawn_until_stopped("rollback", confirm);
    }

    /// Ends it in order: instances on given leases are removed, the tasks stop, and the leases are revoked, which removes the other
    /// instances and the locks.
    pub(crate) async fn close(&self, limit: Duration) -> Result<(), enlist::StopError> {
        // The tasks stop also if this future is dropped.
        let _stop = self.tasks.stop_signal().drop_guard();
        if !self.departures.leave(LEAVE.min(limit)).await {
            tracing::warn!("not all instances on given leases were removed, they stay as long as those");
        }
        self.outlast_departures().await;
        let stopped = self.tasks.stop(limit).await;
        // Without those that were abandoned, of which a task may have heard only by its end.
        let leases = self.leases.alive();
        let revoking = futures::future::join_all(leases.into_iter().map(|lease| revoke(&self.conn, lease)));
        if tokio::time::timeout(limit, revoking).await.is_err() {
            tracing::debug!("not all leases were revoked, they run out");
        }
        stopped
    }
}
