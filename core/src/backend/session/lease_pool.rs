//! Shared leases of a session: their purpose, terms, state and capacity. A backend grants, renews and revokes the
//! leases.

use std::{collections::HashMap, fmt, ops::Deref, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::{backend::session::lease_terms::LeaseTerms, error::Error, runtime::clock::Moment};

/// Maximum number of keys that share a lease. A revocation is one revision, and a revision with 100,000 keys overloads
/// watchers.
const MAX_KEYS: usize = 1000;

/// Purpose of a lease. Locks never share one with registrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "every backend has to handle every purpose")]
pub enum LeasePurpose {
    /// Keeps the keys of registrations.
    Registration,
    /// Keeps queue entries of locks and elections.
    Lock,
}

/// State of a lease, as its renewals show it.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "every backend has to handle every state")]
pub enum LeaseState {
    /// Renewed by a request that was sent at `sent`.
    Alive {
        /// Time at which the last acknowledged renewal was sent.
        sent: Moment,
    },
    /// Not renewed in time since `sent`. The lease may still be alive.
    Suspect {
        /// Time at which the last acknowledged renewal was sent.
        sent: Moment,
        /// Cause of the last failure.
        cause: Error,
    },
    /// Alive, but not to be used for new keys: a write of unknown outcome may yet create a key under it. Only in
    /// backends in which a write can be applied after its request has failed.
    Retired,
    /// The store does not know the lease any more.
    Lost,
}

impl LeaseState {
    /// Returns the time at which the last acknowledged renewal was sent; `None` if the lease is retired or lost.
    pub fn renewed(&self) -> Option<Moment> {
        match self {
            Self::Alive { sent } | Self::Suspect { sent, .. } => Some(*sent),
            Self::Retired | Self::Lost => None,
        }
    }
}

/// Waits for the next state of a lease. Never returns once its renewals have ended.
///
/// # Cancel safety
///
/// Dropping the future loses no state.
pub async fn lease_changed(state: &mut watch::Receiver<LeaseState>) -> LeaseState {
    if state.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    state.borrow_and_update().clone()
}

/// A lease that can be shared by several keys.
pub trait SharedLease {
    /// Returns `true` if the last renewal was acknowledged, so that new keys can use the lease.
    fn is_alive(&self) -> bool;

    /// Returns `true` if the store is known not to know the lease any more.
    fn is_lost(&self) -> bool;
}

/// Use of a lease for one key. The lease is kept alive while there is a use, or while it is in a pool.
#[derive(Debug)]
pub struct LeaseUse<L> {
    lease: Arc<L>,
    /// Part of the capacity of a shared lease.
    _permit: Option<OwnedSemaphorePermit>,
}

impl<L> LeaseUse<L> {
    /// Use of a lease that is not shared.
    pub fn unshared(lease: Arc<L>) -> Self {
        Self { lease, _permit: None }
    }

    /// Returns the lease itself. It is kept alive as long as the result, without a part of its capacity.
    pub fn lease(&self) -> &Arc<L> {
        &self.lease
    }
}

impl<L> Deref for LeaseUse<L> {
    type Target = L;

    fn deref(&self) -> &L {
        &self.lease
    }
}

/// A shared lease and its capacity.
#[derive(Debug)]
struct Pooled<L> {
    lease: Arc<L>,
    /// One permit for each key that the lease can still take.
    capacity: Arc<Semaphore>,
}

impl<L: SharedLease> Pooled<L> {
    fn new(lease: Arc<L>) -> Self {
        Self { lease, capacity: Arc::new(Semaphore::new(MAX_KEYS)) }
    }

    /// Returns a use of the lease; `None` if it is not alive or has no capacity left.
    fn share(&self) -> Option<Arc<LeaseUse<L>>> {
        if !self.lease.is_alive() || self.lease.is_lost() {
            return None;
        }
        let permit = Arc::clone(&self.capacity).try_acquire_owned().ok()?;
        Some(Arc::new(LeaseUse { lease: Arc::clone(&self.lease), _permit: Some(permit) }))
    }
}

/// Purpose and terms of a shared lease. Keys share a lease only if both are equal.
pub type LeasePoolKey = (LeasePurpose, LeaseTerms);

/// Shared leases of a session. They are kept for the life of the session, for two reasons: the next lock or instance
/// needs no grant, and a contender can distinguish a release, after which the lease lives on, from a crash.
pub struct LeasePools<L> {
    pools: HashMap<LeasePoolKey, Vec<Pooled<L>>>,
}

impl<L> Default for LeasePools<L> {
    fn default() -> Self {
        Self { pools: HashMap::new() }
    }
}

impl<L> fmt::Debug for LeasePools<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeasePools").field("pools", &self.pools.len()).finish_non_exhaustive()
    }
}

impl<L: SharedLease> LeasePools<L> {
    /// Returns a use of a shared lease; `None` if the pool has none with capacity that is alive. Lost leases leave the
    /// pool.
    pub fn share(&mut self, key: LeasePoolKey) -> Option<Arc<LeaseUse<L>>> {
        let pool = self.pools.get_mut(&key)?;
        pool.retain(|pooled| !pooled.lease.is_lost());
        pool.iter().find_map(Pooled::share)
    }

    /// Adds a lease that was granted for the pool.
    pub fn add(&mut self, key: LeasePoolKey, lease: Arc<L>) {
        self.pools.entry(key).or_default().push(Pooled::new(lease));
    }

    /// Takes a lease out of its pool: no further key uses it.
    pub fn remove(&mut self, lease: &Arc<L>) {
        for pool in self.pools.values_mut() {
            pool.retain(|pooled| !Arc::ptr_eq(&pooled.lease, lease));
        }
    }

    /// Takes all leases out of their pools.
    pub fn take_all(&mut self) -> Vec<(LeasePurpose, Arc<L>)> {
        let pools = std::mem::take(&mut self.pools);
        let leases = |((purpose, _), pool): (LeasePoolKey, Vec<Pooled<L>>)| {
            pool.into_iter().map(move |pooled| (purpose, pooled.lease))
        };
        pools.into_iter().flat_map(leases).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::Duration,
    };

    use super::*;

    #[derive(Default)]
    struct Granted {
        lost: AtomicBool,
    }

    impl SharedLease for Granted {
        fn is_alive(&self) -> bool {
            true
        }

        fn is_lost(&self) -> bool {
            self.lost.load(Ordering::Relaxed)
        }
    }

    fn key(purpose: LeasePurpose) -> LeasePoolKey {
        (purpose, LeaseTerms::new(Duration::from_secs(15), None))
    }

    #[test]
    fn a_shared_lease_has_a_permit_for_each_of_a_thousand_keys() {
        let mut pools = LeasePools::default();
        let (key, lease) = (key(LeasePurpose::Registration), Arc::new(Granted::default()));
        pools.add(key, Arc::clone(&lease));
        let mut uses: Vec<_> = (0..MAX_KEYS).map(|_| pools.share(key).unwrap()).collect();
        // A second reference belongs to the same key, and takes no further capacity.
        let clone = Arc::clone(&uses[0]);
        assert!(pools.share(key).is_none());
        uses.swap_remove(0);
        assert!(pools.share(key).is_none(), "its key is still kept");
        drop(clone);
        assert!(pools.share(key).is_some());
        lease.lost.store(true, Ordering::Relaxed);
        assert!(pools.share(key).is_none(), "a lost lease is not shared");
    }

    #[test]
    fn locks_do_not_share_leases_with_registrations() {
        let mut pools = LeasePools::default();
        let lease = Arc::new(Granted::default());
        pools.add(key(LeasePurpose::Registration), Arc::clone(&lease));
        assert!(pools.share(key(LeasePurpose::Lock)).is_none());
        pools.add(key(LeasePurpose::Lock), Arc::default());
        pools.remove(&lease);
        assert!(pools.share(key(LeasePurpose::Registration)).is_none());
        let rest: Vec<_> = pools.take_all().into_iter().map(|(purpose, _)| purpose).collect();
        assert_eq!(rest, [LeasePurpose::Lock]);
        assert!(pools.share(key(LeasePurpose::Lock)).is_none());
    }
}
