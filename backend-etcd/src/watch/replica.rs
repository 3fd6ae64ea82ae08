//! A local copy of a key range, kept current by lists and watch events. Plain data, no I/O.

use std::{ops::Bound, sync::Arc};

use enlist::{Epoch, Revision};
use etcd_client::proto::PbEvent;
use imbl::{OrdMap, ordmap::DiffItem};

use crate::{client::requests::limits::size, deliberate_defects::DeliberateDefect, watch::record::Record};

/// Maximum number of recorded deleted keys.
const MAX_TOMBSTONES: usize = 4096;

/// Maximum bytes of recorded deleted keys and their values.
const MAX_TOMBSTONE_BYTES: usize = 16 << 20;

/// Key range at one revision. Cheap to clone; clones share their structure.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) revision: Revision,
    pub(crate) epoch: Epoch,
    records: OrdMap<Arc<[u8]>, Arc<Record>>,
    /// Bytes of the keys and values of `records`.
    bytes: usize,
    /// Last content of deleted keys. With it, readers of an older replica distinguish departures from crashes.
    tombstones: OrdMap<Arc<[u8]>, Arc<Record>>,
    tombstone_bytes: usize,
    /// Number of lists that repaired a difference found by an audit. For keys that disappeared in such a list, the
    /// watch reported no deletion.
    repairs: u64,
    /// Number of changes of `records`, and of lists at a higher revision. There is one writer, and readers have clones,
    /// so equal numbers mean equal records.
    changes: u64,
}

impl PartialEq for Replica {
    fn eq(&self, other: &Self) -> bool {
        // Readers wait for changes of keys, and for lists. A higher revision of a watch alone does not wake them.
        self.epoch == other.epoch && self.changes == other.changes
    }
}

/// Event of a watch, reduced to the necessary parts.
#[derive(Clone, Debug)]
pub(crate) enum KeyEvent {
    Put(Record),
    Delete { key: Arc<[u8]>, revision: Revision },
}

impl KeyEvent {
    pub(crate) fn key(&self) -> &Arc<[u8]> {
        match self {
            Self::Put(record) => &record.key,
            Self::Delete { key, .. } => key,
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        match self {
            Self::Put(record) => record.modified,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// Difference of one key between two replicas.
#[derive(Debug)]
pub(crate) enum Difference<'a> {
    Present(&'a Record),
    Gone(&'a Arc<[u8]>),
}

impl Difference<'_> {
    pub(crate) fn into_key(self) -> Arc<[u8]> {
        match self {
            Self::Present(record) => Arc::clone(&record.key),
            Self::Gone(key) => Arc::clone(key),
        }
    }
}

impl Replica {
    pub(crate) fn new(revision: Revision, epoch: Epoch) -> Self {
        let (records, tombstones) = (OrdMap::new(), OrdMap::new());
        Self { revision, epoch, records, bytes: 0, tombstones, tombstone_bytes: 0, repairs: 0, changes: 0 }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Record> {
        self.records.get(key).map(|record| &**record)
    }

    /// Returns the last content of a deleted key, if it is recorded.
    pub(crate) fn tombstone(&self, key: &[u8]) -> Option<&Record> {
        self.tombstones.get(key).map(|record| &**record)
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values().map(|record| &**record)
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns the bytes of its keys and values.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the records from `from` to `upto`, or to the end.
    pub(crate) fn between(&self, from: &[u8], upto: Option<&[u8]>) -> impl Iterator<Item = &Record> {
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) =
            (Bound::Included(from), upto.map_or(Bound::Unbounded, Bound::Included));
        self.records.range::<_, [u8]>(bounds).map(|(_, record)| &**record)
    }

    /// Records that the next list repairs a difference found by an audit.
    pub(crate) fn note_repair(&mut self) {
        self.repairs += 1;
    }

    /// Returns `true` if keys that have disappeared since `older` are known to be deleted: the store did not go back,
    /// and no audit found them missing.
    pub(crate) fn has_deleted_since(&self, older: &Self) -> bool {
        self.epoch == older.epoch && self.repairs == older.repairs
    }

    /// Replaces the content by a list, changing only differing records, so that differences stay cheap.
    pub(crate) fn relist(&mut self, records: Vec<Record>, revision: Revision, epoch: Epoch) {
        let mut gone = self.records.clone();
        for record in records {
            let unchanged = gone.remove(&record.key).is_some_and(|old| *old == record);
            if !unchanged {
                self.insert(record);
            }
        }
        for key in gone.keys().filter(|_| !DeliberateDefect::ListKeepsTheGone.is_on()) {
            self.remove(key);
        }
        // A reader may wait for a state that is as new as a write.
        self.changes += u64::from(revision > self.revision);
        (self.revision, self.epoch) = (revision, epoch);
    }

    /// Adds a page of the first list, at the revision of that list.
    pub(crate) fn add_page(&mut self, page: Vec<Record>, revision: Revision) {
        for record in page {
            self.insert(record);
        }
        self.revision = revision;
    }

    fn insert(&mut self, record: Record) {
        self.changes += 1;
        self.bytes += size(&record);
        self.forget_tombstone(&record.key);
        let replaced = self.records.insert(Arc::clone(&record.key), Arc::new(record));
        self.bytes -= replaced.map_or(0, |replaced| size(&replaced));
    }

    fn remove(&mut self, key: &[u8]) -> Option<Arc<Record>> {
        let removed = self.records.remove(key)?;
        self.changes += 1;
        self.bytes -= size(&removed);
        Some(removed)
    }

    /// Records the last content of a deleted key.
    fn add_tombstone(&mut self, last: Arc<Record>) {
        if self.tombstones.len() >= MAX_TOMBSTONES || self.tombstone_bytes + size(&last) > MAX_TOMBSTONE_BYTES {
            (self.tombstones, self.tombstone_bytes) = (OrdMap::new(), 0);
        }
        self.forget_tombstone(&last.key);
        self.tombstone_bytes += size(&last);
        self.tombstones.insert(Arc::clone(&last.key), last);
    }

    fn forget_tombstone(&mut self, key: &[u8]) {
        self.tombstone_bytes -= self.tombstones.remove(key).map_or(0, |last| size(&last));
    }

    /// Applies events in order. An event that is not newer than the known state of its key is a repetition and is
    /// dropped. Returns the number of dropped events.
    pub(crate) fn apply(&mut self, events: Vec<KeyEvent>) -> usize {
        let mut dropped = 0;
        for event in events {
            let revision = event.revision();
            // One revision may change many keys, so an equal revision is new unless the key itself has it already.
            if revision < self.revision {
                dropped += 1;
                continue;
            }
            match event {
                KeyEvent::Put(mut record) => {
                    if self.records.get(&record.key).is_some_and(|old| old.modified >= record.modified) {
                        dropped += 1;
                        continue;
                    }
                    if let Some(old) = self.records.get(&record.key).filter(|_| DeliberateDefect::OldValuesKept.is_on())
                    {
                        record.value.clone_from(&old.value);
                    }
                    self.insert(record);
                }
                KeyEvent::Delete { key, .. } => {
                    if DeliberateDefect::DeletionsIgnored.is_on() {
                        continue;
                    }
                    if let Some(last) = self.remove(&key) {
                        self.add_tombstone(last);
                    }
                }
            }
            self.revision = revision;
        }
        dropped
    }

    /// Returns the differences from `older`; without `older`, all records.
    pub(crate) fn differences<'a>(&'a self, older: Option<&'a Self>) -> Vec<Difference<'a>> {
        let Some(older) = older else {
            return self.records().map(Difference::Present).collect();
        };
        older
            .records
            .diff(&self.records)
            .map(|item| match item {
                DiffItem::Add(_, record) | DiffItem::Update { new: (_, record), .. } => Difference::Present(record),
                DiffItem::Remove(key, _) => Difference::Gone(key),
            })
            .collect()
    }
}

/// Converts an event of a watch; `None` for a type of a later etcd, or an event without a key.
pub(crate) fn key_event(event: PbEvent) -> Option<KeyEvent> {
    let kv = event.kv?;
    let revision = Revision::new(u64::try_from(kv.mod_revision).unwrap_or(0));
    let pair = Record::from(kv);
    match event.r#type {
        0 => Some(KeyEvent::Put(pair)),
        1 => Some(KeyEvent::Delete { key: pair.key, revision }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etcd_client::proto::PbKeyValue;

    fn put(key: &str, revision: u64) -> KeyEvent {
        KeyEvent::Put(record(key, revision))
    }

    fn record(key: &str, revision: u64) -> Record {
        let revision = Revision::new(revision);
        Record { key: key.as_bytes().into(), value: [][..].into(), created: revision, modified: revision, lease: None }
    }

    fn delete(key: &str, revision: u64) -> KeyEvent {
        KeyEvent::Delete { key: key.as_bytes().into(), revision: Revision::new(revision) }
    }

    fn keys(replica: &Replica) -> Vec<String> {
        replica.records().map(|record| String::from_utf8_lossy(&record.key).into_owned()).collect()
    }

    #[test]
    fn a_list_at_a_later_revision_wakes_readers() {
        let before = replica(&["a"], 5);
        let listed = |revision| {
            let mut replica = before.clone();
            replica.relist(vec![record("a", 5)], Revision::new(revision), Epoch::default());
            replica
        };
        assert!(listed(5) == before && listed(6) != before);
        assert_eq!(listed(6).differences(Some(&before)).len(), 0);
    }

    fn replica(keys: &[&str], revision: u64) -> Replica {
        let mut replica = Replica::new(Revision::default(), Epoch::default());
        replica.relist(
            keys.iter().map(|key| record(key, revision)).collect(),
            Revision::new(revision),
            Epoch::default(),
        );
        replica
    }

    #[test]
    fn a_repair_or_another_history_shows_no_deletions() {
        let older = replica(&["a"], 5);
        let mut repaired = older.clone();
        assert!(repaired.has_deleted_since(&older));
        repaired.note_repair();
        assert!(!repaired.has_deleted_since(&older));
        let restored = Replica { epoch: older.epoch.next(), ..older.clone() };
        assert!(!restored.has_deleted_since(&older));
    }

    #[test]
    fn events_of_one_revision_belong_together_and_repetitions_are_dropped() {
        let mut replica = replica(&["a"], 5);
        assert_eq!(replica.apply(vec![put("b", 6), put("c", 6), delete("a", 6)]), 0);
        assert_eq!(keys(&replica), ["b", "c"]);
        assert_eq!(replica.apply(vec![put("b", 6), put("a", 5), delete("c", 4)]), 3);
        assert_eq!(keys(&replica), ["b", "c"]);
        assert_eq!(replica.revision, Revision::new(6));
    }

    #[test]
    fn a_new_list_becomes_a_difference() {
        let old = replica(&["a", "b"], 5);
        let mut new = old.clone();
        new.relist(vec![record("b", 5), record("c", 9)], Revision::new(9), Epoch::default());
        let differences = new.differences(Some(&old));
        let reported: Vec<_> = differences
            .iter()
            .map(|difference| match difference {
                Difference::Present(record) => format!("+{}", record.key.escape_ascii()),
                Difference::Gone(key) => format!("-{}", key.escape_ascii()),
            })
            .collect();
        assert_eq!(reported, ["-a", "+c"]);
    }

    #[test]
    fn its_bytes_are_those_of_its_keys_and_values() {
        let sized =
            |key: &str, revision, bytes| KeyEvent::Put(Record { value: vec![0; bytes], ..record(key, revision) });
        let mut replica = replica(&["a", "b"], 5);
        assert_eq!(replica.bytes(), 2);
        replica.apply(vec![sized("a", 6, 10), sized("c", 6, 5), delete("b", 7), sized("c", 7, 2)]);
        assert_eq!(replica.bytes(), 11 + 3);
        replica.relist(vec![record("c", 9)], Revision::new(9), Epoch::default());
        assert_eq!(replica.bytes(), 1);
    }

    #[test]
    fn deleted_keys_are_remembered_up_to_a_number_of_bytes() {
        let large = |key: &str, revision| {
            KeyEvent::Put(Record { value: vec![0; MAX_TOMBSTONE_BYTES / 3], ..record(key, revision) })
        };
        let mut replica = replica(&[], 1);
        for (key, revision) in [("a", 2), ("b", 4), ("a", 6), ("c", 8)] {
            replica.apply(vec![large(key, revision), delete(key, revision + 1)]);
        }
        assert!(replica.tombstone(b"c").is_some() && replica.tombstone(b"a").is_none(), "the third one does not fit");
        assert_eq!((replica.bytes(), replica.tombstone_bytes), (0, MAX_TOMBSTONE_BYTES / 3 + 1));
    }

    #[test]
    fn small_deleted_keys_are_remembered_together() {
        let remembers = |first: usize, second: usize| {
            let mut replica = replica(&[], 1);
            for (key, bytes, revision) in [("a", first, 2), ("b", second, 4)] {
                let put = KeyEvent::Put(Record { value: vec![0; bytes - key.len()], ..record(key, revision) });
                replica.apply(vec![put, delete(key, revision + 1)]);
            }
            assert!(replica.tombstone(b"b").is_some());
            replica.tombstone(b"a").is_some()
        };
        let half = MAX_TOMBSTONE_BYTES / 2;
        assert!(remembers(10_000, 10_000) && remembers(half, half));
        assert!(!remembers(half, half + 1));
    }

    #[test]
    fn a_key_in_place_of_another_one_is_news() {
        let old = replica(&["a"], 5);
        let mut new = old.clone();
        new.apply(vec![put("b", 6), delete("a", 6)]);
        assert_ne!(old, new);
    }

    #[test]
    fn events_of_a_watch_are_puts_and_deletions() {
        let event = |kind: i32| {
            let kv = PbKeyValue { key: b"k".to_vec(), mod_revision: 7, ..PbKeyValue::default() };
            key_event(PbEvent { r#type: kind, kv: Some(kv), ..PbEvent::default() })
        };
        assert!(matches!(event(0), Some(KeyEvent::Put(record)) if record.modified == Revision::new(7)));
        assert!(matches!(event(1), Some(KeyEvent::Delete { revision, .. }) if revision == Revision::new(7)));
        assert!(event(2).is_none() && key_event(PbEvent::default()).is_none());
    }

    #[test]
    fn a_revision_that_moved_without_its_keys_is_no_news() {
        let old = replica(&["a"], 5);
        let mut new = old.clone();
        new.revision = Revision::new(7);
        assert_eq!(old, new);
        new.epoch = new.epoch.next();
        assert_ne!(old, new);
    }
}
