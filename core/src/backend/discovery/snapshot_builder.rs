//! Builders of snapshots. A backend keeps one per watched range and changes it in place, so consecutive snapshots share
//! their structure and their difference stays cheap.

use std::sync::Arc;

use crate::{
    config::{
        path::ConfigPath,
        snapshot::{ConfigEntry, ConfigSnapshot},
    },
    discovery::snapshot::Snapshot,
    model::{
        instance::Entry,
        name::{InstanceId, ServiceRef},
        revision::{Epoch, Revision},
    },
    raw::snapshot::{RawEntry, RawSnapshot},
};

/// Builds the snapshots of one service.
#[derive(Clone, Debug)]
pub struct SnapshotBuilder {
    snapshot: Snapshot,
}

impl SnapshotBuilder {
    /// Starts with no entries, at `revision` and `epoch`.
    pub fn new(service: ServiceRef, revision: Revision, epoch: Epoch) -> Self {
        Self { snapshot: Snapshot::empty(service, revision, epoch) }
    }

    /// Returns the snapshot as built so far.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Returns a copy of the snapshot as built so far, which shares its structure.
    pub fn build(&self) -> Snapshot {
        self.snapshot.clone()
    }

    /// Sets the revision and the epoch.
    pub fn advance(&mut self, revision: Revision, epoch: Epoch) {
        self.snapshot.advance(revision, epoch);
    }

    /// Adds or replaces one entry.
    pub fn insert(&mut self, entry: Arc<Entry>) {
        self.snapshot.insert(entry);
    }

    /// Removes one entry whose lease expired or was revoked.
    pub fn remove(&mut self, id: &InstanceId) {
        self.snapshot.remove(id);
    }

    /// Removes one entry that was deregistered, see [`Snapshot::departed`].
    pub fn depart(&mut self, id: &InstanceId) {
        self.snapshot.depart(id);
    }

    /// Replaces the entries. Equal entries are left untouched, so a difference to an older snapshot stays cheap.
    pub fn patch(&mut self, entries: impl IntoIterator<Item = Arc<Entry>>) {
        self.snapshot.patch(entries);
    }
}

impl From<Snapshot> for SnapshotBuilder {
    /// Continues from `snapshot`.
    fn from(snapshot: Snapshot) -> Self {
        Self { snapshot }
    }
}

/// Builds the snapshots of the keys under one prefix.
#[derive(Clone, Debug)]
pub struct RawSnapshotBuilder {
    snapshot: RawSnapshot,
}

impl RawSnapshotBuilder {
    /// Starts with no entries, at `revision` and `epoch`.
    pub fn new(revision: Revision, epoch: Epoch) -> Self {
        Self { snapshot: RawSnapshot::empty(revision, epoch) }
    }

    /// Returns the snapshot as built so far.
    pub fn snapshot(&self) -> &RawSnapshot {
        &self.snapshot
    }

    /// Returns a copy of the snapshot as built so far, which shares its structure.
    pub fn build(&self) -> RawSnapshot {
        self.snapshot.clone()
    }

    /// Sets the revision and the epoch.
    pub fn advance(&mut self, revision: Revision, epoch: Epoch) {
        self.snapshot.advance(revision, epoch);
    }

    /// Adds or replaces one entry.
    pub fn insert(&mut self, entry: RawEntry) {
        self.snapshot.insert(entry);
    }

    /// Removes one entry.
    pub fn remove(&mut self, key: &[u8]) {
        self.snapshot.remove(key);
    }

    /// Replaces the entries. Equal entries are left untouched, so a difference to an older snapshot stays cheap.
    pub fn patch(&mut self, entries: impl IntoIterator<Item = RawEntry>) {
        self.snapshot.patch(entries);
    }
}

impl From<RawSnapshot> for RawSnapshotBuilder {
    /// Continues from `snapshot`.
    fn from(snapshot: RawSnapshot) -> Self {
        Self { snapshot }
    }
}

/// Builds the snapshots of the values of one scope of configuration.
#[derive(Clone, Debug)]
pub struct ConfigSnapshotBuilder {
    snapshot: ConfigSnapshot,
}

impl ConfigSnapshotBuilder {
    /// Starts with no entries, at `revision` and `epoch`.
    pub fn new(revision: Revision, epoch: Epoch) -> Self {
        Self { snapshot: ConfigSnapshot::empty(revision, epoch) }
    }

    /// Returns the snapshot as built so far.
    pub fn snapshot(&self) -> &ConfigSnapshot {
        &self.snapshot
    }

    /// Returns a copy of the snapshot as built so far, which shares its structure.
    pub fn build(&self) -> ConfigSnapshot {
        self.snapshot.clone()
    }

    /// Sets the revision and the epoch.
    pub fn advance(&mut self, revision: Revision, epoch: Epoch) {
        self.snapshot.advance(revision, epoch);
    }

    /// Adds or replaces one entry.
    pub fn insert(&mut self, entry: ConfigEntry) {
        self.snapshot.insert(entry);
    }

    /// Removes one entry.
    pub fn remove(&mut self, path: &ConfigPath) {
        self.snapshot.remove(path);
    }

    /// Replaces the entries. Equal entries are left untouched, so a difference to an older snapshot stays cheap.
    pub fn patch(&mut self, entries: impl IntoIterator<Item = ConfigEntry>) {
        self.snapshot.patch(entries);
    }
}

impl From<ConfigSnapshot> for ConfigSnapshotBuilder {
    /// Continues from `snapshot`.
    fn from(snapshot: ConfigSnapshot) -> Self {
        Self { snapshot }
    }
}
