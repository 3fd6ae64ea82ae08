//! Requests about queue entries. Each is one transaction, guarded so that it concerns one entry only.

use std::{future::Future, sync::Arc};

use enlist::{LeaseId, Revision};
use etcd_client::{GetOptions, PutOptions, TxnOp};

use crate::{
    client::{
        requests::{
            guarded_write::{Batching, Guard, Outcome, QueueEffect, Write},
            kv::put,
        },
        store_client::StoreClient,
    },
    error::{Failure, text_cause},
    watch::record::{KeyRange, Record},
};

/// Maximum number of marks of a queue that are read: more would not fit into one transaction.
const MAX_MARKS: i64 = 100;

/// Queue entry of this session.
#[derive(Clone, Debug)]
pub(crate) struct OwnEntry {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) lease: LeaseId,
    /// Revision of its creation; 0 before that.
    pub(crate) token: Revision,
}

impl OwnEntry {
    /// Creates the entry.
    fn create(&self) -> TxnOp {
        TxnOp::put(&self.key[..], &self.value[..], Some(self.leased()))
    }

    /// Writes the entry again.
    fn rewrite(&self) -> TxnOp {
        rewrite(&self.key, self.lease)
    }

    /// Returns the number of bytes that its creation writes.
    fn size(&self) -> usize {
        self.key.len() + self.value.len()
    }

    fn leased(&self) -> PutOptions {
        PutOptions::new().with_lease(self.lease.get())
    }
}

/// Entry that a hand-over confirms.
#[derive(Clone, Debug)]
pub(crate) struct NextEntry {
    pub(crate) key: Vec<u8>,
    pub(crate) lease: LeaseId,
    /// Revision of its creation.
    pub(crate) token: Revision,
}

/// Writes an entry again and keeps its value: a late write must not undo a proclamation.
fn rewrite(key: &[u8], lease: LeaseId) -> TxnOp {
    TxnOp::put(key, "", Some(PutOptions::new().with_lease(lease.get()).with_ignore_value()))
}

/// Part of a queue that is read after a write to it.
#[derive(Debug)]
pub(crate) struct QueueRead<'a> {
    pub(crate) queue: &'a KeyRange,
    pub(crate) options: GetOptions,
    /// Marks next to the queue, if they matter.
    pub(crate) marks: Option<&'a KeyRange>,
}

impl QueueRead<'_> {
    fn ops(self) -> impl Iterator<Item = TxnOp> {
        let marks = self.marks.map(|marks| {
            let options = GetOptions::new().with_limit(MAX_MARKS);
            let options = marks.end.iter().fold(options, |options, end| options.with_range(end.clone()));
            TxnOp::get(&marks.start[..], Some(options))
        });
        std::iter::once(TxnOp::get(&self.queue.start[..], Some(self.options))).chain(marks)
    }
}

/// Part of a queue that was read, at a revision.
#[derive(Debug, Default)]
pub(crate) struct QueueFound {
    pub(crate) at: Revision,
    pub(crate) entries: Vec<Record>,
    pub(crate) marks: Vec<Record>,
}

/// Outcome of a write to a queue.
#[derive(Debug)]
pub(crate) enum QueueWrite {
    /// It was applied, and the queue was read after it.
    Done(QueueFound),
    /// The guard did not hold. Contains the key as it is.
    Refused(Option<Record>),
}

impl From<Outcome> for QueueWrite {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done { revision, reads } => {
                let mut reads = reads.into_iter();
                let mut next = || reads.next().unwrap_or_default();
                Self::Done(QueueFound { at: revision, entries: next(), marks: next() })
            }
            Outcome::Refused(found) => Self::Refused(found.into_iter().flatten().next()),
        }
    }
}

/// Outcome of marking an entry of a semaphore as granted.
#[derive(Debug)]
pub(crate) enum PermitGrant {
    /// It was applied, at this revision.
    Done(Revision),
    /// A guard did not hold. Contains the entry and the number of permits as they are.
    Refused { entry: Option<Record>, number: Option<Record> },
}

/// Outcome of the removal of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    Done,
    /// The key is absent, or belongs to another entry.
    Absent,
}

/// Outcome of marking an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marking {
    Done,
    EntryAbsent,
}

impl StoreClient {
    /// Creates an entry, guarded by its absence, and reads the queue afterwards. Not sent if `given_up` completes
    /// before.
    pub(crate) async fn create_entry(
        &self,
        entry: &OwnEntry,
        read: QueueRead<'_>,
        batching: Batching,
        given_up: impl Future<Output = ()>,
    ) -> Result<QueueWrite, Failure> {
        let effect = QueueEffect::Enters(read.queue.start.clone());
        let ops = std::iter::once(entry.create()).chain(read.ops()).collect();
        let guards = vec![(entry.key[..].into(), Guard::Absent)];
        let write = Write { guards, ops, size: entry.size(), effect, batching };
        self.queue_writes.send_unless(write, given_up).await.map(QueueWrite::from)
    }

    /// Writes an entry again, guarded by its creation, which proves that it exists. Reads the queue afterwards.
    pub(crate) async fn confirm_entry(&self, entry: &OwnEntry, read: QueueRead<'_>) -> Result<QueueWrite, Failure> {
        let ops = std::iter::once(entry.rewrite()).chain(read.ops()).collect();
        let guards = vec![(entry.key[..].into(), Guard::Created(entry.token))];
        self.queue_writes.send(Write::apart(guards, ops, entry.size())).await.map(QueueWrite::from)
    }

    /// Reads a key in a transaction together with other queue writes. The answer is at least as new as every earlier
    /// one.
    pub(crate) async fn get_with_queue_writes(&self, key: &[u8]) -> Result<(Option<Record>, Revision), Failure> {
        let write = Write::apart(vec![(key.into(), Guard::Any)], vec![TxnOp::get(key, None)], key.len());
        match self.queue_writes.send(write).await? {
            Outcome::Done { revision, reads } => Ok((reads.into_iter().flatten().next(), revision)),
            Outcome::Refused(_) => Err(Failure::Lost(text_cause("a read without a condition was refused"))),
        }
    }

    /// Reads the queue of the entry at `key`. The answer is at least as new as every earlier one.
    pub(crate) async fn read_queue(&self, key: &[u8], read: QueueRead<'_>) -> Result<QueueFound, Failure> {
        let write = Write::apart(vec![(key.into(), Guard::Any)], read.ops().collect(), key.len());
        match QueueWrite::from(self.queue_writes.send(write).await?) {
            QueueWrite::Done(found) => Ok(found),
            QueueWrite::Refused(_) => Err(Failure::Lost(text_cause("a read without a condition was refused"))),
        }
    }

    /// Writes the value of an entry that marks it as granted, guarded by its creation and by the last change of the
    /// number of permits.
    pub(crate) async fn grant_permits(
        &self,
        entry: &OwnEntry,
        number_key: &[u8],
        number: Revision,
    ) -> Result<PermitGrant, Failure> {
        let guards =
            vec![(entry.key[..].into(), Guard::Created(entry.token)), (number_key.into(), Guard::Modified(number))];
        let size = entry.size() + number_key.len();
        // The key exists, so this changes its value and not its creation.
        let write = Write::apart(guards, vec![entry.create()], size);
        self.queue_writes.send(write).await.map(|outcome| match outcome {
            Outcome::Done { revision, .. } => PermitGrant::Done(revision),
            Outcome::Refused(found) => {
                let mut found = found.into_iter();
                let mut next = || found.next().flatten();
                PermitGrant::Refused { entry: next(), number: next() }
            }
        })
    }

    /// Deletes the entry that `guard` distinguishes, with its mark if it has one.
    pub(crate) async fn remove_entry(&self, key: &[u8], guard: Guard, mark: Option<&[u8]>) -> Result<Removal, Failure> {
        let mut guards = vec![(key.into(), guard)];
        let mut ops = vec![TxnOp::delete(key, None)];
        guards.extend(mark.map(|mark| (mark.into(), Guard::Any)));
        ops.extend(mark.map(|mark| TxnOp::delete(mark, None)));
        let size = key.len() + mark.map_or(0, <[u8]>::len);
        self.instance_writes.send(Write::apart(guards, ops, size)).await.map(|outcome| match outcome {
            Outcome::Done { .. } => Removal::Done,
            Outcome::Refused(_) => Removal::Absent,
        })
    }

    /// Marks an existing entry as the holder's, and removes the marks `left` by earlier holders.
    pub(crate) async fn put_mark(&self, entry: &OwnEntry, mark: &[u8], left: &[Record]) -> Result<Marking, Failure> {
        let others = || left.iter().filter(|record| *record.key != *mark);
        let mut guards = vec![(entry.key[..].into(), Guard::Created(entry.token)), (mark.into(), Guard::Any)];
        guards.extend(others().map(|record| (Arc::clone(&record.key), Guard::Any)));
        let mut ops = vec![put(mark, &entry.value, None)];
        ops.extend(others().map(|record| TxnOp::delete(&record.key[..], None)));
        let size = mark.len() + entry.size() + others().map(|record| record.key.len()).sum::<usize>();
        self.queue_writes.send(Write::apart(guards, ops, size)).await.map(|outcome| match outcome {
            Outcome::Done { .. } => Marking::Done,
            Outcome::Refused(_) => Marking::EntryAbsent,
        })
    }

    /// Puts marks under a lease, if all of them are unchanged since they were read.
    pub(crate) async fn attach_marks(&self, marks: &[&Record], lease: LeaseId) -> Result<(), Failure> {
        let guards = marks.iter().map(|mark| (Arc::clone(&mark.key), Guard::Modified(mark.modified))).collect();
        let options = || Some(PutOptions::new().with_lease(lease.get()).with_ignore_value());
        let ops = marks.iter().map(|mark| TxnOp::put(&mark.key[..], "", options())).collect();
        let size = marks.iter().map(|mark| mark.key.len()).sum();
        self.queue_writes.send(Write::apart(guards, ops, size)).await.map(drop)
    }

    /// Deletes the entry in `queue` that was created at `created`, with its mark, and confirms that of `next`, in one
    /// transaction. Returns its revision; `None` if one of them was absent and nothing was done.
    pub(crate) async fn hand_over(
        &self,
        (key, created): (&[u8], Revision),
        mark: Option<&[u8]>,
        next: &NextEntry,
        queue: &KeyRange,
    ) -> Result<Option<Revision>, Failure> {
        let mut guards = vec![(key.into(), Guard::Created(created)), (next.key[..].into(), Guard::Created(next.token))];
        guards.extend(mark.map(|mark| (mark.into(), Guard::Any)));
        let mut ops = vec![TxnOp::delete(key, None), rewrite(&next.key, next.lease)];
        ops.extend(mark.map(|mark| TxnOp::delete(mark, None)));
        let effect = QueueEffect::Leaves(queue.start.clone());
        let write = Write { effect, ..Write::apart(guards, ops, key.len() + next.key.len()) };
        self.queue_writes.send(write).await.map(|outcome| match outcome {
            Outcome::Done { revision, .. } => Some(revision),
            Outcome::Refused(_) => None,
        })
    }
}
