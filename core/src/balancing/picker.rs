//! Picking of one instance. Each task has its own picker, so a pick takes no lock, sends nothing and allocates nothing.
//!
//! A picker has a dense array of the candidates, and replaces it once the view has a newer snapshot. A candidate is
//! serving, has a weight above zero and passes the filter. Pickers with the same policy and filter share one candidate
//! table, so the cost of a change does not grow with the number of tasks. The first pick after a change takes a lock
//! briefly, and rebuilds the shared candidate table or waits for that rebuild.

use std::sync::{Arc, OnceLock, atomic::Ordering};

use fastrand::Rng;

use super::{
    candidate_table::{CandidateTable, PickError, ViewCell},
    filter::Filter,
    policy::PickPolicy,
};
use crate::{discovery::view_user::ViewUser, model::instance::Entry};

/// Picks instances of one service for one task. It keeps the watch of its view running, and the directory alive.
#[derive(Debug)]
pub struct Picker {
    cell: Arc<ViewCell>,
    /// Number of publications when the table was built.
    count: u64,
    policy: PickPolicy,
    filter: Filter,
    table: Arc<OnceLock<CandidateTable>>,
    /// The table needs no check before the next publication.
    sure: bool,
    /// Position of the last pick under `RoundRobin`.
    last: usize,
    random: fastrand::Rng,
    /// Keeps the watch running that publishes to `cell`.
    _user: Option<ViewUser>,
}

impl Picker {
    pub(crate) fn new(cell: Arc<ViewCell>, policy: PickPolicy, filter: Filter) -> Self {
        Self {
            cell,
            count: 0,
            policy,
            filter,
            table: Arc::default(),
            sure: false,
            last: usize::MAX,
            random: Rng::new(),
            _user: None,
        }
    }

    /// A picker that keeps the watch of its view running.
    pub(crate) fn of_view(user: ViewUser, policy: PickPolicy, filter: Filter) -> Self {
        let cell = Arc::clone(user.published());
        Self { _user: Some(user), ..Self::new(cell, policy, filter) }
    }

    /// Number of publications when its candidate table was built.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Returns `true` if nothing was published since then.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        self.cell.count.load(Ordering::Acquire) == self.count
    }

    /// Picks one instance.
    ///
    /// # Errors
    ///
    /// [`PickError`] states the reason: the service is unknown, too old, or has no candidate.
    #[inline]
    pub fn pick(&mut self) -> Result<&Arc<Entry>, PickError> {
        if !self.is_ready() {
            self.check()?;
        }
        let CandidateTable { candidates, alias_table, .. } = built(&self.table);
        let count = candidates.len();
        let at = match self.policy {
            PickPolicy::Random => self.random.usize(..count),
            PickPolicy::RoundRobin => {
                // A division would be slow.
                self.last = if self.last + 1 < count { self.last + 1 } else { 0 };
                self.last
            }
            // Candidates have weights above zero.
            PickPolicy::Weighted | PickPolicy::ConsistentHash => alias_table.drawn(self.random.u64(..)).unwrap_or(0),
        };
        Ok(&candidates[at])
    }

    /// Picks the instance that `key` belongs to under [`PickPolicy::ConsistentHash`]; under any other policy the key
    /// has no influence.
    ///
    /// # Errors
    ///
    /// As [`pick`](Self::pick).
    #[inline]
    pub fn pick_for(&mut self, key: &[u8]) -> Result<&Arc<Entry>, PickError> {
        if self.policy != PickPolicy::ConsistentHash {
            return self.pick();
        }
        if !self.is_ready() {
            self.check()?;
        }
        let CandidateTable { candidates, ring, .. } = built(&self.table);
        Ok(&candidates[ring.find(key).unwrap_or(0)])
    }

    /// All candidates, for callers with their own selection.
    ///
    /// # Errors
    ///
    /// As [`pick`](Self::pick).
    pub fn candidates(&mut self) -> Result<&[Arc<Entry>], PickError> {
        if !self.is_ready() {
            self.check()?;
        }
        Ok(&built(&self.table).candidates)
    }

    /// Returns `true` if the table is the latest and can be picked from.
    #[inline]
    fn is_ready(&self) -> bool {
        self.sure && self.is_current()
    }

    #[cold]
    fn check(&mut self) -> Result<(), PickError> {
        if !self.is_current() {
            (self.table, self.count) = self.cell.table(self.policy, &self.filter, built(&self.table));
            let table = built(&self.table);
            self.sure = table.is_sure();
            if self.last >= table.candidates.len() {
                self.last = self.random.usize(..table.candidates.len().max(1));
            }
        }
        built(&self.table).check()
    }
}

/// The built candidate table; an empty one before the first pick.
#[inline]
fn built(table: &OnceLock<CandidateTable>) -> &CandidateTable {
    table.get_or_init(CandidateTable::default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Endpoint, Epoch, Health, Instance, InstanceId, Revision, ServiceRef, Snapshot,
        discovery::publication::Publication,
    };
    use std::collections::{BTreeSet, HashMap};

    fn instance(id: &str) -> Instance {
        Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap()
    }

    fn published(instances: Vec<Instance>) -> Arc<Publication> {
        let mut snapshot = Snapshot::empty(ServiceRef::parse("s").unwrap(), Revision::new(1), Epoch::default());
        for instance in instances {
            snapshot.insert(Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1))));
        }
        Arc::new(Publication::fresh(snapshot))
    }

    fn cell(instances: Vec<Instance>) -> Arc<ViewCell> {
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
    fn unknown_differs_from_empty() {
        let unknown = Arc::new(ViewCell::default());
        let mut picker = Picker::new(Arc::clone(&unknown), PickPolicy::Random, Filter::new());
        assert_eq!(picker.pick().unwrap_err(), PickError::Unknown);
        unknown.publish(published(vec![instance("a").with_weight(0)]));
        assert_eq!(picker.pick().unwrap_err(), PickError::Empty { listed: 1, left_out: 0 });
        unknown.publish(published(vec![instance("b")]));
        assert_eq!(picker.pick().unwrap().instance().id().as_str(), "b");
    }

    #[test]
    fn weights_are_kept_to() {
        let three = vec![instance("a").with_weight(1), instance("b").with_weight(1), instance("c").with_weight(4)];
        let shares = shares(&mut Picker::new(cell(three), PickPolicy::Weighted, Filter::new()), 60_000);
        for (id, due) in [("a", 10_000), ("b", 10_000), ("c", 40_000)] {
            let got = shares[id];
            // Six standard deviations of a binomial share are about 700.
            assert!(got.abs_diff(due) < 800, "{id}: {got} of {due}");
        }
    }

    #[test]
    fn round_robin_visits_each_in_turn() {
        let three = vec![instance("a"), instance("b"), instance("c")];
        let shares = shares(&mut Picker::new(cell(three), PickPolicy::RoundRobin, Filter::new()), 300);
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
        let shares = shares(&mut Picker::new(cell(all), PickPolicy::Random, filter), 100);
        assert_eq!(shares.keys().collect::<Vec<_>>(), ["good"]);
    }

    #[test]
    fn pickers_that_choose_alike_share_what_they_choose_from() {
        let cell = cell(vec![instance("a"), instance("b")]);
        let zone = Filter::new().zone("z");
        let mut pickers = [
            Picker::new(Arc::clone(&cell), PickPolicy::ConsistentHash, Filter::new()),
            Picker::new(Arc::clone(&cell), PickPolicy::ConsistentHash, Filter::new()),
            Picker::new(Arc::clone(&cell), PickPolicy::RoundRobin, Filter::new()),
            Picker::new(Arc::clone(&cell), PickPolicy::ConsistentHash, zone),
        ];
        let picked = pickers.each_mut().map(|picker| picker.pick().is_ok());
        assert_eq!(picked, [true, true, true, false]);
        let shared = |a: &Picker, b: &Picker| Arc::ptr_eq(&a.table, &b.table);
        let [first, second, other, elsewhere] = &mut pickers;
        assert!(shared(first, second) && !shared(first, other) && !shared(first, elsewhere));
        cell.publish(published(vec![instance("a").with_zone("z")]));
        assert!(first.pick().is_ok() && elsewhere.pick().is_ok());
        assert!(!shared(first, second), "what was there before is not given away");
        assert!(second.pick().is_ok() && shared(first, second));
        // No picker uses the table any more, so it is not kept.
        let before = Arc::downgrade(&elsewhere.table);
        cell.publish(published(vec![instance("a")]));
        let nobody = elsewhere.pick().unwrap_err();
        assert_eq!(nobody, PickError::Empty { listed: 1, left_out: 1 });
        assert_eq!(nobody.to_string(), "no instance can be picked: 1 listed, 1 left out by the filter");
        assert_eq!(before.strong_count(), 0);
    }

    #[test]
    fn a_removed_instance_moves_only_its_own_keys() {
        let all: Vec<_> = (0..10).map(|n| instance(&format!("i{n}"))).collect();
        let cell = cell(all.clone());
        let mut picker = Picker::new(Arc::clone(&cell), PickPolicy::ConsistentHash, Filter::new());
        let owner =
            |picker: &mut Picker, key: u32| picker.pick_for(&key.to_le_bytes()).unwrap().instance().id().to_string();
        let before: Vec<_> = (0..1000).map(|key| owner(&mut picker, key)).collect();
        cell.publish(published(all[1..].to_vec()));
        let after: Vec<_> = (0..1000).map(|key| owner(&mut picker, key)).collect();
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
            let mut picker = Picker::new(cell(instances), PickPolicy::Random, filter);
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
