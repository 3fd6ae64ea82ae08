//! Session: the leases of a client and everything attached to them, on a runtime of its own.
//!
//! By default that runtime has its own thread, so a program that starves its runtime loses neither leases nor locks.
//! The session ends when the client and the last registration, guard and watcher are dropped.
//!
//! A [`Session`] only assembles the parts. Each part is passed to the code that needs it:
//!
//! | part | used by |
//! |---|---|
//! | [`Lifecycle`] | all: tasks, runtime, end of the session |
//! | [`Leases`] | grants, renews, retires and revokes leases |
//! | [`RangeWatches`] | the watches, one per key range |
//! | [`RegistrationContext`] | the registry and its tasks |
//! | [`LockContext`] | locks and elections |
//! | [`DiscoveryContext`] | the resolver and its watchers |
//! | [`ConfigContext`] | configuration |
//!
//! Read `lifecycle.rs` first, then `leases.rs`.

pub(crate) mod granted_lease;
pub(crate) mod issued_leases;
pub(crate) mod lease;
pub(crate) mod lease_requests;
pub(crate) mod lease_task;
pub(crate) mod leases;
pub(crate) mod lifecycle;
pub(crate) mod renewal;
pub(crate) mod rollback;
pub(crate) mod shared_leases;
pub(crate) mod sweep;

use std::{sync::Arc, time::Duration};

use enlist::{Counters, Error};

use crate::{
    client::store_client::StoreClient,
    config::context::ConfigContext,
    discovery::context::DiscoveryContext,
    layout::{GuardedLocks, Layout, config::ConfigLayout},
    lock::context::LockContext,
    registration::context::RegistrationContext,
    session::{
        lease_requests::revoke,
        leases::Leases,
        lifecycle::{Lifecycle, RuntimeHandle},
        rollback::notice_rollbacks,
    },
    watch::{context::WatchSettings, malformed::MalformedValues, range_watch::RangeWatches},
};

/// Maximum time for which a close waits for the removal of instances on given leases.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(3);

/// The parts of a session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Arc<StoreClient>,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) registration: Arc<RegistrationContext>,
    pub(crate) discovery: DiscoveryContext,
    pub(crate) lock: Arc<LockContext>,
    pub(crate) config: ConfigContext,
    pub(crate) counters: Arc<Counters>,
}

impl Session {
    pub(crate) fn new(
        runtime: RuntimeHandle,
        client: StoreClient,
        layout: &Arc<dyn Layout>,
        lock_layout: Arc<GuardedLocks>,
        config_layout: ConfigLayout,
        settings: WatchSettings,
    ) -> Arc<Self> {
        let client = Arc::new(client);
        let counters = Arc::<Counters>::default();
        let lifecycle = Lifecycle::new(runtime);
        let leases = Arc::new(Leases::new(&lifecycle, Arc::clone(&client), Arc::clone(&counters)));
        let range_watches = Arc::new(RangeWatches::new(&client, &leases, &counters, settings));
        let malformed = Arc::new(MalformedValues::new(Arc::clone(&counters)));
        let noticing = notice_rollbacks(Arc::clone(&client), Arc::downgrade(&leases));
        // The tasks cannot have been stopped yet.
        let _ = lifecycle.tasks.spawn_until_stopped("rollback", noticing);
        Arc::new(Self {
            registration: Arc::new(RegistrationContext::new(
                &client,
                &leases,
                &range_watches,
                &counters,
                Arc::clone(layout),
            )),
            discovery: DiscoveryContext::new(&client, &range_watches, &malformed, Arc::clone(layout)),
            lock: Arc::new(LockContext::new(&client, &leases, &range_watches, &counters, lock_layout)),
            config: ConfigContext { client: Arc::clone(&client), range_watches, layout: config_layout, malformed },
            client,
            lifecycle,
            leases,
            counters,
        })
    }

    /// Refuses calls after the end, see [`Lifecycle::check_open`].
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        self.lifecycle.check_open()
    }

    /// Ends the session in order: instances on given leases are removed, the tasks stop, and the leases are revoked,
    /// which removes the other instances and the locks.
    pub(crate) async fn close(&self, limit: Duration) -> Result<(), enlist::StopError> {
        let Lifecycle { tasks, departures, .. } = &*self.lifecycle;
        // The tasks stop also if this future is dropped.
        let _stop = tasks.stop_signal().drop_guard();
        if !departures.leave(REMOVAL_TIMEOUT.min(limit)).await {
            tracing::warn!("not all instances on given leases were removed, they stay as long as those");
        }
        self.registration.outlast_departures().await;
        let stopped = tasks.stop(limit).await;
        // Without abandoned leases, some of which a task may have learned about only when it ended.
        let leases = self.leases.alive();
        let revoking = futures::future::join_all(leases.into_iter().map(|lease| revoke(&self.client, lease)));
        if tokio::time::timeout(limit, revoking).await.is_err() {
            tracing::debug!("not all leases were revoked, they run out");
        }
        stopped
    }
}
