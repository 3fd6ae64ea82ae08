//! Snapshots of all keys under a prefix at one revision, and the exact difference between two of them.

use std::{fmt, sync::Arc};

use crate::model::{
    keyed_snapshot::{Difference, Keyed, KeyedSnapshot},
    revision::{Epoch, LeaseId, Revision},
};

/// A key with its value. `Debug` does not show the value, which may be a secret.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RawEntry {
    /// The key.
    pub key: Arc<[u8]>,
    /// The value.
    pub value: Arc<[u8]>,
    /// Revision at which the key was created.
    pub created: Revision,
    /// Revision of its last change.
    pub modified: Revision,
    /// The lease of the key; `None` if it has none.
    pub lease: Option<LeaseId>,
}

impl RawEntry {
    /// A key without a lease, with its revisions of creation and last change.
    pub fn new(key: impl Into<Arc<[u8]>>, value: impl Into<Arc<[u8]>>, created: Revision, modified: Revision) -> Self {
        Self { key: key.into(), value: value.into(), created, modified, lease: None }
    }

    /// Returns the same entry with this lease.
    #[must_use]
    pub fn with_lease(mut self, lease: Option<LeaseId>) -> Self {
        self.lease = lease;
        self
    }
}

impl fmt::Debug for RawEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, created, modified, lease } = self;
        f.debug_struct("RawEntry")
            .field("key", &format_args!("{}", key.escape_ascii()))
            .field("bytes", &value.len())
            .field("created", created)
            .field("modified", modified)
            .field("lease", lease)
            .finish()
    }
}

impl Keyed for RawEntry {
    type Key = Arc<[u8]>;

    fn key(&self) -> &Arc<[u8]> {
        &self.key
    }
}

/// All keys under a prefix at one revision. Cheap to clone; clones share their structure.
#[derive(Clone, PartialEq)]
pub struct RawSnapshot(KeyedSnapshot<RawEntry>);

impl RawSnapshot {
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

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns `true` if there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entry of `key`.
    pub fn get(&self, key: &[u8]) -> Option<&RawEntry> {
        self.0.get(key).map(AsRef::as_ref)
    }

    /// The entries in the order of their keys, byte by byte.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<RawEntry>> {
        self.0.entries()
    }

    /// The changes that lead from `older` to this snapshot, in the order of keys.
    ///
    /// Takes time proportional to the change if both snapshots share their structure, as those of one watch do.
    pub fn diff(&self, older: &Self) -> Vec<RawEvent> {
        self.0.differences(&older.0).map(RawEvent::of).collect()
    }

    /// The events that lead from an empty snapshot to this one.
    pub fn as_added(&self) -> Vec<RawEvent> {
        self.entries().cloned().map(RawEvent::Added).collect()
    }

    /// Sets the revision and the epoch.
    pub(crate) fn advance(&mut self, revision: Revision, epoch: Epoch) {
        self.0.advance(revision, epoch);
    }

    /// Adds or replaces one entry.
    pub(crate) fn insert(&mut self, entry: RawEntry) {
        self.0.insert(entry);
    }

    /// Removes one entry.
    pub(crate) fn remove(&mut self, key: &[u8]) {
        self.0.remove(key);
    }

    /// Replaces the entries. Equal entries are left untouched, so a difference to an older snapshot stays cheap.
    pub(crate) fn patch(&mut self, entries: impl IntoIterator<Item = RawEntry>) {
        self.0.patch(entries);
    }
}

impl fmt::Debug for RawSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.show("RawSnapshot", f)
    }
}

/// One change of the keys under a prefix. It is exhaustive, because a set has no other kind of change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a set of keys changes in no other way")]
pub enum RawEvent {
    /// A new key.
    Added(Arc<RawEntry>),
    /// A changed key.
    Updated {
        /// The previous entry.
        old: Arc<RawEntry>,
        /// The new entry.
        new: Arc<RawEntry>,
    },
    /// A removed key.
    Removed(Arc<RawEntry>),
}

impl RawEvent {
    fn of(difference: Difference<RawEntry>) -> Self {
        match difference {
            Difference::Added(entry) => Self::Added(entry),
            Difference::Updated { old, new } => Self::Updated { old, new },
            Difference::Removed(entry) => Self::Removed(entry),
        }
    }

    /// The key that changed.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Added(entry) | Self::Removed(entry) | Self::Updated { new: entry, .. } => &entry.key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry(key: u8, value: u8) -> RawEntry {
        RawEntry::new([b'k', key], [value], Revision::new(1), Revision::new(1))
    }

    fn snapshot(content: &BTreeMap<u8, u8>) -> RawSnapshot {
        let mut snapshot = RawSnapshot::empty(Revision::new(1), Epoch::default());
        snapshot.patch(content.iter().map(|(key, value)| entry(*key, *value)));
        snapshot
    }

    fn replay(older: &RawSnapshot, events: Vec<RawEvent>) -> RawSnapshot {
        let mut result = older.clone();
        for event in events {
            let before = result.get(event.key()).cloned();
            match event {
                RawEvent::Added(entry) => {
                    assert_eq!(before, None);
                    result.insert((*entry).clone());
                }
                RawEvent::Updated { old, new } => {
                    assert_eq!(before.as_ref(), Some(&*old));
                    assert_ne!(old, new);
                    result.insert((*new).clone());
                }
                RawEvent::Removed(entry) => {
                    assert_eq!(before.as_ref(), Some(&*entry));
                    result.remove(&entry.key);
                }
            }
        }
        result
    }

    proptest! {
        #[test]
        fn a_raw_snapshot_plus_its_difference_is_the_newer_one(
            older in proptest::collection::btree_map(0u8..20, 0u8..3, 0..20),
            newer in proptest::collection::btree_map(0u8..20, 0u8..3, 0..20),
        ) {
            let old = snapshot(&older);
            let mut patched = old.clone();
            patched.patch(newer.iter().map(|(key, value)| entry(*key, *value)));
            prop_assert_eq!(&patched, &snapshot(&newer));
            prop_assert_eq!(replay(&old, patched.diff(&old)), patched);
        }
    }

    #[test]
    fn values_are_not_shown() {
        let secret = b"s3cret".to_vec();
        let mut snapshot = RawSnapshot::empty(Revision::new(1), Epoch::default());
        snapshot.insert(RawEntry::new(*b"k\n", secret, Revision::new(1), Revision::new(2)));
        let shown = format!("{snapshot:?} {:?}", snapshot.as_added());
        assert!(shown.contains(r"k\n") && shown.contains("bytes: 6"), "{shown}");
        assert!(!shown.contains("s3cret") && !shown.contains("115, 51"), "{shown}");
    }
}
