//! The client of etcd. It is configured and connected in `builder`; the traits are implemented in
//! `registration/registry.rs`, `discovery/watcher.rs`, `lock/mod.rs`, `lock/election.rs` and `config/values.rs`.

use std::{fmt, sync::Arc, time::Duration};

use enlist::{Counters, StopError};

use crate::{
    layout::{Layout, LockLayout, config::ConfigLayout},
    session::Session,
};

/// Time for which a close waits for the session's tasks.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of etcd: implements all traits. Clones share the session.
///
/// Registrations, guards and watchers keep the session alive when all clones are dropped.
#[derive(Clone)]
pub struct Etcd {
    pub(crate) session: Arc<Session>,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("layout", &self.session.registration.layout.name()).finish_non_exhaustive()
    }
}

impl Etcd {
    /// Returns the layout of instances in etcd.
    pub fn layout(&self) -> &dyn Layout {
        &*self.session.registration.layout
    }

    /// Returns the layout of locks and elections in etcd.
    pub fn lock_layout(&self) -> &dyn LockLayout {
        &*self.session.lock.lock_layout
    }

    /// Returns the layout of configuration in etcd.
    pub fn config_layout(&self) -> &ConfigLayout {
        &self.session.config.layout
    }

    /// Returns counts of events so far: renewals, losses, resumed watches, audits and more.
    pub fn counters(&self) -> &Counters {
        &self.session.counters
    }

    /// Ends the session in order: its tasks stop and its leases are revoked, which removes its instances and locks at
    /// once. Before that, instances on [given leases](enlist::LeaseChoice::Given) are removed as by
    /// [`Registration::deregister`], for at most 3 s. Later calls fail with [`Error::Closed`](enlist::Error::Closed).
    ///
    /// [`Registration::deregister`]: enlist::Registration::deregister
    ///
    /// # Errors
    ///
    /// [`StopError`] if a task did not end within 5 s or had panicked.
    ///
    /// # Cancel safety
    ///
    /// The session ends nevertheless; leases that were not revoked yet expire.
    pub async fn close(&self) -> Result<(), StopError> {
        self.session.close(CLOSE_TIMEOUT).await
    }
}
