//! Results of a [`Registry`](crate::Registry) that a backend creates: leases of users, and evictions.

use crate::{
    backend::session::lease_handle::LeaseHandle,
    model::{
        instance::Entry,
        revision::{LeaseId, Revision},
    },
    registration::{lease::Lease, registry::Evicted},
};

/// Creates the lease for a user from `handle`, the backend's end.
pub fn granted_lease(handle: impl LeaseHandle) -> Lease {
    Lease { handle: Box::new(handle) }
}

/// Creates the result of an eviction at the revision `removed`. `entry` is `None` if the value could not be read as an
/// instance, and `lease` if the instance was fixed.
pub fn evicted(entry: Option<Entry>, lease: Option<LeaseId>, removed: Revision) -> Evicted {
    Evicted { entry, lease, removed }
}
