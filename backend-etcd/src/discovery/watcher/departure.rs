//! Departures without a mark: the key had no lease, or it was deleted although its lease is alive.
//!
//! A watch reports a deletion without its cause. The end of a lease deletes all its keys, so a lease that is still
//! alive proves that the instance was removed. The lease is read only if the cause matters: when no instance takes
//! calls any more, and a view would keep those that took calls and were lost.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use enlist::{Freshness, InstanceId, LeaseId, Moment};
use futures::future::{BoxFuture, FutureExt, join_all};

use crate::{client::store_client::StoreClient, watch::record::Record};

/// Maximum age of a deletion whose lease is read. Longer than the time within which a view counts removals as one loss.
const RECENT: Duration = Duration::from_secs(5);

/// Maximum number of deletions without a known cause. Evicted entries are conservatively treated as crashed.
const MAX_UNDECIDED: usize = 4096;

/// Maximum number of leases that are read at a time: those of the latest deletions.
const MAX_LEASES: usize = 16;

/// Maximum delay of a change after which no instance takes calls, until its leases are read. A lease without an answer
/// counts as gone.
const LEASE_READ_TIMEOUT: Duration = Duration::from_secs(1);

/// Delay before a live lease is read again: one member can report a revocation before another one has applied it.
const REVOCATION_LAG: Duration = Duration::from_millis(100);

/// Instance whose key was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Deletion {
    pub(super) id: InstanceId,
    pub(super) cause: DeletionCause,
    /// It was shown as one that takes calls.
    pub(super) took_calls: bool,
}

/// Cause of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeletionCause {
    /// The instance was removed.
    Removed,
    /// The instance was removed if this lease is alive, else it was lost.
    RemovedIfAlive(LeaseId),
    /// The instance was lost.
    Lost,
}

impl DeletionCause {
    /// Returns the cause, from the last known state of the key.
    pub(super) fn of(last: Option<&Record>, history: History) -> Self {
        match (last, history) {
            (Some(Record { lease: Some(lease), .. }), History::Same) => Self::RemovedIfAlive(*lease),
            (Some(Record { lease: None, .. }), History::Same) => Self::Removed,
            (Some(_), History::Restored) | (None, _) => Self::Lost,
        }
    }
}

/// History of the store between two replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum History {
    /// The newer replica continues the older one.
    Same,
    /// The store went back in between, so keys are missing without a deletion.
    Restored,
}

/// Deleted instances that took calls, and whose leases decide between a removal and a loss.
#[derive(Debug, Default)]
pub(super) struct Undecided {
    gone: VecDeque<Gone>,
}

/// A deleted instance whose lease decides.
#[derive(Debug)]
struct Gone {
    when: Moment,
    id: InstanceId,
    lease: LeaseId,
}

impl Undecided {
    pub(super) fn add(&mut self, id: InstanceId, lease: LeaseId) {
        let when = Moment::now();
        while self.gone.front().is_some_and(|gone| when.since(gone.when) > RECENT) || self.gone.len() >= MAX_UNDECIDED {
            self.gone.pop_front();
        }
        self.gone.push_back(Gone { when, id, lease });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.gone.is_empty()
    }

    /// Returns the leases to read, each once, the latest first.
    pub(super) fn leases(&self) -> Vec<LeaseId> {
        let mut leases = Vec::new();
        for Gone { when, lease, .. } in self.gone.iter().rev() {
            if when.elapsed() > RECENT || leases.len() >= MAX_LEASES {
                break;
            }
            if !leases.contains(lease) {
                leases.push(*lease);
            }
        }
        leases
    }

    /// Takes all entries, and returns the instances that were removed: their last lease is one of `alive`.
    pub(super) fn decide(&mut self, alive: &[LeaseId]) -> Vec<InstanceId> {
        let mut seen = HashSet::new();
        let latest = self.gone.drain(..).rev().filter(|gone| seen.insert(gone.id.clone()));
        latest.filter(|gone| alive.contains(&gone.lease)).map(|gone| gone.id).collect()
    }

    /// Drops all entries, because an instance was lost in another way.
    pub(super) fn forget(&mut self) {
        self.gone.clear();
    }
}

/// Reads of leases, and the freshness of the change that waits for them.
pub(super) struct LeaseReads {
    answer: BoxFuture<'static, Vec<LeaseId>>,
    pub(super) freshness: Freshness,
}

impl fmt::Debug for LeaseReads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseReads").field("freshness", &self.freshness).finish_non_exhaustive()
    }
}

impl LeaseReads {
    pub(super) fn new(client: &Arc<StoreClient>, leases: Vec<LeaseId>, freshness: Freshness) -> Self {
        let each = join_all(leases.into_iter().map(|lease| {
            let client = Arc::clone(client);
            async move {
                tokio::time::timeout(LEASE_READ_TIMEOUT, is_alive(&client, lease))
                    .await
                    .unwrap_or(false)
                    .then_some(lease)
            }
        }));
        Self { answer: each.map(|alive| alive.into_iter().flatten().collect()).boxed(), freshness }
    }

    /// Returns the leases that are alive.
    ///
    /// Dropping the future loses nothing: the next call continues the same requests with the same deadline.
    pub(super) async fn alive(&mut self) -> Vec<LeaseId> {
        (&mut self.answer).await
    }
}

async fn is_alive(client: &StoreClient, lease: LeaseId) -> bool {
    for again in [false, true] {
        if again {
            tokio::time::sleep(REVOCATION_LAG).await;
        }
        // etcd may keep an expired lease for a while.
        let alive = matches!(client.time_to_live(lease).await, Ok(Some((remaining, _))) if !remaining.is_zero());
        if !alive {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use enlist::Revision;

    use super::*;

    fn id(number: usize) -> InstanceId {
        InstanceId::parse(format!("i{number}")).unwrap()
    }

    fn lease(number: usize) -> LeaseId {
        LeaseId::new(i64::try_from(number).unwrap())
    }

    #[test]
    fn a_key_without_a_lease_has_left_and_one_with_a_lease_if_that_is_alive() {
        let (key, at) = (b"k"[..].into(), Revision::new(5));
        let fixed = Record { key, value: Vec::new(), created: at, modified: at, lease: None };
        let leased = Record { lease: Some(lease(7)), ..fixed.clone() };
        assert_eq!(DeletionCause::of(Some(&fixed), History::Same), DeletionCause::Removed);
        assert_eq!(DeletionCause::of(Some(&leased), History::Same), DeletionCause::RemovedIfAlive(lease(7)));
        // In a store that went back they were not deleted.
        assert_eq!(DeletionCause::of(Some(&fixed), History::Restored), DeletionCause::Lost);
        assert_eq!(DeletionCause::of(Some(&leased), History::Restored), DeletionCause::Lost);
        assert_eq!(DeletionCause::of(None, History::Same), DeletionCause::Lost);
    }

    #[tokio::test(start_paused = true)]
    async fn few_leases_are_asked_for_those_of_the_latest_deletions() {
        let mut undecided = Undecided::default();
        assert!(undecided.leases().is_empty());
        undecided.add(id(0), lease(1));
        tokio::time::advance(RECENT + Duration::from_secs(1)).await;
        assert!(undecided.leases().is_empty(), "too long ago");
        for number in 0..MAX_UNDECIDED * 2 {
            undecided.add(id(number), lease(number / 2));
        }
        assert_eq!(undecided.gone.len(), MAX_UNDECIDED);
        let asked = undecided.leases();
        let latest: Vec<_> = (MAX_UNDECIDED - MAX_LEASES..MAX_UNDECIDED).rev().map(lease).collect();
        assert_eq!(asked, latest);
        let left = undecided.decide(&asked[1..2]);
        assert_eq!(left, [id(MAX_UNDECIDED * 2 - 3), id(MAX_UNDECIDED * 2 - 4)]);
        assert!(undecided.leases().is_empty(), "all are decided");
    }

    #[tokio::test(start_paused = true)]
    async fn deletions_are_kept_for_a_while() {
        let mut undecided = Undecided::default();
        undecided.add(id(0), lease(1));
        tokio::time::advance(RECENT).await;
        undecided.add(id(1), lease(2));
        assert_eq!(undecided.leases(), [lease(2), lease(1)]);
        tokio::time::advance(Duration::from_secs(1)).await;
        undecided.add(id(2), lease(3));
        assert_eq!(undecided.gone.len(), 2, "the first one is dropped");
    }

    #[test]
    fn the_last_lease_of_an_instance_counts() {
        let mut undecided = Undecided::default();
        // It was deleted, came back under another lease, and is gone again.
        undecided.add(id(0), lease(1));
        undecided.add(id(1), lease(1));
        undecided.add(id(0), lease(2));
        assert_eq!(undecided.leases(), [lease(2), lease(1)]);
        assert_eq!(undecided.decide(&[lease(1)]), [id(1)]);
        undecided.add(id(0), lease(1));
        undecided.forget();
        assert!(undecided.decide(&[lease(1)]).is_empty());
    }
}
