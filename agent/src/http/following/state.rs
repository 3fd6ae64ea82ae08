//! State of a scope: the services that its follower knows. States share their structure, so a reader keeps one for the
//! cost of its difference to the latest.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime},
};

use enlist::{Entry, Error, Freshness, Moment, Namespace, ServiceName, ServiceRef, Snapshot, backend::ProofWriter};
use imbl::OrdMap;

use super::position::Position;
use crate::http::messages::freshness::{FreshnessJson, millis};

/// Part of the registry that is followed as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// All services of a namespace.
    Namespace(Namespace),
    /// One service.
    Service(ServiceRef),
}

impl Scope {
    /// Returns the namespace.
    pub(crate) fn namespace(&self) -> &Namespace {
        match self {
            Self::Namespace(namespace) => namespace,
            Self::Service(service) => service.namespace(),
        }
    }
}

/// An instance that ended.
#[derive(Clone, Debug)]
pub(crate) struct Departure {
    /// Its last state.
    pub(crate) entry: Arc<Entry>,
    /// Cause of the end.
    pub(crate) end: EntryEnd,
    /// Time at which the agent learned of it.
    pub(crate) at: SystemTime,
}

/// Cause of the end of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryEnd {
    /// It was deregistered or removed.
    Departed,
    /// Its lease expired or was revoked.
    Lost,
    /// The agent has forgotten it meanwhile.
    Unknown,
}

impl EntryEnd {
    /// Returns the cause of the absence of an instance from a snapshot.
    pub(crate) fn of(entry: &Entry, snapshot: &Snapshot) -> Self {
        if snapshot.departed(entry.instance().id()) { Self::Departed } else { Self::Lost }
    }

    /// Returns the word in JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Departed => "departed",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }
}

impl Departure {
    /// Returns `true` if both are the same end, which two followers may learn of at different times.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let (own, other) = (&self.entry, &other.entry);
        own.instance().id() == other.instance().id() && own.created() == other.created()
    }

    /// Returns the word in JSON for the cause.
    pub(crate) fn reason(&self) -> &'static str {
        self.end.as_str()
    }
}

/// State of one service.
#[derive(Clone, Debug)]
pub(crate) struct ServiceState {
    pub(crate) snapshot: Snapshot,
    pub(crate) freshness: Freshness,
    pub(crate) departures: Arc<VecDeque<Departure>>,
    /// Number of the change that led to this state; unique within a scope.
    pub(crate) change: u64,
}

impl PartialEq for ServiceState {
    fn eq(&self, other: &Self) -> bool {
        self.change == other.change
    }
}

/// State of the list of services.
#[derive(Clone, Debug)]
pub(crate) struct ListState {
    pub(crate) freshness: Freshness,
    /// Services that the state lacks, because there are more than permitted, or because the store refuses them.
    pub(crate) omitted: usize,
}

/// State of a scope.
#[derive(Clone, Debug, Default)]
pub(crate) struct RegistryState {
    pub(crate) services: OrdMap<ServiceName, ServiceState>,
    /// The list of services; `None` in the scope of one service.
    pub(crate) list: Option<ListState>,
}

impl RegistryState {
    /// Returns the freshness of the oldest part. It is stale if any part is.
    pub(crate) fn freshness(&self) -> FreshnessJson {
        let age = self.parts().map(Freshness::age).max().unwrap_or(Duration::ZERO);
        let worst = self.parts().find(|part| !part.is_live()).or_else(|| self.parts().next());
        match worst {
            Some(worst) => FreshnessJson { age_ms: millis(age), ..worst.into() },
            None => FreshnessJson::live(Duration::ZERO),
        }
    }

    /// Returns the freshness of the list and of each service.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Freshness> {
        self.list.iter().map(|list| &list.freshness).chain(self.services.values().map(|one| &one.freshness))
    }

    /// Returns the services that have an instance. Others are kept for a while.
    pub(crate) fn present(&self) -> impl Iterator<Item = (&ServiceName, &ServiceState)> {
        self.services.iter().filter(|(_, service)| !service.snapshot.is_empty())
    }

    /// Returns the number of services that are not followed.
    pub(crate) fn omitted(&self) -> usize {
        self.list.as_ref().map_or(0, |list| list.omitted)
    }

    /// Returns the number of instances.
    pub(crate) fn instances(&self) -> usize {
        self.services.values().map(|service| service.snapshot.len()).sum()
    }
}

/// Completeness of a state.
#[derive(Clone, Debug, Default)]
pub(crate) enum Progress {
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
pub(crate) struct Published {
    pub(crate) position: Position,
    pub(crate) state: RegistryState,
    pub(crate) progress: Progress,
}

impl Published {
    /// The state of a service that was read from the store at `began`; `None` if it has instances.
    pub(crate) fn empty_service(snapshot: Snapshot, began: Moment) -> Option<Self> {
        if !snapshot.is_empty() {
            return None;
        }
        let name = snapshot.service().name().clone();
        let freshness = live_since(began);
        let service = ServiceState { snapshot, freshness, departures: Arc::default(), change: 0 };
        let state = RegistryState { services: OrdMap::unit(name, service), list: None };
        Some(Self { state, progress: Progress::Complete, ..Self::default() })
    }

    /// The state of a namespace that was read from the store at `began` and has no service.
    pub(crate) fn empty_namespace(began: Moment) -> Self {
        let list = ListState { freshness: live_since(began), omitted: 0 };
        let state = RegistryState { services: OrdMap::new(), list: Some(list) };
        Self { state, progress: Progress::Complete, ..Self::default() }
    }
}

/// Returns the bytes of the texts of an instance, which is about what it takes in memory and in a response.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    let instance = entry.instance();
    let metadata = instance.metadata().iter().map(|(key, value)| key.len() + value.len());
    let endpoints = instance.endpoints().iter().map(|endpoint| endpoint.as_str().len());
    let texts = [instance.version(), instance.zone()].map(|text| text.map_or(0, str::len));
    instance.id().as_str().len() + metadata.chain(endpoints).chain(texts).sum::<usize>()
}

/// Returns the freshness of data that were read from the store at `began`.
fn live_since(began: Moment) -> Freshness {
    Freshness::Live { proof: ProofWriter::new(began).proof() }
}
