//! Picking one instance: each task has its own picker, so a pick takes no lock, sends nothing and allocates nothing.
//!
//! A picker keeps a dense array of the candidates and rebuilds it when the view has a newer snapshot. A candidate is
//! serving, has a weight above zero and passes the filter.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arc_swap::{ArcSwapOption, Cache};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    directory::Published,
    instance::{Entry, Health, Instance},
    shares::{HashRing, Shares},
};

/// How a picker chooses.
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

/// Which instances a picker sees. The default sees all.
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
        let Self { zone, version, metadata, subset: _ } = self;
        let wanted = |want: &Option<String>, have: Option<&str>| want.is_none() || want.as_deref() == have;
        instance.health() == Health::Serving
            && instance.weight() > 0
            && wanted(zone, instance.zone())
            && wanted(version, instance.version())
            && metadata.iter().all(|(key, value)| instance.metadata().get(key) == Some(value))
    }
}

/// Why nothing could be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoPick {
    /// The service is not known yet; wait for [`ServiceView::ready`](crate::ServiceView::ready).
    #[error("the service is not known yet")]
    Unknown,
    /// What is known is older than the directory's options allow.
    #[error("what is known is {age:?} old, which is too old")]
    TooOld {
        /// Its age.
        age: Duration,
    },
    /// The service is known and has no instance that could be picked.
    #[error("no instance can be picked, of {listed} that are listed")]
    Empty {
        /// How many there are in all.
        listed: usize,
    },
}

/// Picks instances of one service for one task.
#[derive(Debug)]
pub struct Picker {
    source: Cache<Arc<ArcSwapOption<Published>>, Option<Arc<Published>>>,
    policy: Policy,
    filter: Filter,
    /// What the fields below were built from.
    built: Option<Arc<Published>>,
    candidates: Vec<Arc<Entry>>,
    shares: Shares,
    ring: HashRing,
    next: usize,
}

impl Picker {
    pub(crate) fn new(source: Arc<ArcSwapOption<Published>>, policy: Policy, filter: Filter) -> Self {
        Self {
            source: Cache::new(source),
            policy,
            filter,
            built: None,
            candidates: Vec::new(),
            shares: Shares::default(),
            ring: HashRing::default(),
            next: fastrand::usize(..),
        }
    }

    /// Picks one instance.
    ///
    /// # Errors
    ///
    /// [`NoPick`] says whether the service is unknown or empty.
    pub fn pick(&mut self) -> Result<&Arc<Entry>, NoPick> {
        self.refresh()?;
        let count = self.candidates.len();
        let at = match self.policy {
            Policy::Random => fastrand::usize(..count),
            Policy::RoundRobin => {
                self.next = self.next.wrapping_add(1);
                self.next % count
            }
            // Candidates have weights above zero.
            Policy::Weighted | Policy::ConsistentHash => self.shares.draw().unwrap_or(0),
        };
        Ok(&self.candidates[at])
    }

    /// Picks the instance that `key` belongs to under [`Policy::ConsistentHash`]; under any other policy the key has no
    /// influence.
    ///
    /// # Errors
    ///
    /// As [`pick`](Self::pick).
    pub fn pick_for(&mut self, key: &[u8]) -> Result<&Arc<Entry>, NoPick> {
        if self.policy != Policy::ConsistentHash {
            return self.pick();
        }
        self.refresh()?;
        let at = self.ring.find(key).unwrap_or(0);
        Ok(&self.candidates[at])
    }

    /// All candidates, for callers that choose themselves.
    ///
    /// # Errors
    ///
    /// As [`pick`](Self::pick).
    pub fn candidates(&mut self) -> Result<&[Arc<Entry>], NoPick> {
        self.refresh()?;
        Ok(&self.candidates)
    }

    fn refresh(&mut self) -> Result<(), NoPick> {
        let latest = self.source.load();
        let fresh = match (latest, &self.built) {
            (Some(latest), Some(built)) => Arc::ptr_eq(latest, built),
            (None, None) => true,
            _ => false,
        };
        if !fresh {
            self.built = latest.clone();
            self.build();
        }
        match &self.built {
            None => Err(NoPick::Unknown),
            Some(published) => match published.too_old() {
                Some(age) => Err(NoPick::TooOld { age }),
                None if self.candidates.is_empty() => Err(NoPick::Empty { listed: published.snapshot.len() }),
                None => Ok(()),
            },
        }
    }

    fn build(&mut self) {
        self.candidates.clear();
        let Some(published) = &self.built else {
            return;
        };
        let entries = published.snapshot.entries();
        self.candidates.extend(entries.filter(|entry| self.filter.lets_through(entry.instance())).cloned());
        if let Some((size, client)) = self.filter.subset {
            keep_subset(&mut self.candidates, size, client);
        }
        let weights = || self.candidates.iter().map(|entry| entry.instance().weight());
        self.shares = Shares::new(weights());
        if self.policy == Policy::ConsistentHash {
            let names = self.candidates.iter().map(|entry| entry.instance().id().as_str());
            self.ring = HashRing::new(names.zip(weights()));
        }
    }
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

    fn source(instances: Vec<Instance>) -> Arc<ArcSwapOption<Published>> {
        let mut snapshot = Snapshot::empty(ServiceRef::parse("s").unwrap(), Revision::new(1), Epoch::default());
        for instance in instances {
            snapshot.insert(Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1))));
        }
        Arc::new(ArcSwapOption::from_pointee(Published::fresh(snapshot)))
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
        let unknown = Arc::new(ArcSwapOption::from(None));
        let mut picker = Picker::new(Arc::clone(&unknown), Policy::Random, Filter::new());
        assert_eq!(picker.pick().unwrap_err(), NoPick::Unknown);
        unknown.store(source(vec![instance("a").with_weight(0)]).load_full());
        assert_eq!(picker.pick().unwrap_err(), NoPick::Empty { listed: 1 });
        unknown.store(source(vec![instance("b")]).load_full());
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
    fn a_removed_instance_moves_only_its_own_keys() {
        let all: Vec<_> = (0..10).map(|n| instance(&format!("i{n}"))).collect();
        let cell = source(all.clone());
        let mut picker = Picker::new(Arc::clone(&cell), Policy::ConsistentHash, Filter::new());
        let place =
            |picker: &mut Picker, key: u32| picker.pick_for(&key.to_le_bytes()).unwrap().instance().id().to_string();
        let before: Vec<_> = (0..1000).map(|key| place(&mut picker, key)).collect();
        cell.store(source(all[1..].to_vec()).load_full());
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
