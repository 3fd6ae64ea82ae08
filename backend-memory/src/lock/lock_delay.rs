//! The mark that a holder with a `lock_delay` leaves behind if it does not release, and its successor's wait. Compare
//! `enlist-etcd`'s file of the same name.

use std::sync::Arc;

use enlist::{
    Error,
    backend::{LeaseState, lease_changed},
};
use tokio::time::Instant;

use super::{Contender, Queued, Want};
use crate::{
    store::{Group, Key, Kind, Record, Store, Value},
    watch::hub::up,
};

impl Contender {
    /// The mark of a place, beside the line.
    pub(super) fn mark(&self, held: &Queued) -> Key {
        let kind = match self.want {
            Want::Lock { .. } => Kind::LockMark,
            Want::Leadership { .. } => Kind::ElectionMark,
        };
        Key { group: Group::line(kind, &self.name), member: Arc::clone(&held.key.member) }
    }

    /// Marks the place as that of a holder, with a `lock_delay`, and removes what holders before it left behind.
    pub(super) fn put_mark(&self, store: &mut Store, held: &Queued, left: &[Key]) {
        if self.options.lock_delay.is_zero() {
            return;
        }
        for key in left {
            // It may have run out.
            let _ = store.delete(key, |_| true);
        }
        let value = Value::QueueEntry { mode: self.options.mode, text: self.text() };
        // The key is new and needs no lease.
        let _ = store.put(&self.mark(held), None, value, None);
    }

    /// The marks of holders that did not release and that are in the way of `held`, whose turn it is. They run out once the delay has
    /// passed, so that it goes on if this contender gives up.
    pub(super) fn left_behind(&self, store: &mut Store, now: Instant, held: &Queued) -> Vec<Key> {
        if self.options.lock_delay.is_zero() {
            return Vec::new();
        }
        let own = self.mark(held);
        let in_the_way = |(_, record): &(&Key, &Record)| match record.value {
            Value::QueueEntry { mode, .. } => mode.excludes(self.options.mode),
            Value::Instance { .. } | Value::Raw(_) => false,
        };
        let left = store.range(&own.group).filter(in_the_way).map(|(key, record)| (key.clone(), record.clone()));
        let left: Vec<(Key, Record)> = left.collect();
        let counted = |(_, record): &&(Key, Record)| record.lease.is_none();
        if left.iter().any(|mark| counted(&mark)) {
            let lease = store.grant(self.options.lock_delay, now);
            for (key, record) in left.iter().filter(counted) {
                // It was read under the same lock.
                let _ = store.put(key, Some(record.modified), record.value.clone(), Some(lease));
            }
        }
        left.into_iter().map(|(key, _)| key).collect()
    }

    /// Waits for what holders before `held` left behind, and takes the lock after that.
    pub(super) async fn wait_out(&mut self, held: &Queued, left: &[Key]) -> Result<bool, Error> {
        let mut lease = held.lease.state();
        let lost = async { while !matches!(lease_changed(&mut lease).await, LeaseState::Lost) {} };
        tokio::select! {
            () = tokio::time::sleep(self.options.lock_delay) => {}
            () = lost => return Err(Error::LeaseLost),
        }
        let mut link = self.client.link.watch();
        loop {
            let take = |store: &mut Store, _| {
                let there = store.get(&held.key).is_some();
                if there {
                    self.put_mark(store, held, left);
                }
                there
            };
            match self.client.link.ask(take).await {
                Ok(true) => return Ok(true),
                Ok(false) => return Err(Error::LeaseLost),
                Err(_) => up(&mut link).await,
            }
        }
    }
}
