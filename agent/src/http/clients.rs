//! Reads of the clients of xDS.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde::Serialize;

use super::{
    freshness::millis,
    json,
    parameters::{NoQuery, Parameters},
    shared::Shared,
};
use crate::xds::{XdsClient, XdsRejection};

#[derive(Serialize)]
struct ClientsJson<'a> {
    clients: Vec<ClientJson<'a>>,
}

#[derive(Serialize)]
struct ClientJson<'a> {
    node: &'a str,
    user_agent: &'a str,
    zone: &'a str,
    peer: Option<String>,
    connected_ms: u64,
    services: &'a [String],
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
        let XdsClient { node, user_agent, zone, peer, since, services, rejected, last_rejection } = client;
        Self {
            node,
            user_agent,
            zone,
            peer: peer.map(|peer| peer.to_string()),
            connected_ms: millis(since.elapsed()),
            services,
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

/// Serves the clients of xDS that are connected to this agent.
pub(super) async fn clients(
    State(shared): State<Arc<Shared>>,
    Parameters(NoQuery {}): Parameters<NoQuery>,
) -> Response {
    let clients = shared.xds.clients();
    json::response(&ClientsJson { clients: clients.iter().map(Into::into).collect() })
}
