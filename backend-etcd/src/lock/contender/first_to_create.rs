//! Locks with a single key, held by its creator (the layout of gobase). Contenders share the key and are distinguished
//! by their leases. Waiting contenders have no entry: they follow the key of the holder, and each tries to create it
//! once it is gone.

use enlist::{Error, Revision};

use super::{Contender, queued::Queued, wait::replaced};
use crate::{
    client::requests::guarded_write::Guard,
    layout::{LockLayout, LockOrder},
    watch::{record::Record, watch_task::Begin},
};

impl Contender {
    /// Returns `true` if `record`, found under the key of an entry, is that entry.
    pub(super) fn is_own(&self, entry: &Queued, record: &Record) -> bool {
        match self.context.lock_layout.order() {
            LockOrder::Queue => true,
            LockOrder::FirstToCreate => record.lease == Some(entry.lease.id()),
        }
    }

    /// Returns the guard of the entry that was created at `created`.
    pub(super) fn entry_guard(&self, entry: &Queued, created: Revision) -> Guard {
        match self.context.lock_layout.order() {
            LockOrder::Queue => Guard::Created(created),
            LockOrder::FirstToCreate => Guard::Under(entry.lease.id()),
        }
    }

    /// Waits until the key created by the holder `by` is gone or replaced.
    ///
    /// Dropping the future has no effect.
    pub(super) async fn freed(&self, by: Record) -> Result<(), Error> {
        let (created, modified, key) = (by.created, by.modified, by.key.clone());
        let followed = self.context.range_watches.follow_key(&key, Some(by), modified, Begin::Now)?;
        replaced(followed, created).await;
        Ok(())
    }
}
