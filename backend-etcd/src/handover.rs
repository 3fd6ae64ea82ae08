//! Hand-over within a session: whoever releases a lock confirms the place of its successor in the same transaction, if that
//! one waits in this session too. That saves the successor an event and a request of its own.
//!
//! It is an optimization only. A successor watches its predecessor all the same, and confirms by itself whenever this does
//! not come about.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use enlist::{LeaseId, Revision};
use tokio::sync::oneshot;

/// A place in line that waits, as far as others have to know it to confirm it.
#[derive(Clone, Debug)]
pub(crate) struct Successor {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) lease: LeaseId,
    pub(crate) token: Revision,
}

/// A place that waits for another one of this session. Dropping it leaves the successor to itself.
#[derive(Debug)]
pub(crate) struct Heir {
    pub(crate) successor: Successor,
    confirmed: oneshot::Sender<()>,
}

impl Heir {
    /// Tells the successor that its place was confirmed and is the first.
    pub(crate) fn tell(self) {
        // One that no longer waits gives its place up by itself.
        let _ = self.confirmed.send(());
    }
}

/// Who waits for whom, by the key of the predecessor.
#[derive(Debug, Default)]
pub(crate) struct Heirs {
    waiting: Mutex<HashMap<Vec<u8>, Vec<Heir>>>,
}

/// That somebody waits. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Seat<'a> {
    heirs: &'a Heirs,
    before: Vec<u8>,
    token: Revision,
    /// `None` once the predecessor has failed to.
    confirmed: Option<oneshot::Receiver<()>>,
}

impl Heirs {
    /// Notes that `successor` waits until the place at `before` is given up.
    pub(crate) fn wait(&self, before: &[u8], successor: Successor) -> Seat<'_> {
        let (tell, confirmed) = oneshot::channel();
        let token = successor.token;
        self.with(|waiting| {
            waiting.entry(before.to_vec()).or_default().push(Heir { successor, confirmed: tell });
        });
        Seat { heirs: self, before: before.to_vec(), token, confirmed: Some(confirmed) }
    }

    /// Takes the first of those that wait for the place at `key`.
    pub(crate) fn take(&self, key: &[u8]) -> Option<Heir> {
        self.with(|waiting| {
            let heirs = waiting.get_mut(key)?;
            let (first, _) = heirs.iter().enumerate().min_by_key(|(_, heir)| heir.successor.token)?;
            let heir = heirs.swap_remove(first);
            if heirs.is_empty() {
                waiting.remove(key);
            }
            Some(heir)
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<Vec<u8>, Vec<Heir>>) -> T) -> T {
        act(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Seat<'_> {
    /// Waits until the place is confirmed by its predecessor, for ever if that does not happen.
    pub(crate) async fn confirmed(&mut self) {
        if let Some(confirmed) = &mut self.confirmed {
            if confirmed.await.is_ok() {
                return;
            }
            self.confirmed = None;
        }
        std::future::pending::<()>().await;
    }

    /// Says whether the predecessor confirms the place. Waits only while it is at it, which ends with its request.
    pub(crate) async fn handed_over(mut self) -> bool {
        self.leave();
        match self.confirmed.take() {
            Some(confirmed) => confirmed.await.is_ok(),
            None => false,
        }
    }

    fn leave(&self) {
        self.heirs.with(|waiting| {
            if let Some(heirs) = waiting.get_mut(&self.before) {
                heirs.retain(|heir| heir.successor.token != self.token);
                if heirs.is_empty() {
                    waiting.remove(&self.before);
                }
            }
        });
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn successor(token: u64) -> Successor {
        let (lease, token) = (LeaseId::new(1), Revision::new(token));
        Successor { key: vec![1], value: Vec::new(), lease, token }
    }

    #[tokio::test]
    async fn the_first_inherits_and_who_left_does_not() {
        let heirs = Heirs::default();
        let (mut second, gone, mut third) =
            (heirs.wait(b"k", successor(2)), heirs.wait(b"k", successor(1)), heirs.wait(b"k", successor(3)));
        drop(gone);
        heirs.take(b"k").unwrap().tell();
        second.confirmed().await;
        let taken = heirs.take(b"k").unwrap();
        assert_eq!(taken.successor.token, Revision::new(3));
        assert!(heirs.take(b"k").is_none() && heirs.take(b"other").is_none());
        // The request failed.
        drop(taken);
        assert!(futures::FutureExt::now_or_never(third.confirmed()).is_none());
        assert!(!third.handed_over().await);
    }

    #[tokio::test]
    async fn whoever_sees_the_predecessor_go_waits_only_for_a_confirmation_under_way() {
        let heirs = Heirs::default();
        assert!(!heirs.wait(b"k", successor(2)).handed_over().await);
        let seat = heirs.wait(b"k", successor(3));
        heirs.take(b"k").unwrap().tell();
        assert!(seat.handed_over().await);
        assert!(heirs.waiting.lock().unwrap().is_empty());
    }
}
