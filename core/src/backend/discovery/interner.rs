//! Sharing of equal values between instances, to save memory.

use std::{collections::HashSet, hash::Hash, sync::Arc};

use crate::model::instance::{Instance, Metadata};

/// Maximum number of different values of each kind; beyond it, the interner is cleared.
const MAX_INTERNED: usize = 4096;

/// Maximum bytes of the values of each kind; beyond it, the interner is cleared. Values are kept after their instances
/// are gone.
const MAX_INTERNED_BYTES: usize = 1 << 20;

/// Maximum bytes of a stored value. A longer one is shared with the next instance only, because a few of them would
/// displace all others.
const MAX_INTERNED_VALUE: usize = MAX_INTERNED_BYTES / 16;

/// Shares equal versions, zones and metadata between instances. A service has few different ones.
#[derive(Debug, Default)]
pub struct Interner {
    versions: Known<str>,
    zones: Known<str>,
    metadata: Known<Metadata>,
}

impl Interner {
    /// Replaces the values of `instance` by equal known ones.
    pub fn share(&mut self, instance: &mut Instance) {
        let Instance { version, zone, metadata, .. } = instance;
        self.versions.share(version);
        self.zones.share(zone);
        self.metadata.share(metadata);
    }
}

/// Size of a value, in bytes.
trait Size {
    fn bytes(&self) -> usize;
}

impl Size for str {
    fn bytes(&self) -> usize {
        self.len()
    }
}

impl Size for Metadata {
    fn bytes(&self) -> usize {
        let entry = size_of::<(String, String)>();
        self.iter().map(|(key, value)| entry + key.len() + value.len()).sum()
    }
}

#[derive(Debug)]
struct Known<T: ?Sized> {
    all: HashSet<Arc<T>>,
    /// Total bytes of the values.
    bytes: usize,
    /// The value used last, because the next one is usually the same.
    last: Option<Arc<T>>,
}

impl<T: ?Sized> Default for Known<T> {
    fn default() -> Self {
        Self { all: HashSet::new(), bytes: 0, last: None }
    }
}

impl<T: ?Sized + Eq + Hash + Size> Known<T> {
    fn share(&mut self, value: &mut Option<Arc<T>>) {
        let Some(value) = value else { return };
        if self.last.as_ref().is_none_or(|last| last != value) {
            self.last = Some(self.known(value));
        }
        if let Some(last) = self.last.as_ref().filter(|last| !Arc::ptr_eq(last, value)) {
            *value = Arc::clone(last);
        }
    }

    fn known(&mut self, value: &Arc<T>) -> Arc<T> {
        let bytes = value.bytes();
        if bytes > MAX_INTERNED_VALUE {
            return Arc::clone(value);
        }
        if let Some(known) = self.all.get(value) {
            return Arc::clone(known);
        }
        if self.all.len() >= MAX_INTERNED || self.bytes + bytes > MAX_INTERNED_BYTES {
            self.all.clear();
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.all.insert(Arc::clone(value));
        Arc::clone(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, InstanceId};

    fn instance() -> Instance {
        Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap()
    }

    #[test]
    fn equal_values_are_shared() {
        let mut interner = Interner::default();
        let mut pair =
            [instance(), instance()].map(|instance| instance.with_zone("z").with_version("1").with_metadata("k", "v"));
        let before = pair.clone();
        for instance in &mut pair {
            interner.share(instance);
        }
        assert_eq!(pair, before);
        let [a, b] = &pair;
        assert!(std::ptr::eq(a.zone().unwrap(), b.zone().unwrap()) && std::ptr::eq(a.metadata(), b.metadata()));
        let changed = b.clone().with_metadata("k", "w");
        assert_eq!((a.metadata()["k"].as_str(), changed.metadata()["k"].as_str()), ("v", "w"));
    }

    /// The memory for values of instances that are gone is bounded, whatever their length.
    #[test]
    fn an_interner_keeps_a_bounded_number_of_bytes() {
        let mut interner = Interner::default();
        let mut kept = Vec::new();
        let long = |number: usize, bytes: usize| format!("{number} {}", "x".repeat(bytes));
        for number in 0..600 {
            // Short values among long ones, some of them too long to be stored.
            let bytes = [10, 2_000, 20_000, 400_000][number % 4];
            let text = long(number, bytes);
            let mut instance = instance().with_version(&text).with_zone(&text).with_metadata("k", text);
            interner.share(&mut instance);
            kept.push((Arc::downgrade(instance.version.as_ref().unwrap()), bytes));
            kept.push((Arc::downgrade(instance.zone.as_ref().unwrap()), bytes));
            let metadata = Arc::downgrade(instance.metadata.as_ref().unwrap());
            assert!(metadata.upgrade().is_some());
            drop(instance);
            kept.retain(|(text, _)| text.strong_count() > 0);
            let alive: usize = kept.iter().map(|(_, bytes)| bytes).sum();
            assert!(alive <= 4 << 20, "{alive} bytes after {number} instances");
        }
    }
}
