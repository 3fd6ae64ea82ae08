//! Picking one instance: each task has its own picker, so a pick takes no lock, sends nothing and allocates nothing.
//!
//! A picker has a dense array of the candidates, and a new one once the view has a newer snapshot. A candidate is
//! serving, has a weight above zero and passes the filter. Pickers that choose alike share what they choose from, so a
//! change costs the same however many tasks pick: the first pick after it takes a lock for a moment, and rebuilds the
//! shared candidate table or waits for that rebuild.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwapOption, Guard};
use fastrand::Rng;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::runtime::sync::MutexExt as _;
use crate::{
    balancing::alias_table::{AliasTable, HashRing},
    discovery::directory::{Published, ViewUser},
    model::instance::{Entry, Health, Instance},
    runtime::clock::rounded,
};

/// Policy of a picker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// Evenly at random, whatever the weights.
    Random,
    /// One after the other, from a random start, whatever the weights.
    RoundRobin,
    /// At random, in proportion to the weights.
    Weighted,
    /// By key: see [`Picker::pick_for`]. When the set changes, few keys change their instance. A pick without a key is
    /// `Weighted`.
    ConsistentHash,
}

/// Filter of the instances that a picker sees. The default sees all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    zone: Option<String>,
    version: Option<String>,
    metadata: BTreeMap<String, String>,
    subset: Option<(usize, u64)>,
}

impl Filter {
    /// A filter that lets everything through.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only instances in this zone.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Only instances of this version.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Only instances with this metadata.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Only `size` of the instances, the same ones every time for the same `client`, and few others when the set
    /// changes (rendezvous hashing).
    #[must_use]
    pub fn subset(mut self, size: usize, client: &str) -> Self {
        self.subset = Some((size, xxh3_64(client.as_bytes())));
        self
    }

    fn lets_through(&self, instance: &Instance) -> bool {
        takes_calls(instance) && self.asks_for(instance)
    }

    fn asks_for(&self, instance: &Instance) -> bool {
        let Self { zone, version, metadata, subset: _ } = self;
        let wanted = |want: &Option<String>, have: Option<&str>| want.is_none() || want.as_deref() == have;
        wanted(zone, instance.zone())
            && wanted(version, instance.version())
            && metadata.iter().all(|(key, value)| instance.metadata().get(key) == Some(value))
    }

    /// Returns `true` for an instance that takes calls and has another zone, version or metadata than the filter asks
    /// for.
    pub fn leaves_out(&self, instance: &Instance) -> bool {
        takes_calls(instance) && !self.asks_for(instance)
    }
}

fn takes_calls(instance: &Instance) -> bool {
    instance.health() == Health::Serving && instance.weight() > 0
}

/// Reason for which nothing could be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickError {
    /// The service is not known yet; wait for [`ServiceView::ready`](crate::ServiceView::ready).
    #[error("the service is not known yet")]
    Unknown,
    /// What is known is older than the directory's options allow.
    #[error("what is known is {} old, which is too old", rounded(*age))]
    TooOld {
        /// Its age.
        age: Duration,
    },
    /// The service is known and has no instance that could be picked.
    #[error("no instance can be picked: {listed} listed{}", left_out_by_filter(*left_out))]
    Empty {
        /// Number in all.
        listed: usize,
        /// Number of them that the filter alone [leaves out](Filter::leaves_out).
        left_out: usize,
    },
}

/// Text of a message about so many instances that a filter leaves out.
fn left_out_by_filter(left_out: usize) -> String {
    if left_out == 0 { String::new() } else { format!(", {left_out} left out by the filter") }
}

/// Latest publication of a view, and the candidate tables made from it.
#[derive(Debug, Default)]
pub(crate) struct ViewCell {
    published: ArcSwapOption<Published>,
    /// Number of times that something was published: each pick reads only this.
    count: AtomicU64,
    choices: Mutex<Choices>,
}

impl ViewCell {
    pub(crate) fn publish(&self, published: Arc<Published>) {
        self.published.store(Some(published));
        // A reader that sees the count sees the publication.
        self.count.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn get(&self) -> Guard<Option<Arc<Published>>> {
        self.published.load()
    }

    /// Candidate table and the publication that it was built from. A picker that comes while it is built waits for
    /// it.
    fn choice(&self, policy: Policy, filter: &Filter) -> (Arc<OnceLock<CandidateTable>>, u64) {
        let (choice, count) = self.place(policy, filter);
        // Not under the lock: others do not wait for it.
        choice.get_or_init(|| CandidateTable::new(self.published.load_full(), policy, filter));
        (choice, count)
    }

    fn place(&self, policy: Policy, filter: &Filter) -> (Arc<OnceLock<CandidateTable>>, u64) {
        let mut choices = self.choices.locked();
        // The count first: what is published in between is seen at the next pick.
        let count = self.count.load(Ordering::Acquire);
        if choices.count != count {
            *choices = Choices { count, made: Vec::new() };
        }
        let alike = |made: &&(Policy, Filter, Weak<_>)| made.0 == policy && made.1 == *filter;
        let made = choices.made.iter().find(alike).and_then(|(_, _, choice)| choice.upgrade());
        let choice = made.unwrap_or_else(|| {
            let choice = Arc::default();
            choices.made.retain(|(_, _, made)| made.strong_count() > 0);
            choices.made.push((policy, filter.clone(), Arc::downgrade(&choice)));
            choice
        });
        (choice, count)
    }
}

/// Candidates of pickers at present.
#[derive(Debug, Default)]
struct Choices {
    /// Number of times that something had been published.
    count: u64,
    made: Vec<(Policy, Filter, Weak<OnceLock<CandidateTable>>)>,
}

/// Candidates of pickers with the same policy and filter.
#[derive(Debug, Default)]
struct CandidateTable {
    /// Publication that it was made from.
    published: Option<Arc<Published>>,
    candidates: Vec<Arc<Entry>>,
    /// Number of instances that the filter leaves out, where there are no candidates.
    left_out: usize,
    shares: AliasTable,
    ring: HashRing,
}

impl CandidateTable {
    fn new(published: Option<Arc<Published>>, policy: Policy, filter: &Filter) -> Self {
        let entries = || published.iter().flat_map(|published| published.snapshot.entries());
        let mut candidates: Vec<_> = entries().filter(|entry| filter.lets_through(entry.instance())).cloned().collect();
        if let Some((size, client)) = filter.subset {
            keep_subset(&mut candidates, size, client);
        }
        let filtered = || entries().filter(|entry| filter.leaves_out(entry.instance())).count();
        let left_out = if candidates.is_empty() { filtered() } else { 0 };
        let weights = || candidates.iter().map(|entry| entry.instance().weight());
        let names = candidates.iter().map(|entry| entry.instance().id().as_str());
        let shares = match policy {
            Policy::Weighted | Policy::ConsistentHash => AliasTable::new(weights()),
            Policy::Random | Policy::RoundRobin => AliasTable::default(),
        };
        let ring = match policy {
            Policy::ConsistentHash => HashRing::new(names.zip(weights())),
            _ => HashRing::default(),
        };
        Self { published, candidates, left_out, shares, ring }
    }

    /// Reason for which nothing can be picked, if that is so.
    fn check(&self) -> Result<(), PickError> {
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

    /// Returns `true` if there are candidates, and they are never too old.
    fn is_sure(&self) -> bool {
        !self.candidates.is_empty() && self.published.as_ref().is_some_and(|published| published.may_be_old())
    }
}

/// Picks instances of one service for one task. It keeps the watch of its view going, and the directory alive.
#[derive(Debug)]
pub struct Picker {
    source: Arc<ViewCell>,
    /// Number of times that something had been published when the choice was made.
    count: u64,
    policy: Policy,
    filter: Filter,
    choice: Arc<OnceLock<CandidateTable>>,
    /// Nothing needs to be checked before the next publication.
    sure: bool,
    /// Whose turn it was last.
    last: usize,
    random: fastrand::Rng,
    /// Keeps the watch going that `source` is fed from.
    _user: Option<ViewUser>,
}

impl Picker {
    pub(crate) fn new(source: Arc<ViewCell>, policy: Policy, filter: Filter) -> Self {
        Self {
            source,
            count: 0,
            policy,
            filter,
            choice: Arc::default(),
            sure: false,
            last: usize::MAX,
            random: Rng::new(),
            _user: None,
        }
    }

    /// A picker that keeps the watch of its view going.
    pub(crate) fn of_view(user: ViewUser, policy: Policy, filter: Filter) -> Self {
        let source = Arc::clone(user.published());
        Self { _user: Some(user), ..Self::new(source, policy, filter) }
    }

    /// Number of times that something had been published when what it chooses from was made.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Returns `true` if nothing was published since.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        self.source.count.load(Ordering::Acquire) == self.count
    }

    /// Picks one instance.
    ///
    /// # Errors
    ///
    /// [`PickError`] says whether the service is unknown or empty.
    #[inline]
    pub fn pick(&mut self) -> Result<&Arc<Entry>, PickError> {
        if !self.is_ready() {
            self.check()?;
        }
        let CandidateTable { candidates, shares, .. } = made(&self.choice);
        let count = candidates.len();
        let at = match self.policy {
            Policy::Random => self.random.usize(..count),
            Policy::RoundRobin => {
                // Not by division, which is slow.
                self.last = if self.last + 1 < count { self.last + 1 } else { 0 };
                self.last
            }
            // Candidates have weights above zero.
            Policy::Weighted | Policy::ConsistentHash => shares.drawn(self.random.u64(..)).unwrap_or(0),
        };
        Ok(&candidates[at])
    }

    /// Picks the instance that `key` belongs to under [`Policy::ConsistentHash`]; under any other policy the key has no
    /// influence.
    ///
    /// # Errors
    ///
    /// As [`pick`](Self::pick).
    #[inline]
    pub fn pick_for(&mut self, key: &[u8]) -> Result<&Arc<Entry>, PickError> {
        if self.policy != Policy::ConsistentHash {
            return self.pick();
        }
        if !self.is_ready() {
            self.check()?;
        }
        let CandidateTable { candidates, ring, .. } = made(&self.choice);
        Ok(&candidates[ring.find(key).unwrap_or(0)])
    }

    /// All candidates, for callers that choose themselves.
    ///
    /// # Errors
    ///
    /// As [`pick`](Self::pick).
    pub fn candidates(&mut self) -> Result<&[Arc<Entry>], PickError> {
        if !self.is_ready() {
            self.check()?;
        }
        Ok(&made(&self.choice).candidates)
    }

    /// Returns `true` if the choice is the latest, and can be picked from.
    #[inline]
    fn is_ready(&self) -> bool {
        self.sure && self.is_current()
    }

    #[cold]
    fn check(&mut self) -> Result<(), PickError> {
        if !self.is_current() {
            (self.choice, self.count) = self.source.choice(self.policy, &self.filter);
            let choice = made(&self.choice);
            self.sure = choice.is_sure();
            if self.last >= choice.candidates.len() {
                self.last = self.random.usize(..choice.candidates.len().max(1));
            }
        }
        made(&self.choice).check()
    }
}

/// Candidates that were made; nothing before the first pick.
#[inline]
fn made(choice: &OnceLock<CandidateTable>) -> &CandidateTable {
    choice.get_or_init(CandidateTable::default)
}

/// Keeps the `size` candidates with the highest hash of (client, id), in the order they stood.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, Epoch, InstanceId, Revision, ServiceRef, Snapshot};
    use std::collections::{BTreeSet, HashMap};

    fn instance(id: &str) -> Instance {
        Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap()
    }

    fn published(instances: Vec<Instance>) -> Arc<Published> {
        let mut snapshot = Snapshot::empty(ServiceRef::parse("s").unwrap(), Revision::new(1), Epoch::default());
        for instance in instances {
            snapshot.insert(Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1))));
        }
        Arc::new(Published::fresh(snapshot))
    }

    fn source(instances: Vec<Instance>) -> Arc<ViewCell> {
        let latest = Arc::new(ViewCell::default());
        latest.publish(published(instances));
        latest
    }

    fn shares(picker: &mut Picker, draws: usize) -> HashMap<String, usize> {
        let mut shares = HashMap::new();
        for _ in 0..draws {
            *shares.entry(picker.pick().unwrap().instance().id().to_string()).or_default() += 1;
        }
        shares
    }

    #[test]
    fn unknown_and_empty_are_told_apart() {
        let unknown = Arc::new(ViewCell::default());
        let mut picker = Picker::new(Arc::clone(&unknown), Policy::Random, Filter::new());
        assert_eq!(picker.pick().unwrap_err(), PickError::Unknown);
        unknown.publish(published(vec![instance("a").with_weight(0)]));
        assert_eq!(picker.pick().unwrap_err(), PickError::Empty { listed: 1, left_out: 0 });
        unknown.publish(published(vec![instance("b")]));
        assert_eq!(picker.pick().unwrap().instance().id().as_str(), "b");
    }

    #[test]
    fn weights_are_kept_to() {
        let three = vec![instance("a").with_weight(1), instance("b").with_weight(1), instance("c").with_weight(4)];
        let shares = shares(&mut Picker::new(source(three), Policy::Weighted, Filter::new()), 60_000);
        for (id, due) in [("a", 10_000), ("b", 10_000), ("c", 40_000)] {
            let got = shares[id];
            // Six standard deviations of a binomial share are about 700.
            assert!(got.abs_diff(due) < 800, "{id}: {got} of {due}");
        }
    }

    #[test]
    fn round_robin_visits_each_in_turn() {
        let three = vec![instance("a"), instance("b"), instance("c")];
        let shares = shares(&mut Picker::new(source(three), Policy::RoundRobin, Filter::new()), 300);
        assert!(shares.values().all(|share| *share == 100), "{shares:?}");
    }

    #[test]
    fn what_drains_or_has_another_zone_version_or_metadata_is_not_picked() {
        let all = vec![
            instance("good").with_zone("z").with_version("1").with_metadata("k", "v"),
            instance("zone").with_zone("y").with_version("1").with_metadata("k", "v"),
            instance("version").with_zone("z").with_metadata("k", "v"),
            instance("metadata").with_zone("z").with_version("1").with_metadata("k", "w"),
            instance("draining").with_zone("z").with_version("1").with_metadata("k", "v").with_health(Health::Draining),
        ];
        let filter = Filter::new().zone("z").version("1").metadata("k", "v");
        let shares = shares(&mut Picker::new(source(all), Policy::Random, filter), 100);
        assert_eq!(shares.keys().collect::<Vec<_>>(), ["good"]);
    }

    #[test]
    fn pickers_that_choose_alike_share_what_they_choose_from() {
        let cell = source(vec![instance("a"), instance("b")]);
        let zone = Filter::new().zone("z");
        let mut pickers = [
            Picker::new(Arc::clone(&cell), Policy::ConsistentHash, Filter::new()),
            Picker::new(Arc::clone(&cell), Policy::ConsistentHash, Filter::new()),
            Picker::new(Arc::clone(&cell), Policy::RoundRobin, Filter::new()),
            Picker::new(Arc::clone(&cell), Policy::ConsistentHash, zone),
        ];
        let picked = pickers.each_mut().map(|picker| picker.pick().is_ok());
        assert_eq!(picked, [true, true, true, false]);
        let shared = |a: &Picker, b: &Picker| Arc::ptr_eq(&a.choice, &b.choice);
        let [first, second, other, elsewhere] = &mut pickers;
        assert!(shared(first, second) && !shared(first, other) && !shared(first, elsewhere));
        cell.publish(published(vec![instance("a").with_zone("z")]));
        assert!(first.pick().is_ok() && elsewhere.pick().is_ok());
        assert!(!shared(first, second), "what was there before is not given away");
        assert!(second.pick().is_ok() && shared(first, second));
        // Nobody picks from it any more, so it is not kept.
        let before = Arc::downgrade(&elsewhere.choice);
        cell.publish(published(vec![instance("a")]));
        let nobody = elsewhere.pick().unwrap_err();
        assert_eq!(nobody, PickError::Empty { listed: 1, left_out: 1 });
        assert_eq!(nobody.to_string(), "no instance can be picked: 1 listed, 1 left out by the filter");
        assert_eq!(before.strong_count(), 0);
    }

    #[test]
    fn a_removed_instance_moves_only_its_own_keys() {
        let all: Vec<_> = (0..10).map(|n| instance(&format!("i{n}"))).collect();
        let cell = source(all.clone());
        let mut picker = Picker::new(Arc::clone(&cell), Policy::ConsistentHash, Filter::new());
        let place =
            |picker: &mut Picker, key: u32| picker.pick_for(&key.to_le_bytes()).unwrap().instance().id().to_string();
        let before: Vec<_> = (0..1000).map(|key| place(&mut picker, key)).collect();
        cell.publish(published(all[1..].to_vec()));
        let after: Vec<_> = (0..1000).map(|key| place(&mut picker, key)).collect();
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        let due = before.iter().filter(|id| *id == "i0").count();
        assert_eq!(moved, due);
        assert!((30..300).contains(&due), "{due}");
    }

    #[test]
    fn a_subset_is_stable_and_has_the_size_asked_for() {
        let all: Vec<_> = (0..50).map(|n| instance(&format!("i{n}"))).collect();
        let ids = |instances: Vec<Instance>, client: &str| -> BTreeSet<String> {
            let filter = Filter::new().subset(5, client);
            let mut picker = Picker::new(source(instances), Policy::Random, filter);
            picker.candidates().unwrap().iter().map(|entry| entry.instance().id().to_string()).collect()
        };
        let first = ids(all.clone(), "me");
        assert_eq!(first.len(), 5);
        assert_eq!(first, ids(all.clone(), "me"));
        assert_ne!(first, ids(all.clone(), "you"));
        let without_one =
            all.into_iter().filter(|instance| Some(instance.id().as_str()) != first.first().map(|id| &**id));
        assert_eq!(ids(without_one.collect(), "me").intersection(&first).count(), 4);
    }
}
