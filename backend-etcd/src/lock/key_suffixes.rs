//! Suffixes that distinguish the entries of a session in a queue. They are reused: each key that ever existed in a
//! queue costs etcd time at every read of the queue, until the history is compacted.

use std::{collections::HashMap, sync::Mutex};

use enlist::backend::MutexExt as _;

use crate::deliberate_defects::DeliberateDefect;

/// Suffixes of all queues.
#[derive(Debug, Default)]
pub(crate) struct KeySuffixes {
    queues: Mutex<HashMap<Vec<u8>, InUse>>,
}

/// Suffixes of one queue.
#[derive(Debug, Default)]
struct InUse {
    /// Number of suffixes created so far, which is the next new suffix.
    taken: u64,
    free: Vec<u64>,
    /// Number of suffixes that are not reused.
    retired: u64,
}

impl KeySuffixes {
    /// Takes a suffix that no other entry of this session in `queue` uses.
    pub(crate) fn take(&self, queue: &[u8]) -> u64 {
        let mut queues = self.queues.locked();
        let suffixes = queues.entry(queue.to_vec()).or_default();
        if DeliberateDefect::SuffixesShared.is_on() {
            return 0;
        }
        suffixes.free.pop().unwrap_or_else(|| {
            suffixes.taken += 1;
            suffixes.taken - 1
        })
    }

    /// Returns the number of entries of this session in `queue`.
    pub(crate) fn in_use(&self, queue: &[u8]) -> u64 {
        let queues = self.queues.locked();
        queues.get(queue).map_or(0, |suffixes| suffixes.taken - suffixes.free.len() as u64 - suffixes.retired)
    }

    /// Returns a suffix for reuse, once its key is permanently gone.
    pub(crate) fn give_back(&self, queue: &[u8], suffix: u64) {
        let mut queues = self.queues.locked();
        if let Some(suffixes) = queues.get_mut(queue) {
            suffixes.free.push(suffix);
            if suffixes.free.len() as u64 == suffixes.taken {
                queues.remove(queue);
            }
        }
    }

    /// Excludes a suffix with a remaining mark from reuse: other contenders may remove the mark at any time, and with
    /// it the mark of a later holder under the same suffix.
    pub(crate) fn retire(&self, queue: &[u8]) {
        if let Some(suffixes) = self.queues.locked().get_mut(queue) {
            suffixes.retired += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_reused_but_never_shared() {
        let suffixes = KeySuffixes::default();
        assert_eq!([suffixes.take(b"l"), suffixes.take(b"l"), suffixes.take(b"other")], [0, 1, 0]);
        suffixes.give_back(b"l", 0);
        assert_eq!([suffixes.take(b"l"), suffixes.take(b"l")], [0, 2]);
        assert_eq!([suffixes.in_use(b"l"), suffixes.in_use(b"unused")], [3, 0]);
        for suffix in 0..3 {
            suffixes.give_back(b"l", suffix);
        }
        suffixes.give_back(b"other", 0);
        assert!(suffixes.queues.lock().unwrap().is_empty());
    }

    #[test]
    fn a_retired_suffix_is_not_used_again() {
        let suffixes = KeySuffixes::default();
        assert_eq!([suffixes.take(b"l"), suffixes.take(b"l")], [0, 1]);
        suffixes.retire(b"l");
        suffixes.give_back(b"l", 1);
        assert_eq!(suffixes.in_use(b"l"), 0);
        assert_eq!([suffixes.take(b"l"), suffixes.take(b"l"), suffixes.in_use(b"l")], [1, 2, 2]);
    }
}
