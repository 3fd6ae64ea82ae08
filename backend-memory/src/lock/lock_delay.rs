//! The mark that a holder with a `lock_delay` leaves without a release, and the wait of the next holder.
//!
//! Both backends implement it on purpose: here it is one synchronous step in the store, in `enlist-etcd` a protocol.

use std::sync::Arc;

use enlist::{
    Error,
    backend::{
        LeaseState,
        contender::{Turn, Wanted},
        lease_changed,
    },
};
use tokio::time::Instant;

use super::contender::{Contender, Queued};
use crate::{
    store::{Group, Key, Kind, Record, Store, Value},
    watch::shared_store::up,
};

impl Contender {
    /// Returns the key of the mark that belongs to an entry.
    pub(super) fn mark(&self, entry: &Queued) -> Key {
        let kind = match self.acquisition.wanted {
            Wanted::Lock | Wanted::FreeLock => Kind::LockMark,
            Wanted::Leadership(_) => Kind::ElectionMark,
        };
        Key { group: Group::queue(kind, &self.acquisition.name), member: Arc::clone(&entry.key.member) }
    }

    /// With a `lock_delay`, marks the entry as the holder's, and removes the marks `delaying` of earlier holders.
    pub(super) fn put_mark(&self, store: &mut Store, entry: &Queued, delaying: &[Key]) {
        if self.acquisition.options.lock_delay.is_zero() {
            return;
        }
        for key in delaying {
            // It may have expired.
            let _ = store.delete(key, |_| true);
        }
        // The key is new and needs no lease.
        let _ = store.put(&self.mark(entry), None, self.value(), None);
    }

    /// Returns the marks of holders that did not release and that exclude `entry`, which is the first. The marks expire
    /// with the delay, so the delay continues if this contender gives up.
    pub(super) fn delaying_marks(&self, store: &mut Store, now: Instant, entry: &Queued) -> Vec<Key> {
        let options = &self.acquisition.options;
        if options.lock_delay.is_zero() {
            return Vec::new();
        }
        let own = self.mark(entry);
        let excludes = |(_, record): &(&Key, &Record)| match record.value {
            Value::QueueEntry { mode, .. } => mode.excludes(options.mode),
            _ => false,
        };
        let delaying = store.range(&own.group).filter(excludes).map(|(key, record)| (key.clone(), record.clone()));
        let delaying: Vec<(Key, Record)> = delaying.collect();
        let unleased = |(_, record): &&(Key, Record)| record.lease.is_none();
        if delaying.iter().any(|mark| unleased(&mark)) {
            let lease = store.grant(options.lock_delay, now);
            for (key, record) in delaying.iter().filter(unleased) {
                // It was read under the same lock.
                let _ = store.put(key, Some(record.modified), record.value.clone(), Some(lease));
            }
        }
        delaying.into_iter().map(|(key, _)| key).collect()
    }

    /// Waits for the delay, then takes the lock and removes the marks `delaying` of earlier holders.
    pub(super) async fn wait_out(&mut self, entry: &Queued, delaying: &[Key]) -> Result<Turn, Error> {
        let mut lease = entry.lease_states();
        let lost = async { while !matches!(lease_changed(&mut lease).await, LeaseState::Lost) {} };
        tokio::select! {
            () = tokio::time::sleep(self.acquisition.options.lock_delay) => {}
            () = lost => return Err(Error::LeaseLost),
        }
        let mut link = self.client.link.watch();
        loop {
            let take = |store: &mut Store, _| {
                store.get(&entry.key)?;
                self.put_mark(store, entry, delaying);
                Some(())
            };
            match self.client.link.ask(take).await {
                Ok(Some(())) => {
                    self.acquisition.trouble.clear();
                    return Ok(Turn::Granted);
                }
                Ok(None) => return Err(Error::LeaseLost),
                Err(error) => {
                    self.acquisition.trouble.note(error);
                    up(&mut link).await;
                }
            }
        }
    }
}
