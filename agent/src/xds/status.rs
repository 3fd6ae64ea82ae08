//! Clients, limits and counters of a server.

use std::{sync::Arc, time::Duration};

use enlist::Directory;

use super::{
    clients::{ClientEntry, Clients, XdsTotals},
    name_budget::NameBudget,
    options::XdsOptions,
    requests::RequestBudget,
    shared::SharedAssignments,
    subscription::MEAN_NAME_BYTES,
};
use crate::{
    limits::{Limit, LimitUse, Permits},
    staleness::Staleness,
};

/// Maximum bytes of a request beside its names: the description of the node, and the reason for a rejection. Envoy's
/// contains the whole resource. A stream with a longer one is ended.
const MAX_EXTRA_BYTES: usize = 256 << 10;

/// Clients and counters of a server.
#[derive(Clone, Debug)]
pub(crate) struct XdsStatus {
    pub(super) connections: Arc<Permits>,
    pub(super) clients: Arc<Clients>,
    /// Names of one stream, of each type.
    pub(super) names: Arc<Limit>,
    pub(super) name_budget: Arc<NameBudget>,
    pub(super) requests: RequestBudget,
    pub(super) assignments: Arc<SharedAssignments>,
}

impl XdsStatus {
    /// Creates the status of a server without clients. `idle`: time for which the directory keeps a view without a
    /// user.
    pub(crate) fn new(directory: Directory, idle: Duration, options: &XdsOptions) -> Self {
        let assignments = SharedAssignments::new(directory, options.max_services, idle, options.settle);
        let connections = Permits::new("xds_connections", options.max_streams);
        Self {
            connections: Arc::new(connections),
            clients: Arc::new(Clients::new(options.max_streams)),
            names: Limit::new("xds_names", options.max_names),
            name_budget: NameBudget::new(options.max_streams),
            requests: RequestBudget::new(max_request_bytes(options.max_names)),
            assignments: Arc::new(assignments),
        }
    }

    /// Returns the connected clients.
    pub(crate) fn clients(&self) -> Vec<ClientEntry> {
        self.clients.list()
    }

    /// Returns the counters.
    pub(crate) fn totals(&self) -> XdsTotals {
        let mut totals = XdsTotals {
            refused_connections: self.connections.usage().refused,
            too_many_names: self.names.refused(),
            too_many_services: self.assignments.usage().refused,
            not_sent: self.assignments.not_sent(),
            ..self.clients.totals()
        };
        for assignment in self.assignments.known() {
            for (omission, count) in assignment.omitted {
                *totals.omitted.entry(omission).or_default() += count;
            }
        }
        totals
    }

    /// Returns the staleness of the assignments that clients subscribe to.
    pub(crate) fn staleness(&self) -> Staleness {
        self.assignments.staleness()
    }

    /// Returns the use of all limits.
    pub(crate) fn limits(&self) -> [LimitUse; 6] {
        let Self { connections, clients, names, name_budget, requests, assignments } = self;
        let (names, name_bytes) = (names.usage(None), name_budget.usage());
        [connections.usage(), clients.usage(), names, name_bytes, requests.usage(), assignments.usage()]
    }
}

/// Returns the maximum bytes of a request that names this number of services.
fn max_request_bytes(max_names: usize) -> usize {
    max_names.saturating_mul(MEAN_NAME_BYTES).saturating_add(MAX_EXTRA_BYTES)
}
