//! A view of one service, from which users read and pick. See [`crate::balancing::picker`] for picking and
//! [`crate::balancing::pool`] for clients per instance.

use std::{fmt, time::Duration};

use super::{
    freshness::Freshness, publication::Publication, published_state::ViewStatus, snapshot::Snapshot,
    view_changes::ViewChanges, view_user::ViewUser,
};
use crate::{
    balancing::{filter::Filter, picker::Picker, policy::Policy},
    error::Error,
    model::name::ServiceRef,
};

/// Interval at which a picture that is too old is looked at again.
pub(crate) const FRESHNESS_RECHECK: Duration = Duration::from_millis(500);

/// A view of one service: the latest snapshot, and what to pick from. It keeps its directory alive.
#[derive(Clone)]
pub struct ServiceView {
    pub(super) user: ViewUser,
}

impl ServiceView {
    /// The service.
    pub fn service(&self) -> &ServiceRef {
        &self.user.shared.service
    }

    /// Waits until the service is known, be it known to be empty, and no older than allowed.
    ///
    /// # Errors
    ///
    /// Trouble that will not pass by itself, such as [`Error::PermissionDenied`]; the view goes on trying, so the call
    /// may be repeated. [`Error::Closed`] once the directory is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn ready(&self) -> Result<Snapshot, Error> {
        let mut status = self.user.shared.status.subscribe();
        loop {
            let known = |status: &ViewStatus| status.freshness.is_some() || status.refused.is_some() || status.closed;
            let (refused, closed) = {
                let status = status.wait_for(known).await.map_err(|_| Error::Closed)?;
                (status.refused.clone(), status.closed)
            };
            let published = Option::clone(&self.user.shared.published.get());
            match (published, refused) {
                (Some(published), _) if published.too_old().is_none() => return Ok(published.snapshot.clone()),
                (_, Some(error)) => return Err(error),
                _ if closed && !self.user.revive() => return Err(Error::Closed),
                _ if closed => {}
                // A proof comes without a change.
                _ => {
                    if let Ok(Err(_)) = tokio::time::timeout(FRESHNESS_RECHECK, status.changed()).await {
                        return Err(Error::Closed);
                    }
                }
            }
        }
    }

    /// The latest snapshot; `None` while nothing is known. Takes no lock.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.user.shared.published.get().as_deref().map(|published| published.snapshot.clone())
    }

    /// Freshness of the snapshot; `None` while nothing is known.
    pub fn freshness(&self) -> Option<Freshness> {
        self.user.published().get().as_deref().map(|published| published.freshness.clone())
    }

    /// The age of the snapshot, if it is above what the directory's options allow. Takes no lock.
    pub fn too_old(&self) -> Option<Duration> {
        self.user.shared.published.get().as_deref().and_then(Publication::too_old)
    }

    /// The changes of the snapshot and its freshness, for a task of its own: the snapshot as it is now comes first.
    pub fn changes(&self) -> ViewChanges {
        ViewChanges::new(self.user.clone())
    }

    /// A picker of its own for one task. The watch goes on for as long as a picker of it lives, also without the view.
    pub fn picker(&self, policy: Policy) -> Picker {
        self.picker_of(policy, Filter::new())
    }

    /// A picker that sees only what `filter` lets through.
    pub fn picker_of(&self, policy: Policy, filter: Filter) -> Picker {
        Picker::of_view(self.user.clone(), policy, filter)
    }
}

impl fmt::Debug for ServiceView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceView").field("snapshot", &self.snapshot()).finish_non_exhaustive()
    }
}
