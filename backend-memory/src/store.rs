//! The store itself: plain synchronous data. Revisions, leases on the clock, history, compaction.
//!
//! It behaves like etcd as far as the traits can observe it: every change has a revision, the end of a lease removes
//! all its keys at one revision, history can be compacted, and a wiped store starts over at revision 1.
//! [`crate::watch::shared_store`] shares it between clients.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use enlist::{Expect, Instance, LeaseId, LockMode, Namespace, Revision, backend::PermitState, escape::Hidden};
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
    Semaphore,
    /// Numbers of permits of semaphores.
    SemaphorePermits,
    /// Raw keys of users.
    Raw,
    /// Values of configuration.
    Config,
}

/// Keys of one service, lock, election or semaphore.
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

/// Value of a key. The text of a queue entry is the name of the contender's process, or the value of a candidate.
#[derive(Clone, PartialEq)]
pub(crate) enum Value {
    Instance {
        instance: Arc<Instance>,
        owner: Option<String>,
        term: u64,
    },
    QueueEntry {
        mode: LockMode,
        text: String,
    },
    PermitEntry {
        permits: u32,
        state: PermitState,
    },
    /// Number of permits of a semaphore.
    Permits(u32),
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
            Self::PermitEntry { permits, state } => {
                f.debug_struct("PermitEntry").field("permits", permits).field("state", state).finish()
            }
            Self::Permits(permits) => f.debug_tuple("Permits").field(permits).finish(),
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

/// One write of several. Keys written in this way have no lease.
#[derive(Clone, Debug)]
pub(crate) struct KeyWrite {
    pub(crate) key: Key,
    pub(crate) expect: Expect,
    /// The new value; `None` to delete the key.
    pub(crate) value: Option<Value>,
}

/// Refusal of several writes, because of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RefusedWrite {
    /// The first write whose condition does not hold.
    pub(crate) index: usize,
    /// Revision of the last change of its key; `None` if it is absent.
    pub(crate) present: Option<Revision>,
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

    /// Returns the namespaces that have a key of `kind`, in order.
    pub(crate) fn namespaces(&self, kind: Kind) -> BTreeSet<Namespace> {
        self.records.keys().filter(|key| key.group.kind == kind).map(|key| key.group.namespace.clone()).collect()
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

    /// Writes all of these keys at one revision if each condition holds, else none. Returns the revision of the store
    /// after that. It does not change if nothing was written or deleted.
    pub(crate) fn write_together(&mut self, writes: Vec<KeyWrite>) -> Result<Revision, RefusedWrite> {
        let modified = |write: &KeyWrite| self.records.get(&write.key).map(|record| record.modified);
        let refused = writes.iter().position(|write| !write.expect.holds(modified(write)));
        if let Some(index) = refused {
            return Err(RefusedWrite { index, present: modified(&writes[index]) });
        }
        let changes = |write: &KeyWrite| write.value.is_some() || self.records.contains_key(&write.key);
        if !writes.iter().any(changes) {
            return Ok(self.revision);
        }
        self.revision = self.revision.next();
        for KeyWrite { key, value, .. } in writes {
            match (value, self.records.get(&key)) {
                (Some(value), present) => {
                    let created = present.map_or(self.revision, |record| record.created);
                    let record = Record { value, created, modified: self.revision, lease: None };
                    self.records.insert(key.clone(), record.clone());
                    let (revision, record) = (self.revision, Some(record));
                    self.history.push_back(KeyChange { revision, key, record, departure: None });
                }
                (None, Some(_)) => self.erase(&key, Some(Departure::ByHand)),
                (None, None) => {}
            }
        }
        Ok(self.revision)
    }

    /// As [`write_together`](Self::write_together), with one revision for each write.
    pub(crate) fn write_one_by_one(&mut self, writes: Vec<KeyWrite>) -> Result<Revision, RefusedWrite> {
        let mut revision = self.revision;
        for (index, write) in writes.into_iter().enumerate() {
            revision = self.write_together(vec![write]).map_err(|refused| RefusedWrite { index, ..refused })?;
        }
        Ok(revision)
    }

    /// Returns the changes of `key` that are in the history, the newest first.
    pub(crate) fn changes_of<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = &'a KeyChange> {
        self.history.iter().rev().filter(move |change| change.key == *key)
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

    fn key(member: &str) -> Key {
        let group = Group { kind: Kind::Config, namespace: Namespace::default(), name: "".into() };
        Key { group, member: member.into() }
    }

    fn put(member: &str, expect: Expect) -> KeyWrite {
        KeyWrite { key: key(member), expect, value: Some(Value::Raw(Arc::from(member.as_bytes()))) }
    }

    fn delete(member: &str, expect: Expect) -> KeyWrite {
        KeyWrite { key: key(member), expect, value: None }
    }

    #[test]
    fn keys_that_are_written_together_have_one_revision() {
        let mut store = Store::default();
        let first = store.write_together(vec![put("a", Expect::Absent), put("b", Expect::Any)]).unwrap();
        assert_eq!(first, Revision::new(2));
        let writes = vec![put("a", Expect::Revision(first)), delete("b", Expect::Any), put("c", Expect::Absent)];
        let second = store.write_together(writes).unwrap();
        let changed: Vec<_> = store.changes_after(first).unwrap().collect();
        assert_eq!((second, changed.len()), (Revision::new(3), 3));
        assert!(changed.iter().all(|change| change.revision == second));
        let record = store.get(&key("a")).unwrap();
        assert_eq!((record.created, record.modified, store.get(&key("b"))), (first, second, None));
    }

    #[test]
    fn one_condition_that_does_not_hold_refuses_all_writes() {
        let mut store = Store::default();
        let first = store.write_together(vec![put("a", Expect::Any)]).unwrap();
        for (expect, member, present) in [
            (Expect::Absent, "a", Some(first)),
            (Expect::Revision(first.next()), "a", Some(first)),
            (Expect::Revision(first), "absent", None),
        ] {
            let refused = store.write_together(vec![put("other", Expect::Any), put(member, expect)]);
            assert_eq!(refused, Err(RefusedWrite { index: 1, present }));
        }
        assert_eq!((store.revision(), store.get(&key("other"))), (first, None));
    }

    #[test]
    fn what_changes_nothing_has_no_revision_of_its_own() {
        let mut store = Store::default();
        assert_eq!(store.write_together(vec![]), Ok(Revision::new(1)));
        let writes = vec![delete("a", Expect::Any), delete("b", Expect::Revision(Revision::default()))];
        assert_eq!(store.write_together(writes), Ok(Revision::new(1)));
        store.write_together(vec![put("a", Expect::Any)]).unwrap();
        assert_eq!(store.write_together(vec![put("a", Expect::Any)]), Ok(Revision::new(3)));
    }

    #[test]
    fn owner_tokens_are_not_shown() {
        let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
        let value = Value::Instance { instance: Arc::new(instance), owner: Some("s3cret".into()), term: 1 };
        let shown = format!("{value:?}");
        assert!(!shown.contains("s3cret") && shown.contains("owner: Some"), "{shown}");
    }
}
