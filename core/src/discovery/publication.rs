//! The published state of a view: the snapshot that pickers see, with its freshness.

use std::time::Duration;

use super::{freshness::Freshness, snapshot::Snapshot};

/// The published state that pickers see.
#[derive(Debug)]
pub(crate) struct Publication {
    pub(crate) snapshot: Snapshot,
    pub(super) freshness: Freshness,
    pub(super) max_age: Option<Duration>,
}

impl Publication {
    #[cfg(test)]
    pub(crate) fn fresh(snapshot: Snapshot) -> Self {
        let freshness = Freshness::Live { proof: crate::discovery::freshness::Proof::new(crate::Moment::now()) };
        Self { snapshot, freshness, max_age: None }
    }

    /// The age, if it is above the limit.
    pub(crate) fn too_old(&self) -> Option<Duration> {
        let max_age = self.max_age?;
        Some(self.freshness.age()).filter(|age| *age > max_age)
    }

    /// Returns `true` if any age is allowed.
    pub(crate) fn may_be_old(&self) -> bool {
        self.max_age.is_none()
    }
}
