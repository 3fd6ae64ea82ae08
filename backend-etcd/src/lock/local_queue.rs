//! Hand-over within a session: whoever releases a lock confirms the place of its successor in the same transaction, if that
//! one waits in this session too. The successor watches nothing then.
//!
//! It is an optimization only. A successor whose predecessor does not hand over, for whatever reason, is told so, and confirms
//! its place by itself.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use enlist::Revision;
use tokio::sync::oneshot;

use crate::client::queue_requests::OwnEntry;

/// A place that waits for another one of this session. Dropping it leaves the place to itself.
#[derive(Debug)]
pub(crate) struct Successor {
    pub(crate) place: OwnEntry,
    confirmed: oneshot::Sender<Revision>,
}

impl Successor {
    /// Tells the heir that its place was confirmed at `revision`, and that it is the first.
    pub(crate) fn tell(self, revision: Revision) {
        // One that no longer waits gives its place up by itself.
        let _ = self.confirmed.send(revision);
    }
}

/// The places of this session that are looked after, and who waits for each.
#[derive(Debug, Default)]
pub(crate) struct LocalQueue {
    waiting: Mutex<HashMap<Vec<u8>, Vec<Successor>>>,
}

/// That a place is looked after. Dropping it leaves those that wait for it to themselves.
#[derive(Debug)]
pub(crate) struct Membership<'a> {
    heirs: &'a LocalQueue,
    key: Vec<u8>,
}

/// That somebody waits for a place.
#[derive(Debug)]
pub(crate) struct HandoverTicket {
    confirmed: oneshot::Receiver<Revision>,
}

impl LocalQueue {
    /// Notes that the place at `key` is looked after.
    pub(crate) fn stay(&self, key: &[u8]) -> Membership<'_> {
        self.with(|waiting| waiting.insert(key.to_vec(), Vec::new()));
        Membership { heirs: self, key: key.to_vec() }
    }

    /// Notes that `place` waits for the one at `before`; `None` if that is not one of this session.
    pub(crate) fn wait(&self, before: &[u8], place: OwnEntry) -> Option<HandoverTicket> {
        self.with(|waiting| {
            let heirs = waiting.get_mut(before)?;
            heirs.retain(|heir| !heir.confirmed.is_closed());
            let (tell, confirmed) = oneshot::channel();
            heirs.push(Successor { place, confirmed: tell });
            Some(HandoverTicket { confirmed })
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<Vec<u8>, Vec<Successor>>) -> T) -> T {
        act(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Membership<'_> {
    /// Takes the first of those that wait for this place.
    pub(crate) fn heir(&self) -> Option<Successor> {
        self.heirs.with(|waiting| {
            let heirs = waiting.get_mut(&self.key)?;
            heirs.retain(|heir| !heir.confirmed.is_closed());
            let (first, _) = heirs.iter().enumerate().min_by_key(|(_, heir)| heir.place.token)?;
            Some(heirs.swap_remove(first))
        })
    }
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        self.heirs.with(|waiting| waiting.remove(&self.key));
    }
}

impl HandoverTicket {
    /// Waits for the predecessor's end. Returns the revision at which it has confirmed the place, if it has.
    ///
    /// Dropping the future gives the seat up.
    pub(crate) async fn inherits(self) -> Option<Revision> {
        self.confirmed.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist::LeaseId;
    use futures::FutureExt;

    fn place(token: u64) -> OwnEntry {
        let (lease, token) = (LeaseId::new(1), Revision::new(token));
        OwnEntry { key: vec![1], value: Vec::new(), lease, token }
    }

    #[tokio::test]
    async fn the_first_inherits_and_who_left_does_not() {
        let heirs = LocalQueue::default();
        assert!(heirs.wait(b"k", place(1)).is_none(), "nobody is there");
        let here = heirs.stay(b"k");
        let (second, gone, third) =
            (heirs.wait(b"k", place(2)), heirs.wait(b"k", place(1)), heirs.wait(b"k", place(3)));
        drop(gone);
        here.heir().unwrap().tell(Revision::new(7));
        assert_eq!(second.unwrap().inherits().await, Some(Revision::new(7)));
        let taken = here.heir().unwrap();
        assert_eq!(taken.place.token, Revision::new(3));
        assert!(here.heir().is_none());
        // The request failed.
        drop(taken);
        assert_eq!(third.unwrap().inherits().await, None);
    }

    #[tokio::test]
    async fn whoever_is_not_looked_after_any_more_leaves_its_heirs_to_themselves() {
        let heirs = LocalQueue::default();
        let here = heirs.stay(b"k");
        let mut waits = Box::pin(heirs.wait(b"k", place(2)).unwrap().inherits());
        assert!(waits.as_mut().now_or_never().is_none());
        drop(here);
        assert_eq!(waits.await, None);
        assert!(heirs.waiting.lock().unwrap().is_empty());
    }
}
