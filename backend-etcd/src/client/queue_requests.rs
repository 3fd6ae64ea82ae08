//! Requests about the entries of a queue: each is one transaction that is guarded by the creation revision of the entry.

use std::{future::Future, sync::Arc};

use enlist::{LeaseId, Revision};
use etcd_client::{GetOptions, PutOptions, TxnOp};

use crate::{
    client::{
        connection::Connection,
        guarded_write::{Guard, Outcome, QueueEffect, Write},
        kv::put,
    },
    error::{Failure, text_cause},
    watch::record::{KeyRange, Record},
};

/// Maximum number of marks of a line that are looked at: with those a transaction is full.
const MAX_MARKS: i64 = 100;

/// A place of this session in a line.
#[derive(Clone, Debug)]
pub(crate) struct OwnEntry {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) lease: LeaseId,
    /// The revision at which it was created; 0 before that.
    pub(crate) token: Revision,
}

impl OwnEntry {
    /// Creates the place.
    pub(crate) fn create(&self) -> TxnOp {
        TxnOp::put(&self.key[..], &self.value[..], Some(self.leased()))
    }

    /// Writes the place again and keeps its value: what is done late must not undo a proclamation.
    pub(crate) fn rewrite(&self) -> TxnOp {
        TxnOp::put(&self.key[..], "", Some(self.leased().with_ignore_value()))
    }

    /// Number of bytes that its creation writes.
    pub(crate) fn size(&self) -> usize {
        self.key.len() + self.value.len()
    }

    fn leased(&self) -> PutOptions {
        PutOptions::new().with_lease(self.lease.get())
    }
}

/// The part of a line that is read after a write to it.
#[derive(Debug)]
pub(crate) struct LineRead<'a> {
    pub(crate) line: &'a KeyRange,
    pub(crate) options: GetOptions,
    /// The marks beside it, where they matter.
    pub(crate) marks: Option<&'a KeyRange>,
}

impl LineRead<'_> {
    fn ops(self) -> impl Iterator<Item = TxnOp> {
        let marks = self.marks.map(|marks| {
            let options = GetOptions::new().with_limit(MAX_MARKS);
            let options = marks.end.iter().fold(options, |options, end| options.with_range(end.clone()));
            TxnOp::get(&marks.start[..], Some(options))
        });
        std::iter::once(TxnOp::get(&self.line.start[..], Some(self.options))).chain(marks)
    }
}

/// The part of a line that was read, at a revision.
#[derive(Debug, Default)]
pub(crate) struct LineFound {
    pub(crate) at: Revision,
    pub(crate) line: Vec<Record>,
    pub(crate) marks: Vec<Record>,
}

impl Connection {
    /// Creates a place in a line and reads the line after that: `Ok` if it was not there, else what it is. Who is `deferrable` may
    /// wait a moment for another write to go along with. Given up before it was sent, it is not sent.
    pub(crate) async fn enter(
        &self,
        place: &OwnEntry,
        read: LineRead<'_>,
        deferrable: bool,
        given_up: impl Future<Output = ()>,
    ) -> Result<Result<LineFound, Option<Record>>, Failure> {
        let line = QueueEffect::Enters(read.line.start.clone());
        let ops = std::iter::once(place.create()).chain(read.ops()).collect();
        let guards = vec![(place.key[..].into(), Guard::Absent)];
        let write = Write { guards, ops, size: place.size(), line, deferrable };
        self.places.send_unless(write, given_up).await.map(read_of)
    }

    /// Writes a place again, which proves that it is there, and reads the line after that: `Ok` if the place is the one that was
    /// created then.
    pub(crate) async fn confirm(
        &self,
        place: &OwnEntry,
        read: LineRead<'_>,
    ) -> Result<Result<LineFound, Option<Record>>, Failure> {
        let ops = std::iter::once(place.rewrite()).chain(read.ops()).collect();
        let guards = vec![(place.key[..].into(), Guard::Created(place.token))];
        self.places
            .send(Write { guards, ops, size: place.size(), line: QueueEffect::Apart, deferrable: false })
            .await
            .map(read_of)
    }

    /// Reads a key along with what is written for places at the moment. The answer is at least as new as every earlier one.
    pub(crate) async fn look(&self, key: &[u8]) -> Result<(Option<Record>, Revision), Failure> {
        let ops = vec![TxnOp::get(key, None)];
        let guards = vec![(key.into(), Guard::Any)];
        let write = Write { guards, ops, size: key.len(), line: QueueEffect::Apart, deferrable: false };
        match self.places.send(write).await? {
            Outcome::Done { revision, reads } => Ok((reads.into_iter().flatten().next(), revision)),
            Outcome::Refused(_) => Err(Failure::Lost(text_cause("a read without a condition was refused"))),
        }
    }

    /// Deletes a place together with its mark, if it has one, under a guard. Says whether it was done.
    pub(crate) async fn remove(&self, key: &[u8], created: Revision, mark: Option<&[u8]>) -> Result<bool, Failure> {
        let mut guards = vec![(key.into(), Guard::Created(created))];
        let mut ops = vec![TxnOp::delete(key, None)];
        guards.extend(mark.map(|mark| (mark.into(), Guard::Any)));
        ops.extend(mark.map(|mark| TxnOp::delete(mark, None)));
        let size = key.len() + mark.map_or(0, <[u8]>::len);
        let write = Write { guards, ops, size, line: QueueEffect::Apart, deferrable: false };
        self.writes.send(write).await.map(|outcome| matches!(outcome, Outcome::Done { .. }))
    }

    /// Marks the holder of a place, and removes what holders before it have left, if the place is still there. Says whether it is.
    pub(crate) async fn mark(&self, place: &OwnEntry, mark: &[u8], left: &[Record]) -> Result<bool, Failure> {
        let others = || left.iter().filter(|record| *record.key != *mark);
        let mut guards = vec![(place.key[..].into(), Guard::Created(place.token)), (mark.into(), Guard::Any)];
        guards.extend(others().map(|record| (Arc::clone(&record.key), Guard::Any)));
        let mut ops = vec![put(mark, &place.value, None)];
        ops.extend(others().map(|record| TxnOp::delete(&record.key[..], None)));
        let size = mark.len() + place.size() + others().map(|record| record.key.len()).sum::<usize>();
        let write = Write { guards, ops, size, line: QueueEffect::Apart, deferrable: false };
        self.places.send(write).await.map(|outcome| matches!(outcome, Outcome::Done { .. }))
    }

    /// Puts marks as they were seen under a lease, if all of them are still so.
    pub(crate) async fn attach(&self, marks: &[&Record], lease: LeaseId) -> Result<(), Failure> {
        let guards = marks.iter().map(|mark| (Arc::clone(&mark.key), Guard::Modified(mark.modified))).collect();
        let options = || Some(PutOptions::new().with_lease(lease.get()).with_ignore_value());
        let ops = marks.iter().map(|mark| TxnOp::put(&mark.key[..], "", options())).collect();
        let size = marks.iter().map(|mark| mark.key.len()).sum();
        self.places.send(Write { guards, ops, size, line: QueueEffect::Apart, deferrable: false }).await.map(drop)
    }

    /// Deletes the place in `line` that was created at `created`, with its mark, and confirms that of `successor`, in one transaction,
    /// at the revision that is returned. `None`: one of them was not there, and nothing was done.
    pub(crate) async fn hand_over(
        &self,
        (key, created): (&[u8], Revision),
        mark: Option<&[u8]>,
        successor: &OwnEntry,
        line: &KeyRange,
    ) -> Result<Option<Revision>, Failure> {
        let mut guards =
            vec![(key.into(), Guard::Created(created)), (successor.key[..].into(), Guard::Created(successor.token))];
        guards.extend(mark.map(|mark| (mark.into(), Guard::Any)));
        let mut ops = vec![TxnOp::delete(key, None), successor.rewrite()];
        ops.extend(mark.map(|mark| TxnOp::delete(mark, None)));
        let write = Write {
            guards,
            ops,
            size: key.len() + successor.size(),
            line: QueueEffect::Leaves(line.start.clone()),
            deferrable: false,
        };
        self.places.send(write).await.map(|outcome| match outcome {
            Outcome::Done { revision, .. } => Some(revision),
            Outcome::Refused(_) => None,
        })
    }
}

/// The result of a write to a line: the state found, or its key.
fn read_of(outcome: Outcome) -> Result<LineFound, Option<Record>> {
    match outcome {
        Outcome::Done { revision, reads } => {
            let mut reads = reads.into_iter();
            let mut next = || reads.next().unwrap_or_default();
            Ok(LineFound { at: revision, line: next(), marks: next() })
        }
        Outcome::Refused(found) => Err(found.into_iter().flatten().next()),
    }
}
