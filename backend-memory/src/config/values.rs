//! [`Config`] of a memory client. Values are watched as in [`crate::discovery::watcher`]; `enlist-etcd` has the same
//! steps in its file of the same name.

use std::sync::Arc;

use async_trait::async_trait;
use enlist::{
    Config, ConfigEntry, ConfigPath, ConfigScope, ConfigSnapshot, ConfigVersion, ConfigWatcher, ConfigWrite, Epoch,
    Error, Namespace, Revision,
    backend::{ConfigSnapshotBuilder, ScopeWatcher, check_writes},
};

use crate::{
    client::MemoryClient,
    deliberate_defects::DeliberateDefect,
    discovery::watcher::WatchedState,
    store::{Group, Key, KeyChange, KeyWrite, Kind, Record, Store, Value},
};

#[async_trait]
impl Config for MemoryClient {
    async fn list(&self, namespace: &Namespace, scope: &ConfigScope) -> Result<ConfigSnapshot, Error> {
        self.inner.check_open()?;
        let mut state = self.scope_state(namespace, scope);
        self.inner.link.ask(|store, _| state.relist(store, Epoch::default())).await
    }

    async fn watch(&self, namespace: &Namespace, scope: &ConfigScope) -> Result<Box<dyn ConfigWatcher>, Error> {
        Ok(Box::new(ScopeWatcher::new(self.follow(self.scope_state(namespace, scope))?)))
    }

    async fn write(&self, namespace: &Namespace, writes: Vec<ConfigWrite>) -> Result<Revision, Error> {
        check_writes(&writes)?;
        self.inner.check_open()?;
        let group = group(namespace);
        let paths: Vec<_> = writes.iter().map(|write| write.path.clone()).collect();
        let writes = writes.into_iter().map(|write| key_write(&group, write)).collect();
        let shared = self.inner.link.store();
        let outcome = if shared.has(DeliberateDefect::TearsTransactions) {
            self.inner.link.ask(|store, _| store.write_one_by_one(writes)).await?
        } else {
            self.inner.link.ask(|store, _| store.write_together(writes)).await?
        };
        outcome.map_err(|refused| Error::Conflict {
            what: paths[refused.index].to_string(),
            revision: refused.present.unwrap_or_default(),
        })
    }

    async fn history(
        &self,
        namespace: &Namespace,
        path: &ConfigPath,
        limit: usize,
    ) -> Result<Vec<ConfigVersion>, Error> {
        self.inner.check_open()?;
        let key = key(&group(namespace), path);
        self.inner.link.ask(|store, _| versions(store, &key).take(limit).collect()).await
    }
}

impl MemoryClient {
    fn scope_state(&self, namespace: &Namespace, scope: &ConfigScope) -> ScopeState {
        let leaks = self.inner.link.store().has(DeliberateDefect::ScopeLeaks);
        let bounds = if leaks { Bounds::Prefix } else { Bounds::Scope };
        ScopeState { group: group(namespace), scope: scope.clone(), bounds, snapshot: None }
    }
}

fn group(namespace: &Namespace) -> Group {
    Group { kind: Kind::Config, namespace: namespace.clone(), name: "".into() }
}

fn key(group: &Group, path: &ConfigPath) -> Key {
    Key { group: group.clone(), member: path.as_str().into() }
}

fn path(key: &Key) -> ConfigPath {
    ConfigPath::parse(&key.member).expect("keys of configuration are made from paths")
}

fn key_write(group: &Group, write: ConfigWrite) -> KeyWrite {
    let ConfigWrite { path, value, expect, .. } = write;
    KeyWrite { key: key(group, &path), expect, value: value.map(|value| Value::Raw(value.into())) }
}

fn bytes(record: &Record) -> Option<&Arc<[u8]>> {
    match &record.value {
        Value::Raw(value) => Some(value),
        _ => None,
    }
}

fn entry(key: &Key, record: &Record) -> Option<ConfigEntry> {
    Some(ConfigEntry::new(path(key), Arc::clone(bytes(record)?), record.created, record.modified))
}

/// Returns the states of a value that the store still has, the newest first.
fn versions<'a>(store: &'a Store, key: &'a Key) -> impl Iterator<Item = ConfigVersion> + 'a {
    let version = |record: Option<&Record>, revision| ConfigVersion::new(record.and_then(bytes).cloned(), revision);
    let newest = store.changes_of(key).next().map(|change| change.revision);
    // A state that began before the compaction has no change in the history.
    let kept = store.get(key).filter(move |record| Some(record.modified) != newest);
    let kept = kept.map(move |record| version(Some(record), record.modified));
    kept.into_iter().chain(store.changes_of(key).map(move |change| version(change.record.as_ref(), change.revision)))
}

/// Part of a namespace that a watch shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bounds {
    Scope,
    /// With [`DeliberateDefect::ScopeLeaks`]: all values whose path begins with that of the scope.
    Prefix,
}

/// State of a watch of a scope: its values.
struct ScopeState {
    group: Group,
    scope: ConfigScope,
    bounds: Bounds,
    snapshot: Option<ConfigSnapshotBuilder>,
}

impl ScopeState {
    fn contains(&self, key: &Key) -> bool {
        key.group == self.group
            && match (&self.scope, self.bounds) {
                (ConfigScope::Below(root), Bounds::Prefix) => key.member.starts_with(root.as_str()),
                (scope, _) => scope.contains(&path(key)),
            }
    }
}

impl WatchedState for ScopeState {
    type Value = ConfigSnapshot;

    fn relist(&mut self, store: &Store, epoch: Epoch) -> ConfigSnapshot {
        let mut snapshot = self.snapshot.take().unwrap_or_else(|| ConfigSnapshotBuilder::new(store.revision(), epoch));
        let within = store.range(&self.group).filter(|(key, _)| self.contains(key));
        snapshot.patch(within.filter_map(|(key, record)| entry(key, record)));
        snapshot.advance(store.revision(), epoch);
        self.snapshot.insert(snapshot).build()
    }

    fn apply(&mut self, store: &Store, changes: &mut dyn Iterator<Item = &KeyChange>) -> ConfigSnapshot {
        let empty = || ConfigSnapshotBuilder::new(store.revision(), Epoch::default());
        let mut snapshot = self.snapshot.take().unwrap_or_else(empty);
        let mut touched = false;
        for change in changes.filter(|change| self.contains(&change.key)) {
            touched = true;
            match change.record.as_ref().and_then(|record| entry(&change.key, record)) {
                Some(entry) => snapshot.insert(entry),
                None => snapshot.remove(&path(&change.key)),
            }
        }
        // A change of other values is not published.
        if touched {
            snapshot.advance(store.revision(), snapshot.snapshot().epoch());
        }
        self.snapshot.insert(snapshot).build()
    }
}
