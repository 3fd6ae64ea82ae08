//! Queue entry of a contender, with its known state. Plain data, no I/O.

use std::sync::Arc;

use enlist::{Revision, SemaphoreOptions, backend::LeaseState};
use tokio::{sync::watch, time::Instant};

use crate::{
    client::requests::queue_requests::NextEntry,
    lock::local_queue::Membership,
    session::lease::Lease,
    watch::{key_monitors::KeyMonitor, record::Record},
};

/// State of the mark of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MarkState {
    /// It was not written.
    Absent,
    /// It may exist, and is removed with the entry.
    Written,
    /// It may remain after the entry.
    Remains,
}

/// Queue entry that may exist in etcd.
pub(in crate::lock) struct Queued {
    pub(super) key: Vec<u8>,
    /// Distinguishes it from the other entries of this session in the queue.
    pub(super) suffix: u64,
    pub(super) lease: Arc<Lease>,
    /// Key of its mark; only with a `lock_delay`.
    pub(super) mark: Option<Vec<u8>>,
    pub(super) mark_state: MarkState,
    /// A write that creates it was not answered.
    pub(super) unknown: bool,
    /// Revision of its creation, once known.
    pub(super) token: Option<Revision>,
    /// Revision of its last known change.
    pub(super) modified: Revision,
    /// Time of the choice of its key.
    pub(super) begun: Instant,
    /// Reports its deletion; `None` while it is too young to be watched.
    pub(super) monitor: Option<KeyMonitor>,
    /// Position that was read when it joined.
    pub(super) known_position: Option<KnownPosition>,
    /// Offers its successor in this session a direct hand-over.
    pub(super) membership: Option<Membership>,
    /// The exclusive entry right behind it, if there was one at its turn. Only if it is exclusive itself.
    pub(super) next: Option<NextEntry>,
    /// States of the lease from the grant on.
    pub(super) holding: Option<watch::Receiver<LeaseState>>,
}

impl Queued {
    pub(super) fn new(key: Vec<u8>, suffix: u64, lease: Arc<Lease>, mark: Option<Vec<u8>>) -> Self {
        Self {
            key,
            suffix,
            lease,
            mark,
            mark_state: MarkState::Absent,
            unknown: false,
            token: None,
            modified: Revision::default(),
            begun: Instant::now(),
            monitor: None,
            known_position: None,
            membership: None,
            next: None,
            holding: None,
        }
    }

    /// Returns the entry for a hand-over to it. Its token is 0 before its creation.
    pub(super) fn as_next(&self) -> NextEntry {
        NextEntry { key: self.key.clone(), lease: self.lease.id(), token: self.token.unwrap_or_default() }
    }

    /// Returns the mark to be removed with the entry.
    pub(super) fn own_mark(&self) -> Option<&[u8]> {
        self.mark.as_deref().filter(|_| self.mark_state == MarkState::Written)
    }
}

/// Request for permits of a semaphore.
pub(in crate::lock) struct PermitRequest {
    pub(in crate::lock) options: SemaphoreOptions,
    /// Key of the number of permits.
    pub(in crate::lock) number_key: Vec<u8>,
    /// Value of the entry once it is granted.
    pub(in crate::lock) granted_value: Vec<u8>,
}

/// Position of an entry.
#[derive(Debug)]
pub(super) enum Position {
    /// The entry holds the lock. In the queue of a semaphore, it is the first entry.
    Holder,
    /// The entry waits for the entry `before`, in its last known state.
    Behind { before: Record, at: Revision },
    /// Its own key is gone.
    Absent,
}

/// Position of an entry with its revisions.
#[derive(Debug)]
pub(super) struct KnownPosition {
    /// Revision of its creation.
    pub(super) token: Revision,
    /// Revision of its last change.
    pub(super) modified: Revision,
    pub(super) position: Position,
    /// The entry before it was waiting as well, so it reads this one at its turn.
    pub(super) behind_waiting: bool,
    /// Marks of holders with a `lock_delay`, or the number of permits.
    pub(super) marks: Vec<Record>,
}

/// Removals of an entry before the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempts {
    /// None.
    First,
    /// One without an answer.
    Unanswered,
}
