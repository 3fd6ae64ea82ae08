//! Step 1. The store: plain data, a revision that increases with each change, and leases driven by the clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{Entry, Incarnation, Instance, InstanceId, LeaseId, Revision, ServiceRef};
use tokio::{sync::watch, time::Instant};

/// Key of an instance.
pub(crate) type Key = (ServiceRef, InstanceId);

/// The value written under a key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) instance: Arc<Instance>,
    pub(crate) owner: Option<String>,
    /// Orders registrations that may replace each other: the larger term is the newer one.
    pub(crate) term: u64,
}

/// A key's content.
#[derive(Clone)]
pub(crate) struct Record {
    pub(crate) value: Value,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) created: Revision,
    pub(crate) modified: Revision,
}

impl Record {
    /// The entry in a view. The term distinguishes a successor that took the key over from a change in place.
    pub(crate) fn entry(&self) -> Entry {
        let entry = Entry::new((*self.value.instance).clone(), self.created, self.modified);
        entry.with_incarnation(Incarnation::new(self.value.term))
    }
}

/// A lease.
pub(crate) struct Granted {
    pub(crate) ttl: Duration,
    pub(crate) deadline: Instant,
}

/// Cause of a deletion.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Cause {
    Deregistration,
    /// By an operator.
    Eviction,
}

/// Content of the store.
#[derive(Default)]
pub(crate) struct Data {
    pub(crate) revision: u64,
    /// Counts the wipes: revisions of different epochs do not compare.
    pub(crate) epoch: u64,
    pub(crate) records: BTreeMap<Key, Record>,
    /// Instances whose keys were deleted, rather than lost with their leases. Views do not hold them.
    pub(crate) departed: BTreeSet<Key>,
    /// Those of them that their own registrations removed.
    pub(crate) deregistered: BTreeSet<Key>,
    pub(crate) leases: BTreeMap<LeaseId, Granted>,
    pub(crate) last_lease: i64,
}

impl Data {
    fn next_revision(&mut self) -> Revision {
        self.revision += 1;
        Revision::new(self.revision)
    }

    /// Writes `key` if it was last changed at `guard`; `None` stands for an absent key. Returns `None` if it was not,
    /// or if the lease does not exist.
    pub(crate) fn put(
        &mut self,
        key: &Key,
        guard: Option<Revision>,
        value: Value,
        lease: Option<LeaseId>,
    ) -> Option<Record> {
        let present = self.records.get(key);
        let is_granted = lease.is_none_or(|lease| self.leases.contains_key(&lease));
        if present.map(|record| record.modified) != guard || !is_granted {
            return None;
        }
        let created = present.map(|record| record.created);
        let modified = self.next_revision();
        let record = Record { value, lease, created: created.unwrap_or(modified), modified };
        self.departed.remove(key);
        self.deregistered.remove(key);
        self.records.insert(key.clone(), record.clone());
        Some(record)
    }

    /// Deletes `key` if `guard` accepts its record.
    pub(crate) fn delete(&mut self, key: &Key, cause: Cause, guard: impl FnOnce(&Record) -> bool) -> Option<Record> {
        let record = self.records.get(key).filter(|record| guard(record)).cloned()?;
        self.next_revision();
        self.records.remove(key);
        self.departed.insert(key.clone());
        if cause == Cause::Deregistration {
            self.deregistered.insert(key.clone());
        }
        Some(record)
    }

    /// Ends a lease and deletes its keys at one revision. Returns `None` if the lease does not exist.
    pub(crate) fn revoke(&mut self, lease: LeaseId) -> Option<Granted> {
        let granted = self.leases.remove(&lease);
        let before = self.records.len();
        self.records.retain(|_, record| record.lease != Some(lease));
        if self.records.len() < before {
            self.next_revision();
        }
        granted
    }

    pub(crate) fn of(&self, service: &ServiceRef) -> impl Iterator<Item = (&InstanceId, &Record)> {
        self.records.iter().filter(move |((of, _), _)| of == service).map(|((_, id), record)| (id, record))
    }
}

/// The store of all clients.
#[derive(Default)]
pub(crate) struct Store {
    data: Mutex<Data>,
    pub(crate) changes: watch::Sender<()>,
}

impl Store {
    /// Runs `act` on the current data. Leases past their deadline are ended first.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Data) -> T) -> T {
        let mut data = self.data.lock().unwrap();
        let before = (data.epoch, data.revision);
        let now = Instant::now();
        let due: Vec<_> = data.leases.iter().filter(|(_, one)| one.deadline <= now).map(|(id, _)| *id).collect();
        for lease in due {
            data.revoke(lease);
        }
        let result = act(&mut data);
        let after = (data.epoch, data.revision);
        drop(data);
        if before != after {
            self.changes.send_replace(());
        }
        result
    }

    /// Waits for a change or for the next deadline of a lease.
    pub(crate) async fn changed(&self, changes: &mut watch::Receiver<()>) {
        let expiry = self.with(|data| data.leases.values().map(|lease| lease.deadline).min());
        let expiry = async {
            match expiry {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = changes.changed() => {}
            () = expiry => {}
        }
    }
}
