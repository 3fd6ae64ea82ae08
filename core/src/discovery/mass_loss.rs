//! What a view shows of what the store lists: entries whose removal would leave it empty stay for a while.
//!
//! A store that was frozen for longer than the leases live removes every instance at the moment it thaws, and every
//! instance is back a second later. A client that emptied its view in between would fail all its calls.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::view_options::EmptyPolicy;
use crate::{
    discovery::snapshot::{Event, Snapshot},
    model::{
        instance::{Entry, Health},
        name::InstanceId,
    },
    runtime::clock::Moment,
};

/// Removals within this time count as one loss.
const LOSS_WINDOW: Duration = Duration::from_secs(2);

/// Remembers what was lost, and decides what is held.
#[derive(Debug)]
pub(super) struct MassLossProtection {
    hold: Duration,
    empty: EmptyPolicy,
    /// Removed lately without having left.
    lost: VecDeque<(Moment, Arc<Entry>)>,
    held: BTreeMap<InstanceId, (Moment, Arc<Entry>)>,
}

impl MassLossProtection {
    pub(super) fn new(hold: Duration, empty: EmptyPolicy) -> Self {
        Self { hold, empty, lost: VecDeque::new(), held: BTreeMap::new() }
    }

    /// Takes note of how the store's list became `listed`.
    pub(super) fn observe(&mut self, events: &[Event], listed: &Snapshot, now: Moment) {
        if !self.lost.is_empty() {
            // At once, so that a hundred thousand that come back together cost no more than they are.
            let back: HashSet<_> =
                events.iter().filter(|event| !matches!(event, Event::Removed(_))).map(Event::id).collect();
            self.lost.retain(|(_, lost)| !back.contains(lost.instance().id()));
        }
        for event in events {
            match event {
                Event::Added(entry) | Event::Updated { new: entry, .. } => {
                    self.held.remove(entry.instance().id());
                }
                Event::Removed(entry) => {
                    let id = entry.instance().id();
                    if !listed.departed(id) && entry.instance().health() != Health::Draining {
                        self.lost.push_back((now, Arc::clone(entry)));
                    }
                }
            }
        }
        while self.lost.front().is_some_and(|(when, _)| now.since(*when) > LOSS_WINDOW) {
            self.lost.pop_front();
        }
        if listed.is_empty() && (!self.hold.is_zero() || self.empty == EmptyPolicy::Keep) {
            // That one has left may be known only since it was the last.
            for (_, entry) in self.lost.drain(..).filter(|(_, entry)| !listed.departed(entry.instance().id())) {
                self.held.insert(entry.instance().id().clone(), (now, entry));
            }
        }
    }

    /// Snapshot that the view shows now.
    pub(super) fn shown(&mut self, listed: &Snapshot, now: Moment) -> Snapshot {
        let keeps = self.empty == EmptyPolicy::Keep && listed.is_empty();
        self.held.retain(|_, (since, _)| keeps || now.since(*since) < self.hold);
        let mut shown = listed.clone();
        for (_, entry) in self.held.values() {
            shown.insert(Arc::new(entry.held()));
        }
        shown
    }

    /// Time for which what is shown stays as it is; `None` if only the store can change it.
    pub(super) fn expires_in(&self, listed: &Snapshot, now: Moment) -> Option<Duration> {
        if self.empty == EmptyPolicy::Keep && listed.is_empty() {
            return None;
        }
        self.held.values().map(|(since, _)| self.hold.saturating_sub(now.since(*since))).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, Epoch, Instance, Presence, Revision, ServiceRef};

    fn entry(id: &str) -> Arc<Entry> {
        let id = InstanceId::parse(id).unwrap();
        let instance = Instance::new(id, [Endpoint::parse("h:1").unwrap()]).unwrap();
        Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1)))
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
                    listed.leave(&InstanceId::parse(id).unwrap());
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
    async fn a_loss_that_leaves_somebody_is_shown_at_once() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        assert_eq!(case.lose(&["a"]), all(Presence::Live, &["b"]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_loss_of_all_is_held_for_its_time() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        // One after the other, as leases run out.
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
    async fn whoever_comes_back_is_live_and_the_others_stay_held() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        case.lose(&["a", "b"]);
        let shown = case.change(|listed| listed.insert(entry("a")));
        assert_eq!(shown, [all(Presence::Live, &["a"]), all(Presence::Held, &["b"])].concat());
        pass(15).await;
        assert_eq!(case.shown(), all(Presence::Live, &["a"]));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_left_in_order_is_not_held() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        assert!(case.leave(&["a", "b"]).is_empty());
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        case.leave(&["a"]);
        assert_eq!(case.lose(&["b"]), all(Presence::Held, &["b"]));
        // The control: without a time to hold, the loss of all empties the view.
        let mut case = Case::new(&["a", "b"], 0, EmptyPolicy::Publish);
        assert!(case.lose(&["a", "b"]).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_known_to_have_left_only_later_is_not_held() {
        let mut case = Case::new(&["a", "b"], 15, EmptyPolicy::Publish);
        case.lose(&["a"]);
        let shown = case.change(|listed| {
            for id in ["a", "b"] {
                listed.leave(&InstanceId::parse(id).unwrap());
            }
        });
        assert!(shown.is_empty(), "{shown:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_ones_can_be_kept_until_there_are_others() {
        let mut case = Case::new(&["a", "b"], 1, EmptyPolicy::Keep);
        case.lose(&["a", "b"]);
        pass(3600).await;
        assert_eq!(case.shown(), all(Presence::Held, &["a", "b"]));
        assert_eq!(case.change(|listed| listed.insert(entry("c"))), all(Presence::Live, &["c"]));
    }
}
