//! Sweeps: a key with a creation of unknown outcome is deleted as soon as it appears, until the creation is impossible.
//!
//! Elapsed time does not prove that a write is gone: it can be in the socket of a frozen member and be applied when
//! that member continues. The proof is the acknowledged end of the lease of the write, see
//! [`Leases::retire`](crate::session::leases::Leases::retire).

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use enlist::{
    BackoffPolicy, Error, LeaseId, Revision,
    backend::{MutexExt as _, Subscriber, jitter},
};
use futures::future::{join_all, select_all};
use tokio::sync::Notify;

use crate::{
    client::{
        requests::{guarded_write::Guard, kv::WriteOutcome},
        store_client::StoreClient,
    },
    error::Failure,
    session::{
        lease::{Lease, Revoked},
        leases::Leases,
    },
    watch::{
        range_watch::RangeWatches,
        record::{KeyRange, Record},
        replica::Replica,
        watch_task::Begin,
    },
};

/// Interval between two reads of a given lease; jittered by half.
const LEASE_POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Maximum number of queues that one sweep watches.
const MAX_WATCHES: usize = 8;

/// Proof that a creation under a lease is impossible.
#[derive(Clone, Debug)]
pub(crate) enum Impossible {
    /// The lease was revoked, and the store has acknowledged that.
    Revoked(Revoked),
    /// The lease, which another process keeps alive, has ended.
    Ended(LeaseId),
}

impl Impossible {
    /// Returns the proof for a creation under a lease that another process keeps alive.
    pub(crate) fn after_end(lease: &Lease) -> Self {
        Self::Ended(lease.id())
    }

    /// Retires a lease of this session, and returns the proof for a creation under it.
    pub(crate) fn by_retiring(leases: &Leases, lease: &Arc<Lease>) -> Self {
        leases.retire(lease);
        Self::Revoked(lease.revoked())
    }

    /// Returns `true` if the proof exists already, so no request is needed.
    pub(crate) fn is_proved(&self) -> bool {
        matches!(self, Self::Revoked(revoked) if revoked.is_acknowledged())
    }

    /// Waits for the proof.
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn proved(&mut self, client: &StoreClient) {
        match self {
            Self::Revoked(revoked) => revoked.acknowledged().await,
            Self::Ended(lease) => {
                while !matches!(client.time_to_live(*lease).await, Ok(None)) {
                    tokio::time::sleep(LEASE_POLL_INTERVAL / 2 + jitter(LEASE_POLL_INTERVAL)).await;
                }
            }
        }
    }
}

/// Queue entries under one lease with creations of unknown outcome.
#[derive(Debug)]
struct Strays {
    /// Watched range of each key: the entries of this session in its queue, or the key alone.
    keys: BTreeMap<Arc<[u8]>, KeyRange>,
    /// Signals that keys were added.
    added: Arc<Notify>,
}

/// Sweeps of a session: one for each retired lease and all its creations of unknown outcome.
#[derive(Debug)]
pub(crate) struct Sweeps {
    client: Arc<StoreClient>,
    leases: Arc<Leases>,
    range_watches: Arc<RangeWatches>,
    running: Mutex<HashMap<LeaseId, Strays>>,
}

impl Sweeps {
    pub(crate) fn new(client: &Arc<StoreClient>, leases: &Arc<Leases>, range_watches: &Arc<RangeWatches>) -> Self {
        let (client, leases, range_watches) = (Arc::clone(client), Arc::clone(leases), Arc::clone(range_watches));
        Self { client, leases, range_watches, running: Mutex::default() }
    }

    /// Retires `lease` and deletes `key` as soon as it appears, until its creation under that lease was undone or is
    /// impossible. Other users of the key have other leases. `queue` is watched for the key, unless the sweep already
    /// watches the maximum number of queues.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the session has ended.
    pub(crate) fn add(self: &Arc<Self>, lease: &Arc<Lease>, key: Arc<[u8]>, queue: KeyRange) -> Result<(), Error> {
        let impossible = Impossible::by_retiring(&self.leases, lease);
        let added = match self.running().entry(lease.id()) {
            Entry::Occupied(mut running) => {
                running.get_mut().keys.insert(key, queue);
                running.get().added.notify_one();
                return Ok(());
            }
            Entry::Vacant(none) => {
                let strays = Strays { keys: BTreeMap::from([(key, queue)]), added: Arc::default() };
                Arc::clone(&none.insert(strays).added)
            }
        };
        let tasks = &self.leases.lifecycle().tasks;
        tasks.spawn_until_stopped("sweep", sweep(Arc::clone(self), lease.id(), added, impossible))
    }

    fn running(&self) -> MutexGuard<'_, HashMap<LeaseId, Strays>> {
        self.running.locked()
    }

    /// Removes the keys that were `undone`, and returns the others. Without others, the sweep of `lease` ends.
    fn rest(&self, lease: LeaseId, undone: &[Arc<[u8]>]) -> BTreeMap<Arc<[u8]>, KeyRange> {
        let mut running = self.running();
        let Some(strays) = running.get_mut(&lease) else {
            return BTreeMap::new();
        };
        strays.keys.retain(|key, _| !undone.contains(key));
        let rest = strays.keys.clone();
        if rest.is_empty() {
            running.remove(&lease);
        }
        rest
    }
}

/// Deletes the keys under `lease` as soon as they appear, each once, until further creations under it are `impossible`.
async fn sweep(sweeps: Arc<Sweeps>, lease: LeaseId, added: Arc<Notify>, mut impossible: Impossible) {
    let mut backoff = BackoffPolicy::default().start();
    let mut watches = Watches::default();
    let mut undone = Vec::new();
    loop {
        let strays = sweeps.rest(lease, &undone);
        if strays.is_empty() {
            return;
        }
        watches.follow(&sweeps.range_watches, &strays);
        tokio::select! {
            biased;
            () = impossible.proved(&sweeps.client) => {
                sweeps.running().remove(&lease);
                return;
            }
            () = watches.show(&strays) => backoff.reset(),
            () = added.notified() => backoff.reset(),
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
        undone = undo(&sweeps.client, lease, &strays).await;
    }
}

/// Deletes the existing keys of `strays` and returns them: their creations were applied, and cannot be applied twice.
/// One request lists the existing keys, however many `strays` there are.
async fn undo(client: &StoreClient, lease: LeaseId, strays: &BTreeMap<Arc<[u8]>, KeyRange>) -> Vec<Arc<[u8]>> {
    let unanswered = |failure: &Failure| {
        tracing::debug!(lease = lease.get(), cause = %failure, "creation of unknown outcome not looked for yet");
    };
    let under = client.keys_under(lease).await.inspect_err(unanswered).unwrap_or_default();
    let there = under.iter().filter_map(|key| strays.get_key_value(&key[..]));
    let removed = join_all(there.map(|(key, _)| async move {
        let removal = remove(client, key, lease).await.inspect_err(unanswered).unwrap_or(Removal::Nothing);
        (removal == Removal::Removed).then(|| Arc::clone(key))
    }));
    let undone: Vec<_> = removed.await.into_iter().flatten().collect();
    if !undone.is_empty() {
        tracing::info!(count = undone.len(), "writes of unknown outcome were applied, they are undone");
    }
    undone
}

/// Result of the removal of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    Removed,
    /// The key does not exist under the lease.
    Nothing,
}

/// Deletes a key, if it exists under `lease`.
async fn remove(client: &StoreClient, key: &[u8], lease: LeaseId) -> Result<Removal, Failure> {
    // If all contenders share one key, another contender may have it by now.
    Ok(match client.delete(key, Guard::Under(lease)).await? {
        WriteOutcome::Done(_) => Removal::Removed,
        WriteOutcome::Refused(_) => Removal::Nothing,
    })
}

/// Watches of some queues of a sweep. The late effects of one transaction appear in each of its queues, so few watches
/// show most of them at once. The next periodic request shows the rest.
#[derive(Default)]
struct Watches {
    open: Vec<(KeyRange, Subscriber<Replica>)>,
}

impl Watches {
    /// Watches queues of `strays`, and no others.
    fn follow(&mut self, range_watches: &Arc<RangeWatches>, strays: &BTreeMap<Arc<[u8]>, KeyRange>) {
        self.open.retain(|(open, _)| strays.values().any(|queue| queue == open));
        for queue in strays.values() {
            if self.open.len() >= MAX_WATCHES {
                return;
            }
            if self.open.iter().all(|(open, _)| open != queue)
                && let Ok(reader) = range_watches.follow(queue)
            {
                self.open.push((queue.clone(), reader));
            }
        }
    }

    /// Waits until a watch shows one of `strays`.
    ///
    /// Dropping the future loses nothing.
    async fn show(&mut self, strays: &BTreeMap<Arc<[u8]>, KeyRange>) {
        let shown = self.open.iter_mut().map(|(_, reader)| Box::pin(shows_one_of(reader, strays)));
        let shown: Vec<_> = shown.collect();
        if shown.is_empty() {
            return std::future::pending().await;
        }
        select_all(shown).await;
    }
}

/// Waits until a watch shows one of `strays`.
async fn shows_one_of(reader: &mut Subscriber<Replica>, strays: &BTreeMap<Arc<[u8]>, KeyRange>) {
    loop {
        match reader.next().await {
            Ok(update) if strays.keys().any(|key| update.value.get(key).is_some()) => return,
            // This task ends with the session.
            Err(Error::Closed) => return std::future::pending().await,
            // A key that cannot be watched is still read.
            Ok(_) | Err(_) => {}
        }
    }
}

/// Waits until a key has a value that `fits`. `known`: its state at a revision; without it the wait never ends.
///
/// Dropping the future has no effect.
pub(crate) async fn shows(
    range_watches: &Arc<RangeWatches>,
    key: &[u8],
    known: Option<(Option<Record>, Revision)>,
    fits: impl Fn(&Record) -> bool,
) {
    let followed = known.and_then(|(record, at)| range_watches.follow_key(key, record, at, Begin::Known).ok());
    let Some(mut reader) = followed else {
        return std::future::pending().await;
    };
    loop {
        match reader.next().await {
            Ok(update) if update.value.records().any(&fits) => return,
            Ok(_) => {}
            // A key that cannot be watched is still read at intervals.
            Err(_) => return std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// The key of a lock that all contenders share: the late creation is over, and another one has the key by the time
    /// of its removal.
    #[tokio::test(start_paused = true)]
    async fn a_key_is_removed_under_its_lease_only() {
        let (fake, etcd) = testing::session();
        fake.put("job", "of another");
        assert_eq!(remove(&etcd.session.client, b"job", LeaseId::new(7)).await.unwrap(), Removal::Nothing);
        assert_eq!(fake.under(b"job").len(), 1);
    }
}
