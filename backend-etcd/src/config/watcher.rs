//! Watchers of configuration: snapshots of a scope, projected from replicas of its range.
//!
//! A watcher projects when it is read, not on the session's thread, and only the differences.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use enlist::{
    ConfigChange, ConfigEntry, ConfigSnapshot, ConfigWatcher, Error, Namespace,
    backend::{ConfigSnapshotBuilder, Subscriber, Update, config_change},
};

use crate::{
    config::context::ConfigContext,
    layout::config::ConfigLayout,
    watch::{
        malformed::MalformedValues,
        record::Record,
        replica::{Difference, Replica},
    },
};

/// Converts replicas of the range of a scope into snapshots.
pub(crate) struct Projection {
    namespace: Namespace,
    layout: ConfigLayout,
    malformed: Arc<MalformedValues>,
    snapshot: Option<ConfigSnapshotBuilder>,
}

impl fmt::Debug for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Projection").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Projection {
    pub(crate) fn new(config: &ConfigContext, namespace: &Namespace) -> Self {
        let ConfigContext { layout, malformed, .. } = config;
        let (layout, malformed) = (layout.clone(), Arc::clone(malformed));
        Self { namespace: namespace.clone(), layout, malformed, snapshot: None }
    }

    /// Returns the snapshot of `replica`. `before`: the replica of the previous call.
    pub(crate) fn follow(&mut self, before: Option<&Replica>, replica: &Replica) -> ConfigSnapshot {
        let empty = || ConfigSnapshotBuilder::new(replica.revision, replica.epoch);
        let mut snapshot = self.snapshot.take().unwrap_or_else(empty);
        for difference in replica.differences(before) {
            match difference {
                Difference::Present(record) => {
                    if let Some(entry) = self.entry(record) {
                        snapshot.insert(entry);
                    }
                }
                Difference::Gone(key) => {
                    if let Some(path) = self.layout.path_of(&self.namespace, key) {
                        snapshot.remove(&path);
                    }
                }
            }
        }
        snapshot.advance(replica.revision, replica.epoch);
        self.snapshot.insert(snapshot).build()
    }

    /// Reads a value. A key without a path is reported.
    fn entry(&self, record: &Record) -> Option<ConfigEntry> {
        let Record { key, value, created, modified, lease: _ } = record;
        let Some(path) = self.layout.path_of(&self.namespace, key) else {
            self.malformed.report_config(&self.namespace, record, "the key is no path");
            return None;
        };
        Some(ConfigEntry::new(path, &value[..], *created, *modified))
    }
}

/// A watcher of one scope.
#[derive(Debug)]
pub(crate) struct EtcdScopeWatcher {
    reader: Subscriber<Replica>,
    projection: Projection,
    /// The state returned last.
    seen: Option<ConfigSnapshot>,
    live: bool,
}

impl EtcdScopeWatcher {
    pub(crate) fn new(reader: Subscriber<Replica>, projection: Projection) -> Self {
        Self { reader, projection, seen: None, live: true }
    }
}

#[async_trait]
impl ConfigWatcher for EtcdScopeWatcher {
    async fn next(&mut self) -> Result<ConfigChange, Error> {
        loop {
            let Update { value, before, freshness, .. } = self.reader.next().await?;
            let snapshot = self.projection.follow(before.as_ref(), &value);
            let new_history = self.seen.as_ref().is_none_or(|seen| seen.epoch() != snapshot.epoch());
            let change = config_change(self.seen.as_ref(), snapshot, freshness);
            // A change of a key without a path is not reported.
            if new_history || !change.events.is_empty() || self.live != change.freshness.is_live() {
                self.live = change.freshness.is_live();
                self.seen = Some(change.snapshot.clone());
                return Ok(change);
            }
        }
    }
}
