//! A view of one service, from which users read and pick. See [`crate::balancing::picker`] for picking and
//! [`crate::balancing::pool`] for clients per instance.

use std::{fmt, time::Duration};

use super::{
    freshness::Freshness, publication::Publication, published_state::ViewStatus, snapshot::Snapshot,
    view_changes::ViewChanges, view_user::ViewUser,
};
use crate::{
    balancing::{filter::Filter, picker::Picker, policy::PickPolicy},
    error::Error,
    model::name::ServiceRef,
};

/// Interval at which the age of a view that is too old is checked again.
pub(crate) const FRESHNESS_RECHECK: Duration = Duration::from_millis(500);

/// A view of one service: the latest snapshot, and the candidates to pick from. It keeps its directory alive.
#[derive(Clone)]
pub struct ServiceView {
    pub(super) user: ViewUser,
}

impl ServiceView {
    /// The service.
    pub fn service(&self) -> &ServiceRef {
        &self.user.shared.service
    }

    /// Waits until the service is known, even if known to be empty, and no older than allowed.
    ///
    /// # Errors
    ///
    /// An error that will not pass by itself, such as [`Error::PermissionDenied`]. The view goes on trying, so the call
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
                // A new proof is not signalled as a change.
                _ => {
                    if let Ok(Err(_)) = tokio::time::timeout(FRESHNESS_RECHECK, status.changed()).await {
                        return Err(Error::Closed);
                    }
                }
            }
        }
    }

    /// The latest snapshot; `None` while the service is unknown. Takes no lock.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.user.shared.published.get().as_deref().map(|published| published.snapshot.clone())
    }

    /// Freshness of the snapshot; `None` while the service is unknown.
    pub fn freshness(&self) -> Option<Freshness> {
        self.user.published().get().as_deref().map(|published| published.freshness.clone())
    }

    /// The age of the snapshot, if it is above the limit in the directory's options. Takes no lock.
    pub fn too_old(&self) -> Option<Duration> {
        self.user.shared.published.get().as_deref().and_then(Publication::too_old)
    }

    /// The changes of the snapshot and its freshness, for one task. The current snapshot comes first.
    pub fn changes(&self) -> ViewChanges {
        ViewChanges::new(self.user.clone())
    }

    /// A picker for one task. The watch goes on while any picker of it lives, even if the view is dropped.
    pub fn picker(&self, policy: PickPolicy) -> Picker {
        self.picker_of(policy, Filter::new())
    }

    /// A picker that sees only the instances that `filter` accepts.
    pub fn picker_of(&self, policy: PickPolicy, filter: Filter) -> Picker {
        Picker::of_view(self.user.clone(), policy, filter)
    }
}

impl fmt::Debug for ServiceView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceView").field("snapshot", &self.snapshot()).finish_non_exhaustive()
    }
}
