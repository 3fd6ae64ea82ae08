//! Keys with their values as stored in etcd, and ranges of keys.

use std::{fmt, sync::Arc};

use enlist::{Entry, Incarnation, Instance, LeaseId, Revision};
use etcd_client::proto::PbKeyValue;

/// One key with its value.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Arc<[u8]>,
    pub(crate) value: Vec<u8>,
    pub(crate) created: Revision,
    pub(crate) modified: Revision,
    pub(crate) lease: Option<LeaseId>,
}

/// Omits the value, which may contain an owner token.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, created, modified, lease } = self;
        f.debug_struct("Record")
            .field("key", &format_args!("{}", key.escape_ascii()))
            .field("bytes", &value.len())
            .field("created", created)
            .field("modified", modified)
            .field("lease", lease)
            .finish()
    }
}

impl Record {
    /// Returns the entry of the instance in it. Its incarnation is the lease, which every layout has, and which costs
    /// no decoding. Two processes share a lease only if it was given to both.
    pub(crate) fn entry(&self, instance: Instance) -> Entry {
        let incarnation = Incarnation::new(self.lease.map_or(0, |lease| lease.get().cast_unsigned()));
        Entry::new(instance, self.created, self.modified).with_incarnation(incarnation)
    }
}

fn revision(number: i64) -> Revision {
    Revision::new(u64::try_from(number).unwrap_or(0))
}

/// Moves the value, because lists are long.
impl From<PbKeyValue> for Record {
    fn from(pair: PbKeyValue) -> Self {
        Self {
            key: pair.key.into(),
            value: pair.value,
            created: revision(pair.create_revision),
            modified: revision(pair.mod_revision),
            lease: Some(LeaseId::new(pair.lease)).filter(|lease| lease.get() != 0),
        }
    }
}

/// A range of keys, or one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    pub(crate) start: Vec<u8>,
    /// The first key after the range; `None` for the one key `start`.
    pub(crate) end: Option<Vec<u8>>,
}

impl KeyRange {
    /// Returns the range of all keys that begin with `prefix`. An empty prefix would be the whole store, and is not
    /// allowed.
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let start = prefix.into();
        let end = successor(&start);
        Self { start, end: Some(end) }
    }

    /// Returns the range of one key.
    pub fn key(key: impl Into<Vec<u8>>) -> Self {
        Self { start: key.into(), end: None }
    }

    /// Returns the first key, and the first key after the range; `None` for a single key.
    pub fn bounds(&self) -> (&[u8], Option<&[u8]>) {
        (&self.start, self.end.as_deref())
    }

    /// Returns `true` if the key is in the range.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match self.end.as_deref() {
            None => key == self.start,
            // To the end of the keys.
            Some([0]) => key >= &*self.start,
            Some(end) => key >= &*self.start && key < end,
        }
    }

    /// Returns a description of the range for messages.
    pub(crate) fn describe(&self) -> String {
        let start = self.start.escape_ascii();
        if self.end.is_some() { format!("the keys under {start}") } else { format!("the key {start}") }
    }
}

/// Returns the first key after all keys that begin with `prefix`: the last byte below 0xff is incremented, and the
/// bytes after it are dropped.
fn successor(prefix: &[u8]) -> Vec<u8> {
    let keep = prefix.iter().rposition(|byte| *byte < 0xff);
    // A prefix that contains only 0xff has no successor; `\0` means "to the end" in etcd's API.
    keep.map_or_else(
        || vec![0],
        |last| {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_not_shown_as_it_may_hold_an_owner_token() {
        let pair = PbKeyValue { key: b"k\n".to_vec(), value: b"s3cret".to_vec(), ..PbKeyValue::default() };
        let shown = format!("{:?}", Record::from(pair));
        assert!(shown.contains(r"k\n") && shown.contains("bytes: 6"), "{shown}");
        let bytes = format!("{:?}", b"s3cret");
        assert!(!shown.contains("s3cret") && !shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
    }

    #[test]
    fn a_prefix_ends_before_its_successor() {
        for (prefix, end) in [(&b"a/"[..], &b"a0"[..]), (b"a\xff", b"b"), (b"\xff\xff", b"\0")] {
            assert_eq!(KeyRange::prefix(prefix).end.unwrap(), end);
        }
    }

    #[test]
    fn a_range_contains_the_keys_up_to_its_end() {
        let contained =
            |range: &KeyRange, keys: &[&[u8]]| keys.iter().map(|key| range.contains(key)).collect::<Vec<_>>();
        assert_eq!(contained(&KeyRange::prefix("a/"), &[b"a", b"a/", b"a/z", b"a0"]), [false, true, true, false]);
        assert_eq!(contained(&KeyRange::key("a"), &[b"a", b"a/", b""]), [true, false, false]);
        assert_eq!(contained(&KeyRange::prefix([0xff]), &[b"a", b"\xff", b"\xff\xff"]), [false, true, true]);
    }
}
