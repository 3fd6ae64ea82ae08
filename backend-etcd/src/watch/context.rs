//! Parts of a session that watches use.

use std::{sync::Arc, time::Duration};

use enlist::Counters;

use crate::{
    client::store_client::StoreClient,
    session::{leases::Leases, lifecycle::Lifecycle},
    watch::probe::Probes,
};

/// Options of a client that concern its watches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WatchSettings {
    /// Interval between two audits of a watched range.
    pub(crate) audit: Option<Duration>,
    /// Time without a linearizable list after which the list of one member is shown.
    pub(crate) serializable_first_list: Option<Duration>,
    /// Interval between two probes.
    pub(crate) probe: Option<Duration>,
}

/// Parts of a session that watches use. Holding it keeps the session alive.
#[derive(Debug)]
pub(crate) struct WatchContext {
    pub(crate) client: Arc<StoreClient>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) probes: Probes,
    pub(crate) settings: WatchSettings,
}

impl WatchContext {
    pub(crate) fn new(
        client: &Arc<StoreClient>,
        leases: &Arc<Leases>,
        counters: &Arc<Counters>,
        settings: WatchSettings,
    ) -> Self {
        Self {
            client: Arc::clone(client),
            leases: Arc::clone(leases),
            counters: Arc::clone(counters),
            probes: Probes::new(settings.probe, client, leases.lifecycle().runtime()),
            settings,
        }
    }

    pub(crate) fn lifecycle(&self) -> &Arc<Lifecycle> {
        self.leases.lifecycle()
    }
}
