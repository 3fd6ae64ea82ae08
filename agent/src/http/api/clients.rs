//! Reads of the clients of xDS.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde::Serialize;

use crate::{
    http::{
        messages::{
            freshness::millis,
            json,
            parameters::{NoQuery, Parameters},
        },
        shared::RequestContext,
    },
    staleness::Staleness,
    xds::{ClientEntry, XdsClient, XdsRejection},
};

/// Number of names of services that are shown for a client.
const NAMES: usize = 100;

/// Beginning of the response; the clients follow.
#[derive(Serialize)]
struct ClientsHead {
    not_sent: usize,
    views: ViewsJson,
}

/// Staleness of the assignments that clients subscribe to.
#[derive(Serialize)]
struct ViewsJson {
    followed: usize,
    stale: usize,
    unknown: usize,
    oldest_age_ms: u64,
}

impl From<Staleness> for ViewsJson {
    fn from(Staleness { followed, stale, unknown, oldest }: Staleness) -> Self {
        Self { followed, stale, unknown, oldest_age_ms: millis(oldest) }
    }
}

#[derive(Serialize)]
struct ClientJson<'a> {
    node: &'a str,
    user_agent: &'a str,
    zone: &'a str,
    peer: Option<String>,
    connected_ms: u64,
    silent_ms: u64,
    services: &'a [String],
    subscriptions: usize,
    rejected: u64,
    last_rejection: Option<RejectionJson<'a>>,
}

#[derive(Serialize)]
struct RejectionJson<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
    age_ms: u64,
}

impl<'a> From<&'a XdsClient> for ClientJson<'a> {
    fn from(client: &'a XdsClient) -> Self {
        let XdsClient { node, user_agent, zone, peer, since, heard, services, rejected, last_rejection } = client;
        Self {
            node,
            user_agent,
            zone,
            peer: peer.map(|peer| peer.to_string()),
            connected_ms: millis(since.elapsed()),
            silent_ms: millis(heard.elapsed()),
            services: &services[..services.len().min(NAMES)],
            subscriptions: services.len(),
            rejected: *rejected,
            last_rejection: last_rejection.as_ref().map(Into::into),
        }
    }
}

impl<'a> From<&'a XdsRejection> for RejectionJson<'a> {
    fn from(rejection: &'a XdsRejection) -> Self {
        Self { kind: rejection.kind.as_str(), message: &rejection.message, age_ms: millis(rejection.at.elapsed()) }
    }
}

/// Serves the clients of xDS that are connected to this agent, the number of assignments that are too large for them,
/// and the staleness of the others.
pub(crate) async fn clients(
    State(shared): State<Arc<RequestContext>>,
    Parameters(NoQuery {}): Parameters<NoQuery>,
) -> Response {
    let clients = shared.xds.clients();
    let not_sent = shared.xds.totals().not_sent;
    let head = ClientsHead { not_sent, views: shared.xds.staleness().into() };
    let write = |client: ClientEntry| Some(json::text(&ClientJson::from(&client.description())));
    json::in_parts(json::open_list(&head, "clients"), clients, write, b"]}")
}

/// Returns the JSON of a client that has rejected a response, for tests.
#[cfg(test)]
pub(crate) fn example() -> serde_json::Value {
    use crate::xds::ResourceType;
    let now = enlist::Moment::now();
    let rejection = XdsRejection { kind: ResourceType::Assignment, message: "a reason".to_owned(), at: now };
    let client = XdsClient {
        node: "node-1".to_owned(),
        user_agent: "gRPC".to_owned(),
        zone: "eu-1a".to_owned(),
        peer: Some(([127, 0, 0, 1], 1).into()),
        since: now,
        heard: now,
        services: vec!["greeter".to_owned()],
        rejected: 1,
        last_rejection: Some(rejection),
    };
    serde_json::to_value(ClientJson::from(&client)).expect("keys are texts")
}
