//! Probes: small linearizable reads that tell how far the store is, for all views of a session. Without one, a watch on which nothing
//! happens cannot tell a quiet store from a member that is behind.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Bound,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use enlist::{
    Error, Moment, Revision, TaskOwner,
    backend::{LONGEST, jitter},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    time::Instant,
};

use crate::{client::connection::Connection, error::Failure, watch::record::KeyRange};

/// Maximum number of keys tried for one probe: a role may allow some of the views of a session and not others.
const TRIES: usize = 4;

/// A linearizable read: the store was at this revision after it was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) sent: Moment,
    pub(crate) revision: Revision,
}

/// The probes of a session. They are sent while there are views.
#[derive(Debug)]
pub(crate) struct Probes {
    every: Option<Duration>,
    conn: Arc<Connection>,
    runtime: Handle,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    views: Mutex<Views>,
    latest: watch::Sender<Option<Probe>>,
    /// A watch was opened over a connection of which it is not known what its member is.
    opened: Notify,
}

#[derive(Debug, Default)]
struct Views {
    /// Number of views that begin at each key. One of these keys is read: who may watch it may read it.
    keys: BTreeMap<Vec<u8>, usize>,
    tasks: Option<TaskOwner>,
}

/// A request for probes, for as long as it is held.
pub(crate) struct Probed {
    key: Vec<u8>,
    shared: Arc<Shared>,
}

impl fmt::Debug for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probed").finish_non_exhaustive()
    }
}

impl Drop for Probed {
    fn drop(&mut self) {
        let mut views = self.shared.views();
        if let Some(count) = views.keys.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                views.keys.remove(&self.key);
            }
        }
        if views.keys.is_empty() {
            views.tasks = None;
        }
    }
}

impl Probes {
    /// Probes every `every`; none without it.
    pub(crate) fn new(every: Option<Duration>, conn: &Arc<Connection>, runtime: Handle) -> Self {
        let shared = Shared { views: Mutex::default(), latest: watch::Sender::new(None), opened: Notify::new() };
        Self { every: every.map(|every| every.min(LONGEST)), conn: Arc::clone(conn), runtime, shared: Arc::new(shared) }
    }

    /// Sends probes while the result is held, at least.
    pub(crate) fn hold(&self, range: &KeyRange) -> Result<Probed, Error> {
        let mut views = self.shared.views();
        if let (None, Some(every)) = (&views.tasks, self.every) {
            let tasks = TaskOwner::on(self.runtime.clone());
            tasks.spawn_until_stopped("probe", probe(Arc::clone(&self.shared), Arc::clone(&self.conn), every))?;
            tasks.spawn_until_stopped("version", ask_version(Arc::clone(&self.shared), Arc::clone(&self.conn)))?;
            views.tasks = Some(tasks);
        }
        *views.keys.entry(range.start.clone()).or_default() += 1;
        Ok(Probed { key: range.start.clone(), shared: Arc::clone(&self.shared) })
    }

    /// The probes from now on.
    pub(crate) fn follow(&self) -> ProbeReader {
        ProbeReader { latest: self.shared.latest.subscribe(), shared: Arc::clone(&self.shared) }
    }
}

impl Shared {
    fn views(&self) -> std::sync::MutexGuard<'_, Views> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key after `last`, around.
    fn next_key(&self, last: &[u8]) -> Option<Vec<u8>> {
        let views = self.views();
        let after: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Excluded(last), Bound::Unbounded);
        let next = views.keys.range::<[u8], _>(after).next().or_else(|| views.keys.iter().next());
        next.map(|(key, _)| key.clone())
    }
}

/// The probes, as seen by a watch.
#[derive(Debug)]
pub(crate) struct ProbeReader {
    latest: watch::Receiver<Option<Probe>>,
    shared: Arc<Shared>,
}

impl ProbeReader {
    /// The next probe; the latest, if there were several. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Probe {
        // The sender lives as long as this.
        while self.latest.changed().await.is_ok() {
            if let Some(probe) = *self.latest.borrow_and_update() {
                return probe;
            }
        }
        std::future::pending().await
    }

    /// Has the member behind a new connection asked for its version.
    pub(crate) fn opened(&self) {
        self.shared.opened.notify_one();
    }
}

async fn probe(shared: Arc<Shared>, conn: Arc<Connection>, every: Duration) {
    let mut key = Vec::new();
    // The first views have just been listed, which is a proof as well.
    let mut due = Instant::now() + every;
    loop {
        tokio::time::sleep_until(due).await;
        let begun = Instant::now();
        for _ in 0..TRIES {
            let Some(next) = shared.next_key(&key) else { break };
            key = next;
            let sent = Moment::now();
            match conn.probe(&key, every).await {
                Ok(revision) => {
                    shared.latest.send_replace(Some(Probe { sent, revision }));
                    break;
                }
                Err(Failure::Denied) => {}
                Err(failure) => {
                    tracing::debug!(cause = %failure, "probe not answered");
                    break;
                }
            }
        }
        shared.opened.notify_one();
        // Drawn, so that processes that started together do not stay together.
        due = begun + every.mul_f64(0.9) + jitter(every / 10);
    }
}

async fn ask_version(shared: Arc<Shared>, conn: Arc<Connection>) {
    loop {
        shared.opened.notified().await;
        if let Err(failure) = conn.learn_version().await {
            tracing::debug!(cause = %failure, "member not asked for its version");
        }
    }
}
