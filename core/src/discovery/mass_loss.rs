//! Protection against mass loss: entries whose unannounced removal would leave a view without an instance that takes
//! calls stay for a grace period.
//!
//! Example: a store that was paused for longer than the TTL deletes every instance when it resumes, and all instances
//! are registered again within a second. Without the protection, every call in between would fail.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::view_options::EmptyPolicy;
use crate::{
    discovery::snapshot::{Event, Snapshot},
    model::{
        endpoint::Endpoint,
        instance::{Entry, Instance},
        name::InstanceId,
    },
    runtime::clock::Moment,
};

/// Time within which removals count as one loss.
const LOSS_WINDOW: Duration = Duration::from_secs(2);

/// Recent losses of a view, and the entries that are held because of them.
#[derive(Debug)]
pub(super) struct MassLossProtection {
    hold: Duration,
    empty: EmptyPolicy,
    /// Entries that took calls and were removed within the loss window, without a departure.
    lost: Vec<(Moment, Arc<Entry>)>,
    /// Held entries with the start of their grace period.
    held: BTreeMap<InstanceId, (Moment, Arc<Entry>)>,
}

impl MassLossProtection {
    pub(super) fn new(hold: Duration, empty: EmptyPolicy) -> Self {
        Self { hold, empty, lost: Vec::new(), held: BTreeMap::new() }
    }

    /// Records the changes that led to the list `listed`.
    pub(super) fn observe(&mut self, events: &[Event], listed: &Snapshot, now: Moment) {
        let has_removal = events.iter().any(|event| matches!(event, Event::Removed(_)));
        if self.lost.is_empty() && self.held.is_empty() && !has_removal {
            return;
        }
        let returned = Returned::of(events, self);
        self.lost.retain(|(_, lost)| !returned.contains(lost.instance()));
        self.release(&returned);
        let removed = events.iter().filter_map(|event| match event {
            Event::Removed(entry) => Some(entry),
            Event::Added(_) | Event::Updated { .. } => None,
        });
        for entry in removed {
            let instance = entry.instance();
            let left = listed.departed(instance.id()) || !instance.takes_calls();
            if !left && !returned.contains(instance) {
                self.lost.push((now, Arc::clone(entry)));
            }
        }
        self.lost.retain(|(when, _)| now.since(*when) <= LOSS_WINDOW);
        let holds = !self.hold.is_zero() || self.empty == EmptyPolicy::Keep;
        // An update begins no grace period: an instance that fails its health check may serve again at once, and those
        // that were lost before would take its calls for all that time.
        if holds && has_removal && !self.lost.is_empty() && !listed.has_callable() {
            // The departure of an entry may become known only with the last list.
            for (_, entry) in self.lost.drain(..).filter(|(_, entry)| !listed.departed(entry.instance().id())) {
                self.held.insert(entry.instance().id().clone(), (now, entry));
            }
        }
    }

    /// Ends the holding of instances that are back.
    fn release(&mut self, returned: &Returned<'_>) {
        for id in &returned.ids {
            self.held.remove(*id);
        }
        if !returned.renamed.is_empty() {
            self.held.retain(|_, (_, held)| !returned.contains(held.instance()));
        }
    }

    /// Returns the snapshot for the view: the list, and the held entries.
    pub(super) fn shown(&mut self, listed: &Snapshot, now: Moment) -> Snapshot {
        let keeps = self.keeps(listed);
        self.held.retain(|_, (since, _)| keeps || now.since(*since) < self.hold);
        let mut shown = listed.clone();
        for (_, entry) in self.held.values() {
            shown.insert(Arc::new(entry.held()));
        }
        shown
    }

    /// Time until the next grace period ends; `None` if only the store can change the view.
    pub(super) fn expires_in(&self, listed: &Snapshot, now: Moment) -> Option<Duration> {
        if self.keeps(listed) {
            return None;
        }
        self.held.values().map(|(since, _)| self.hold.saturating_sub(now.since(*since))).min()
    }

    /// Returns `true` if held entries stay until others take calls.
    fn keeps(&self, listed: &Snapshot) -> bool {
        self.empty == EmptyPolicy::Keep && !self.held.is_empty() && !listed.has_callable()
    }
}

/// Instances that are listed again.
struct Returned<'a> {
    ids: HashSet<&'a InstanceId>,
    /// Those under an id that was not lost, by their endpoints. In some layouts, a server that registers again has
    /// another id, and is the same otherwise.
    renamed: HashMap<&'a [Endpoint], Vec<&'a Instance>>,
}

impl<'a> Returned<'a> {
    fn of(events: &'a [Event], protection: &MassLossProtection) -> Self {
        let lost: HashSet<_> = protection.lost.iter().map(|(_, entry)| entry.instance().id()).collect();
        let (mut ids, mut renamed) = (HashSet::new(), HashMap::<_, Vec<_>>::new());
        for event in events {
            match event {
                Event::Added(entry) => {
                    let instance = entry.instance();
                    ids.insert(instance.id());
                    if !lost.contains(instance.id()) && !protection.held.contains_key(instance.id()) {
                        renamed.entry(instance.endpoints()).or_default().push(instance);
                    }
                }
                Event::Updated { new, .. } => drop(ids.insert(new.instance().id())),
                Event::Removed(_) => {}
            }
        }
        Self { ids, renamed }
    }

    fn contains(&self, instance: &Instance) -> bool {
        let same_endpoints = self.renamed.get(instance.endpoints()).into_iter().flatten();
        self.ids.contains(instance.id()) || same_endpoints.into_iter().any(|one| one.differs_only_by_id(instance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, Health, Presence, Revision, ServiceRef};

    fn entry(id: &str) -> Arc<Entry> {
        entry_of(id, Health::Serving)
    }

    fn entry_of(id: &str, health: Health) -> Arc<Entry> {
        let id = InstanceId::parse(id).unwrap();
        let endpoint = Endpoint::parse(format!("{id}:1")).unwrap();
        let instance = Instance::new(id, [endpoint]).unwrap().with_health(health);
        Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1)))
    }

    /// An entry of the server that has the endpoint of `other`.
    fn entry_at(id: &str, other: &str) -> Arc<Entry> {
        let id = InstanceId::parse(id).unwrap();
        let instance = Instance::new(id, [Endpoint::parse(format!("{other}:1")).unwrap()]).unwrap();
        Arc::new(Entry::new(instance, Revision::new(2), Revision::new(2)))
    }

    struct Case {
        protection: MassLossProtection,
        listed: Snapshot,
    }

    impl Case {
        fn new(ids: &[&str], hold: u64, empty: EmptyPolicy) -> Self {
            let mut listed = Snapshot::empty(ServiceRef::parse("s").unwrap(), Revision::new(1), Epoch::default());
            for id in ids {
                listed.insert(entry(id));
            }
            Self { protection: MassLossProtection::new(Duration::from_secs(hold), empty), listed }
        }

        fn change(&mut self, change: impl FnOnce(&mut Snapshot)) -> Vec<(String, Presence)> {
            let before = self.listed.clone();
            change(&mut self.listed);
            self.protection.observe(&self.listed.diff(&before), &self.listed, Moment::now());
            self.shown()
        }

        fn shown(&mut self) -> Vec<(String, Presence)> {
            let shown = self.protection.shown(&self.listed, Moment::now());
            shown.entries().map(|entry| (entry.instance().id().to_string(), entry.presence())).collect()
        }

        fn lose(&mut self, ids: &[&str]) -> Vec<(String, Presence)> {
            self.change(|listed| {
                for id in ids {
                    listed.remove(&InstanceId::parse(id).unwrap());
                }
            })
        }

        fn leave(&mut self, ids: &[&str]) -> Vec<(String, Presence)> {
            self.change(|listed| {
                for id in ids {
                    listed.depart(&InstanceId::parse(id).unwrap());
                }
            })
        }
    }

    fn all(presence: Presence, ids: &[&str]) -> Vec<(String, Presence)> {
        ids.iter().map(|id| ((*id).to_owned(), presence)).collect()
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_partial_loss_is_shown_at_once() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        assert_eq!(case.lose(&["a"]), all(Presence::Live, &["b"]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_loss_of_all_is_held_for_its_time() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        // One after the other, as leases expire.
        case.lose(&["a"]);
        pass(1).await;
        assert_eq!(case.lose(&["b"]), all(Presence::Held, &["a", "b"]));
        pass(14).await;
        assert_eq!(case.shown().len(), 2);
        assert_eq!(case.protection.expires_in(&case.listed, Moment::now()), Some(Duration::from_secs(1)));
        pass(1).await;
        assert!(case.shown().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_loss_is_not_brought_back() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        case.lose(&["a"]);
        pass(5).await;
        assert_eq!(case.lose(&["b"]), all(Presence::Held, &["b"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_returned_instance_is_live_and_the_others_stay_held() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        case.lose(&["a", "b"]);
        let shown = case.change(|listed| listed.insert(entry("a")));
        assert_eq!(shown, [all(Presence::Live, &["a"]), all(Presence::Held, &["b"])].concat());
        pass(15).await;
        assert_eq!(case.shown(), all(Presence::Live, &["a"]));
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_returns_under_another_id_is_not_held() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        case.lose(&["a", "b"]);
        let shown = case.change(|listed| listed.insert(entry_at("c", "a")));
        assert_eq!(shown, [all(Presence::Held, &["b"]), all(Presence::Live, &["c"])].concat());
        assert_eq!(case.leave(&["c"]), all(Presence::Held, &["b"]), "it left");
        // It was lost first, and returned before the others were lost.
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        case.lose(&["a"]);
        case.change(|listed| listed.insert(entry_at("c", "a")));
        case.leave(&["c"]);
        assert_eq!(case.lose(&["b"]), all(Presence::Held, &["b"]));
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_gets_another_id_is_not_lost() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        case.change(|listed| {
            listed.remove(&InstanceId::parse("a").unwrap());
            listed.insert(entry_at("c", "a"));
        });
        assert_eq!(case.lose(&["b", "c"]), all(Presence::Held, &["b", "c"]));
    }

    #[tokio::test(start_paused = true)]
    async fn others_at_the_same_address_stay_held() {
        let shard = |id: &str, shard: &str| {
            let entry = entry_at(id, "h");
            Arc::new(Entry::new(
                entry.instance().clone().with_metadata("shard", shard),
                entry.created(),
                entry.modified(),
            ))
        };
        let mut case = Case::new(&[], 15, EmptyPolicy::Publish);
        case.change(|listed| ["a", "b"].into_iter().for_each(|id| listed.insert(shard(id, id))));
        case.lose(&["a", "b"]);
        let shown = case.change(|listed| listed.insert(shard("a", "a")));
        assert_eq!(shown, [all(Presence::Live, &["a"]), all(Presence::Held, &["b"])].concat());
        // Equal ones, of which one returns under its own id.
        let mut case = Case::new(&[], 15, EmptyPolicy::Publish);
        case.change(|listed| ["a", "b"].into_iter().for_each(|id| listed.insert(shard(id, ""))));
        case.lose(&["a", "b"]);
        let shown = case.change(|listed| listed.insert(shard("a", "")));
        assert_eq!(shown, [all(Presence::Live, &["a"]), all(Presence::Held, &["b"])].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn removals_within_the_window_are_one_loss() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        case.lose(&["a"]);
        tokio::time::advance(LOSS_WINDOW).await;
        assert_eq!(case.lose(&["b"]), all(Presence::Held, &["a", "b"]));
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_back_to_drain_is_not_held() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        case.lose(&["a"]);
        case.change(|listed| listed.insert(entry_of("a", Health::Draining)));
        case.lose(&["a"]);
        assert_eq!(case.lose(&["b"]), all(Presence::Held, &["b"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_departed_instance_is_not_held() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        assert!(case.leave(&["a", "b"]).is_empty());
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        case.leave(&["a"]);
        assert_eq!(case.lose(&["b"]), all(Presence::Held, &["b"]));
        // The control: without a grace period, the loss of all empties the view.
        let mut case = Case::new(&["a", "b"], 0, EmptyPolicy::Publish);
        assert!(case.lose(&["a", "b"]).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_departure_that_becomes_known_later_is_not_held() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        case.lose(&["a"]);
        let shown = case.change(|listed| {
            for id in ["a", "b"] {
                listed.depart(&InstanceId::parse(id).unwrap());
            }
        });
        assert!(shown.is_empty(), "{shown:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_without_calls_ends_no_protection() {
        let mut case = Case::new(&["a"], 15, EmptyPolicy::Publish);
        case.change(|listed| listed.insert(entry_of("b", Health::Draining)));
        let expected = [all(Presence::Held, &["a"]), all(Presence::Live, &["b"])].concat();
        assert_eq!(case.lose(&["a"]), expected, "it was there before");
        let mut case = Case::new(&["a"], 15, EmptyPolicy::Publish);
        let shown = case.change(|listed| {
            listed.remove(&InstanceId::parse("a").unwrap());
            listed.insert(entry_of("b", Health::NotServing));
        });
        assert_eq!(shown, expected, "it is the first one after the loss of all");
        let mut case = Case::new(&["a"], 15, EmptyPolicy::Keep);
        case.lose(&["a"]);
        case.change(|listed| listed.insert(entry_of("b", Health::Draining)));
        pass(3600).await;
        assert_eq!(case.shown(), expected);
        assert_eq!(case.protection.expires_in(&case.listed, Moment::now()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_passing_failure_revives_no_lost_instance() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        case.lose(&["a"]);
        let failing = case.change(|listed| listed.insert(entry_of("b", Health::NotServing)));
        assert_eq!(failing, all(Presence::Live, &["b"]));
        assert_eq!(case.change(|listed| listed.insert(entry("b"))), all(Presence::Live, &["b"]));
        assert_eq!(case.lose(&["b"]), all(Presence::Held, &["a", "b"]), "still one loss");
    }

    #[tokio::test(start_paused = true)]
    async fn a_departure_soon_after_a_loss_is_a_part_of_it() {
        let mut case = Case::new(&["a", "b", "c"], 15, EmptyPolicy::Publish);
        case.lose(&["a", "b"]);
        assert_eq!(case.change(|listed| listed.insert(entry_of("c", Health::Draining))), all(Presence::Live, &["c"]));
        assert_eq!(case.leave(&["c"]), all(Presence::Held, &["a", "b"]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_took_no_calls_is_not_held() {
        for policy in [EmptyPolicy::Publish, EmptyPolicy::Keep] {
            let mut case = Case::new(&[], 15, policy);
            case.change(|listed| ["a", "b"].iter().for_each(|id| listed.insert(entry_of(id, Health::NotServing))));
            assert_eq!(case.lose(&["a"]), all(Presence::Live, &["b"]));
            assert!(case.lose(&["b"]).is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_instances_can_be_kept_until_others_are_listed() {
        let mut case = Case::new(&["a", "b"], 1, EmptyPolicy::Keep);
        case.lose(&["a", "b"]);
        assert_eq!(case.protection.expires_in(&case.listed, Moment::now()), None);
        pass(3600).await;
        assert_eq!(case.shown(), all(Presence::Held, &["a", "b"]));
        assert_eq!(case.change(|listed| listed.insert(entry("c"))), all(Presence::Live, &["c"]));
        let mut case = Case::new(&["a"], 15, EmptyPolicy::Keep);
        case.lose(&["a"]);
        case.change(|listed| listed.insert(entry("b")));
        pass(1).await;
        assert_eq!(case.protection.expires_in(&case.listed, Moment::now()), Some(Duration::from_secs(14)));
        let mut case = Case::new(&["a"], 0, EmptyPolicy::Keep);
        assert_eq!(case.lose(&["a"]), all(Presence::Held, &["a"]), "also without a grace period");
    }
}
