//! State of a scope: the services that its follower knows. States share their structure, so a reader keeps one for the
//! cost of its difference to the latest.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime},
};

use enlist::{Entry, Error, Freshness, Namespace, ServiceName, ServiceRef, Snapshot};
use imbl::OrdMap;

use super::{
    freshness::{FreshnessJson, millis},
    position::Position,
};

/// Number of the latest ends of instances that are kept for each service.
pub(super) const DEPARTURES: usize = 50;

/// Part of the registry that is followed as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    /// All services of a namespace.
    Namespace(Namespace),
    /// One service.
    Service(ServiceRef),
}

impl Scope {
    /// Returns the namespace.
    pub(super) fn namespace(&self) -> &Namespace {
        match self {
            Self::Namespace(namespace) => namespace,
            Self::Service(service) => service.namespace(),
        }
    }
}

/// An instance that ended.
#[derive(Clone, Debug)]
pub(super) struct Departure {
    /// Its last state.
    pub(super) entry: Arc<Entry>,
    /// Cause of the end.
    pub(super) end: End,
    /// Time at which the agent learned of it.
    pub(super) at: SystemTime,
}

/// Cause of the end of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was deregistered or removed.
    Departed,
    /// Its lease expired or was revoked.
    Lost,
    /// The agent has forgotten it meanwhile.
    Unknown,
}

impl End {
    /// Returns the cause of the absence of an instance from a snapshot.
    pub(super) fn of(entry: &Entry, snapshot: &Snapshot) -> Self {
        if snapshot.departed(entry.instance().id()) { Self::Departed } else { Self::Lost }
    }

    /// Returns the word in JSON.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Departed => "departed",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }
}

impl Departure {
    /// Returns the word in JSON for the cause.
    pub(super) fn reason(&self) -> &'static str {
        self.end.as_str()
    }
}

/// State of one service.
#[derive(Clone, Debug)]
pub(super) struct ServiceState {
    pub(super) snapshot: Snapshot,
    pub(super) freshness: Freshness,
    pub(super) departures: Arc<VecDeque<Departure>>,
    /// Number of the change that led to this state; unique within a scope.
    pub(super) change: u64,
}

impl PartialEq for ServiceState {
    fn eq(&self, other: &Self) -> bool {
        self.change == other.change
    }
}

/// State of the list of services.
#[derive(Clone, Debug)]
pub(super) struct ListState {
    pub(super) freshness: Freshness,
    /// Services that are not followed, because there are more than permitted.
    pub(super) omitted: usize,
}

/// State of a scope.
#[derive(Clone, Debug, Default)]
pub(super) struct RegistryState {
    pub(super) services: OrdMap<ServiceName, ServiceState>,
    /// The list of services; `None` in the scope of one service.
    pub(super) list: Option<ListState>,
}

impl RegistryState {
    /// Returns the freshness of the oldest part. It is stale if any part is.
    pub(super) fn freshness(&self) -> FreshnessJson {
        let parts =
            || self.list.iter().map(|list| &list.freshness).chain(self.services.values().map(|one| &one.freshness));
        let age = parts().map(Freshness::age).max().unwrap_or(Duration::ZERO);
        let worst = parts().find(|part| !part.is_live()).or_else(|| parts().next());
        match worst {
            Some(worst) => FreshnessJson { age_ms: millis(age), ..worst.into() },
            None => FreshnessJson::live(Duration::ZERO),
        }
    }

    /// Returns the services that have an instance. Others are kept for a while.
    pub(super) fn present(&self) -> impl Iterator<Item = (&ServiceName, &ServiceState)> {
        self.services.iter().filter(|(_, service)| !service.snapshot.is_empty())
    }

    /// Returns the number of services that are not followed.
    pub(super) fn omitted(&self) -> usize {
        self.list.as_ref().map_or(0, |list| list.omitted)
    }

    /// Returns the number of instances.
    pub(super) fn instances(&self) -> usize {
        self.services.values().map(|service| service.snapshot.len()).sum()
    }
}

/// Completeness of a state.
#[derive(Clone, Debug, Default)]
pub(super) enum Progress {
    /// Some services are not known yet.
    #[default]
    Loading,
    /// The store refuses to list the services, or the service.
    Refused(Error),
    /// All services are known. An outage does not change this: the last known state stays.
    Complete,
}

/// Published state of a scope.
#[derive(Clone, Debug, Default)]
pub(super) struct Published {
    pub(super) position: Position,
    pub(super) state: RegistryState,
    pub(super) progress: Progress,
}
