//! The task behind a watch of several registries.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::select_all};

use super::{merge::merge, side::Side};
use crate::{
    backend::publisher::Publisher,
    discovery::{
        freshness::Freshness,
        resolver::{Change, Watcher},
        snapshot::Snapshot,
    },
    error::Error,
    runtime::clock::Moment,
};

/// Interval at which a merged view asks its sides for newer proofs of what they show.
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

/// Merges what the watchers of all sides tell.
pub(super) struct MergeTask {
    pub(super) sides: Vec<Side>,
    pub(super) merged: Snapshot,
    pub(super) publisher: Arc<Publisher<Snapshot>>,
}

impl MergeTask {
    pub(super) async fn run(mut self, mut watchers: Vec<Box<dyn Watcher>>) {
        let mut latest: Vec<Option<Change>> = vec![None; watchers.len()];
        loop {
            let each = watchers
                .iter_mut()
                .enumerate()
                .map(|(side, watcher)| async move { (side, watcher.next().await) }.boxed());
            // The others lose nothing: a `next` that is dropped returns the same the next time.
            let (side, next) = tokio::select! {
                (next, _, _) = select_all(each) => next,
                () = tokio::time::sleep(PROOF_INTERVAL) => {
                    self.prove(&latest);
                    continue;
                }
            };
            match next {
                Ok(change) => latest[side] = Some(change),
                Err(Error::Closed) => return self.publisher.close(),
                Err(error) => {
                    self.publisher.refuse(error);
                    continue;
                }
            }
            // Half of the picture is none.
            if let Some(all) = latest.iter().map(Option::as_ref).collect::<Option<Vec<&Change>>>() {
                self.publish(&all);
            }
        }
    }

    fn publish(&mut self, all: &[&Change]) {
        let snapshots: Vec<Snapshot> = all.iter().map(|change| change.snapshot.clone()).collect();
        merge(&self.sides, &mut self.merged, &snapshots);
        let proven = proven(all.iter().copied());
        let stale = all.iter().find_map(|change| match &change.freshness {
            Freshness::Stale { cause, .. } => Some(cause.clone()),
            _ => None,
        });
        match stale {
            Some(cause) => self.publisher.publish_stale(self.merged.clone(), proven, cause),
            None => self.publisher.publish(self.merged.clone(), proven),
        }
    }

    /// The sides prove what they told without telling it again.
    fn prove(&self, latest: &[Option<Change>]) {
        let all = latest.iter().flatten();
        if all.clone().count() == latest.len() && all.clone().all(|change| change.freshness.is_live()) {
            self.publisher.prove(proven(all));
        }
    }
}

/// The oldest proof of all.
fn proven<'a>(all: impl Iterator<Item = &'a Change>) -> Moment {
    let oldest = all.map(|change| &change.freshness).max_by_key(|freshness| freshness.age());
    oldest.map_or_else(Moment::now, Freshness::proven)
}
