//! Options of a pool of clients.

use crate::balancing::{ejection::Ejection, filter::Filter};

/// The instances that a pool calls. The defaults are those of the gRPC channel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PoolOptions {
    /// The instances that are called, and with [`Filter::subset`] how many. Default: all. Instances that drain, do not
    /// serve or have weight 0 are never called.
    pub filter: Filter,
    /// The zone whose instances are preferred. As long as more than 71 % of its weight does not rest, all calls stay
    /// there; below, they spill over to the others in proportion. Default: none.
    pub zone: Option<String>,
    /// Rule by which an instance rests that fails one call after the other; `None` for never. Default:
    /// [`Ejection::new`].
    pub ejection: Option<Ejection>,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { filter: Filter::new(), zone: None, ejection: Some(Ejection::new()) }
    }
}

impl PoolOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets which instances are called.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Sets the zone whose instances are preferred.
    #[must_use]
    pub fn prefer_zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets when an instance rests that fails one call after the other.
    #[must_use]
    pub fn ejection(mut self, ejection: Option<Ejection>) -> Self {
        self.ejection = ejection;
        self
    }
}
