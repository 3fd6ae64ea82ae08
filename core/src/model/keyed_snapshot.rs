//! Sets of entries at one revision, with the exact difference between two of them. The snapshots of raw keys and of
//! configuration are made of it.

use std::{borrow::Borrow, fmt, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};

use crate::model::revision::{Epoch, Revision};

/// Entry of a [`KeyedSnapshot`].
pub(crate) trait Keyed: PartialEq {
    /// Type of its key.
    type Key: Ord + Clone;

    /// Its key.
    fn key(&self) -> &Self::Key;
}

/// Entries by key at one revision. Cheap to clone; clones share their structure.
pub(crate) struct KeyedSnapshot<E: Keyed> {
    revision: Revision,
    epoch: Epoch,
    entries: OrdMap<E::Key, Arc<E>>,
}

/// One change of a set of entries.
pub(crate) enum Difference<E> {
    Added(Arc<E>),
    Updated { old: Arc<E>, new: Arc<E> },
    Removed(Arc<E>),
}

impl<E: Keyed> KeyedSnapshot<E> {
    /// An empty snapshot at `revision`.
    pub(crate) fn empty(revision: Revision, epoch: Epoch) -> Self {
        Self { revision, epoch, entries: OrdMap::new() }
    }

    /// Revision of the snapshot.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// Number of observed rollbacks of the store.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry of `key`.
    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&Arc<E>>
    where
        E::Key: Borrow<Q>,
    {
        self.entries.get(key)
    }

    /// The entries in the order of their keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Arc<E>> {
        self.entries.values()
    }

    /// The changes that lead from `older` to this snapshot, in the order of keys. Takes time proportional to the change
    /// if both snapshots share their structure.
    pub(crate) fn differences(&self, older: &Self) -> impl Iterator<Item = Difference<E>> {
        older.entries.diff(&self.entries).map(|item| match item {
            DiffItem::Add(_, entry) => Difference::Added(Arc::clone(entry)),
            DiffItem::Update { old: (_, old), new: (_, new) } => {
                Difference::Updated { old: Arc::clone(old), new: Arc::clone(new) }
            }
            DiffItem::Remove(_, entry) => Difference::Removed(Arc::clone(entry)),
        })
    }

    /// Sets the revision and the epoch.
    pub(crate) fn advance(&mut self, revision: Revision, epoch: Epoch) {
        (self.revision, self.epoch) = (revision, epoch);
    }

    /// Adds or replaces one entry.
    pub(crate) fn insert(&mut self, entry: E) {
        self.entries.insert(entry.key().clone(), Arc::new(entry));
    }

    /// Removes one entry.
    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q)
    where
        E::Key: Borrow<Q>,
    {
        self.entries.remove(key);
    }

    /// Replaces the entries. Equal entries are left untouched, so a difference to an older snapshot stays cheap.
    pub(crate) fn patch(&mut self, entries: impl IntoIterator<Item = E>) {
        let mut gone = self.entries.clone();
        for entry in entries {
            if gone.remove(entry.key()).is_none_or(|old| *old != entry) {
                self.insert(entry);
            }
        }
        for key in gone.keys() {
            self.entries.remove(key);
        }
    }
}

impl<E: Keyed> Clone for KeyedSnapshot<E> {
    fn clone(&self) -> Self {
        Self { revision: self.revision, epoch: self.epoch, entries: self.entries.clone() }
    }
}

impl<E: Keyed> PartialEq for KeyedSnapshot<E> {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision
            && self.epoch == other.epoch
            && (self.entries.ptr_eq(&other.entries) || self.entries == other.entries)
    }
}

impl<E: Keyed + fmt::Debug> KeyedSnapshot<E> {
    /// Shows the snapshot as a struct called `name`.
    pub(crate) fn show(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("revision", &self.revision)
            .field("epoch", &self.epoch)
            .field("entries", &self.entries.values().collect::<Vec<_>>())
            .finish()
    }
}
