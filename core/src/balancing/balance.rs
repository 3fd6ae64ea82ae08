//! For balancers: selection among working candidates, near ones first. [`Pool`](crate::Pool) and the gRPC channel use
//! it; each determines its own candidates and their readiness.

#[doc(inline)]
pub use super::{
    alias_table::AliasTable,
    ejection::{Ejected, EjectionTimes, Ejections},
    hash_ring::HashRing,
};

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// With fewer than 1/1.4 of the local zone ready (by weight), calls begin to go to other zones, in proportion. The
/// factor is the default of Envoy's priority levels
/// (<https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority>).
const OVERPROVISIONING: f64 = 1.4;

/// Number of draws before all members are checked.
const DRAWS: usize = 4;

/// Policy by which one of several candidates is selected, except by key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SelectionPolicy {
    /// Two different members are drawn by weight; the one with fewer calls in flight per weight is selected.
    LeastLoaded,
    /// At random, in proportion to the weights.
    Weighted,
    /// One after the other, whatever the weights.
    RoundRobin,
    /// Evenly at random, whatever the weights.
    Random,
}

/// A candidate. Implemented by balancers for the targets of their calls.
pub trait Selectable {
    /// Calls that have not ended.
    fn in_flight(&self) -> usize;

    /// Returns `true` if the candidate still works; it did when the set was built.
    fn is_ready(&self) -> bool;
}

impl<T: Selectable + ?Sized> Selectable for Arc<T> {
    fn in_flight(&self) -> usize {
        (**self).in_flight()
    }

    fn is_ready(&self) -> bool {
        (**self).is_ready()
    }
}

/// Candidates that are equally near.
#[derive(Debug)]
pub struct Group<T> {
    members: Vec<T>,
    alias_table: AliasTable,
    ring: Option<HashRing>,
}

impl<T> Default for Group<T> {
    fn default() -> Self {
        Self { members: Vec::new(), alias_table: AliasTable::default(), ring: None }
    }
}

impl<T: Selectable> Group<T> {
    /// Members with their names and weights. A pick with a key ignores the key in this group.
    pub fn new<'a>(members: impl IntoIterator<Item = (&'a str, u32, T)>) -> Self {
        let (weights, members): (Vec<_>, Vec<_>) =
            members.into_iter().map(|(_, weight, member)| (weight, member)).unzip();
        Self { members, alias_table: AliasTable::new(weights), ring: None }
    }

    /// Members that can be selected by key.
    pub fn by_key<'a>(members: impl IntoIterator<Item = (&'a str, u32, T)>) -> Self {
        let (named, members): (Vec<_>, Vec<_>) =
            members.into_iter().map(|(name, weight, member)| ((name, weight), member)).unzip();
        let ring = Some(HashRing::new(named.iter().copied()));
        Self { members, alias_table: AliasTable::new(named.iter().map(|(_, weight)| *weight)), ring }
    }

    /// Selects a member that `takes` accepts, if there is one.
    pub fn pick(&self, args: &PickArgs<'_>, takes: &impl Fn(&T) -> bool) -> Option<&T> {
        if self.members.is_empty() {
            return None;
        }
        match (args.selection, args.key, &self.ring) {
            (_, Some(key), Some(ring)) => self.first_from(ring.find(key)?, takes),
            (SelectionPolicy::LeastLoaded, ..) => self.least_loaded(takes),
            (SelectionPolicy::Weighted, ..) => self.weighted(takes),
            (SelectionPolicy::RoundRobin, ..) => self.first_from(args.turn.fetch_add(1, Ordering::Relaxed), takes),
            (SelectionPolicy::Random, ..) => self.first_from(fastrand::usize(..), takes),
        }
    }

    fn first_from(&self, start: usize, takes: &impl Fn(&T) -> bool) -> Option<&T> {
        let count = self.members.len();
        let start = start % count;
        (start..count).chain(0..start).map(|at| &self.members[at]).find(|member| takes(member))
    }

    fn least_loaded(&self, takes: &impl Fn(&T) -> bool) -> Option<&T> {
        for _ in 0..DRAWS {
            let first = self.alias_table.draw()?;
            let second = self.alias_table.draw_other(first).filter(|second| takes(&self.members[*second]));
            let first = Some(first).filter(|first| takes(&self.members[*first]));
            match (first, second) {
                (Some(first), Some(second)) => return Some(&self.members[self.lighter(first, second)]),
                (Some(only), None) | (None, Some(only)) => return Some(&self.members[only]),
                (None, None) => {}
            }
        }
        self.able(takes).reduce(|best, next| self.lighter(best, next)).map(|at| &self.members[at])
    }

    fn weighted(&self, takes: &impl Fn(&T) -> bool) -> Option<&T> {
        for _ in 0..DRAWS {
            let drawn = &self.members[self.alias_table.draw()?];
            if takes(drawn) {
                return Some(drawn);
            }
        }
        let able: Vec<_> = self.able(takes).collect();
        let weights = able.iter().map(|at| u32::try_from(self.alias_table.weight(*at)).unwrap_or(u32::MAX));
        let drawn = AliasTable::new(weights).draw()?;
        Some(&self.members[able[drawn]])
    }

    /// The positions of members that have a weight above zero and that `takes` accepts.
    fn able(&self, takes: &impl Fn(&T) -> bool) -> impl Iterator<Item = usize> {
        (0..self.members.len()).filter(move |at| self.alias_table.weight(*at) > 0 && takes(&self.members[*at]))
    }

    /// The position with fewer calls in flight per weight. Of two equal ones, such as idle ones, it is the first, which
    /// was drawn by weight.
    fn lighter(&self, first: usize, second: usize) -> usize {
        let load = |at: usize| self.members[at].in_flight() as u64;
        // first/weight ≤ second/weight, without dividing.
        let first_is_lighter =
            load(first) * self.alias_table.weight(second) <= load(second) * self.alias_table.weight(first);
        if first_is_lighter { first } else { second }
    }
}

/// Inputs of a pick other than the candidates.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "plain input of a choice")]
pub struct PickArgs<'a> {
    /// Policy of a pick without a key.
    pub selection: SelectionPolicy,
    /// Key that replaces the policy. Keys map to candidates in proportion to the weights, and a key keeps its candidate
    /// when others come and go.
    pub key: Option<&'a [u8]>,
    /// Position counter of [`SelectionPolicy::RoundRobin`].
    pub turn: &'a AtomicUsize,
}

/// Working candidates, near ones first.
#[derive(Debug)]
pub struct Ready<T> {
    near: Group<T>,
    far: Group<T>,
    /// The share of the calls that stay near, from 0 to 1.
    stay: f64,
}

impl<T> Default for Ready<T> {
    fn default() -> Self {
        Self { near: Group::default(), far: Group::default(), stay: 1.0 }
    }
}

impl<T: Selectable> Ready<T> {
    /// Candidates: `near` are the ready ones of the local zone, and `listed` is the total weight of all its listed
    /// instances.
    pub fn new(near: Group<T>, far: Group<T>, listed: u64) -> Self {
        let stay = share_that_stays(near.alias_table.total(), listed);
        Self { near, far, stay }
    }

    /// Selects a ready candidate that `tried` does not match, or else any ready candidate.
    pub fn pick(&self, args: &PickArgs<'_>, tried: impl Fn(&T) -> bool) -> Option<&T> {
        let fresh = self.pick_where(args, &|candidate| candidate.is_ready() && !tried(candidate));
        fresh.or_else(|| self.pick_where(args, &|candidate| candidate.is_ready()))
    }

    fn pick_where(&self, args: &PickArgs<'_>, takes: &impl Fn(&T) -> bool) -> Option<&T> {
        let stays = self.far.members.is_empty() || self.stay >= 1.0 || draw(args.key) < self.stay;
        let (first, then) = if stays { (&self.near, &self.far) } else { (&self.far, &self.near) };
        first.pick(args, takes).or_else(|| then.pick(args, takes))
    }
}

/// A number from 0 to 1. It is random without a key and constant for a key, so a key does not alternate between zones.
fn draw(key: Option<&[u8]>) -> f64 {
    let Some(key) = key else { return fastrand::f64() };
    // The seed makes the number independent of the key's position on a ring.
    let hash = xxh3_64_with_seed(key, 1);
    #[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
    let draw = hash as f64 / u64::MAX as f64;
    draw
}

/// Share of the calls that stay in a zone in which `ready` of the weight `listed` can take calls.
fn share_that_stays(ready: u64, listed: u64) -> f64 {
    if listed == 0 {
        return 0.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
    let healthy = ready as f64 / listed as f64;
    (healthy * OVERPROVISIONING).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, collections::BTreeMap, rc::Rc};

    #[derive(Debug, Default)]
    struct Fake {
        name: &'static str,
        in_flight: Cell<usize>,
        down: Cell<bool>,
    }

    impl Selectable for Rc<Fake> {
        fn in_flight(&self) -> usize {
            self.in_flight.get()
        }

        fn is_ready(&self) -> bool {
            !self.down.get()
        }
    }

    /// Kind of pick in the tests: without a key, or by key.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum How {
        Without(SelectionPolicy),
        ByKey,
    }

    use How::{ByKey, Without};

    impl How {
        fn args<'a>(self, key: &'a [u8], turn: &'a AtomicUsize) -> PickArgs<'a> {
            match self {
                Without(selection) => PickArgs { selection, key: None, turn },
                ByKey => PickArgs { selection: SelectionPolicy::LeastLoaded, key: Some(key), turn },
            }
        }
    }

    const LEAST_LOADED: How = Without(SelectionPolicy::LeastLoaded);

    const ALL: [How; 5] = [
        LEAST_LOADED,
        Without(SelectionPolicy::Weighted),
        Without(SelectionPolicy::RoundRobin),
        Without(SelectionPolicy::Random),
        ByKey,
    ];

    fn group(how: How, members: &[(&'static str, u32)]) -> Group<Rc<Fake>> {
        let fake = |name| Rc::new(Fake { name, ..Fake::default() });
        let members = members.iter().map(|(name, weight)| (*name, *weight, fake(*name)));
        if how == ByKey { Group::by_key(members) } else { Group::new(members) }
    }

    fn member<'a>(ready: &'a Ready<Rc<Fake>>, name: &str) -> &'a Fake {
        let members = ready.near.members.iter().chain(&ready.far.members);
        members.into_iter().find(|member| member.name == name).unwrap()
    }

    fn alone(how: How, members: &[(&'static str, u32)]) -> Ready<Rc<Fake>> {
        Ready::new(Group::default(), group(how, members), 0)
    }

    const CALLS: u32 = 50_000;

    /// Number of times that each candidate is selected; `then` receives the arguments of each pick.
    fn count(ready: &Ready<Rc<Fake>>, how: How, then: impl Fn(u32, &Rc<Fake>)) -> BTreeMap<&'static str, u32> {
        let (turn, mut counted) = (AtomicUsize::new(0), BTreeMap::new());
        for call in 0..CALLS {
            let key = call.to_le_bytes();
            let chosen = ready.pick(&how.args(&key, &turn), |_| false).unwrap();
            *counted.entry(chosen.name).or_default() += 1;
            then(call, chosen);
        }
        counted
    }

    /// Weights 1 : 1 : 4 over 50,000 calls. A binomial share has a standard deviation of at most 112 here, so 700 is
    /// above six of them. The shares of a ring are themselves within about 10 % of the exact ones.
    #[test]
    fn each_policy_keeps_to_its_shares() {
        let (even, weighted) = ([16_667, 16_667, 16_667], [8_333, 8_333, 33_333]);
        let due = [(weighted, 700), (weighted, 700), (even, 1), (even, 700), (weighted, 3_000)];
        for (how, (due, tolerance)) in ALL.into_iter().zip(due) {
            let counted = count(&alone(how, &[("a", 1), ("b", 1), ("c", 4)]), how, |_, _| {});
            for (name, due) in ["a", "b", "c"].into_iter().zip(due) {
                assert!(counted[name].abs_diff(due) <= tolerance, "{how:?}: {counted:?}");
            }
        }
    }

    #[test]
    fn under_load_the_calls_in_flight_keep_to_the_weights() {
        let ready = alone(LEAST_LOADED, &[("a", 1), ("b", 1), ("c", 4)]);
        // No call ever ends, so selected candidates stay in flight.
        let counted = count(&ready, LEAST_LOADED, |_, chosen| chosen.in_flight.set(chosen.in_flight.get() + 1));
        for (name, due) in [("a", 8_333_u32), ("b", 8_333), ("c", 33_333)] {
            assert!(counted[name].abs_diff(due) <= 300, "{counted:?}");
        }
    }

    #[test]
    fn a_slow_one_gets_less() {
        let ready = alone(LEAST_LOADED, &[("slow", 1), ("b", 1), ("c", 1)]);
        member(&ready, "slow").in_flight.set(20);
        assert_eq!(count(&ready, LEAST_LOADED, |_, _| {}).get("slow"), None);
    }

    #[test]
    fn what_went_down_since_the_set_was_made_is_not_chosen() {
        for how in ALL {
            let ready = alone(how, &[("a", 100), ("b", 1), ("c", 1)]);
            member(&ready, "a").down.set(true);
            assert_eq!(count(&ready, how, |_, _| {}).get("a"), None, "{how:?}");
        }
    }

    #[test]
    fn what_was_tried_is_chosen_only_if_nothing_else_works() {
        for how in ALL {
            let (ready, turn) = (alone(how, &[("a", 100), ("b", 1)]), AtomicUsize::new(0));
            let args = how.args(b"key", &turn);
            for _ in 0..1000 {
                assert_eq!(ready.pick(&args, |tried| tried.name == "a").unwrap().name, "b");
            }
            assert!(ready.pick(&args, |_| true).is_some());
            for name in ["a", "b"] {
                member(&ready, name).down.set(true);
            }
            assert!(ready.pick(&args, |_| false).is_none(), "{how:?}");
        }
    }

    #[test]
    fn a_zone_spills_over_in_proportion_to_what_it_lost() {
        assert!((share_that_stays(10, 10) - 1.0).abs() < 1e-9);
        assert!((share_that_stays(8, 10) - 1.0).abs() < 1e-9);
        assert!((share_that_stays(5, 10) - 0.7).abs() < 1e-9);
        assert!(share_that_stays(0, 10) < 1e-9 && share_that_stays(0, 0) < 1e-9);

        let zone = |ready: &[(&'static str, u32)]| {
            Ready::new(group(LEAST_LOADED, ready), group(LEAST_LOADED, &[("far", 1)]), 2)
        };
        assert_eq!(count(&zone(&[("a", 1), ("b", 1)]), LEAST_LOADED, |_, _| {}).get("far"), None);
        let half = count(&zone(&[("a", 1)]), LEAST_LOADED, |_, _| {});
        assert!(half["far"].abs_diff(15_000) < 700, "{half:?}");
        assert_eq!(count(&zone(&[]), LEAST_LOADED, |_, _| {})["far"], CALLS);
    }

    #[test]
    fn a_key_stays_in_its_zone_while_calls_spill_over() {
        let ready = Ready::new(group(ByKey, &[("a", 1)]), group(ByKey, &[("far", 1)]), 2);
        let turn = AtomicUsize::new(0);
        let owner = |key: u32| {
            let key = key.to_le_bytes();
            ready.pick(&ByKey.args(&key, &turn), |_| false).unwrap().name
        };
        let far = (0..CALLS).filter(|key| {
            let first = owner(*key);
            assert!((0..3).all(|_| owner(*key) == first), "{key}");
            first == "far"
        });
        let far = u32::try_from(far.count()).unwrap();
        assert!(far.abs_diff(15_000) < 700, "{far}");
    }

    #[test]
    fn a_lost_instance_moves_only_its_own_keys() {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|name| (name, 1));
        let (before, after) = (alone(ByKey, &names), alone(ByKey, &names[1..]));
        let turn = AtomicUsize::new(0);
        let owner = |ready: &Ready<Rc<Fake>>, key: u32| {
            let key = key.to_le_bytes();
            ready.pick(&ByKey.args(&key, &turn), |_| false).unwrap().name
        };
        let moved = (0..CALLS).filter(|key| owner(&before, *key) != owner(&after, *key));
        assert!(moved.into_iter().all(|key| owner(&before, key) == "a"));
    }
}
