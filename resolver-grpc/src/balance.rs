//! Who takes the next call: pure choices among candidates that work. The [set](crate::set) says who they are.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use enlist::{HashRing, Shares};
use http::HeaderName;

/// How a channel chooses among the instances that are ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Balance {
    /// Two different ones are drawn by weight; the one with fewer calls in flight per weight takes the call. The default.
    #[default]
    LeastLoaded,
    /// One after the other, whatever the weights.
    RoundRobin,
    /// Evenly at random, whatever the weights.
    Random,
    /// By key, in proportion to the weights: the [`HashKey`] in the request's extensions, else the value of this header. A call
    /// with neither is drawn by weight. When the set of ready instances changes, few keys change their instance.
    ConsistentHash(Option<HeaderName>),
}

/// The key of a call under [`Balance::ConsistentHash`], put into the extensions of a `tonic::Request`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashKey(pub Bytes);

/// With fewer than 1/1.4 of the local zone ready (by weight), calls begin to go to other zones, in proportion. The factor is
/// the default of Envoy's priority levels (<https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority>).
const OVERPROVISIONING: f64 = 1.4;

/// How often two are drawn before all are looked at.
const DRAWS: usize = 4;

/// What can be chosen.
pub(crate) trait Candidate {
    /// Calls that have not ended.
    fn in_flight(&self) -> usize;

    /// Whether it still works; it did when the set was made.
    fn is_ready(&self) -> bool;
}

/// Candidates that are equally near.
#[derive(Debug)]
pub(crate) struct Group<T> {
    members: Vec<T>,
    shares: Shares,
    ring: Option<HashRing>,
}

impl<T> Default for Group<T> {
    fn default() -> Self {
        Self { members: Vec::new(), shares: Shares::default(), ring: None }
    }
}

impl<T: Candidate> Group<T> {
    /// Members with their names and weights. A hash ring is made where the policy needs one.
    pub(crate) fn new<'a>(balance: &Balance, members: impl IntoIterator<Item = (&'a str, u32, T)>) -> Self {
        let (mut named, mut candidates) = (Vec::new(), Vec::new());
        for (name, weight, member) in members {
            named.push((name, weight));
            candidates.push(member);
        }
        let ring = matches!(balance, Balance::ConsistentHash(_)).then(|| HashRing::new(named.iter().copied()));
        Self { members: candidates, shares: Shares::new(named.iter().map(|(_, weight)| *weight)), ring }
    }

    fn pick(&self, choice: &Choice<'_>, takes: &impl Fn(&T) -> bool) -> Option<&T> {
        if self.members.is_empty() {
            return None;
        }
        match (choice.balance, choice.key, &self.ring) {
            (Balance::RoundRobin, ..) => self.first_from(choice.turn.fetch_add(1, Ordering::Relaxed), takes),
            (Balance::Random, ..) => self.first_from(fastrand::usize(..), takes),
            (Balance::ConsistentHash(_), Some(key), Some(ring)) => self.first_from(ring.find(key)?, takes),
            _ => self.least_loaded(takes),
        }
    }

    fn first_from(&self, start: usize, takes: &impl Fn(&T) -> bool) -> Option<&T> {
        let count = self.members.len();
        let start = start % count;
        (start..count).chain(0..start).map(|at| &self.members[at]).find(|member| takes(member))
    }

    fn least_loaded(&self, takes: &impl Fn(&T) -> bool) -> Option<&T> {
        for _ in 0..DRAWS {
            let first = self.shares.draw()?;
            let second = self.shares.draw_other(first).filter(|second| takes(&self.members[*second]));
            let first = Some(first).filter(|first| takes(&self.members[*first]));
            match (first, second) {
                (Some(first), Some(second)) => return Some(&self.members[self.lighter(first, second)]),
                (Some(only), None) | (None, Some(only)) => return Some(&self.members[only]),
                (None, None) => {}
            }
        }
        let able = (0..self.members.len()).filter(|at| self.shares.weight(*at) > 0 && takes(&self.members[*at]));
        able.reduce(|best, next| self.lighter(best, next)).map(|at| &self.members[at])
    }

    /// The one with fewer calls in flight per weight. Of two equals, as idle ones are, it is the first, which was drawn by weight.
    fn lighter(&self, first: usize, second: usize) -> usize {
        let load = |at: usize| self.members[at].in_flight() as u64;
        // first/weight ≤ second/weight, without dividing.
        let first_is_lighter = load(first) * self.shares.weight(second) <= load(second) * self.shares.weight(first);
        if first_is_lighter { first } else { second }
    }
}

/// What a choice depends on beside the candidates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<'a> {
    pub(crate) balance: &'a Balance,
    pub(crate) key: Option<&'a [u8]>,
    /// Whose turn it is.
    pub(crate) turn: &'a AtomicUsize,
}

/// The candidates of a channel, near ones first.
#[derive(Debug)]
pub(crate) struct Ready<T> {
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

impl<T: Candidate> Ready<T> {
    /// Candidates of which `near` are the ready ones of the local zone, whose listed instances weigh `listed` in all.
    pub(crate) fn new(near: Group<T>, far: Group<T>, listed: u64) -> Self {
        let stay = share_that_stays(near.shares.total(), listed);
        Self { near, far, stay }
    }

    /// Chooses one that works and is none of those that `tried` names, else one that works.
    pub(crate) fn pick(&self, choice: &Choice<'_>, tried: impl Fn(&T) -> bool) -> Option<&T> {
        let fresh = self.pick_where(choice, &|candidate| candidate.is_ready() && !tried(candidate));
        fresh.or_else(|| self.pick_where(choice, &|candidate| candidate.is_ready()))
    }

    fn pick_where(&self, choice: &Choice<'_>, takes: &impl Fn(&T) -> bool) -> Option<&T> {
        let stays = self.far.members.is_empty() || self.stay >= 1.0 || fastrand::f64() < self.stay;
        let (first, then) = if stays { (&self.near, &self.far) } else { (&self.far, &self.near) };
        first.pick(choice, takes).or_else(|| then.pick(choice, takes))
    }
}

/// The share of the calls that a zone keeps of whose weight `listed`, `ready` can take calls.
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

    impl Candidate for Rc<Fake> {
        fn in_flight(&self) -> usize {
            self.in_flight.get()
        }

        fn is_ready(&self) -> bool {
            !self.down.get()
        }
    }

    fn group(balance: &Balance, members: &[(&'static str, u32)]) -> Group<Rc<Fake>> {
        let fake = |name| Rc::new(Fake { name, ..Fake::default() });
        Group::new(balance, members.iter().map(|(name, weight)| (*name, *weight, fake(*name))))
    }

    fn member<'a>(ready: &'a Ready<Rc<Fake>>, name: &str) -> &'a Fake {
        let members = ready.near.members.iter().chain(&ready.far.members);
        members.into_iter().find(|member| member.name == name).unwrap()
    }

    fn alone(balance: &Balance, members: &[(&'static str, u32)]) -> Ready<Rc<Fake>> {
        Ready::new(Group::default(), group(balance, members), 0)
    }

    const CALLS: u32 = 50_000;

    /// How often each is chosen; `then` is told each choice.
    fn count(ready: &Ready<Rc<Fake>>, balance: &Balance, then: impl Fn(u32, &Rc<Fake>)) -> BTreeMap<&'static str, u32> {
        let (turn, mut counted) = (AtomicUsize::new(0), BTreeMap::new());
        for call in 0..CALLS {
            let key = call.to_le_bytes();
            let choice = Choice { balance, key: Some(&key), turn: &turn };
            let chosen = ready.pick(&choice, |_| false).unwrap();
            *counted.entry(chosen.name).or_default() += 1;
            then(call, chosen);
        }
        counted
    }

    /// Weights 1 : 1 : 4 over 50,000 calls. A binomial share has a standard deviation of at most 112 here, so 700 is above
    /// six of them; a ring's shares are themselves within some 10 % of what is due.
    #[test]
    fn each_policy_keeps_to_its_shares() {
        let (even, weighted) = ([16_667, 16_667, 16_667], [8_333, 8_333, 33_333]);
        for (balance, due, tolerance) in [
            (Balance::LeastLoaded, weighted, 700),
            (Balance::RoundRobin, even, 1),
            (Balance::Random, even, 700),
            (Balance::ConsistentHash(None), weighted, 3_000),
        ] {
            let counted = count(&alone(&balance, &[("a", 1), ("b", 1), ("c", 4)]), &balance, |_, _| {});
            for (name, due) in ["a", "b", "c"].into_iter().zip(due) {
                assert!(counted[name].abs_diff(due) <= tolerance, "{balance:?}: {counted:?}");
            }
        }
    }

    #[test]
    fn under_load_the_calls_in_flight_keep_to_the_weights() {
        let balance = Balance::LeastLoaded;
        let ready = alone(&balance, &[("a", 1), ("b", 1), ("c", 4)]);
        // Nothing ever ends, so what was chosen stays in flight.
        let counted = count(&ready, &balance, |_, chosen| chosen.in_flight.set(chosen.in_flight.get() + 1));
        for (name, due) in [("a", 8_333_u32), ("b", 8_333), ("c", 33_333)] {
            assert!(counted[name].abs_diff(due) <= 300, "{counted:?}");
        }
    }

    #[test]
    fn a_slow_one_gets_less() {
        let balance = Balance::LeastLoaded;
        let ready = alone(&balance, &[("slow", 1), ("b", 1), ("c", 1)]);
        member(&ready, "slow").in_flight.set(20);
        assert_eq!(count(&ready, &balance, |_, _| {}).get("slow"), None);
    }

    #[test]
    fn what_went_down_since_the_set_was_made_is_not_chosen() {
        for balance in [Balance::LeastLoaded, Balance::RoundRobin, Balance::Random, Balance::ConsistentHash(None)] {
            let ready = alone(&balance, &[("a", 100), ("b", 1), ("c", 1)]);
            member(&ready, "a").down.set(true);
            assert_eq!(count(&ready, &balance, |_, _| {}).get("a"), None, "{balance:?}");
        }
    }

    #[test]
    fn what_was_tried_is_chosen_only_if_nothing_else_works() {
        let balance = Balance::LeastLoaded;
        let (ready, turn) = (alone(&balance, &[("a", 100), ("b", 1)]), AtomicUsize::new(0));
        let choice = Choice { balance: &balance, key: None, turn: &turn };
        for _ in 0..1000 {
            assert_eq!(ready.pick(&choice, |tried| tried.name == "a").unwrap().name, "b");
        }
        assert!(ready.pick(&choice, |_| true).is_some());
        for name in ["a", "b"] {
            member(&ready, name).down.set(true);
        }
        assert!(ready.pick(&choice, |_| false).is_none());
    }

    #[test]
    fn a_zone_spills_over_in_proportion_to_what_it_lost() {
        assert!((share_that_stays(10, 10) - 1.0).abs() < 1e-9);
        assert!((share_that_stays(8, 10) - 1.0).abs() < 1e-9);
        assert!((share_that_stays(5, 10) - 0.7).abs() < 1e-9);
        assert!(share_that_stays(0, 10) < 1e-9 && share_that_stays(0, 0) < 1e-9);

        let balance = Balance::LeastLoaded;
        let zone =
            |ready: &[(&'static str, u32)]| Ready::new(group(&balance, ready), group(&balance, &[("far", 1)]), 2);
        assert_eq!(count(&zone(&[("a", 1), ("b", 1)]), &balance, |_, _| {}).get("far"), None);
        let half = count(&zone(&[("a", 1)]), &balance, |_, _| {});
        assert!(half["far"].abs_diff(15_000) < 700, "{half:?}");
        assert_eq!(count(&zone(&[]), &balance, |_, _| {})["far"], CALLS);
    }

    #[test]
    fn a_lost_instance_moves_only_its_own_keys() {
        let balance = Balance::ConsistentHash(None);
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|name| (name, 1));
        let (before, after) = (alone(&balance, &names), alone(&balance, &names[1..]));
        let turn = AtomicUsize::new(0);
        let place = |ready: &Ready<Rc<Fake>>, key: u32| {
            let key = key.to_le_bytes();
            ready.pick(&Choice { balance: &balance, key: Some(&key), turn: &turn }, |_| false).unwrap().name
        };
        let moved = (0..CALLS).filter(|key| place(&before, *key) != place(&after, *key));
        assert!(moved.into_iter().all(|key| place(&before, key) == "a"));
    }
}
