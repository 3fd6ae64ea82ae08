//! A write with guards, applied only if all of them hold. Plain data, no I/O.

use std::{fmt, sync::Arc};

use enlist::{LeaseId, Revision};
use etcd_client::{Compare, CompareOp, TxnOp};

use crate::{client::requests::response::signed, watch::record::Record};

/// Condition of a write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guard {
    /// No condition. No other write of the transaction touches the key.
    Any,
    /// The key must be absent.
    Absent,
    /// The key must have been changed last at this revision.
    Modified(Revision),
    /// The key must have been created at this revision.
    Created(Revision),
    /// The key must be under this lease. After a wipe, unlike a revision, a lease is still unique.
    Under(LeaseId),
}

impl Guard {
    pub(crate) fn compare(self, key: &[u8]) -> Option<Compare> {
        match self {
            Self::Any => None,
            Self::Absent => Some(Compare::create_revision(key, CompareOp::Equal, 0)),
            Self::Modified(revision) => Some(Compare::mod_revision(key, CompareOp::Equal, signed(revision))),
            Self::Created(revision) => Some(Compare::create_revision(key, CompareOp::Equal, signed(revision))),
            Self::Under(lease) => Some(Compare::lease(key, CompareOp::Equal, lease.get())),
        }
    }

    /// Returns `true` if the guard holds for this state of the key.
    pub(crate) fn holds(self, key: Option<&Record>) -> bool {
        match (self, key) {
            (Self::Any, _) => true,
            (Self::Absent, key) => key.is_none(),
            (_, None) => false,
            (Self::Modified(revision), Some(key)) => key.modified == revision,
            (Self::Created(revision), Some(key)) => key.created == revision,
            (Self::Under(lease), Some(key)) => key.lease == Some(lease),
        }
    }
}

/// Effect of a write on a queue. The entries of a queue are ordered by creation.
#[derive(Clone, Debug)]
pub(crate) enum QueueEffect {
    /// None.
    Apart,
    /// Creates an entry. Two creations in one transaction would have the same creation revision, and the read of the
    /// queue has to see the entries that the same transaction removes.
    Enters(Vec<u8>),
    /// Removes an entry.
    Leaves(Vec<u8>),
}

/// Write that is applied if every guard holds. It writes only guarded keys.
#[derive(Clone)]
pub(crate) struct Write {
    pub(crate) guards: Vec<(Arc<[u8]>, Guard)>,
    pub(crate) ops: Vec<TxnOp>,
    /// Bytes of keys and values.
    pub(crate) size: usize,
    pub(crate) effect: QueueEffect,
    pub(crate) batching: Batching,
}

/// Urgency of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Batching {
    /// Sent as soon as a transaction is free.
    Immediate,
    /// May be delayed to share the transaction of another write.
    Deferrable,
}

impl Write {
    /// Creates an urgent write without an effect on the order of a queue.
    pub(crate) fn apart(guards: Vec<(Arc<[u8]>, Guard)>, ops: Vec<TxnOp>, size: usize) -> Self {
        Self { guards, ops, size, effect: QueueEffect::Apart, batching: Batching::Immediate }
    }
}

/// Omits the values, which may contain an owner token.
impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guards, ops, size, effect, batching } = self;
        f.debug_struct("Write")
            .field("guards", &guards.len())
            .field("ops", &ops.len())
            .field("size", size)
            .field("effect", effect)
            .field("batching", batching)
            .finish()
    }
}

/// Outcome of a write.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// Applied at this revision, with the results of its reads.
    Done { revision: Revision, reads: Vec<Vec<Record>> },
    /// A guard did not hold. Contains the guarded keys as they are.
    Refused(Vec<Option<Record>>),
}
