//! Raw keys and values of users, independent of the layout. They are read and watched as stored, and registered by
//! [`crate::registration::registration_task`] through a layout of one key. `enlist-memory` has the same steps in its
//! file of the same name; the shared parts are in [`enlist::backend`].

use std::sync::Arc;

use async_trait::async_trait;
use enlist::{
    Epoch, Error, Instance, InstanceId, LeaseId, Namespace, RawChange, RawEntry, RawRegistration, RawSnapshot,
    RawValues, RawWatcher, RegisterOptions, ServiceName, ServiceRef,
    backend::{
        RawCell, RawSnapshotBuilder, Subscriber, Update, check_prefix, raw_change, raw_registration, wait_for_start,
    },
};

use crate::{
    etcd::Etcd,
    layout::{Decoded, Identity, Layout, LeaseScope, Part, Skip, Writing},
    watch::{
        record::{KeyRange, Record},
        replica::{Difference, Replica},
    },
};

#[async_trait]
impl RawValues for Etcd {
    async fn list_prefix(&self, prefix: &[u8]) -> Result<RawSnapshot, Error> {
        check_prefix(prefix)?;
        self.session.check_open()?;
        let range = KeyRange::prefix(prefix);
        let listed = self.session.discovery.client.list(&range).await;
        let (records, revision) = listed.map_err(|failure| failure.into_error(&range.describe()))?;
        let mut snapshot = RawSnapshotBuilder::new(revision, Epoch::default());
        snapshot.patch(records.iter().map(entry));
        Ok(snapshot.build())
    }

    async fn watch_prefix(&self, prefix: &[u8]) -> Result<Box<dyn RawWatcher>, Error> {
        check_prefix(prefix)?;
        let reader = self.session.discovery.range_watches.view(&KeyRange::prefix(prefix))?;
        Ok(Box::new(EtcdPrefixWatcher { reader, seen: None, live: true }))
    }

    async fn register_value(
        &self,
        key: &[u8],
        value: Vec<u8>,
        options: RegisterOptions,
    ) -> Result<RawRegistration, Error> {
        let cell = RawCell::new(key, value, &options)?;
        let (service, instance) = cell.stand_in();
        let layout = Arc::new(OneKey { cell: cell.clone() }) as Arc<dyn Layout>;
        let registration = self.begin(&layout, &service, instance, &options)?;
        Ok(raw_registration(wait_for_start(registration, &options).await?, cell))
    }
}

fn entry(record: &Record) -> RawEntry {
    let Record { key, value, created, modified, lease } = record;
    RawEntry::new(Arc::clone(key), &value[..], *created, *modified).with_lease(*lease)
}

#[derive(Debug)]
struct EtcdPrefixWatcher {
    reader: Subscriber<Replica>,
    /// The latest state.
    seen: Option<RawSnapshot>,
    live: bool,
}

#[async_trait]
impl RawWatcher for EtcdPrefixWatcher {
    async fn next(&mut self) -> Result<RawChange, Error> {
        loop {
            let Update { value, before, freshness, .. } = self.reader.next().await?;
            let mut snapshot = match &self.seen {
                Some(seen) => RawSnapshotBuilder::from(seen.clone()),
                None => RawSnapshotBuilder::new(value.revision, value.epoch),
            };
            for difference in value.differences(before.as_ref()) {
                match difference {
                    Difference::Present(record) => snapshot.insert(entry(record)),
                    Difference::Gone(key) => snapshot.remove(key),
                }
            }
            snapshot.advance(value.revision, value.epoch);
            let snapshot = snapshot.build();
            let new_history = self.seen.as_ref().is_none_or(|seen| seen.epoch() != snapshot.epoch());
            let before = self.seen.replace(snapshot.clone());
            let change = raw_change(before.as_ref(), snapshot, freshness);
            // A list that shows the same content at a later revision is not reported.
            if new_history || !change.events.is_empty() || self.live != change.freshness.is_live() {
                self.live = change.freshness.is_live();
                return Ok(change);
            }
        }
    }
}

/// Layout of one key with the content of a cell as its value. No instance can be read from it, so it has neither owners
/// nor terms.
#[derive(Debug)]
struct OneKey {
    cell: RawCell,
}

impl OneKey {
    /// Returns the keys of the same directory, with which this key shares a watch.
    fn siblings(&self) -> KeyRange {
        let key = self.cell.key();
        match key.iter().rposition(|byte| *byte == b'/') {
            // Below the root of all keys there may be anything.
            None | Some(0) => KeyRange::key(key),
            Some(at) => KeyRange::prefix(&key[..=at]),
        }
    }
}

impl Layout for OneKey {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn carries(&self) -> &'static [Part] {
        &[]
    }

    fn identity(&self) -> Identity {
        Identity::Id
    }

    fn lease_scope(&self) -> LeaseScope {
        LeaseScope::Shared
    }

    fn key(&self, _: &ServiceRef, _: &InstanceId, _: Option<LeaseId>) -> Result<Vec<u8>, Error> {
        Ok(self.cell.key().to_vec())
    }

    fn service_range(&self, _: &ServiceRef) -> Result<KeyRange, Error> {
        Ok(self.siblings())
    }

    fn services_range(&self, _: &Namespace) -> Option<KeyRange> {
        None
    }

    fn instance_of(&self, _: &Namespace, _: &[u8]) -> Option<(ServiceName, InstanceId)> {
        None
    }

    fn encode(&self, _: &ServiceRef, _: &Instance, _: &Writing<'_>) -> Result<Vec<u8>, Error> {
        Ok(self.cell.get().to_vec())
    }

    /// Accepts all values: `register_value` has checked them.
    fn accepts(&self, _: &ServiceRef, _: &Instance, _: Option<&str>) -> Result<(), Error> {
        Ok(())
    }

    fn decode(&self, _: &ServiceRef, _: &[u8], _: &[u8]) -> Result<Decoded, Skip> {
        Err(Skip::Foreign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_watched_among_those_of_its_directory() {
        let options = RegisterOptions::new();
        let siblings = |key: &[u8]| OneKey { cell: RawCell::new(key, [], &options).unwrap() }.siblings();
        assert_eq!(siblings(b"/services/a/b"), KeyRange::prefix(*b"/services/a/"));
        assert_eq!(siblings(b"/services/a/"), KeyRange::prefix(*b"/services/a/"));
        assert_eq!((siblings(b"/a"), siblings(b"a")), (KeyRange::key(*b"/a"), KeyRange::key(*b"a")));
    }
}
