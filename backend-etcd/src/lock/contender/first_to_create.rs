//! Locks with one key, which whoever creates it holds: gobase's. Contenders share the key and are told apart by their leases. Those that
//! wait have no place: they follow the key of the holder, and each tries to create it when it is gone.

use enlist::Error;

use super::{Contender, Queued, replaced};
use crate::{
    layout::{LockLayout, LockOrder},
    watch::{record::Record, watch_task::Begin},
};

impl Contender {
    /// Returns `true` if `record`, found under the key of a place, is that place.
    pub(super) fn is_own(&self, held: &Queued, record: &Record) -> bool {
        match self.context.lock_layout.order() {
            LockOrder::Queue => true,
            LockOrder::FirstToCreate => record.lease == Some(held.lease.id()),
        }
    }

    /// Waits until the key is no longer the one that the holder `by` created.
    ///
    /// Dropping the future has no effect.
    pub(super) async fn freed(&self, by: Record) -> Result<(), Error> {
        let (created, modified, key) = (by.created, by.modified, by.key.clone());
        let followed = self.context.hub.follow_key(&key, Some(by), modified, Begin::Now)?;
        replaced(followed, created).await;
        Ok(())
    }
}
