//! State that the follower of a scope shares with its users.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{Moment, backend::MutexExt as _};
use tokio::sync::{Notify, watch};

use super::{
    history::History,
    position::Position,
    state::{Progress, Published, RegistryState, Scope},
};
use crate::http::messages::error::ApiError;

/// Time for which a request waits for the first response of the store.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// State that a follower shares with its users.
#[derive(Debug)]
pub(crate) struct ScopeShared {
    pub(crate) scope: Scope,
    users: watch::Sender<usize>,
    /// Time at which the last user left.
    left: Mutex<Moment>,
    evicted: Notify,
    published: watch::Sender<Arc<Published>>,
    history: Mutex<History>,
}

/// A user of a scope. Its follower goes on while there is one.
#[derive(Debug)]
pub(crate) struct ScopeUser {
    shared: Arc<ScopeShared>,
}

impl ScopeShared {
    /// Creates the state of a scope that is not known yet.
    pub(crate) fn new(scope: Scope) -> Self {
        let (users, published) = (watch::Sender::new(0), watch::Sender::new(Arc::default()));
        let (left, evicted) = (Mutex::new(Moment::now()), Notify::new());
        Self { scope, users, left, evicted, published, history: Mutex::default() }
    }

    /// Publishes a state. It is kept for clients that return.
    pub(crate) fn publish(&self, published: Published) {
        if matches!(published.progress, Progress::Complete) {
            self.history.locked().push(published.position, published.state.clone());
        }
        self.published.send_replace(Arc::new(published));
    }

    /// Returns the latest state.
    pub(crate) fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published.borrow())
    }

    /// Returns `true` if the scope has a user.
    pub(crate) fn is_used(&self) -> bool {
        *self.users.borrow() > 0
    }

    /// Returns the time since the last user left; `None` while there is one.
    pub(crate) fn unused_time(&self) -> Option<Duration> {
        if self.is_used() { None } else { Some(self.left.locked().elapsed()) }
    }

    /// Ends the follower.
    pub(crate) fn evict(&self) {
        self.evicted.notify_one();
    }

    /// Waits until the follower is to end, because another scope needs its slot.
    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Waits until there was no user for this time. One that has come and left meanwhile counts.
    pub(crate) async fn unused_for(&self, idle: Duration) {
        let mut users = self.users.subscribe();
        loop {
            // The sender lives in `self`, so waiting cannot fail.
            let _ = users.wait_for(|users| *users == 0).await;
            if tokio::time::timeout(idle, users.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl ScopeUser {
    /// Creates a user.
    pub(crate) fn new(shared: &Arc<ScopeShared>) -> Self {
        shared.users.send_modify(|users| *users += 1);
        Self { shared: Arc::clone(shared) }
    }

    /// The scope.
    pub(crate) fn scope(&self) -> &Scope {
        &self.shared.scope
    }

    /// The latest state, and later ones. The latest counts as not seen.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        let mut published = self.shared.published.subscribe();
        published.mark_changed();
        published
    }

    /// Returns an earlier state; `None` if it is not kept.
    pub(crate) fn earlier(&self, position: Position) -> Option<RegistryState> {
        self.shared.history.locked().at(position)
    }

    /// Waits until the scope is completely known.
    ///
    /// # Errors
    ///
    /// The refusal of the store, or that it has not answered in time.
    pub(crate) async fn ready(&self) -> Result<Arc<Published>, ApiError> {
        let mut published = self.shared.published.subscribe();
        let decided = published.wait_for(|published| !matches!(published.progress, Progress::Loading));
        let Ok(Ok(published)) = tokio::time::timeout(READY_TIMEOUT, decided).await else {
            return Err(ApiError::not_ready());
        };
        match &published.progress {
            Progress::Refused(error) => Err(ApiError::of_store(error)),
            Progress::Loading | Progress::Complete => Ok(Arc::clone(&published)),
        }
    }
}

impl Drop for ScopeUser {
    fn drop(&mut self) {
        *self.shared.left.locked() = Moment::now();
        self.shared.users.send_modify(|users| *users -= 1);
    }
}
