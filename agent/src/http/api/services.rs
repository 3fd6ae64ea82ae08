//! Reads of services and namespaces. Responses come from shared views, not from the store.

use std::{collections::VecDeque, sync::Arc};

use axum::{
    extract::{Path, State, rejection::PathRejection},
    response::Response,
};
use enlist::{Entry, Namespace, ServiceName, ServiceRef};
use serde::Serialize;

use super::objects::{DepartureJson, InstanceJson, ServiceJson, picked_weight};
use crate::http::{
    following::state::{Departure, Scope, ServiceState},
    messages::{
        error::{ApiError, Code},
        freshness::FreshnessJson,
        json,
        parameters::{NamespaceQuery, NoQuery, Parameters, parse_namespace},
    },
    shared::RequestContext,
};

/// Beginning of the response for a namespace; its services follow.
#[derive(Serialize)]
struct NamespaceHead<'a> {
    namespace: &'a str,
    freshness: FreshnessJson,
    omitted: usize,
}

/// Serves the services of a namespace.
pub(crate) async fn services(
    State(shared): State<Arc<RequestContext>>,
    Parameters(query): Parameters<NamespaceQuery>,
) -> Result<Response, ApiError> {
    let namespace = query.namespace()?;
    let published = shared.scopes.read(&Scope::Namespace(namespace.clone())).await?;
    let (freshness, omitted) = (published.state.freshness(), published.state.omitted());
    let head = NamespaceHead { namespace: namespace.as_str(), freshness: freshness.clone(), omitted };
    let services = published.state.present().map(|(name, state)| (name.clone(), state.clone())).collect();
    let write = |(name, state): (ServiceName, ServiceState)| Some(json::text(&ServiceJson::new(name.as_str(), &state)));
    Ok(freshness.mark(json::in_parts(json::open_list(&head, "services"), services, write, b"]}")))
}

/// Serves one service. A service without instances is not an error: it may have had some a moment ago.
pub(crate) async fn service(
    State(shared): State<Arc<RequestContext>>,
    path: Result<Path<(String, String)>, PathRejection>,
    Parameters(NoQuery {}): Parameters<NoQuery>,
) -> Result<Response, ApiError> {
    let Path((namespace, name)) = path.map_err(|error| ApiError::new(Code::InvalidName, error))?;
    let name = ServiceName::parse(name).map_err(|error| ApiError::of_store(&error))?;
    let service = ServiceRef::new(parse_namespace(Some(&namespace))?, name);
    let published = shared.scopes.read(&Scope::Service(service.clone())).await?;
    let state = published.state.services.get(service.name()).ok_or_else(ApiError::not_ready)?;
    let departures = shared.scopes.departures(&service, state);
    Ok(FreshnessJson::from(&state.freshness).mark(service_response(&service, state, &departures)))
}

/// Beginning of the response for one service; its instances follow.
#[derive(Serialize)]
struct ServiceHead<'a> {
    namespace: &'a str,
    name: &'a str,
    revision: u64,
    epoch: u64,
    freshness: FreshnessJson,
    weight: u64,
    departures: Vec<DepartureJson<'a>>,
}

/// Returns the response for one service.
fn service_response(service: &ServiceRef, state: &ServiceState, departures: &VecDeque<Departure>) -> Response {
    let entries: Vec<Arc<Entry>> = state.snapshot.entries().cloned().collect();
    let weight = entries.iter().map(|entry| picked_weight(entry)).sum();
    let head = ServiceHead {
        namespace: service.namespace().as_str(),
        name: service.name().as_str(),
        revision: state.snapshot.revision().get(),
        epoch: state.snapshot.epoch().get(),
        freshness: (&state.freshness).into(),
        weight,
        departures: departures.iter().rev().map(DepartureJson::from).collect(),
    };
    let write = move |entry: Arc<Entry>| Some(json::text(&InstanceJson::with_share(&entry, weight)));
    json::in_parts(json::open_list(&head, "instances"), entries, write, b"]}")
}

#[derive(Serialize)]
struct NamespacesJson<'a> {
    namespaces: Vec<&'a str>,
    freshness: FreshnessJson,
}

/// Serves the list of namespaces, from the store.
pub(crate) async fn namespaces(
    State(shared): State<Arc<RequestContext>>,
    Parameters(NoQuery {}): Parameters<NoQuery>,
) -> Result<Response, ApiError> {
    let resolver = Arc::clone(shared.scopes.resolver());
    let read = shared.namespaces.read((), move || async move { resolver.namespaces().await }).await?;
    let freshness = read.freshness();
    let namespaces = read.value.iter().map(Namespace::as_str).collect();
    let response = json::response(&NamespacesJson { namespaces, freshness: freshness.clone() });
    Ok(freshness.mark(response))
}
