//! Options of a pool of clients.

use crate::balancing::{ejection::Ejection, filter::Filter};

/// Options of a pool. The defaults are those of the gRPC channel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PoolOptions {
    /// Filter of the instances that are called; [`Filter::subset`] limits their number. Default: all. Instances that
    /// drain, do not serve or have weight 0 are never called.
    pub filter: Filter,
    /// The preferred zone. While more than 71 % of its weight is not ejected, all calls stay there. Below that, calls
    /// go to other zones in proportion. Default: none.
    pub zone: Option<String>,
    /// Rule for ejecting an instance after failed calls in a row; `None` for never. Default: [`Ejection::new`].
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

    /// Sets the filter of the instances that are called.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Sets the preferred zone.
    #[must_use]
    pub fn prefer_zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets the rule for ejecting an instance after failed calls in a row.
    #[must_use]
    pub fn ejection(mut self, ejection: Option<Ejection>) -> Self {
        self.ejection = ejection;
        self
    }
}
