//! JSON objects of services and instances.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use enlist::{Endpoint, Entry, Health, Presence};
use serde::Serialize;

use crate::http::{
    following::state::{Departure, ServiceState},
    messages::freshness::{FreshnessJson, millis},
};

/// An instance.
#[derive(Debug, Serialize)]
pub(crate) struct InstanceJson<'a> {
    id: &'a str,
    endpoints: Vec<&'a str>,
    weight: u32,
    /// Share of the calls; absent in events, where it would change with each other instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<f64>,
    version: Option<&'a str>,
    zone: Option<&'a str>,
    health: &'static str,
    metadata: &'a BTreeMap<String, String>,
    created: u64,
    modified: u64,
    presence: &'static str,
}

impl<'a> InstanceJson<'a> {
    /// An instance without its share.
    pub(crate) fn new(entry: &'a Entry) -> Self {
        let instance = entry.instance();
        Self {
            id: instance.id().as_str(),
            endpoints: instance.endpoints().iter().map(Endpoint::as_str).collect(),
            weight: instance.weight(),
            share: None,
            version: instance.version(),
            zone: instance.zone(),
            health: instance.health().as_str(),
            metadata: instance.metadata(),
            created: entry.created().get(),
            modified: entry.modified().get(),
            presence: presence(entry),
        }
    }

    /// An instance with its share of the total weight of the instances that are picked.
    pub(crate) fn with_share(entry: &'a Entry, total: u64) -> Self {
        let weight = picked_weight(entry);
        #[expect(clippy::cast_precision_loss, reason = "shown with four digits")]
        let share = if weight == 0 { 0.0 } else { (weight as f64 / total as f64 * 1e4).round() / 1e4 };
        Self { share: Some(share), ..Self::new(entry) }
    }
}

/// Returns the word for the presence of an entry.
pub(crate) fn presence(entry: &Entry) -> &'static str {
    match entry.presence() {
        Presence::Held => "held",
        _ => "live",
    }
}

/// Returns the weight with which an instance is picked: 0 unless it takes calls.
pub(crate) fn picked_weight(entry: &Entry) -> u64 {
    let instance = entry.instance();
    if instance.takes_calls() { instance.weight().into() } else { 0 }
}

/// Numbers of a service in the list of services.
#[derive(Debug, Serialize)]
pub(crate) struct ServiceJson<'a> {
    name: &'a str,
    revision: u64,
    epoch: u64,
    freshness: FreshnessJson,
    instances: usize,
    serving: usize,
    draining: usize,
    not_serving: usize,
    held: usize,
    weight: u64,
    versions: BTreeMap<&'a str, usize>,
    zones: BTreeMap<&'a str, usize>,
}

impl<'a> ServiceJson<'a> {
    /// The numbers of a service. Instances without a version or zone count under the empty text.
    pub(crate) fn new(name: &'a str, state: &'a ServiceState) -> Self {
        let snapshot = &state.snapshot;
        let mut json = Self {
            name,
            revision: snapshot.revision().get(),
            epoch: snapshot.epoch().get(),
            freshness: (&state.freshness).into(),
            instances: snapshot.len(),
            serving: 0,
            draining: 0,
            not_serving: 0,
            held: 0,
            weight: 0,
            versions: BTreeMap::new(),
            zones: BTreeMap::new(),
        };
        for entry in snapshot.entries() {
            let instance = entry.instance();
            *json.versions.entry(instance.version().unwrap_or_default()).or_default() += 1;
            *json.zones.entry(instance.zone().unwrap_or_default()).or_default() += 1;
            json.held += usize::from(entry.presence() == Presence::Held);
            json.weight += picked_weight(entry);
            match instance.health() {
                Health::Serving => json.serving += 1,
                Health::Draining => json.draining += 1,
                _ => json.not_serving += 1,
            }
        }
        json
    }
}

/// A recent end of an instance.
#[derive(Debug, Serialize)]
pub(crate) struct DepartureJson<'a> {
    at_ms: u64,
    reason: &'static str,
    instance: InstanceJson<'a>,
}

impl<'a> From<&'a Departure> for DepartureJson<'a> {
    fn from(departure: &'a Departure) -> Self {
        Self {
            at_ms: unix_millis(departure.at),
            reason: departure.reason(),
            instance: InstanceJson::new(&departure.entry),
        }
    }
}

/// Returns milliseconds since 1970.
pub(crate) fn unix_millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, millis)
}
