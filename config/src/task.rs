//! The task of a view: it follows the store, publishes what the [`Plan`] accepts, and keeps the copy on disk.

use std::{sync::Arc, time::Duration};

use enlist::{ConfigChange, Freshness, Moment, with_causes};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, time::sleep};

use crate::{
    copy_on_disk::CopyOnDisk,
    follower::Follower,
    plan::{Decision, Known, Plan, SavedState},
    state::PublishedView,
};

/// Minimum time between two decisions. The first change is decided at once; a burst is decided as one.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Minimum time between two writes to disk.
const DISK_WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// The task of a view.
pub(crate) struct ViewTask<T> {
    pub(crate) follower: Follower,
    pub(crate) plan: Plan<T>,
    pub(crate) shared: Arc<PublishedView<T>>,
    pub(crate) disk: Option<CopyOnDisk>,
    pub(crate) known: Known,
    /// State that was taken over, and that no live watch has confirmed yet. It is not written to disk.
    pub(crate) unsaved: Option<SavedState>,
}

/// State to write to disk, with the time of its proof.
type ToDisk = Option<Arc<(SavedState, Moment)>>;

impl<T: DeserializeOwned + Send + Sync + 'static> ViewTask<T> {
    /// Follows the store without end.
    pub(crate) async fn run(mut self) {
        let (to_disk, writes) = watch::channel(None);
        let freshness = self.shared.status.borrow().state.freshness.clone();
        if let Some(freshness) = freshness.filter(Freshness::is_live) {
            self.save(&to_disk, freshness.proven());
        }
        let disk = self.disk.clone();
        tokio::select! {
            () = self.follow(&to_disk) => {}
            () = write(disk, writes) => {}
        }
    }

    async fn follow(&mut self, to_disk: &watch::Sender<ToDisk>) {
        loop {
            match self.follower.next().await {
                Ok(change) => {
                    let proven = change.freshness.is_live().then(|| change.freshness.proven());
                    self.apply(change);
                    if let Some(proven) = proven {
                        self.save(to_disk, proven);
                    }
                }
                Err(error) => self.shared.fail(error),
            }
            sleep(DEBOUNCE).await;
        }
    }

    fn apply(&mut self, change: ConfigChange) {
        let ConfigChange { snapshot, freshness, .. } = change;
        match self.plan.decide(&snapshot, &self.known) {
            Decision::Unchanged => self.shared.refresh(freshness),
            Decision::Accept(value) => {
                let revision = snapshot.revision();
                self.unsaved = self.known.copy_of(&snapshot);
                self.shared.accept(value, revision, freshness);
            }
            Decision::Reject(rejection) => self.shared.reject(rejection, freshness),
        }
        self.known = Known::Decided(snapshot);
    }

    fn save(&mut self, to_disk: &watch::Sender<ToDisk>, proven: Moment) {
        if let (Some(_), Some(state)) = (&self.disk, self.unsaved.take()) {
            to_disk.send_replace(Some(Arc::new((state, proven))));
        }
    }
}

/// Writes the latest state to disk, without end.
async fn write(disk: Option<CopyOnDisk>, mut writes: watch::Receiver<ToDisk>) {
    let Some(disk) = disk else { return std::future::pending().await };
    let mut written_before = false;
    // The sender lives as long as this future does.
    while writes.changed().await.is_ok() {
        let Some(saved) = writes.borrow_and_update().clone() else { continue };
        let first = !std::mem::replace(&mut written_before, true);
        let disk = disk.clone();
        let write = move || {
            if first {
                disk.remove_leftovers();
            }
            let (state, proven) = &*saved;
            disk.write(state, proven.elapsed())
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            tracing::warn!(cause = %with_causes(&error), "configuration not written to disk");
        }
        sleep(DISK_WRITE_INTERVAL).await;
    }
}
