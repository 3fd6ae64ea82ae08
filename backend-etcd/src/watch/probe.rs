//! Probes: small linearizable reads of the store's revision, for all views of a session. Without them a watch without
//! events cannot tell a quiet store from a member that lags.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Bound,
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{
    Error, Moment, Revision, TaskOwner,
    backend::{LONGEST, MutexExt as _, jitter},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    client::{store_client::StoreClient, store_revision::Seen},
    deliberate_defects::DeliberateDefect,
    error::Failure,
    watch::record::KeyRange,
};

/// Maximum number of keys that are tried for one probe: a role may permit only some views of a session.
const MAX_KEYS_TRIED: usize = 4;

/// Result of a linearizable read: after it was sent, the store was at this revision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) sent: Moment,
    /// State of the store's revision when it was sent.
    pub(crate) store: Seen,
    pub(crate) revision: Revision,
}

/// Probes of a session. They are sent while there are views.
#[derive(Debug)]
pub(crate) struct Probes {
    every: Option<Duration>,
    client: Arc<StoreClient>,
    runtime: Handle,
    shared: Arc<ProbeState>,
}

#[derive(Debug)]
struct ProbeState {
    views: Mutex<Views>,
    latest: watch::Sender<Option<Probe>>,
    /// A watch was opened over a connection to a member of unknown version.
    opened: Notify,
}

#[derive(Debug, Default)]
struct Views {
    /// Number of views for each first key. A probe reads one of these keys: the permission to watch it includes the
    /// permission to read it.
    keys: BTreeMap<Vec<u8>, usize>,
    tasks: Option<TaskOwner>,
}

/// Demand for probes. It exists until it is dropped.
pub(crate) struct Probed {
    key: Vec<u8>,
    shared: Arc<ProbeState>,
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
    /// Creates probes at this interval; `None` is without probes.
    pub(crate) fn new(every: Option<Duration>, client: &Arc<StoreClient>, runtime: Handle) -> Self {
        let shared = ProbeState { views: Mutex::default(), latest: watch::Sender::new(None), opened: Notify::new() };
        Self {
            every: every.map(|every| every.min(LONGEST)),
            client: Arc::clone(client),
            runtime,
            shared: Arc::new(shared),
        }
    }

    /// Sends probes at least while the result is held.
    pub(crate) fn hold(&self, range: &KeyRange) -> Result<Probed, Error> {
        let mut views = self.shared.views();
        if let (None, Some(every)) = (&views.tasks, self.every) {
            let tasks = TaskOwner::on(self.runtime.clone());
            tasks.spawn_until_stopped("probe", probe(Arc::clone(&self.shared), Arc::clone(&self.client), every))?;
            tasks.spawn_until_stopped("version", ask_version(Arc::clone(&self.shared), Arc::clone(&self.client)))?;
            views.tasks = Some(tasks);
        }
        *views.keys.entry(range.start.clone()).or_default() += 1;
        Ok(Probed { key: range.start.clone(), shared: Arc::clone(&self.shared) })
    }

    /// Returns a reader of the probes from now on.
    pub(crate) fn follow(&self) -> ProbeReader {
        ProbeReader { latest: self.shared.latest.subscribe(), shared: Arc::clone(&self.shared) }
    }
}

impl ProbeState {
    fn views(&self) -> std::sync::MutexGuard<'_, Views> {
        self.views.locked()
    }

    /// Returns the key after `last`, or the first one.
    fn next_key(&self, last: &[u8]) -> Option<Vec<u8>> {
        let views = self.views();
        let after: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Excluded(last), Bound::Unbounded);
        let next = views.keys.range::<[u8], _>(after).next().or_else(|| views.keys.iter().next());
        next.map(|(key, _)| key.clone())
    }
}

/// Reader of the probes, for one watch.
#[derive(Debug)]
pub(crate) struct ProbeReader {
    latest: watch::Receiver<Option<Probe>>,
    shared: Arc<ProbeState>,
}

impl ProbeReader {
    /// Returns the next probe, or the latest of several. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Probe {
        // The sender lives as long as `self`.
        while self.latest.changed().await.is_ok() {
            if let Some(probe) = *self.latest.borrow_and_update() {
                return probe;
            }
        }
        std::future::pending().await
    }

    /// Requests the version of the member behind a new connection.
    pub(crate) fn opened(&self) {
        self.shared.opened.notify_one();
    }
}

async fn probe(shared: Arc<ProbeState>, client: Arc<StoreClient>, every: Duration) {
    let mut key = Vec::new();
    // The first views have just been listed, which is a proof of freshness, too.
    let mut due = Instant::now() + every;
    loop {
        tokio::time::sleep_until(due).await;
        let begun = Instant::now();
        for _ in 0..MAX_KEYS_TRIED {
            let Some(next) = shared.next_key(&key) else { break };
            key = next;
            assert!(!DeliberateDefect::ProbesPanic.is_on(), "a deliberate defect");
            let (sent, store) = (Moment::now(), client.store.seen());
            match client.probe(&key, every).await {
                Ok(revision) => {
                    shared.latest.send_replace(Some(Probe { sent, store, revision }));
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
        // Jittered, to spread processes that started together.
        due = begun + every.mul_f64(0.9) + jitter(every / 10);
    }
}

async fn ask_version(shared: Arc<ProbeState>, client: Arc<StoreClient>) {
    loop {
        shared.opened.notified().await;
        if let Err(failure) = client.learn_version().await {
            tracing::debug!(cause = %failure, "member not asked for its version");
        }
    }
}
