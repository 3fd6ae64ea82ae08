//! For backends: one registration at a time per key and session.
//!
//! The registrations of a session share leases, so the lease alone does not distinguish them. A registration claims its
//! key before it writes to it. A new claim waits for the release of the previous one, so late writes cannot affect it.
//! Claims on one key are served in the order of their requests. A registration that gives way gets the key again after
//! those that it gave way to.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    hash::Hash,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard},
};

use foldhash::fast::RandomState;
use tokio::sync::{Notify, Semaphore};

use crate::{
    backend::registration::registration_driver::Withdrawal,
    model::{escape::Hidden, revision::Revision},
    registration::options::{OnConflict, RegisterOptions},
    runtime::sync::MutexExt as _,
};

/// One claimed key.
#[derive(Debug)]
struct Slot {
    /// One permit is available while the key is free.
    turn: Semaphore,
    claimant: Mutex<Claimant>,
    /// Notified when the claimant changes, and when it is asked to give way.
    changed: Notify,
}

/// The registration that claims a key, or claimed it last.
struct Claimant {
    owner: Option<String>,
    withdrawal: Withdrawal,
    /// The registration is about to leave, or has left.
    leaving: bool,
    /// A successor waits for the key.
    wanted: bool,
}

impl fmt::Debug for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, withdrawal, leaving, wanted } = self;
        f.debug_struct("Claimant")
            .field("owner", &owner.as_ref().map(|_| Hidden))
            .field("withdrawal", withdrawal)
            .field("leaving", leaving)
            .field("wanted", wanted)
            .finish()
    }
}

impl Claimant {
    fn new(options: &RegisterOptions, withdrawal: &Withdrawal) -> Self {
        Self { owner: options.owner.clone(), withdrawal: withdrawal.clone(), leaving: false, wanted: false }
    }

    fn is_leaving(&self) -> bool {
        self.leaving || self.withdrawal.is_withdrawn()
    }
}

type Map<K> = Arc<Mutex<HashMap<K, Arc<Slot>, RandomState>>>;

/// Keys that registrations of this session have claimed. Clones share them.
pub struct KeyClaims<K> {
    map: Map<K>,
}

impl<K> Default for KeyClaims<K> {
    fn default() -> Self {
        Self { map: Arc::default() }
    }
}

impl<K> Clone for KeyClaims<K> {
    fn clone(&self) -> Self {
        Self { map: Arc::clone(&self.map) }
    }
}

impl<K> fmt::Debug for KeyClaims<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let claimed = self.map.locked().len();
        f.debug_struct("KeyClaims").field("claimed", &claimed).finish()
    }
}

/// Behaviour of a claim towards a registration of this session that already claims the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a registration claims its key anew only after it gave way")]
pub enum Approach {
    /// Follows the options.
    New,
    /// Waits for the current claimant: this registration gave way before.
    Again,
}

/// A claimed key. Dropping it frees the key.
pub struct Claim<K: Eq + Hash> {
    visit: Visit<K>,
}

impl<K: Eq + Hash> fmt::Debug for Claim<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("slot", &self.visit.slot).finish_non_exhaustive()
    }
}

/// A registration that has a key or waits for it. The last one to leave removes the slot.
struct Visit<K: Eq + Hash> {
    key: K,
    map: Map<K>,
    slot: Arc<Slot>,
}

/// Outcome of entering the slot of a key.
enum Entered<K: Eq + Hash> {
    /// The key was free.
    Claimed(Claim<K>),
    /// Another registration claims the key.
    Waits(Visit<K>),
}

impl<K: Eq + Hash + Clone> KeyClaims<K> {
    /// Claims `key`. Waits for a claimant that leaves, or that `options` supersede or wait for.
    ///
    /// # Errors
    ///
    /// The revision of the claimant's last acknowledged write (`None` before one), if `options` do not allow a wait for
    /// it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future claims nothing. A claimant that was already asked to give way still does.
    pub async fn claim(
        &self,
        key: &K,
        options: &RegisterOptions,
        withdrawal: &Withdrawal,
        approach: Approach,
    ) -> Result<Claim<K>, Option<Revision>> {
        let visit = match self.visit(key, options, withdrawal) {
            Entered::Claimed(claim) => return Ok(claim),
            Entered::Waits(visit) => visit,
        };
        let slot = Arc::clone(&visit.slot);
        loop {
            let mut changed = pin!(slot.changed.notified());
            // Enabled before the claimant is checked, so that no change is missed.
            changed.as_mut().enable();
            if approach == Approach::New {
                slot.approach(options)?;
            }
            tokio::select! {
                // An assigned permit is not given back because of a simultaneous change.
                biased;
                permit = slot.turn.acquire() => {
                    // The semaphore is never closed, so there is a permit.
                    if let Ok(permit) = permit {
                        permit.forget();
                    }
                    slot.occupy(Claimant::new(options, withdrawal));
                    return Ok(Claim { visit });
                }
                () = changed => {}
            }
        }
    }

    /// The registration that claims `key`, unless it is about to leave.
    pub fn claimant(&self, key: &K) -> Option<Withdrawal> {
        let slot = Arc::clone(self.map.locked().get(key)?);
        let claimant = slot.claimant();
        (!claimant.is_leaving()).then(|| claimant.withdrawal.clone())
    }

    /// Enters the slot of `key`. A free key is claimed.
    fn visit(&self, key: &K, options: &RegisterOptions, withdrawal: &Withdrawal) -> Entered<K> {
        let mut map = self.map.locked();
        let visit = |slot| Visit { key: key.clone(), map: Arc::clone(&self.map), slot };
        match map.entry(key.clone()) {
            Entry::Occupied(taken) => Entered::Waits(visit(Arc::clone(taken.get()))),
            Entry::Vacant(vacant) => {
                let slot = Slot {
                    turn: Semaphore::new(0),
                    claimant: Mutex::new(Claimant::new(options, withdrawal)),
                    changed: Notify::new(),
                };
                Entered::Claimed(Claim { visit: visit(Arc::clone(vacant.insert(Arc::new(slot)))) })
            }
        }
    }
}

impl Slot {
    fn claimant(&self) -> MutexGuard<'_, Claimant> {
        self.claimant.locked()
    }

    fn occupy(&self, claimant: Claimant) {
        *self.claimant() = claimant;
        self.changed.notify_waiters();
    }

    /// Asks the claimant to give way, if `options` allow that. Returns the claimant's revision as an error if they do
    /// not allow a wait.
    fn approach(&self, options: &RegisterOptions) -> Result<(), Option<Revision>> {
        let mut claimant = self.claimant();
        let same_owner = options.owner.is_some() && options.owner == claimant.owner;
        if same_owner || options.on_conflict == OnConflict::TakeOver {
            if !std::mem::replace(&mut claimant.wanted, true) {
                drop(claimant);
                self.changed.notify_waiters();
            }
            return Ok(());
        }
        let waits = options.on_conflict != OnConflict::Refuse || claimant.is_leaving();
        if waits { Ok(()) } else { Err(claimant.withdrawal.stored()) }
    }
}

impl<K: Eq + Hash> Claim<K> {
    /// Marks this registration as about to leave, so that a successor waits for it instead of giving up.
    pub fn leave(&self) {
        self.visit.slot.claimant().leaving = true;
        self.visit.slot.changed.notify_waiters();
    }

    /// Waits until a successor wants the key. The registration then has to give way and to leave the key unchanged.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn superseded(&self) {
        let slot = &self.visit.slot;
        loop {
            let mut changed = pin!(slot.changed.notified());
            changed.as_mut().enable();
            if slot.claimant().wanted {
                return;
            }
            changed.await;
        }
    }
}

impl<K: Eq + Hash> Drop for Claim<K> {
    fn drop(&mut self) {
        // The key has no claimant until it is passed on.
        self.visit.slot.claimant().leaving = true;
        self.visit.slot.turn.add_permits(1);
    }
}

impl<K: Eq + Hash> Drop for Visit<K> {
    fn drop(&mut self) {
        let mut map = self.map.locked();
        // The references of the map and of this visit: claims enter under the same lock.
        if Arc::strong_count(&self.slot) <= 2 {
            map.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::{
        Endpoint, Instance, InstanceId, Registration, ServiceRef,
        backend::registration::registration_driver::registration,
    };

    struct Party {
        options: RegisterOptions,
        registration: Registration,
        withdrawal: Withdrawal,
    }

    impl Party {
        fn new(options: RegisterOptions) -> Self {
            let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
            let service = ServiceRef::parse("s").unwrap();
            let (registration, driver) = registration(service, instance, &options, Arc::new(())).unwrap();
            Self { options, withdrawal: driver.withdrawal(), registration }
        }

        async fn claim(&self, key_claims: &KeyClaims<&'static str>, approach: Approach) -> Option<Claim<&'static str>> {
            key_claims.claim(&"key", &self.options, &self.withdrawal, approach).await.ok()
        }
    }

    fn stranger() -> Party {
        Party::new(RegisterOptions::new())
    }

    fn mine() -> Party {
        Party::new(RegisterOptions::new().owner("me"))
    }

    #[tokio::test(start_paused = true)]
    async fn the_owner_token_of_a_claim_is_not_shown() {
        let (key_claims, party) = (KeyClaims::default(), Party::new(RegisterOptions::new().owner("s3cret")));
        let claim = party.claim(&key_claims, Approach::New).await.unwrap();
        let shown = format!("{claim:?} {key_claims:?}");
        assert!(!shown.contains("s3cret") && shown.contains("owner: Some"), "{shown}");
        assert!(shown.contains("claimed: 1"), "{shown}");
    }

    #[tokio::test(start_paused = true)]
    async fn clones_share_their_claims() {
        let (key_claims, one, two) = (KeyClaims::default(), stranger(), stranger());
        let _claim = one.claim(&key_claims.clone(), Approach::New).await.unwrap();
        assert!(two.claim(&key_claims, Approach::New).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_taken_key_is_refused_until_its_occupant_leaves() {
        let key_claims = KeyClaims::default();
        let (one, two) = (stranger(), stranger());
        let first = one.claim(&key_claims, Approach::New).await.unwrap();
        let other = key_claims.claim(&"other", &two.options, &two.withdrawal, Approach::New).await;
        assert!(other.is_ok());
        assert!(two.claim(&key_claims, Approach::New).await.is_none());
        first.leave();
        let (second, ()) = tokio::join!(two.claim(&key_claims, Approach::New), async { drop(first) });
        drop((second.unwrap(), other));
        assert!(key_claims.map.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_withdrawn_occupant_is_waited_for_although_it_has_not_noticed_yet() {
        let key_claims = KeyClaims::default();
        let (one, two) = (stranger(), stranger());
        let first = one.claim(&key_claims, Approach::New).await.unwrap();
        drop(one.registration);
        let (second, ()) = tokio::join!(two.claim(&key_claims, Approach::New), async { drop(first) });
        assert!(second.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_equal_owner_supersedes_and_gives_the_key_back() {
        let key_claims = KeyClaims::default();
        let (one, two) = (mine(), mine());
        let first = one.claim(&key_claims, Approach::New).await.unwrap();
        let mut second = Box::pin(two.claim(&key_claims, Approach::New));
        assert!(second.as_mut().now_or_never().is_none());
        first.superseded().await;
        drop(first);
        // The first registration asks again at once, but is queued behind the second.
        let mut again = Box::pin(one.claim(&key_claims, Approach::Again));
        assert!(again.as_mut().now_or_never().is_none());
        let second = second.await.unwrap();
        assert!(again.as_mut().now_or_never().is_none());
        assert!(second.superseded().now_or_never().is_none(), "it waits, and wants nothing");
        drop(second);
        assert!(again.await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_claimant_is_told_of_its_successor() {
        let key_claims = KeyClaims::default();
        let (one, two) = (mine(), mine());
        let first = one.claim(&key_claims, Approach::New).await.unwrap();
        let mut superseded = Box::pin(first.superseded());
        assert!(superseded.as_mut().now_or_never().is_none());
        let mut second = Box::pin(two.claim(&key_claims, Approach::New));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(superseded.now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_registration_that_has_a_key_is_its_occupant_until_it_leaves() {
        let key_claims = KeyClaims::default();
        let party = stranger();
        assert!(key_claims.claimant(&"key").is_none());
        let claim = party.claim(&key_claims, Approach::New).await.unwrap();
        assert!(key_claims.claimant(&"key").is_some());
        claim.leave();
        assert!(key_claims.claimant(&"key").is_none());
        drop(claim);
        assert!(key_claims.map.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_successor_that_gives_up_leaves_the_key_to_the_next() {
        let key_claims = KeyClaims::default();
        let (one, two) = (mine(), mine());
        let first = one.claim(&key_claims, Approach::New).await.unwrap();
        let mut second = Box::pin(two.claim(&key_claims, Approach::New));
        assert!(second.as_mut().now_or_never().is_none());
        drop(second);
        first.superseded().await;
        drop(first);
        drop(one.claim(&key_claims, Approach::Again).await.unwrap());
        assert!(key_claims.map.lock().unwrap().is_empty());
    }
}
