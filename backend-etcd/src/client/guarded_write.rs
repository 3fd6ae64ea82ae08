//! A write that is done if its guards hold. Plain data, no I/O.

use std::{fmt, sync::Arc};

use enlist::Revision;
use etcd_client::{Compare, CompareOp, TxnOp};

use crate::{client::response::signed, watch::record::Record};

/// Condition of a write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guard {
    /// The key may be whatever it is; nothing else that touches it goes along.
    Any,
    /// The key must be absent.
    Absent,
    /// The key must have been changed last at this revision.
    Modified(Revision),
    /// The key must have been created at this revision.
    Created(Revision),
}

impl Guard {
    pub(crate) fn compare(self, key: &[u8]) -> Option<Compare> {
        match self {
            Self::Any => None,
            Self::Absent => Some(Compare::create_revision(key, CompareOp::Equal, 0)),
            Self::Modified(revision) => Some(Compare::mod_revision(key, CompareOp::Equal, signed(revision))),
            Self::Created(revision) => Some(Compare::create_revision(key, CompareOp::Equal, signed(revision))),
        }
    }

    /// Returns `true` if it holds for a key that is this.
    pub(crate) fn holds(self, key: Option<&Record>) -> bool {
        match (self, key) {
            (Self::Any, _) => true,
            (Self::Absent, key) => key.is_none(),
            (_, None) => false,
            (Self::Modified(revision), Some(key)) => key.modified == revision,
            (Self::Created(revision), Some(key)) => key.created == revision,
        }
    }
}

/// What a write has to do with a line of keys whose order is that of their creation.
#[derive(Clone, Debug)]
pub(crate) enum QueueEffect {
    /// None.
    Apart,
    /// It creates a place. Two in one transaction would have the same creation revision, and who gets in line has to see
    /// who leaves in the same transaction.
    Enters(Vec<u8>),
    /// It removes a place.
    Leaves(Vec<u8>),
}

/// Write that is done if every guard holds. It writes no other key than those that it guards.
#[derive(Clone)]
pub(crate) struct Write {
    pub(crate) guards: Vec<(Arc<[u8]>, Guard)>,
    pub(crate) ops: Vec<TxnOp>,
    /// Bytes of keys and values.
    pub(crate) size: usize,
    pub(crate) line: QueueEffect,
    /// It may wait a moment for another one to go along with.
    pub(crate) deferrable: bool,
}

/// Without the values, which may hold an owner token.
impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guards, ops, size, line, deferrable } = self;
        f.debug_struct("Write")
            .field("guards", &guards.len())
            .field("ops", &ops.len())
            .field("size", size)
            .field("line", line)
            .field("deferrable", deferrable)
            .finish()
    }
}

/// Outcome of a write.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It was done at this revision; these are what its reads found.
    Done { revision: Revision, reads: Vec<Vec<Record>> },
    /// A guard did not hold; these are what the guarded keys are.
    Refused(Vec<Option<Record>>),
}
