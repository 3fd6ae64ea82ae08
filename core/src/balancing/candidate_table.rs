//! Candidates of a view, prepared for picking. Pickers with the same policy and filter share one table.

use std::{
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwapOption, Guard};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{alias_table::AliasTable, filter::Filter, hash_ring::HashRing, policy::PickPolicy};
use crate::{
    discovery::publication::Publication,
    model::instance::Entry,
    runtime::{clock::rounded, sync::MutexExt as _},
};

/// Reason for which nothing could be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickError {
    /// The service is not known yet; wait for [`ServiceView::ready`](crate::ServiceView::ready).
    #[error("the service is not known yet")]
    Unknown,
    /// The last known snapshot is older than the directory's options allow.
    #[error("what is known is {} old, which is too old", rounded(*age))]
    TooOld {
        /// Its age.
        age: Duration,
    },
    /// The service is known and has no instance that could be picked.
    #[error("no instance can be picked: {listed} listed{}", left_out_by_filter(*left_out))]
    Empty {
        /// Number of listed instances.
        listed: usize,
        /// Number of them that the filter alone [leaves out](Filter::leaves_out).
        left_out: usize,
    },
}

/// Part of a message: the number of instances that a filter leaves out.
fn left_out_by_filter(left_out: usize) -> String {
    if left_out == 0 { String::new() } else { format!(", {left_out} left out by the filter") }
}

/// Latest publication of a view, and the candidate tables built from it.
#[derive(Debug, Default)]
pub(crate) struct ViewCell {
    published: ArcSwapOption<Publication>,
    /// Number of publications. It is all that a pick reads while nothing changes.
    pub(super) count: AtomicU64,
    tables: Mutex<CandidateTables>,
}

impl ViewCell {
    pub(crate) fn publish(&self, published: Arc<Publication>) {
        self.published.store(Some(published));
        // A reader that sees the new count also sees the publication.
        self.count.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn get(&self) -> Guard<Option<Arc<Publication>>> {
        self.published.load()
    }

    /// Returns the candidate table, and the number of publications at that time. A concurrent caller waits for the same
    /// build. `former` is an earlier table of this policy and filter, or an empty one.
    pub(super) fn table(
        &self,
        policy: PickPolicy,
        filter: &Filter,
        former: &CandidateTable,
    ) -> (Arc<OnceLock<CandidateTable>>, u64) {
        let (table, count) = self.slot(policy, filter);
        // Outside the lock, so other tables can be built at the same time.
        table.get_or_init(|| CandidateTable::new(self.published.load_full(), policy, filter, former));
        (table, count)
    }

    fn slot(&self, policy: PickPolicy, filter: &Filter) -> (Arc<OnceLock<CandidateTable>>, u64) {
        let mut tables = self.tables.locked();
        // The count is read first: a publication in between is seen at the next pick.
        let count = self.count.load(Ordering::Acquire);
        if tables.count != count {
            *tables = CandidateTables { count, built: Vec::new() };
        }
        let alike = |built: &&(PickPolicy, Filter, Weak<_>)| built.0 == policy && built.1 == *filter;
        let built = tables.built.iter().find(alike).and_then(|(_, _, table)| table.upgrade());
        let table = built.unwrap_or_else(|| {
            let table = Arc::default();
            tables.built.retain(|(_, _, built)| built.strong_count() > 0);
            tables.built.push((policy, filter.clone(), Arc::downgrade(&table)));
            table
        });
        (table, count)
    }
}

/// Candidate tables that pickers use at present.
#[derive(Debug, Default)]
struct CandidateTables {
    /// Number of publications when they were built.
    count: u64,
    built: Vec<(PickPolicy, Filter, Weak<OnceLock<CandidateTable>>)>,
}

/// Candidates of pickers with the same policy and filter.
#[derive(Debug, Default)]
pub(super) struct CandidateTable {
    /// Publication from which the table was built.
    published: Option<Arc<Publication>>,
    pub(super) candidates: Vec<Arc<Entry>>,
    /// Number of instances that the filter leaves out, counted only if there are no candidates.
    left_out: usize,
    pub(super) alias_table: AliasTable,
    pub(super) ring: HashRing,
}

impl CandidateTable {
    fn new(published: Option<Arc<Publication>>, policy: PickPolicy, filter: &Filter, former: &Self) -> Self {
        let entries = || published.iter().flat_map(|published| published.snapshot.entries());
        let mut candidates: Vec<_> = entries().filter(|entry| filter.lets_through(entry.instance())).cloned().collect();
        if let Some((size, client)) = filter.subset {
            keep_subset(&mut candidates, size, client);
        }
        let filtered = || entries().filter(|entry| filter.leaves_out(entry.instance())).count();
        let left_out = if candidates.is_empty() { filtered() } else { 0 };
        let weights = || candidates.iter().map(|entry| entry.instance().weight());
        let alias_table = match policy {
            PickPolicy::Weighted | PickPolicy::ConsistentHash => AliasTable::new(weights()),
            PickPolicy::Random | PickPolicy::RoundRobin => AliasTable::default(),
        };
        let ring = match policy {
            PickPolicy::ConsistentHash => former.ring.updated(&members(&former.candidates), &members(&candidates)),
            _ => HashRing::default(),
        };
        Self { published, candidates, left_out, alias_table, ring }
    }

    /// Returns the reason for which nothing can be picked, if there is one.
    pub(super) fn check(&self) -> Result<(), PickError> {
        let Some(published) = &self.published else {
            return Err(PickError::Unknown);
        };
        match published.too_old() {
            Some(age) => Err(PickError::TooOld { age }),
            None if self.candidates.is_empty() => {
                let (listed, left_out) = (published.snapshot.len(), self.left_out);
                Err(PickError::Empty { listed, left_out })
            }
            None => Ok(()),
        }
    }

    /// Returns `true` if there are candidates and their age is not limited.
    pub(super) fn is_sure(&self) -> bool {
        !self.candidates.is_empty() && self.published.as_ref().is_some_and(|published| published.may_be_old())
    }
}

/// Returns the names and weights of candidates.
fn members(candidates: &[Arc<Entry>]) -> Vec<(&str, u32)> {
    candidates.iter().map(|entry| (entry.instance().id().as_str(), entry.instance().weight())).collect()
}

/// Keeps the `size` candidates with the highest hash of (client, id), in their previous order.
fn keep_subset(candidates: &mut Vec<Arc<Entry>>, size: usize, client: u64) {
    if candidates.len() <= size {
        return;
    }
    let rank = |entry: &Arc<Entry>| xxh3_64_with_seed(entry.instance().id().as_str().as_bytes(), client);
    let mut ranks: Vec<_> = candidates.iter().map(rank).collect();
    ranks.sort_unstable_by(|a, b| b.cmp(a));
    let Some(lowest) = size.checked_sub(1).map(|last| ranks[last]) else {
        candidates.clear();
        return;
    };
    candidates.retain(|entry| rank(entry) >= lowest);
    candidates.truncate(size);
}
