//! For backends: one registration at a time per key and session.
//!
//! The registrations of a session share leases, so the lease alone does not tell them apart. A registration claims its key
//! before it touches it, and one that leaves is waited for, so that what it still does cannot hit its successor.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use foldhash::fast::RandomState;
use tokio_util::sync::CancellationToken;

use crate::registry::{OnConflict, RegisterOptions};

#[derive(Debug)]
struct Occupant {
    owner: Option<String>,
    leaving: AtomicBool,
    superseded: CancellationToken,
    gone: CancellationToken,
}

type Map<K> = Arc<Mutex<HashMap<K, Arc<Occupant>, RandomState>>>;

/// The keys that registrations of this session have claimed.
pub struct Slots<K> {
    map: Map<K>,
}

impl<K> Default for Slots<K> {
    fn default() -> Self {
        Self { map: Arc::default() }
    }
}

impl<K> fmt::Debug for Slots<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let claimed = self.map.lock().unwrap_or_else(PoisonError::into_inner).len();
        f.debug_struct("Slots").field("claimed", &claimed).finish()
    }
}

/// A claimed key. Dropping it frees the key.
pub struct Claim<K: Eq + Hash> {
    key: K,
    map: Map<K>,
    me: Arc<Occupant>,
}

impl<K: Eq + Hash> fmt::Debug for Claim<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("me", &self.me).finish_non_exhaustive()
    }
}

impl<K: Eq + Hash + Clone> Slots<K> {
    /// Claims `key`, after waiting for an occupant that leaves or that `options` supersede or wait for. `None` if it is
    /// taken and `options` refuse to wait.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future claims nothing; an occupant that was superseded stays so.
    pub async fn claim(&self, key: &K, options: &RegisterOptions) -> Option<Claim<K>> {
        loop {
            let occupant = match self.try_claim(key, options) {
                Ok(claim) => return Some(claim),
                Err(occupant) => occupant,
            };
            let same_owner = options.owner.is_some() && options.owner == occupant.owner;
            if same_owner || options.on_conflict == OnConflict::TakeOver {
                occupant.superseded.cancel();
            } else if options.on_conflict == OnConflict::Refuse && !occupant.leaving.load(Ordering::Acquire) {
                return None;
            }
            occupant.gone.cancelled().await;
        }
    }

    fn try_claim(&self, key: &K, options: &RegisterOptions) -> Result<Claim<K>, Arc<Occupant>> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match map.entry(key.clone()) {
            Entry::Occupied(taken) => return Err(Arc::clone(taken.get())),
            Entry::Vacant(place) => place,
        };
        let me = Arc::new(Occupant {
            owner: options.owner.clone(),
            leaving: AtomicBool::new(false),
            superseded: CancellationToken::new(),
            gone: CancellationToken::new(),
        });
        place.insert(Arc::clone(&me));
        Ok(Claim { key: key.clone(), map: Arc::clone(&self.map), me })
    }
}

impl<K: Eq + Hash> Claim<K> {
    /// Says that this registration is about to leave, so that a successor waits for it instead of giving up.
    pub fn leave(&self) {
        self.me.leaving.store(true, Ordering::Release);
    }

    /// Waits until a successor wants the key. The registration has to end then, and to leave the key as it is.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn superseded(&self) {
        self.me.superseded.cancelled().await;
    }
}

impl<K: Eq + Hash> Drop for Claim<K> {
    fn drop(&mut self) {
        self.map.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.me.gone.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_taken_key_is_refused_until_its_occupant_leaves() {
        let slots = Slots::default();
        let options = RegisterOptions::new();
        let first = slots.claim(&"key", &options).await.unwrap();
        assert!(slots.claim(&"other", &options).await.is_some());
        assert!(slots.claim(&"key", &options).await.is_none());
        first.leave();
        let (second, ()) = tokio::join!(slots.claim(&"key", &options), async { drop(first) });
        assert!(second.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_equal_owner_supersedes() {
        let slots = Slots::default();
        let options = RegisterOptions::new().owner("me");
        let first = slots.claim(&"key", &options).await.unwrap();
        let (second, ()) = tokio::join!(slots.claim(&"key", &options), async {
            first.superseded().await;
            drop(first);
        });
        assert!(second.is_some());
    }
}
