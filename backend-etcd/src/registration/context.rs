//! Parts of a session that registrations use.

use std::{
    sync::{Arc, Mutex, atomic::AtomicUsize},
    time::Duration,
};

use enlist::{
    Counters, Moment,
    backend::{KeyClaims, MutexExt as _, Observations},
};
use tokio::sync::Semaphore;

use crate::{
    client::store_client::StoreClient,
    layout::{Layout, Part},
    session::{leases::Leases, lifecycle::Lifecycle},
    watch::{key_monitors::KeyMonitors, range_watch::RangeWatches},
};

/// Time for which the lease of a removed instance is kept if its layout has no mark for removals: watchers read that
/// lease.
const DEPARTURE_OBSERVATION: Duration = Duration::from_secs(1);

/// Maximum number of concurrent reads by registrations: thousands that lost their watch together must not read at once.
const MAX_READS: usize = 16;

/// Parts of a session that registrations use. Holding it keeps the session alive.
#[derive(Debug)]
pub(crate) struct RegistrationContext {
    pub(crate) client: Arc<StoreClient>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) range_watches: Arc<RangeWatches>,
    pub(crate) layout: Arc<dyn Layout>,
    pub(crate) counters: Arc<Counters>,
    /// Keys that registrations of this session have claimed.
    pub(crate) key_claims: KeyClaims<Arc<[u8]>>,
    /// Observed leases of other owners' keys that registrations of this session want.
    pub(crate) observations: Observations<Arc<[u8]>>,
    pub(crate) key_monitors: KeyMonitors,
    /// Limits the number of concurrent reads.
    pub(crate) reads: Semaphore,
    /// Number of registrations.
    pub(crate) registrations: AtomicUsize,
    /// Time of the last removal of an instance in a layout without a mark for removals.
    unmarked: Mutex<Option<Moment>>,
}

impl RegistrationContext {
    pub(crate) fn new(
        client: &Arc<StoreClient>,
        leases: &Arc<Leases>,
        range_watches: &Arc<RangeWatches>,
        counters: &Arc<Counters>,
        layout: Arc<dyn Layout>,
    ) -> Self {
        Self {
            client: Arc::clone(client),
            leases: Arc::clone(leases),
            range_watches: Arc::clone(range_watches),
            layout,
            counters: Arc::clone(counters),
            key_claims: KeyClaims::default(),
            observations: Observations::default(),
            key_monitors: KeyMonitors::new(range_watches),
            reads: Semaphore::new(MAX_READS),
            registrations: AtomicUsize::new(0),
            unmarked: Mutex::default(),
        }
    }

    pub(crate) fn lifecycle(&self) -> &Arc<Lifecycle> {
        self.leases.lifecycle()
    }

    /// Records the removal of an instance. In a layout without a mark for removals only its lease distinguishes the
    /// removal from a crash.
    pub(crate) fn note_departure(&self) {
        if !self.layout.carries().contains(&Part::Health) {
            *self.unmarked.locked() = Some(Moment::now());
        }
    }

    /// Waits until watchers have had time to read the leases of instances that were removed without a mark.
    pub(crate) async fn outlast_departures(&self) {
        let last = *self.unmarked.locked();
        if let Some(last) = last {
            tokio::time::sleep(last.remaining(DEPARTURE_OBSERVATION)).await;
        }
    }
}
