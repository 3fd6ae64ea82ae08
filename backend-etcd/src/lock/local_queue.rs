//! Hand-over within a session: the release of a holder confirms the entry of its successor in the same transaction, if
//! the successor waits in this session. Such a successor needs no watch.
//!
//! It is an optimization only. Without a hand-over the successor's ticket ends, and the successor confirms its entry
//! itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use enlist::{Revision, backend::MutexExt as _};
use tokio::sync::oneshot;

use crate::{client::requests::queue_requests::NextEntry, watch::record::Record};

/// Entry that waits for another one of this session. Dropping it leaves the entry to etcd's watches.
#[derive(Debug)]
pub(crate) struct Successor {
    entry: NextEntry,
    confirmed: oneshot::Sender<Revision>,
}

impl Successor {
    pub(crate) fn entry(&self) -> &NextEntry {
        &self.entry
    }

    /// Reports that its entry was confirmed at `revision` and is the first of the queue.
    pub(crate) fn confirm(self, revision: Revision) {
        // A contender that no longer waits removes its entry itself.
        let _ = self.confirmed.send(revision);
    }
}

/// Managed entry.
#[derive(Debug)]
struct Managed {
    /// Revision of its creation, which distinguishes it from another entry under the same key.
    token: Revision,
    /// Entries of this session that wait for it.
    successors: Vec<Successor>,
}

/// Managed entries of this session by their keys.
type Waiting = Arc<Mutex<HashMap<Vec<u8>, Managed>>>;

/// Managed entries of this session, each with the entries that wait for it.
#[derive(Debug, Default)]
pub(crate) struct LocalQueue {
    waiting: Waiting,
}

/// Marks an entry as managed. On drop, the entries that wait for it fall back to etcd's watches.
#[derive(Debug)]
pub(crate) struct Membership {
    waiting: Waiting,
    key: Vec<u8>,
    token: Revision,
}

/// Right of a waiting entry to a hand-over.
#[derive(Debug)]
pub(crate) struct HandoverTicket {
    confirmed: oneshot::Receiver<Revision>,
}

impl LocalQueue {
    /// Marks the entry at `key` that was created at `token` as managed.
    pub(crate) fn join(&self, key: &[u8], token: Revision) -> Membership {
        with(&self.waiting, |waiting| waiting.insert(key.to_vec(), Managed { token, successors: Vec::new() }));
        Membership { waiting: Arc::clone(&self.waiting), key: key.to_vec(), token }
    }

    /// Registers `entry` as waiting for the entry `before`; returns `None` if this session does not manage `before`.
    /// The key alone does not identify it: its suffix is reused, and a later entry under it may be behind `entry`.
    pub(crate) fn wait(&self, before: &Record, entry: NextEntry) -> Option<HandoverTicket> {
        with(&self.waiting, |waiting| {
            let managed = waiting.get_mut(&*before.key).filter(|managed| managed.token == before.created)?;
            let successors = &mut managed.successors;
            successors.retain(|successor| !successor.confirmed.is_closed());
            let (sender, confirmed) = oneshot::channel();
            successors.push(Successor { entry, confirmed: sender });
            Some(HandoverTicket { confirmed })
        })
    }
}

fn with<T>(waiting: &Waiting, act: impl FnOnce(&mut HashMap<Vec<u8>, Managed>) -> T) -> T {
    act(&mut waiting.locked())
}

impl Membership {
    /// Takes the first of the entries that wait for this one.
    pub(crate) fn successor(&self) -> Option<Successor> {
        with(&self.waiting, |waiting| {
            let managed = waiting.get_mut(&self.key).filter(|managed| managed.token == self.token)?;
            let successors = &mut managed.successors;
            successors.retain(|successor| !successor.confirmed.is_closed());
            let (first, _) = successors.iter().enumerate().min_by_key(|(_, successor)| successor.entry.token)?;
            Some(successors.swap_remove(first))
        })
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        with(&self.waiting, |waiting| {
            if waiting.get(&self.key).is_some_and(|managed| managed.token == self.token) {
                waiting.remove(&self.key);
            }
        });
    }
}

impl HandoverTicket {
    /// Waits for the end of the predecessor. Returns the revision at which it confirmed the entry, if it did.
    ///
    /// Dropping the future gives the ticket up.
    pub(crate) async fn confirmed(self) -> Option<Revision> {
        self.confirmed.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist::LeaseId;
    use futures::FutureExt;

    fn entry(token: u64) -> NextEntry {
        NextEntry { key: vec![1], lease: LeaseId::new(1), token: Revision::new(token) }
    }

    fn record(created: u64) -> Record {
        let at = Revision::new(created);
        Record { key: b"k"[..].into(), value: Vec::new(), created: at, modified: at, lease: None }
    }

    /// Otherwise the entry would wait for one behind itself.
    #[test]
    fn a_later_entry_under_the_same_key_is_not_waited_for() {
        let queue = LocalQueue::default();
        let earlier = queue.join(b"k", Revision::new(1));
        let later = queue.join(b"k", Revision::new(9));
        assert!(queue.wait(&record(1), entry(5)).is_none());
        drop(earlier);
        assert!(queue.wait(&record(9), entry(10)).is_some(), "the end of the earlier one does not concern it");
        drop(later);
        assert!(queue.waiting.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_first_waiting_entry_is_the_successor() {
        let (queue, before) = (LocalQueue::default(), record(1));
        let wait = |token| queue.wait(&before, entry(token));
        assert!(wait(2).is_none(), "not managed");
        let own = queue.join(&before.key, before.created);
        let (second, gone, third) = (wait(3), wait(2), wait(4));
        drop(gone);
        own.successor().unwrap().confirm(Revision::new(7));
        assert_eq!(second.unwrap().confirmed().await, Some(Revision::new(7)));
        let taken = own.successor().unwrap();
        assert_eq!(taken.entry.token, Revision::new(4));
        assert!(own.successor().is_none());
        // The request failed.
        drop(taken);
        assert_eq!(third.unwrap().confirmed().await, None);
    }

    #[tokio::test]
    async fn the_end_of_a_membership_ends_its_tickets() {
        let queue = LocalQueue::default();
        let own = queue.join(b"k", Revision::new(1));
        let mut waits = Box::pin(queue.wait(&record(1), entry(2)).unwrap().confirmed());
        assert!(waits.as_mut().now_or_never().is_none());
        drop(own);
        assert_eq!(waits.await, None);
        assert!(queue.waiting.lock().unwrap().is_empty());
    }
}
