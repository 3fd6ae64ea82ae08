//! One registry of a migration.

use std::{fmt, sync::Arc};

use crate::{
    discovery::resolver::Resolver,
    model::instance::Instance,
    registration::{options::RegisterOptions, registry::Registry},
};

/// One registry of a [`Migration`](crate::Migration): a client whose layout, prefix or store differs from the others'.
#[derive(Clone)]
pub struct Side {
    pub(super) registry: Arc<dyn Registry>,
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) writes: bool,
    pub(super) default_weight: u32,
    pub(super) instances: Arc<dyn Fn(Instance) -> Instance + Send + Sync>,
    pub(super) options: Arc<dyn Fn(RegisterOptions) -> RegisterOptions + Send + Sync>,
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { registry, resolver: _, writes, default_weight, instances: _, options: _ } = self;
        let mut shown = f.debug_struct("Side");
        shown.field("registry", registry).field("writes", writes).field("default_weight", default_weight);
        shown.finish_non_exhaustive()
    }
}

impl Side {
    /// A side that is read and written, with the default weight 100.
    pub fn new<C: Registry + Resolver>(client: Arc<C>) -> Self {
        let registry = Arc::clone(&client) as Arc<dyn Registry>;
        Self {
            registry,
            resolver: client,
            writes: true,
            default_weight: crate::model::instance::DEFAULT_WEIGHT,
            instances: Arc::new(|instance| instance),
            options: Arc::new(|options| options),
        }
    }

    /// Makes the side read-only.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.writes = false;
        self
    }

    /// Sets the weight of an instance without a weight of its own. The weights of all sides are scaled by it: 10 on a
    /// side with default 10 equals 100 on a side with default 100.
    ///
    /// # Panics
    ///
    /// For 0.
    #[must_use]
    pub fn default_weight(mut self, weight: u32) -> Self {
        assert!(weight > 0, "a default weight of 0 has no proportion to any other");
        self.default_weight = weight;
        self
    }

    /// Sets the conversion of instances for a side that cannot hold all of their content. Without it such an instance
    /// is refused.
    #[must_use]
    pub fn fit(mut self, fit: impl Fn(Instance) -> Instance + Send + Sync + 'static) -> Self {
        self.instances = Arc::new(fit);
        self
    }

    /// Sets the conversion of options for this side, for instance one that removes an owner that the side cannot hold.
    #[must_use]
    pub fn fit_options(mut self, fit: impl Fn(RegisterOptions) -> RegisterOptions + Send + Sync + 'static) -> Self {
        self.options = Arc::new(fit);
        self
    }

    pub(super) fn written(&self, instance: &Instance, own_default: u32) -> Instance {
        let weight = proportion(instance.weight(), own_default, self.default_weight);
        (self.instances)(instance.clone().with_weight(weight))
    }
}

/// Converts a weight with default `from` to one with default `to`. A weight above zero stays above zero.
pub(super) fn proportion(weight: u32, from: u32, to: u32) -> u32 {
    let scaled = u64::from(weight) * u64::from(to) / u64::from(from);
    u32::try_from(scaled).unwrap_or(u32::MAX).max(u32::from(weight > 0))
}
