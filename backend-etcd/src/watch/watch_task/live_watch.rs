//! A watch that was requested.

use std::time::Duration;

use enlist::{Moment, Revision};
use tokio::time::Instant;

use super::state::WatchEnd;
use crate::{client::store_revision::Seen, watch::watch_stream::OpenWatch};

/// Time after which a watch that etcd has created counts as a success, although it is refused then. A server may create
/// a watch before it refuses it.
const LASTING: Duration = Duration::from_secs(1);

/// Open watch.
#[derive(Debug)]
pub(super) struct LiveWatch {
    pub(super) stream: OpenWatch,
    /// Time at which it was requested.
    pub(super) requested: Moment,
    /// State of the store's revision before the request.
    pub(super) store: Seen,
    pub(super) opened_after: OpenedAfter,
    /// Revision at which it starts. The changes of this revision itself are known.
    pub(super) begins: Revision,
    /// Time at which etcd has created it.
    pub(super) created: Option<Instant>,
    /// Changes up to this revision were read once the watch was open.
    pub(super) read: Revision,
}

impl LiveWatch {
    /// Returns `true` if the watch counts as a success, although it may have reported nothing before this end.
    pub(super) fn has_succeeded(&self, end: &WatchEnd) -> bool {
        self.created.is_some_and(|at| !end.is_refusal() || at.elapsed() >= LASTING)
    }
}

/// State before a watch was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenedAfter {
    List,
    /// The start of the task, with known content.
    Start,
    Interruption,
}
