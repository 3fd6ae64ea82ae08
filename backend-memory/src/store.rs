//! The store itself: plain synchronous data. Revisions, leases on the clock, history, compaction.
//!
//! It behaves like etcd as far as the traits can observe it: every change has a revision, the end of a lease removes
//! all its keys at one revision, history can be compacted, and a wiped store starts over at revision 1.
//! [`crate::watch::hub`] shares it between clients.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use enlist::{Instance, LeaseId, LockMode, Namespace, Revision, escape::Hidden};
use tokio::time::Instant;

/// Purpose of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Instance,
    Lock,
    Election,
    /// Marks of holders with a `lock_delay` that did not release.
    LockMark,
    ElectionMark,
    /// Raw keys of users.
    Raw,
}

/// Keys of one service, lock or election.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Group {
    pub(crate) kind: Kind,
    pub(crate) namespace: Namespace,
    pub(crate) name: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) group: Group,
    pub(crate) member: Arc<str>,
}

#[derive(Clone, PartialEq)]
pub(crate) enum Value {
    Instance { instance: Arc<Instance>, owner: Option<String>, term: u64 },
    QueueEntry { mode: LockMode, text: String },
    Raw(Arc<[u8]>),
}

impl Value {
    /// Returns `true` if both values are from the same write, or from the same desired state.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Instance { instance: one, .. }, Self::Instance { instance: other, .. }) => Arc::ptr_eq(one, other),
            (Self::Raw(one), Self::Raw(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance { instance, owner, term } => f
                .debug_struct("Instance")
                .field("instance", instance)
                .field("owner", &owner.as_ref().map(|_| Hidden))
                .field("term", term)
                .finish(),
            Self::QueueEntry { mode, text } => {
                f.debug_struct("QueueEntry").field("mode", mode).field("text", text).finish()
            }
            Self::Raw(bytes) => f.debug_struct("Raw").field("bytes", &bytes.len()).finish(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) value: Value,
    pub(crate) created: Revision,
    pub(crate) modified: Revision,
    pub(crate) lease: Option<LeaseId>,
}

/// Reason for the absence of a key that was not removed by the end of its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// Its owner removed it.
    InOrder,
    /// Another client deleted it.
    ByHand,
}

/// Change of one key. Without a record the key was deleted, or removed by the end of its lease.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeyChange {
    pub(crate) revision: Revision,
    pub(crate) key: Key,
    pub(crate) record: Option<Record>,
    /// Set if the key was deleted.
    pub(crate) departure: Option<Departure>,
}

/// Reason for a refused write. Nothing changed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Refusal {
    /// The guard does not hold; this is the current record.
    Guard(Option<Record>),
    /// The lease is unknown or has ended.
    NoLease,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
    keys: BTreeSet<Key>,
}

#[derive(Debug)]
pub(crate) struct Store {
    revision: Revision,
    /// Number of wipes.
    incarnation: u64,
    records: BTreeMap<Key, Record>,
    leases: BTreeMap<LeaseId, Lease>,
    history: VecDeque<KeyChange>,
    compacted: Revision,
    next_lease: i64,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            revision: Revision::new(1),
            incarnation: 0,
            records: BTreeMap::new(),
            leases: BTreeMap::new(),
            history: VecDeque::new(),
            compacted: Revision::default(),
            next_lease: 1,
        }
    }
}

impl Store {
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Record> {
        self.records.get(key)
    }

    /// Returns the keys of `group`, in order.
    pub(crate) fn range<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = (&'a Key, &'a Record)> {
        let first = Key { group: group.clone(), member: "".into() };
        self.records.range(first..).take_while(move |(key, _)| key.group == *group)
    }

    /// Returns the names of `kind` in `namespace` that have a key, in order.
    pub(crate) fn names(&self, kind: Kind, namespace: &Namespace) -> BTreeSet<Arc<str>> {
        let matching = |key: &&Key| key.group.kind == kind && key.group.namespace == *namespace;
        self.records.keys().filter(matching).map(|key| Arc::clone(&key.group.name)).collect()
    }

    /// Returns the changes after `seen`, oldest first; `None` if some of them have been compacted.
    pub(crate) fn changes_after(&self, seen: Revision) -> Option<impl Iterator<Item = &KeyChange>> {
        let from = self.history.partition_point(|change| change.revision <= seen);
        (seen >= self.compacted).then(|| self.history.range(from..))
    }

    /// Writes `key` if its last change was at the revision `guard`; `None` requires an absent key.
    pub(crate) fn put(
        &mut self,
        key: &Key,
        guard: Option<Revision>,
        value: Value,
        lease: Option<LeaseId>,
    ) -> Result<Revision, Refusal> {
        let present = self.records.get(key);
        if present.map(|record| record.modified) != guard {
            return Err(Refusal::Guard(present.cloned()));
        }
        if lease.is_some_and(|id| !self.leases.contains_key(&id)) {
            return Err(Refusal::NoLease);
        }
        let created = present.map(|record| record.created);
        let before = present.and_then(|record| record.lease);
        self.detach(key, before);
        if let Some(attached) = lease.and_then(|id| self.leases.get_mut(&id)) {
            attached.keys.insert(key.clone());
        }
        self.revision = self.revision.next();
        let record = Record { value, created: created.unwrap_or(self.revision), modified: self.revision, lease };
        self.records.insert(key.clone(), record.clone());
        self.history.push_back(KeyChange {
            revision: self.revision,
            key: key.clone(),
            record: Some(record),
            departure: None,
        });
        Ok(self.revision)
    }

    /// Deletes `key` if `guard` accepts it.
    pub(crate) fn delete(&mut self, key: &Key, guard: impl FnOnce(&Record) -> bool) -> Result<Record, Refusal> {
        match self.records.get(key) {
            Some(record) if guard(record) => {
                let record = record.clone();
                self.detach(key, record.lease);
                self.revision = self.revision.next();
                // Expired leases have been ended before, so the lease of this key is alive.
                self.erase(key, Some(Departure::ByHand));
                Ok(record)
            }
            other => Err(Refusal::Guard(other.cloned())),
        }
    }

    pub(crate) fn grant(&mut self, ttl: Duration, now: Instant) -> LeaseId {
        let id = LeaseId::new(self.next_lease);
        self.next_lease += 1;
        self.leases.insert(id, Lease { ttl, deadline: now + ttl, keys: BTreeSet::new() });
        id
    }

    /// Renews a lease; `None` if it is gone.
    pub(crate) fn keep_alive(&mut self, id: LeaseId, now: Instant) -> Option<Duration> {
        let lease = self.leases.get_mut(&id)?;
        lease.deadline = now + lease.ttl;
        Some(lease.ttl)
    }

    /// Returns the remaining time and the granted TTL of a lease.
    pub(crate) fn time_to_live(&self, id: LeaseId, now: Instant) -> Option<(Duration, Duration)> {
        let lease = self.leases.get(&id)?;
        Some((lease.deadline.saturating_duration_since(now), lease.ttl))
    }

    /// Ends a lease: all its keys are removed at one revision. Returns `true` if it existed.
    pub(crate) fn revoke(&mut self, id: LeaseId) -> bool {
        let Some(lease) = self.leases.remove(&id) else {
            return false;
        };
        if !lease.keys.is_empty() {
            self.revision = self.revision.next();
        }
        for key in &lease.keys {
            self.erase(key, None);
        }
        true
    }

    /// Ends all leases that have expired. Returns `true` if there was one.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let due = |(id, lease): (&LeaseId, &Lease)| (lease.deadline <= now).then_some(*id);
        let due: Vec<_> = self.leases.iter().filter_map(due).collect();
        for id in &due {
            self.revoke(*id);
        }
        !due.is_empty()
    }

    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.leases.values().map(|lease| lease.deadline).min()
    }

    pub(crate) fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.keys().copied()
    }

    /// Discards the history up to and including `revision`.
    pub(crate) fn compact(&mut self, revision: Revision) {
        self.compacted = self.compacted.max(revision.min(self.revision));
        while self.history.front().is_some_and(|change| change.revision <= self.compacted) {
            self.history.pop_front();
        }
    }

    /// Discards everything, including leases and the revision, as a new disk does.
    pub(crate) fn wipe(&mut self) {
        *self = Self { incarnation: self.incarnation + 1, next_lease: self.next_lease, ..Self::default() };
    }

    fn erase(&mut self, key: &Key, departure: Option<Departure>) {
        self.records.remove(key);
        self.history.push_back(KeyChange { revision: self.revision, key: key.clone(), record: None, departure });
    }

    /// Deletes `key` as [`delete`](Self::delete) does, on behalf of its owner.
    pub(crate) fn leave(&mut self, key: &Key, guard: impl FnOnce(&Record) -> bool) -> Result<Record, Refusal> {
        let record = self.delete(key, guard)?;
        if let Some(change) = self.history.back_mut() {
            change.departure = Some(Departure::InOrder);
        }
        Ok(record)
    }

    fn detach(&mut self, key: &Key, lease: Option<LeaseId>) {
        if let Some(lease) = lease.and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist::{Endpoint, InstanceId};

    #[test]
    fn owner_tokens_are_not_shown() {
        let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
        let value = Value::Instance { instance: Arc::new(instance), owner: Some("s3cret".into()), term: 1 };
        let shown = format!("{value:?}");
        assert!(!shown.contains("s3cret") && shown.contains("owner: Some"), "{shown}");
    }
}
