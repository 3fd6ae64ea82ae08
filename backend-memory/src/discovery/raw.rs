//! Raw keys and values of users. The task of [`crate::registration::registry`] keeps them, and they are watched as in
//! [`crate::discovery::watcher`]. `enlist-etcd` has the same steps in its file of the same name.

use std::{fmt::Write, sync::Arc};

use async_trait::async_trait;
use enlist::{
    Epoch, Error, Namespace, RawEntry, RawRegistration, RawSnapshot, RawValues, RawWatcher, RegisterOptions,
    backend::{PrefixWatcher, RawCell, RawSnapshotBuilder, check_prefix, raw_registration, wait_for_start},
};

use crate::{
    client::MemoryClient,
    discovery::watcher::WatchedState,
    store::{Group, Key, KeyChange, Kind, Record, Store, Value},
};

#[async_trait]
impl RawValues for MemoryClient {
    async fn list_prefix(&self, prefix: &[u8]) -> Result<RawSnapshot, Error> {
        check_prefix(prefix)?;
        self.inner.check_open()?;
        let mut state = PrefixState::new(prefix);
        self.inner.link.ask(|store, _| state.relist(store, Epoch::default())).await
    }

    async fn watch_prefix(&self, prefix: &[u8]) -> Result<Box<dyn RawWatcher>, Error> {
        check_prefix(prefix)?;
        Ok(Box::new(PrefixWatcher::new(self.follow(PrefixState::new(prefix))?)))
    }

    async fn register_value(
        &self,
        key: &[u8],
        value: Vec<u8>,
        options: RegisterOptions,
    ) -> Result<RawRegistration, Error> {
        let cell = RawCell::new(key, value, &options)?;
        let (service, instance) = cell.stand_in();
        let stored = Key { group: group(), member: hex(key) };
        let registration = self.begin(&service, instance, stored, Some(cell.clone()), &options)?;
        let registration = wait_for_start(registration, &options).await?;
        Ok(raw_registration(registration, cell))
    }
}

fn group() -> Group {
    Group { kind: Kind::Raw, namespace: Namespace::default(), name: "".into() }
}

/// Returns the name of a raw key in its group. Names have the order and the common prefixes of their keys.
fn hex(key: &[u8]) -> Arc<str> {
    let mut text = String::with_capacity(key.len() * 2);
    for byte in key {
        write!(text, "{byte:02x}").expect("a string takes all text");
    }
    text.into()
}

/// Returns the key with a [`hex`] name.
fn unhex(name: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        name.chars().filter_map(|digit| digit.to_digit(16)).filter_map(|d| d.try_into().ok()).collect();
    digits.chunks_exact(2).map(|pair| (pair[0] << 4) | pair[1]).collect()
}

fn entry(key: &Key, record: &Record) -> Option<RawEntry> {
    let Value::Raw(value) = &record.value else { return None };
    let entry = RawEntry::new(unhex(&key.member), Arc::clone(value), record.created, record.modified);
    Some(entry.with_lease(record.lease))
}

/// State of a watch of a prefix: the keys under it.
struct PrefixState {
    group: Group,
    /// In hexadecimal digits.
    prefix: Arc<str>,
    snapshot: Option<RawSnapshotBuilder>,
}

impl PrefixState {
    fn new(prefix: &[u8]) -> Self {
        Self { group: group(), prefix: hex(prefix), snapshot: None }
    }
}

impl WatchedState for PrefixState {
    type Value = RawSnapshot;

    fn relist(&mut self, store: &Store, epoch: Epoch) -> RawSnapshot {
        let mut snapshot = self.snapshot.take().unwrap_or_else(|| RawSnapshotBuilder::new(store.revision(), epoch));
        let under = store.range(&self.group).filter(|(key, _)| key.member.starts_with(&*self.prefix));
        snapshot.patch(under.filter_map(|(key, record)| entry(key, record)));
        snapshot.advance(store.revision(), epoch);
        self.snapshot.insert(snapshot).build()
    }

    fn apply(&mut self, store: &Store, changes: &mut dyn Iterator<Item = &KeyChange>) -> RawSnapshot {
        let empty = || RawSnapshotBuilder::new(store.revision(), Epoch::default());
        let mut snapshot = self.snapshot.take().unwrap_or_else(empty);
        let mut touched = false;
        let under = |key: &Key| key.group == self.group && key.member.starts_with(&*self.prefix);
        for change in changes.filter(|change| under(&change.key)) {
            touched = true;
            match change.record.as_ref().and_then(|record| entry(&change.key, record)) {
                Some(entry) => snapshot.insert(entry),
                None => snapshot.remove(&unhex(&change.key.member)),
            }
        }
        // A change of other keys is not published.
        if touched {
            snapshot.advance(store.revision(), snapshot.snapshot().epoch());
        }
        self.snapshot.insert(snapshot).build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_same_after_its_way_through_digits() {
        let key: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&key)), key);
        assert!(hex(b"a\xff") < hex(b"b") && hex(b"a\xff").starts_with(&*hex(b"a")));
    }
}
