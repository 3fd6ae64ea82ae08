//! Snapshots of all instances of a service at one revision, and the exact difference between two of them.

use std::{fmt, sync::Arc};

use imbl::{OrdMap, OrdSet, ordmap::DiffItem};

use crate::model::{
    instance::Entry,
    name::{InstanceId, ServiceRef},
    revision::{Epoch, Revision},
};

/// Maximum number of remembered departures. Evicted entries are conservatively treated as crashed.
const MAX_DEPARTED: usize = 1024;

/// All instances of a service at one revision. Cheap to clone; clones share their structure.
#[derive(Clone)]
pub struct Snapshot {
    service: ServiceRef,
    revision: Revision,
    epoch: Epoch,
    entries: OrdMap<InstanceId, Arc<Entry>>,
    /// Instances that departed and are not back.
    departed: OrdSet<InstanceId>,
}

impl Snapshot {
    /// An empty snapshot of `service` at `revision`.
    pub(crate) fn empty(service: ServiceRef, revision: Revision, epoch: Epoch) -> Self {
        Self { service, revision, epoch, entries: OrdMap::new(), departed: OrdSet::new() }
    }

    /// The service.
    pub fn service(&self) -> &ServiceRef {
        &self.service
    }

    /// Revision of the snapshot.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Number of observed rollbacks of the store. Revisions of different epochs cannot be compared.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Number of instances.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns `true` if there are no instances.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns `true` if an instance [takes calls](crate::Instance::takes_calls).
    pub fn has_callable(&self) -> bool {
        self.entries().any(|entry| entry.instance().takes_calls())
    }

    /// The entry of `id`.
    pub fn get(&self, id: &InstanceId) -> Option<&Entry> {
        self.entries.get(id).map(AsRef::as_ref)
    }

    /// The entries in the order of their ids.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    /// Returns `true` if `id` is absent because it was deregistered, removed or deleted, rather than because its lease
    /// ran out or was revoked. Without a mark for that in its layout it is known only of the last instances of a
    /// service that took calls, by a watcher that is read while their leases are alive.
    pub fn departed(&self, id: &InstanceId) -> bool {
        self.departed.contains(id)
    }

    /// The changes that lead from `older` to this snapshot, in the order of ids.
    ///
    /// Takes time proportional to the change if both snapshots share their structure, as those of one watch do.
    pub fn diff(&self, older: &Self) -> Vec<Event> {
        older
            .entries
            .diff(&self.entries)
            .map(|item| match item {
                DiffItem::Add(_, entry) => Event::Added(Arc::clone(entry)),
                DiffItem::Update { old: (_, old), new: (_, new) } => {
                    Event::Updated { old: Arc::clone(old), new: Arc::clone(new) }
                }
                DiffItem::Remove(_, entry) => Event::Removed(Arc::clone(entry)),
            })
            .collect()
    }

    /// The events that lead from an empty snapshot to this one.
    pub fn as_added(&self) -> Vec<Event> {
        self.entries().cloned().map(Event::Added).collect()
    }

    /// Sets the revision and the epoch.
    pub(crate) fn advance(&mut self, revision: Revision, epoch: Epoch) {
        self.revision = revision;
        self.epoch = epoch;
    }

    /// Adds or replaces one entry.
    pub(crate) fn insert(&mut self, entry: Arc<Entry>) {
        self.departed.remove(entry.instance().id());
        self.entries.insert(entry.instance().id().clone(), entry);
    }

    /// Removes one entry whose lease expired or was revoked.
    pub(crate) fn remove(&mut self, id: &InstanceId) {
        self.entries.remove(id);
    }

    /// Removes one entry that departed, see [`departed`](Self::departed).
    pub(crate) fn depart(&mut self, id: &InstanceId) {
        self.entries.remove(id);
        if self.departed.len() >= MAX_DEPARTED {
            self.departed.clear();
        }
        self.departed.insert(id.clone());
    }

    /// Replaces the entries. Equal entries are left untouched, so a difference to an older snapshot stays cheap.
    pub(crate) fn patch(&mut self, entries: impl IntoIterator<Item = Arc<Entry>>) {
        let mut gone = self.entries.clone();
        for entry in entries {
            let id = entry.instance().id().clone();
            let unchanged = gone.remove(&id).is_some_and(|old| old == entry);
            if !unchanged {
                self.departed.remove(&id);
                self.entries.insert(id, entry);
            }
        }
        for id in gone.keys() {
            self.entries.remove(id);
        }
    }
}

impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        self.service == other.service
            && self.revision == other.revision
            && self.epoch == other.epoch
            && (self.entries.ptr_eq(&other.entries) || self.entries == other.entries)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("service", &self.service)
            .field("revision", &self.revision)
            .field("epoch", &self.epoch)
            .field("instances", &self.entries.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// One change of a service. It is exhaustive, because a set has no other kind of change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a set of entries changes in no other way")]
pub enum Event {
    /// A new instance.
    Added(Arc<Entry>),
    /// A changed instance.
    Updated {
        /// The previous entry.
        old: Arc<Entry>,
        /// The new entry.
        new: Arc<Entry>,
    },
    /// A removed instance.
    Removed(Arc<Entry>),
}

impl Event {
    /// The id of the instance that changed.
    pub fn id(&self) -> &InstanceId {
        match self {
            Self::Added(entry) | Self::Removed(entry) | Self::Updated { new: entry, .. } => entry.instance().id(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, Instance};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry(id: u8, weight: u32) -> Arc<Entry> {
        let id = InstanceId::parse(format!("i{id}")).unwrap();
        let instance = Instance::new(id, [Endpoint::parse("h:1").unwrap()]).unwrap().with_weight(weight);
        Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1)))
    }

    fn snapshot(content: &BTreeMap<u8, u32>) -> Snapshot {
        let mut snapshot = Snapshot::empty(ServiceRef::parse("s").unwrap(), Revision::new(1), Epoch::default());
        snapshot.patch(content.iter().map(|(id, weight)| entry(*id, *weight)));
        snapshot
    }

    fn replay(older: &Snapshot, events: Vec<Event>) -> Snapshot {
        let mut result = older.clone();
        for event in events {
            match event {
                Event::Added(entry) => {
                    assert!(result.get(entry.instance().id()).is_none());
                    result.insert(entry);
                }
                Event::Updated { old, new } => {
                    assert_eq!(result.get(old.instance().id()), Some(&*old));
                    assert_ne!(old, new);
                    result.insert(new);
                }
                Event::Removed(entry) => {
                    assert_eq!(result.get(entry.instance().id()), Some(&*entry));
                    result.remove(entry.instance().id());
                }
            }
        }
        result
    }

    proptest! {
        #[test]
        fn a_snapshot_plus_its_difference_is_the_newer_one(
            older in proptest::collection::btree_map(0u8..20, 0u32..3, 0..20),
            newer in proptest::collection::btree_map(0u8..20, 0u32..3, 0..20),
        ) {
            let old = snapshot(&older);
            let mut patched = old.clone();
            patched.patch(newer.iter().map(|(id, weight)| entry(*id, *weight)));
            prop_assert_eq!(&patched, &snapshot(&newer));
            prop_assert_eq!(replay(&old, patched.diff(&old)), patched);
        }
    }
}
