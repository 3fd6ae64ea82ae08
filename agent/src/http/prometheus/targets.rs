//! Targets for Prometheus (`http_sd`). On any error Prometheus keeps its targets, so an unknown state is an error and
//! never an empty list.

use std::{collections::BTreeMap, sync::Arc};

use axum::{extract::State, response::Response};
use enlist::{Endpoint, Entry, Instance, ServiceName};
use serde::{Deserialize, Serialize};

use crate::http::{
    api::objects::presence,
    messages::{
        error::ApiError,
        json,
        parameters::{Parameters, parse_scope},
    },
    shared::RequestContext,
};

/// Key of the metadata with the port of metrics.
const METRICS_PORT: &str = "metrics_port";

/// Beginning of the names of all labels.
const PREFIX: &str = "__meta_enlist_";

/// Parameters of a request for targets.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetsQuery {
    namespace: Option<String>,
    service: Option<String>,
    protocol: Option<String>,
}

/// A target and its labels, in the format of `http_sd`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TargetGroup {
    targets: [String; 1],
    labels: BTreeMap<String, String>,
}

/// Serves the targets of a namespace or service.
pub(crate) async fn targets(
    State(shared): State<Arc<RequestContext>>,
    Parameters(query): Parameters<TargetsQuery>,
) -> Result<Response, ApiError> {
    let scope = parse_scope(query.namespace.as_deref(), query.service.as_deref())?;
    let published = shared.scopes.read(&scope).await?;
    let entries = published
        .state
        .services
        .iter()
        .flat_map(|(name, service)| service.snapshot.entries().map(|entry| (name.clone(), Arc::clone(entry))));
    let namespace = scope.namespace().clone();
    let write = move |(name, entry): (ServiceName, Arc<Entry>)| {
        let group = group(namespace.as_str(), name.as_str(), &entry, query.protocol.as_deref())?;
        Some(json::text(&group))
    };
    let response = json::in_parts(b"[".to_vec(), entries.collect(), write, b"]");
    Ok(published.state.freshness().mark(response))
}

/// Returns the target of an instance; `None` if it has no address for metrics.
fn group(namespace: &str, service: &str, entry: &Entry, protocol: Option<&str>) -> Option<TargetGroup> {
    let instance = entry.instance();
    let target = target(instance, protocol)?;
    let mut labels = BTreeMap::new();
    for (name, value) in [
        ("namespace", namespace),
        ("service", service),
        ("id", instance.id().as_str()),
        ("zone", instance.zone().unwrap_or_default()),
        ("version", instance.version().unwrap_or_default()),
        ("health", instance.health().as_str()),
        ("presence", presence(entry)),
    ] {
        labels.insert(format!("{PREFIX}{name}"), value.to_owned());
    }
    for (key, value) in instance.metadata() {
        labels.entry(format!("{PREFIX}metadata_{}", label_name(key))).or_insert_with(|| value.clone());
    }
    Some(TargetGroup { targets: [target], labels })
}

/// Returns the address of an instance for metrics: its first endpoint with the protocol, otherwise the port in its
/// metadata, otherwise, if no protocol is required, its first endpoint.
fn target(instance: &Instance, protocol: Option<&str>) -> Option<String> {
    let mut endpoints = instance.endpoints().iter().filter(|endpoint| !endpoint.is_unix());
    let first = endpoints.clone().next();
    let with_protocol = endpoints.find(|endpoint| protocol.is_some() && endpoint.protocol() == protocol);
    if let Some(endpoint) = with_protocol {
        return Some(endpoint.authority().to_owned());
    }
    let port = instance.metadata().get(METRICS_PORT).and_then(|port| port.parse().ok());
    let at_port = first.zip(port).and_then(|(endpoint, port)| Endpoint::new(endpoint.host(), port).ok());
    let any = if protocol.is_none() { first } else { None };
    at_port.as_ref().or(any).map(|endpoint| endpoint.authority().to_owned())
}

/// Replaces the characters of a key that names of labels cannot have.
fn label_name(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist::{InstanceId, Revision};

    fn instance(endpoints: &[&str]) -> Instance {
        let endpoints = endpoints.iter().map(|text| Endpoint::parse(text).unwrap());
        Instance::new(InstanceId::parse("i").unwrap(), endpoints).unwrap()
    }

    #[test]
    fn the_address_for_metrics_is_chosen() {
        let grpc = instance(&["grpc://10.0.0.1:80", "http://10.0.0.1:90"]);
        let port = instance(&["grpc://[2001:db8::1]:80"]).with_metadata("metrics_port", "99");
        let unix = instance(&["unix:///run/a.sock"]).with_metadata("metrics_port", "99");
        let wrong = instance(&["grpc://h:80"]).with_metadata("metrics_port", "0");
        for (instance, protocol, expected) in [
            (&grpc, None, Some("10.0.0.1:80")),
            (&grpc, Some("http"), Some("10.0.0.1:90")),
            (&grpc, Some("tcp"), None),
            (&port, None, Some("[2001:db8::1]:99")),
            (&port, Some("http"), Some("[2001:db8::1]:99")),
            (&port, Some("grpc"), Some("[2001:db8::1]:80")),
            (&unix, None, None),
            (&wrong, None, Some("h:80")),
            (&wrong, Some("http"), None),
        ] {
            assert_eq!(target(instance, protocol).as_deref(), expected, "{instance:?} {protocol:?}");
        }
    }

    #[test]
    fn keys_of_metadata_become_names_of_labels() {
        let instance = instance(&["h:1"]).with_metadata("a.b-ü", "<1>").with_metadata("a.b-_", "2");
        let entry = Entry::new(instance, Revision::new(1), Revision::new(1));
        let group = group("default", "s", &entry, None).unwrap();
        // The first of two keys with one name stays.
        assert_eq!(group.labels["__meta_enlist_metadata_a_b__"], "2");
        assert_eq!(group.labels["__meta_enlist_health"], "serving");
    }
}
