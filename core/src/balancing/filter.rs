//! Filter of the instances that a picker sees.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::model::instance::Instance;

/// Filter of the instances that a picker sees. The default sees all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    zone: Option<String>,
    version: Option<String>,
    metadata: BTreeMap<String, String>,
    pub(super) subset: Option<(usize, u64)>,
}

impl Filter {
    /// A filter that lets everything through.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only instances in this zone.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Only instances of this version.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Only instances with this metadata.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Only `size` of the instances. The same `client` always gets the same ones, and few of them change when the
    /// set changes (rendezvous hashing).
    #[must_use]
    pub fn subset(mut self, size: usize, client: &str) -> Self {
        self.subset = Some((size, xxh3_64(client.as_bytes())));
        self
    }

    pub(super) fn lets_through(&self, instance: &Instance) -> bool {
        instance.takes_calls() && self.asks_for(instance)
    }

    fn asks_for(&self, instance: &Instance) -> bool {
        let Self { zone, version, metadata, subset: _ } = self;
        let wanted = |want: &Option<String>, have: Option<&str>| want.is_none() || want.as_deref() == have;
        wanted(zone, instance.zone())
            && wanted(version, instance.version())
            && metadata.iter().all(|(key, value)| instance.metadata().get(key) == Some(value))
    }

    /// Returns `true` for an instance that takes calls but has a zone, version or metadata other than the filter
    /// requires.
    pub fn leaves_out(&self, instance: &Instance) -> bool {
        instance.takes_calls() && !self.asks_for(instance)
    }
}
