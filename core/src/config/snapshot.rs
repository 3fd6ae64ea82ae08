//! Snapshots of the values of a scope at one revision, and the exact difference between two of them. The structure is
//! that of `model/keyed_snapshot.rs`.

use std::{fmt, sync::Arc};

use crate::{
    config::path::ConfigPath,
    model::{
        keyed_snapshot::{Difference, Keyed, KeyedSnapshot},
        revision::{Epoch, Revision},
    },
};

/// A value with its path. `Debug` does not show the value, which may be a secret.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigEntry {
    /// The path.
    pub path: ConfigPath,
    /// The value.
    pub value: Arc<[u8]>,
    /// Revision at which the value was created.
    pub created: Revision,
    /// Revision of its last change.
    pub modified: Revision,
}

impl ConfigEntry {
    /// A value with its revisions of creation and last change.
    pub fn new(path: ConfigPath, value: impl Into<Arc<[u8]>>, created: Revision, modified: Revision) -> Self {
        Self { path, value: value.into(), created, modified }
    }
}

impl fmt::Debug for ConfigEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, value, created, modified } = self;
        f.debug_struct("ConfigEntry")
            .field("path", path)
            .field("bytes", &value.len())
            .field("created", created)
            .field("modified", modified)
            .finish()
    }
}

impl Keyed for ConfigEntry {
    type Key = ConfigPath;

    fn key(&self) -> &ConfigPath {
        &self.path
    }
}

/// The values of a scope at one revision. Cheap to clone; clones share their structure.
#[derive(Clone, PartialEq)]
pub struct ConfigSnapshot(KeyedSnapshot<ConfigEntry>);

impl ConfigSnapshot {
    /// An empty snapshot at `revision`.
    pub(crate) fn empty(revision: Revision, epoch: Epoch) -> Self {
        Self(KeyedSnapshot::empty(revision, epoch))
    }

    /// Revision of the snapshot.
    pub fn revision(&self) -> Revision {
        self.0.revision()
    }

    /// Number of observed rollbacks of the store. Revisions of different epochs cannot be compared.
    pub fn epoch(&self) -> Epoch {
        self.0.epoch()
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns `true` if there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entry of `path`.
    pub fn get(&self, path: &ConfigPath) -> Option<&ConfigEntry> {
        self.0.get(path).map(AsRef::as_ref)
    }

    /// The entries in the order of their paths, byte by byte.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<ConfigEntry>> {
        self.0.entries()
    }

    /// The changes that lead from `older` to this snapshot, in the order of paths.
    ///
    /// Takes time proportional to the change if both snapshots share their structure, as those of one watch do.
    pub fn diff(&self, older: &Self) -> Vec<ConfigEvent> {
        self.0.differences(&older.0).map(ConfigEvent::of).collect()
    }

    /// The events that lead from an empty snapshot to this one.
    pub fn as_added(&self) -> Vec<ConfigEvent> {
        self.entries().cloned().map(ConfigEvent::Added).collect()
    }

    /// Sets the revision and the epoch.
    pub(crate) fn advance(&mut self, revision: Revision, epoch: Epoch) {
        self.0.advance(revision, epoch);
    }

    /// Adds or replaces one entry.
    pub(crate) fn insert(&mut self, entry: ConfigEntry) {
        self.0.insert(entry);
    }

    /// Removes one entry.
    pub(crate) fn remove(&mut self, path: &ConfigPath) {
        self.0.remove(path);
    }

    /// Replaces the entries. Equal entries are left untouched, so a difference to an older snapshot stays cheap.
    pub(crate) fn patch(&mut self, entries: impl IntoIterator<Item = ConfigEntry>) {
        self.0.patch(entries);
    }
}

impl fmt::Debug for ConfigSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.show("ConfigSnapshot", f)
    }
}

/// One change of the values of a scope. It is exhaustive, because a set has no other kind of change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a set of values changes in no other way")]
pub enum ConfigEvent {
    /// A new value.
    Added(Arc<ConfigEntry>),
    /// A changed value. Its bytes may be the same, because each write is a change.
    Updated {
        /// The previous entry.
        old: Arc<ConfigEntry>,
        /// The new entry.
        new: Arc<ConfigEntry>,
    },
    /// A deleted value.
    Removed(Arc<ConfigEntry>),
}

impl ConfigEvent {
    fn of(difference: Difference<ConfigEntry>) -> Self {
        match difference {
            Difference::Added(entry) => Self::Added(entry),
            Difference::Updated { old, new } => Self::Updated { old, new },
            Difference::Removed(entry) => Self::Removed(entry),
        }
    }

    /// The path of the value that changed.
    pub fn path(&self) -> &ConfigPath {
        match self {
            Self::Added(entry) | Self::Removed(entry) | Self::Updated { new: entry, .. } => &entry.path,
        }
    }
}

/// One state of a value, present or past. `Debug` does not show the value, which may be a secret.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigVersion {
    /// The value; `None` if it was deleted.
    pub value: Option<Arc<[u8]>>,
    /// Revision at which this state began.
    pub modified: Revision,
}

impl ConfigVersion {
    /// The state that began at `modified`.
    pub fn new(value: Option<Arc<[u8]>>, modified: Revision) -> Self {
        Self { value, modified }
    }
}

impl fmt::Debug for ConfigVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, modified } = self;
        let bytes = value.as_ref().map(|value| value.len());
        f.debug_struct("ConfigVersion").field("bytes", &bytes).field("modified", modified).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry(path: u8, value: u8) -> ConfigEntry {
        let path = ConfigPath::parse(format!("k/{path}")).unwrap();
        ConfigEntry::new(path, [value], Revision::new(1), Revision::new(1))
    }

    fn snapshot(content: &BTreeMap<u8, u8>) -> ConfigSnapshot {
        let mut snapshot = ConfigSnapshot::empty(Revision::new(1), Epoch::default());
        snapshot.patch(content.iter().map(|(path, value)| entry(*path, *value)));
        snapshot
    }

    fn replay(older: &ConfigSnapshot, events: Vec<ConfigEvent>) -> ConfigSnapshot {
        let mut result = older.clone();
        for event in events {
            let before = result.get(event.path()).cloned();
            match event {
                ConfigEvent::Added(entry) => {
                    assert_eq!(before, None);
                    result.insert((*entry).clone());
                }
                ConfigEvent::Updated { old, new } => {
                    assert_eq!(before.as_ref(), Some(&*old));
                    assert_ne!(old, new);
                    result.insert((*new).clone());
                }
                ConfigEvent::Removed(entry) => {
                    assert_eq!(before.as_ref(), Some(&*entry));
                    result.remove(&entry.path);
                }
            }
        }
        result
    }

    proptest! {
        #[test]
        fn a_config_snapshot_plus_its_difference_is_the_newer_one(
            older in proptest::collection::btree_map(0u8..20, 0u8..3, 0..20),
            newer in proptest::collection::btree_map(0u8..20, 0u8..3, 0..20),
        ) {
            let old = snapshot(&older);
            let mut patched = old.clone();
            patched.patch(newer.iter().map(|(path, value)| entry(*path, *value)));
            prop_assert_eq!(&patched, &snapshot(&newer));
            prop_assert_eq!(replay(&old, patched.diff(&old)), patched);
        }
    }

    #[test]
    fn configuration_values_are_not_shown() {
        let mut snapshot = ConfigSnapshot::empty(Revision::new(1), Epoch::default());
        let path = ConfigPath::parse("db/password").unwrap();
        snapshot.insert(ConfigEntry::new(path, *b"s3cret", Revision::new(1), Revision::new(2)));
        let version = ConfigVersion::new(Some(Arc::from(&b"s3cret"[..])), Revision::new(2));
        let shown = format!("{snapshot:?} {:?} {version:?}", snapshot.as_added());
        assert!(shown.contains("db/password") && shown.contains("bytes: 6"), "{shown}");
        assert!(!shown.contains("s3cret") && !shown.contains("115, 51"), "{shown}");
    }
}
