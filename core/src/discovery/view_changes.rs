//! Changes of a view: each reader has its own position and receives the difference to what it has seen.

use std::fmt;

use tokio::sync::watch;

use super::{published_state::ViewStatus, view_user::ViewUser};
use crate::{
    discovery::{resolver::Change, snapshot::Snapshot},
    error::Error,
};

/// The changes of a view, for one reader. It keeps the watch of the view running, and the directory alive.
pub struct ViewChanges {
    user: ViewUser,
    status: watch::Receiver<ViewStatus>,
    seen: Option<Seen>,
}

/// State that was returned last.
struct Seen {
    snapshot: Snapshot,
    live: bool,
}

impl ViewChanges {
    pub(super) fn new(user: ViewUser) -> Self {
        let mut status = user.shared.status.subscribe();
        // The first call returns the current snapshot.
        status.mark_changed();
        Self { user, status, seen: None }
    }

    /// Returns the next change. The first is the whole current snapshot, once it is known. After that there is one
    /// change per publication: the latest snapshot and the exact difference to the one that this reader got before. A
    /// change of freshness alone has no events. A slow reader skips publications and loses no net change.
    ///
    /// # Errors
    ///
    /// Before the first snapshot: an error that will not pass by itself, such as [`Error::PermissionDenied`]. The view
    /// goes on trying, so the call may be repeated. [`Error::Closed`] once the directory is closed and the last change
    /// was returned.
    ///
    /// # Cancel safety
    ///
    /// A change that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            // The sender lives in `user`, so this cannot fail.
            let _ = self.status.changed().await;
            let ViewStatus { refused, closed, .. } = self.status.borrow_and_update().clone();
            let ended = closed && !self.user.revive();
            if ended {
                // The next call must return the end as well.
                self.status.mark_changed();
            }
            if let Some(change) = self.take() {
                return Ok(change);
            }
            match refused {
                _ if ended => return Err(Error::Closed),
                Some(error) if self.seen.is_none() => return Err(error),
                _ => {}
            }
        }
    }

    /// The published state, if it differs from the one returned last.
    fn take(&mut self) -> Option<Change> {
        let published = self.user.published().get();
        let (snapshot, freshness) =
            published.as_deref().map(|published| (&published.snapshot, &published.freshness))?;
        let live = freshness.is_live();
        let events = match &self.seen {
            None => snapshot.as_added(),
            Some(Seen { snapshot: seen, live: was_live }) => {
                let events = snapshot.diff(seen);
                let same = (seen.revision(), seen.epoch(), *was_live) == (snapshot.revision(), snapshot.epoch(), live);
                if events.is_empty() && same {
                    return None;
                }
                events
            }
        };
        self.seen = Some(Seen { snapshot: snapshot.clone(), live });
        Some(Change { snapshot: snapshot.clone(), events, freshness: freshness.clone() })
    }
}

impl fmt::Debug for ViewChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.seen.as_ref().map(|seen| &seen.snapshot);
        f.debug_struct("ViewChanges").field("seen", &seen).finish_non_exhaustive()
    }
}
