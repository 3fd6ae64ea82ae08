//! Reads of services and namespaces. Responses come from shared views, not from the store.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    response::Response,
};
use bytes::Bytes;
use enlist::{Entry, Namespace, ServiceName, ServiceRef};
use futures::stream;
use serde::Serialize;

use super::{
    error::{ApiError, Code},
    freshness::FreshnessJson,
    json::{self, MEDIA_TYPE},
    objects::{DepartureJson, InstanceJson, ServicesJson, picked_weight},
    parameters::{NamespaceQuery, NoQuery, Parameters, parse_namespace},
    shared::Shared,
    state::{Scope, ServiceState},
};

/// Number of instances that are written at a time. The rest of a large response is made when the client has read so
/// far.
const PART: usize = 64;

/// Serves the services of a namespace.
pub(super) async fn services(
    State(shared): State<Arc<Shared>>,
    Parameters(query): Parameters<NamespaceQuery>,
) -> Result<Response, ApiError> {
    let namespace = query.namespace()?;
    let published = shared.scopes.open(&Scope::Namespace(namespace.clone()))?.ready().await?;
    let response = json::response(&ServicesJson::new(namespace.as_str(), &published.state));
    Ok(published.state.freshness().mark(response))
}

/// Serves one service. A service without instances is not an error: it may have had some a moment ago.
pub(super) async fn service(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<(String, String)>, PathRejection>,
    Parameters(NoQuery {}): Parameters<NoQuery>,
) -> Result<Response, ApiError> {
    let Path((namespace, name)) = path.map_err(|error| ApiError::new(Code::InvalidName, error))?;
    let name = ServiceName::parse(name).map_err(|error| ApiError::of_store(&error))?;
    let service = ServiceRef::new(parse_namespace(Some(&namespace))?, name);
    let published = shared.scopes.open(&Scope::Service(service.clone()))?.ready().await?;
    let state = published.state.services.get(service.name()).ok_or_else(ApiError::not_ready)?;
    let response = json::with_media_type(service_body(&service, state), MEDIA_TYPE);
    Ok(FreshnessJson::from(&state.freshness).mark(response))
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

/// Returns the JSON of one service. It is made in parts, so that a slow client of a large service takes little memory.
fn service_body(service: &ServiceRef, state: &ServiceState) -> Body {
    let entries: Vec<Arc<Entry>> = state.snapshot.entries().cloned().collect();
    let weight = entries.iter().map(|entry| picked_weight(entry)).sum();
    let mut head = json::text(&ServiceHead {
        namespace: service.namespace().as_str(),
        name: service.name().as_str(),
        revision: state.snapshot.revision().get(),
        epoch: state.snapshot.epoch().get(),
        freshness: (&state.freshness).into(),
        weight,
        departures: state.departures.iter().rev().map(DepartureJson::from).collect(),
    });
    head.pop();
    head.extend_from_slice(br#","instances":["#);
    let parts = stream::unfold((Some(head), entries, 0), move |(head, entries, from)| async move {
        let mut part = match head {
            Some(head) => head,
            None if from > entries.len() => return None,
            None => Vec::new(),
        };
        let to = (from + PART).min(entries.len());
        for (at, entry) in entries[from..to].iter().enumerate() {
            if from + at > 0 {
                part.push(b',');
            }
            part.extend(json::text(&InstanceJson::with_share(entry, weight)));
        }
        let next = if to == entries.len() {
            part.extend_from_slice(b"]}");
            to + 1
        } else {
            to
        };
        Some((Ok::<_, Infallible>(Bytes::from(part)), (None, entries, next)))
    });
    Body::from_stream(parts)
}

#[derive(Serialize)]
struct NamespacesJson<'a> {
    namespaces: Vec<&'a str>,
    freshness: FreshnessJson,
}

/// Serves the list of namespaces, from the store.
pub(super) async fn namespaces(
    State(shared): State<Arc<Shared>>,
    Parameters(NoQuery {}): Parameters<NoQuery>,
) -> Result<Response, ApiError> {
    let resolver = Arc::clone(shared.scopes.resolver());
    let read = shared.namespaces.read((), move || async move { resolver.namespaces().await }).await?;
    let freshness = read.freshness();
    let namespaces = read.value.iter().map(Namespace::as_str).collect();
    let response = json::response(&NamespacesJson { namespaces, freshness: freshness.clone() });
    Ok(freshness.mark(response))
}
