//! The task behind a watch of several registries: of the instances of a service, or of a list of services.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{FutureExt, future::select_all};

use crate::{
    backend::discovery::publisher::Publisher,
    discovery::{
        freshness::Freshness,
        resolver::{Change, Watcher},
        service_list::{ServiceList, ServicesWatcher},
        snapshot::Snapshot,
    },
    error::Error,
    runtime::clock::Moment,
};

/// Interval at which a merged view reads newer proofs from its sides.
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

/// State of one side.
#[derive(Clone, Debug)]
pub(super) struct SideState<T> {
    value: T,
    freshness: Freshness,
}

/// Watch of one side.
#[async_trait]
pub(super) trait SideWatcher: Send {
    type Value: Clone + PartialEq + Send + Sync;

    /// Returns the next state. One that was not returned is returned by the next call.
    async fn next_state(&mut self) -> Result<SideState<Self::Value>, Error>;
}

#[async_trait]
impl SideWatcher for Box<dyn Watcher> {
    type Value = Snapshot;

    async fn next_state(&mut self) -> Result<SideState<Snapshot>, Error> {
        let Change { snapshot, freshness, .. } = self.next().await?;
        Ok(SideState { value: snapshot, freshness })
    }
}

#[async_trait]
impl SideWatcher for Box<dyn ServicesWatcher> {
    type Value = ServiceList;

    async fn next_state(&mut self) -> Result<SideState<ServiceList>, Error> {
        let change = self.next().await?;
        Ok(SideState { value: change.services, freshness: change.freshness })
    }
}

/// Merges the values of all sides. The first argument is the previous result.
pub(super) type Merge<T> = Box<dyn Fn(Option<T>, &[T]) -> T + Send>;

/// Task behind a merged watch: publishes the merged lists of all sides.
pub(super) struct MergeTask<T> {
    pub(super) merge: Merge<T>,
    pub(super) publisher: Arc<Publisher<T>>,
}

/// State of a merged watch.
#[derive(Debug)]
enum State<T> {
    /// At least one side has not listed, so nothing is published.
    Listing { latest: Vec<Option<SideState<T>>> },
    /// All sides have listed.
    Merged { latest: Vec<SideState<T>>, merged: T },
}

impl<T: Clone> State<T> {
    /// State of a watch of this number of sides.
    fn new(sides: usize) -> Self {
        Self::Listing { latest: vec![None; sides] }
    }

    /// Returns the state after a change of one side.
    fn after(self, merge: &Merge<T>, side: usize, changed: SideState<T>) -> Self {
        let (latest, merged) = match self {
            Self::Merged { mut latest, merged } => {
                latest[side] = changed;
                (latest, Some(merged))
            }
            Self::Listing { mut latest } => {
                latest[side] = Some(changed);
                if latest.iter().any(Option::is_none) {
                    return Self::Listing { latest };
                }
                (latest.into_iter().flatten().collect::<Vec<_>>(), None)
            }
        };
        let values: Vec<T> = latest.iter().map(|latest| latest.value.clone()).collect();
        Self::Merged { merged: merge(merged, &values), latest }
    }

    /// Proof of the merged list, if all sides are live. The sides renew it without a change.
    fn renewed_proof(&self) -> Option<Moment> {
        match self {
            Self::Merged { latest, .. } if latest.iter().all(|latest| latest.freshness.is_live()) => {
                Some(oldest_proof(latest))
            }
            _ => None,
        }
    }
}

impl<T: Clone + PartialEq + Send + Sync> MergeTask<T> {
    pub(super) async fn run<W: SideWatcher<Value = T>>(self, mut watchers: Vec<W>) {
        let mut state = State::new(watchers.len());
        loop {
            let each = watchers
                .iter_mut()
                .enumerate()
                .map(|(side, watcher)| async move { (side, watcher.next_state().await) }.boxed());
            // The other sides lose nothing: the change of a dropped `next` is returned by the following call.
            let (side, next) = tokio::select! {
                (next, _, _) = select_all(each) => next,
                () = tokio::time::sleep(PROOF_INTERVAL) => {
                    if let Some(proof) = state.renewed_proof() {
                        self.publisher.prove(proof);
                    }
                    continue;
                }
            };
            match next {
                Ok(changed) => {
                    state = state.after(&self.merge, side, changed);
                    self.publish(&state);
                }
                Err(Error::Closed) => return self.publisher.close(),
                Err(error) => self.publisher.refuse(error),
            }
        }
    }

    fn publish(&self, state: &State<T>) {
        let State::Merged { latest, merged } = state else { return };
        let proven = oldest_proof(latest);
        let cause = latest.iter().find_map(|latest| match &latest.freshness {
            Freshness::Stale { cause, .. } => Some(cause.clone()),
            _ => None,
        });
        match cause {
            Some(cause) => self.publisher.publish_stale(merged.clone(), proven, cause),
            None => self.publisher.publish(merged.clone(), proven),
        }
    }
}

/// Returns the oldest proof of all sides.
fn oldest_proof<T>(latest: &[SideState<T>]) -> Moment {
    let oldest = latest.iter().map(|latest| &latest.freshness).max_by_key(|freshness| freshness.age());
    oldest.map_or_else(Moment::now, Freshness::proven)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Endpoint, Entry, Epoch, Instance, InstanceId, Proof, Revision, ServiceRef, migration::merge::merge_snapshots,
    };

    fn latest(id: &str, revision: u64, freshness: Freshness) -> SideState<Snapshot> {
        let service = ServiceRef::parse("s").unwrap();
        let mut snapshot = Snapshot::empty(service, Revision::new(revision), Epoch::default());
        let instance = Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse(format!("{id}:1")).unwrap()]);
        snapshot.insert(Arc::new(Entry::new(instance.unwrap(), Revision::new(1), Revision::new(1))));
        SideState { value: snapshot, freshness }
    }

    fn merge() -> Merge<Snapshot> {
        Box::new(|before, snapshots| merge_snapshots(&[100, 100], before, snapshots))
    }

    fn live() -> Freshness {
        Freshness::Live { proof: Proof::new(Moment::now()) }
    }

    fn merged(state: &State<Snapshot>) -> Option<(usize, u64)> {
        match state {
            State::Merged { merged, .. } => Some((merged.len(), merged.revision().get())),
            State::Listing { .. } => None,
        }
    }

    #[test]
    fn nothing_is_merged_before_all_sides_have_listed() {
        let state = State::new(2).after(&merge(), 1, latest("a", 7, live()));
        assert_eq!(merged(&state), None);
        let state = state.after(&merge(), 1, latest("b", 8, live()));
        assert_eq!(merged(&state), None);
        let state = state.after(&merge(), 0, latest("c", 3, live()));
        assert_eq!(merged(&state), Some((2, 3)), "the smallest revision, and the latest list of each side");
    }

    #[test]
    fn only_live_sides_renew_a_proof() {
        let old = Moment::ago(Duration::from_secs(60));
        let older = Freshness::Live { proof: Proof::new(old) };
        let state = State::new(2).after(&merge(), 0, latest("a", 1, live()));
        assert!(state.renewed_proof().is_none());
        let state = state.after(&merge(), 1, latest("b", 1, older));
        assert!(state.renewed_proof().unwrap().elapsed() >= Duration::from_secs(60));
        let outdated = Freshness::Stale { proven: old, cause: Error::Closed };
        assert!(state.after(&merge(), 0, latest("a", 1, outdated)).renewed_proof().is_none());
    }
}
