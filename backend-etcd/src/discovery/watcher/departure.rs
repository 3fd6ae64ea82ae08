//! Departures that no mark tells of: a key that had no lease, or that was deleted although its lease is alive.
//!
//! A watch tells of a deletion, not of its reason. With the lease goes every key, so a lease that lives on tells the two apart. That
//! is asked only where it matters: when a service has become empty, and a view would hold what it lost.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use enlist::{Freshness, InstanceId, LeaseId, Moment};
use futures::future::{BoxFuture, FutureExt, join_all};

use crate::{client::connection::Connection, watch::record::Record};

/// Instances that are gone for longer than this are not asked about. Longer than the time within which a view counts removals as one
/// loss.
const RECENT: Duration = Duration::from_secs(5);

/// Maximum number of instances whose fate is not decided. What is forgotten counts as dead, which is the careful side.
const MAX_UNDECIDED: usize = 4096;

/// Maximum number of leases that are asked for when a service has become empty: those of the latest deletions.
const MAX_LEASES: usize = 16;

/// Maximum time that the change which empties a service waits for the answers. A lease without an answer counts as gone.
const LIMIT: Duration = Duration::from_secs(1);

/// Time until a lease that is said to live is asked for again: one member may tell of a revocation before another one has done it.
const AGAIN: Duration = Duration::from_millis(100);

/// The meaning of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The instance has left.
    Left,
    /// It has left if this lease is alive.
    LeftIfAlive(LeaseId),
    /// It was lost.
    Lost,
}

impl Fate {
    /// Decides by the last that is known of the key. `same_history`: the store did not go back since, which loses keys without deleting
    /// them.
    pub(super) fn of(last: Option<&Record>, same_history: bool) -> Self {
        match last {
            Some(Record { lease: Some(lease), .. }) if same_history => Self::LeftIfAlive(*lease),
            Some(Record { lease: None, .. }) if same_history => Self::Left,
            Some(_) | None => Self::Lost,
        }
    }
}

/// Instances that are gone and may have left.
#[derive(Debug, Default)]
pub(super) struct Undecided {
    gone: VecDeque<(Moment, InstanceId, LeaseId)>,
}

impl Undecided {
    pub(super) fn add(&mut self, id: InstanceId, lease: LeaseId) {
        let now = Moment::now();
        while self.gone.front().is_some_and(|(when, ..)| now.since(*when) > RECENT) || self.gone.len() >= MAX_UNDECIDED
        {
            self.gone.pop_front();
        }
        self.gone.push_back((now, id, lease));
    }

    /// Their leases, each once, the latest first.
    pub(super) fn leases(&self) -> Vec<LeaseId> {
        let mut leases = Vec::new();
        for (when, _, lease) in self.gone.iter().rev() {
            if when.elapsed() > RECENT || leases.len() >= MAX_LEASES {
                break;
            }
            if !leases.contains(lease) {
                leases.push(*lease);
            }
        }
        leases
    }

    /// Takes out all, and returns those that have left because the lease that they had last is one of `alive`.
    pub(super) fn decide(&mut self, alive: &[LeaseId]) -> Vec<InstanceId> {
        let mut seen = HashSet::new();
        let latest = self.gone.drain(..).rev().filter(|(_, id, _)| seen.insert(id.clone()));
        latest.filter(|(.., lease)| alive.contains(lease)).map(|(_, id, _)| id).collect()
    }

    /// Takes out all: something was lost in another way.
    pub(super) fn forget(&mut self) {
        self.gone.clear();
    }
}

/// A question for leases, and the freshness of the change that waits for it.
pub(super) struct Question {
    answer: BoxFuture<'static, Vec<LeaseId>>,
    pub(super) freshness: Freshness,
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Question").field("freshness", &self.freshness).finish_non_exhaustive()
    }
}

impl Question {
    pub(super) fn new(conn: &Arc<Connection>, leases: Vec<LeaseId>, freshness: Freshness) -> Self {
        let each =
            join_all(
                leases.into_iter().map(|lease| {
                    let conn = Arc::clone(conn);
                    async move {
                        tokio::time::timeout(LIMIT, is_alive(&conn, lease)).await.unwrap_or(false).then_some(lease)
                    }
                }),
            );
        Self { answer: each.map(|alive| alive.into_iter().flatten().collect()).boxed(), freshness }
    }

    /// Waits for those of the leases that are alive.
    ///
    /// A future that is dropped loses nothing: the next one goes on with the same requests and the same limit.
    pub(super) async fn alive(&mut self) -> Vec<LeaseId> {
        (&mut self.answer).await
    }
}

async fn is_alive(conn: &Connection, lease: LeaseId) -> bool {
    for again in [false, true] {
        if again {
            tokio::time::sleep(AGAIN).await;
        }
        // One that has run out may be kept for a while.
        let lives = matches!(conn.time_to_live(lease).await, Ok(Some((left, _))) if !left.is_zero());
        if !lives {
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
        assert_eq!(Fate::of(Some(&fixed), true), Fate::Left);
        assert_eq!(Fate::of(Some(&leased), true), Fate::LeftIfAlive(lease(7)));
        // In a store that went back they were not deleted.
        assert_eq!(Fate::of(Some(&fixed), false), Fate::Lost);
        assert_eq!(Fate::of(Some(&leased), false), Fate::Lost);
        assert_eq!(Fate::of(None, true), Fate::Lost);
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
