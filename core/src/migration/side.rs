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
    /// A side that is read and written, whose instances weigh 100 if they say nothing else.
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

    /// Only reads here.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.writes = false;
        self
    }

    /// The weight of an instance that says nothing about it, to which the weights of all sides are brought in
    /// proportion: 10 in a side whose default is 10 is as much as 100 in one whose default is 100.
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

    /// What is written here instead of an instance, for a side that cannot carry all of it. Without this such an
    /// instance is refused.
    #[must_use]
    pub fn fit(mut self, fit: impl Fn(Instance) -> Instance + Send + Sync + 'static) -> Self {
        self.instances = Arc::new(fit);
        self
    }

    /// The options that are used here instead of those given, for instance without an owner where that cannot be
    /// carried.
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

/// A weight out of `from` as one out of `to`. What is picked stays so.
pub(super) fn proportion(weight: u32, from: u32, to: u32) -> u32 {
    let scaled = u64::from(weight) * u64::from(to) / u64::from(from);
    u32::try_from(scaled).unwrap_or(u32::MAX).max(u32::from(weight > 0))
}
