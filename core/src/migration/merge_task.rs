//! The task behind a watch of several registries.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::select_all};

use super::merge::merge;
use crate::{
    backend::publisher::Publisher,
    discovery::{
        freshness::Freshness,
        resolver::{Change, Watcher},
        snapshot::Snapshot,
    },
    error::Error,
    model::revision::{Epoch, Revision},
    runtime::clock::Moment,
};

/// Interval at which a merged view reads newer proofs from its sides.
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

/// Task behind a merged watch: publishes the merged lists of all sides.
pub(super) struct MergeTask {
    /// Default weights of the sides, see [`Side::default_weight`](super::side::Side::default_weight).
    pub(super) default_weights: Vec<u32>,
    pub(super) publisher: Arc<Publisher<Snapshot>>,
}

/// State of a merged watch.
#[derive(Debug)]
enum State {
    /// At least one side has not listed the service, so nothing is published.
    Listing { latest: Vec<Option<Change>> },
    /// All sides have listed it.
    Merged { latest: Vec<Change>, merged: Snapshot },
}

impl State {
    /// State of a watch of this number of sides.
    fn new(sides: usize) -> Self {
        Self::Listing { latest: vec![None; sides] }
    }

    /// Returns the state after a change of one side.
    fn after(self, default_weights: &[u32], side: usize, change: Change) -> Self {
        let (latest, mut merged) = match self {
            Self::Merged { mut latest, merged } => {
                latest[side] = change;
                (latest, merged)
            }
            Self::Listing { mut latest } => {
                let service = change.snapshot.service().clone();
                latest[side] = Some(change);
                if latest.iter().any(Option::is_none) {
                    return Self::Listing { latest };
                }
                let empty = Snapshot::empty(service, Revision::default(), Epoch::default());
                (latest.into_iter().flatten().collect(), empty)
            }
        };
        let snapshots: Vec<Snapshot> = latest.iter().map(|change| change.snapshot.clone()).collect();
        merge(default_weights, &mut merged, &snapshots);
        Self::Merged { latest, merged }
    }

    /// Proof of the merged list, if all sides are live. The sides renew it without a change.
    fn renewed_proof(&self) -> Option<Moment> {
        match self {
            Self::Merged { latest, .. } if latest.iter().all(|change| change.freshness.is_live()) => {
                Some(oldest_proof(latest))
            }
            _ => None,
        }
    }
}

impl MergeTask {
    pub(super) async fn run(self, mut watchers: Vec<Box<dyn Watcher>>) {
        let mut state = State::new(watchers.len());
        loop {
            let each = watchers
                .iter_mut()
                .enumerate()
                .map(|(side, watcher)| async move { (side, watcher.next().await) }.boxed());
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
                Ok(change) => {
                    state = state.after(&self.default_weights, side, change);
                    self.publish(&state);
                }
                Err(Error::Closed) => return self.publisher.close(),
                Err(error) => self.publisher.refuse(error),
            }
        }
    }

    fn publish(&self, state: &State) {
        let State::Merged { latest, merged } = state else { return };
        let proven = oldest_proof(latest);
        let cause = latest.iter().find_map(|change| match &change.freshness {
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
fn oldest_proof(latest: &[Change]) -> Moment {
    let oldest = latest.iter().map(|change| &change.freshness).max_by_key(|freshness| freshness.age());
    oldest.map_or_else(Moment::now, Freshness::proven)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, Entry, Instance, InstanceId, Proof, ServiceRef};

    fn change(id: &str, revision: u64, freshness: Freshness) -> Change {
        let service = ServiceRef::parse("s").unwrap();
        let mut snapshot = Snapshot::empty(service, Revision::new(revision), Epoch::default());
        let instance = Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse(format!("{id}:1")).unwrap()]);
        snapshot.insert(Arc::new(Entry::new(instance.unwrap(), Revision::new(1), Revision::new(1))));
        Change { snapshot, events: Vec::new(), freshness }
    }

    fn live() -> Freshness {
        Freshness::Live { proof: Proof::new(Moment::now()) }
    }

    fn merged(state: &State) -> Option<(usize, u64)> {
        match state {
            State::Merged { merged, .. } => Some((merged.len(), merged.revision().get())),
            State::Listing { .. } => None,
        }
    }

    #[test]
    fn nothing_is_merged_before_all_sides_have_listed() {
        let state = State::new(2).after(&[100, 100], 1, change("a", 7, live()));
        assert_eq!(merged(&state), None);
        let state = state.after(&[100, 100], 1, change("b", 8, live()));
        assert_eq!(merged(&state), None);
        let state = state.after(&[100, 100], 0, change("c", 3, live()));
        assert_eq!(merged(&state), Some((2, 3)), "the smallest revision, and the latest list of each side");
    }

    #[test]
    fn only_live_sides_renew_a_proof() {
        let old = Moment::ago(Duration::from_secs(60));
        let older = Freshness::Live { proof: Proof::new(old) };
        let state = State::new(2).after(&[100, 100], 0, change("a", 1, live()));
        assert!(state.renewed_proof().is_none());
        let state = state.after(&[100, 100], 1, change("b", 1, older));
        assert!(state.renewed_proof().unwrap().elapsed() >= Duration::from_secs(60));
        let outdated = Freshness::Stale { proven: old, cause: Error::Closed };
        assert!(state.after(&[100, 100], 0, change("a", 1, outdated)).renewed_proof().is_none());
    }
}
