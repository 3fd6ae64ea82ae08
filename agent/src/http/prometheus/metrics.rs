//! Metrics of the agent.

use std::{collections::BTreeMap, sync::Arc};

use axum::{body::Body, extract::State, http::HeaderValue, response::Response};

use super::exposition::{
    Exposition,
    MetricType::{Counter, Gauge},
    label, number, unlabelled,
};
use crate::{
    http::{
        following::state::{Progress, Published, RegistryState, Scope},
        messages::{
            json,
            parameters::{NoQuery, Parameters},
        },
        shared::RequestContext,
    },
    limits::LimitUse,
    staleness::Staleness,
    xds::{Omission, ResourceType, XdsClient, XdsStatus},
};

/// Media type of the format.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Serves the metrics.
pub(crate) async fn metrics(
    State(shared): State<Arc<RequestContext>>,
    Parameters(NoQuery {}): Parameters<NoQuery>,
) -> Response {
    let mut text = Exposition::default();
    of_http(&mut text, &shared);
    of_limits(&mut text, &shared.limits());
    of_staleness(&mut text, [("http", shared.scopes.staleness()), ("xds", shared.xds.staleness())]);
    of_registry(&mut text, &shared.scopes.published());
    of_xds(&mut text, &shared.xds);
    json::with_media_type(Body::from(text.into_text()), MEDIA_TYPE)
}

fn of_http(text: &mut Exposition, shared: &RequestContext) {
    let responses = shared.responses.read();
    let responses = responses.map(|(digit, count)| (label("status", &format!("{digit}xx")), number(count)));
    text.metric(Counter, "enlist_agent_http_responses_total", "Responses by class of status.", responses);
    let clients = unlabelled(shared.event_clients.usage().used.unwrap_or_default());
    text.metric(Gauge, "enlist_agent_event_clients", "Clients that read events.", [clients]);
    let views = unlabelled(shared.scopes.len());
    text.metric(Gauge, "enlist_agent_views", "Namespaces and single services that are followed.", [views]);
}

/// Adds metrics of the limits of both servers.
fn of_limits(text: &mut Exposition, limits: &[LimitUse]) {
    let refused = limits.iter().map(|limit| (label("limit", limit.name), number(limit.refused)));
    text.metric(Counter, "enlist_agent_refused_total", "What was refused because of a limit.", refused);
    let max = limits.iter().map(|limit| (label("limit", limit.name), number(limit.max as u64)));
    text.metric(Gauge, "enlist_agent_limit", "Limits of the agent.", max);
    let used = limits.iter().filter_map(|limit| Some((label("limit", limit.name), number(limit.used? as u64))));
    text.metric(Gauge, "enlist_agent_limit_used", "Use of the limits of the agent.", used);
}

/// Adds metrics of the staleness of everything that is followed, by server.
fn of_staleness(text: &mut Exposition, servers: [(&str, Staleness); 2]) {
    let mut gauge = |name, help, value: &dyn Fn(&Staleness) -> f64| {
        let samples = servers.iter().map(|(server, staleness)| (label("server", server), value(staleness)));
        text.metric(Gauge, name, help, samples);
    };
    gauge("enlist_agent_oldest_view_seconds", "Age of the oldest view that is followed.", &|all| {
        all.oldest.as_secs_f64()
    });
    gauge("enlist_agent_stale_views", "Views whose changes do not arrive.", &|all| number(all.stale as u64));
    gauge("enlist_agent_unknown_views", "Views that are not known yet.", &|all| number(all.unknown as u64));
}

/// Adds metrics of the followed namespaces.
fn of_registry(text: &mut Exposition, published: &[(Scope, Arc<Published>)]) {
    let namespaces = published.iter().filter(|(scope, _)| matches!(scope, Scope::Namespace(_)));
    let namespaces: Vec<_> = namespaces
        .map(|(scope, published)| (label("namespace", scope.namespace().as_str()), known(published)))
        .collect();
    let mut gauge = |name, help, value: &dyn Fn(&RegistryState) -> f64| {
        let samples = namespaces.iter().filter_map(|(label, state)| Some((label.clone(), value((*state)?))));
        text.metric(Gauge, name, help, samples);
    };
    let count = |value: usize| number(value as u64);
    gauge("enlist_agent_services", "Services of a followed namespace.", &|state| count(state.present().count()));
    gauge("enlist_agent_services_omitted", "Services above the limit, or refused by the store.", &|state| {
        count(state.omitted())
    });
    gauge("enlist_agent_instances", "Instances of a followed namespace.", &|state| count(state.instances()));
    gauge("enlist_agent_age_seconds", "Age of the oldest view of a followed namespace.", &|state| {
        number(state.freshness().age_ms) / 1e3
    });
    let stale = namespaces.iter().map(|(label, state)| {
        let is_live = state.is_some_and(|state| state.freshness().state == "live");
        (label.clone(), count(usize::from(!is_live)))
    });
    text.metric(Gauge, "enlist_agent_stale", "1 if changes of a followed namespace do not arrive.", stale);
}

/// Returns a state that is complete.
fn known(published: &Published) -> Option<&RegistryState> {
    matches!(published.progress, Progress::Complete).then_some(&published.state)
}

fn of_xds(text: &mut Exposition, xds: &XdsStatus) {
    let totals = xds.totals();
    let (mut streams, mut subscriptions) = (BTreeMap::from([("envoy", 0), ("grpc", 0), ("other", 0)]), 0);
    for client in xds.clients() {
        let client = client.description();
        *streams.entry(client_kind(&client)).or_default() += 1;
        subscriptions += client.services.len();
    }
    let streams = streams.into_iter().map(|(kind, count)| (label("client", kind), number(count)));
    text.metric(Gauge, "enlist_agent_xds_streams", "Open streams of xDS by kind of client.", streams);
    let subscriptions = [unlabelled(subscriptions)];
    text.metric(Gauge, "enlist_agent_xds_subscriptions", "Subscriptions to assignments.", subscriptions);
    let opened = (String::new(), number(totals.opened));
    text.metric(Counter, "enlist_agent_xds_streams_opened_total", "Streams that were opened.", [opened]);
    let by_type = |counts: &BTreeMap<ResourceType, u64>| -> Vec<_> {
        counts.iter().map(|(kind, count)| (label("type", kind.as_str()), number(*count))).collect()
    };
    let responses = by_type(&totals.responses);
    text.metric(Counter, "enlist_agent_xds_responses_total", "Responses of xDS by type.", responses);
    let rejections = by_type(&totals.rejections);
    text.metric(Counter, "enlist_agent_xds_rejections_total", "Responses that clients rejected (NACK).", rejections);
    let omitted = Omission::ALL.into_iter().map(|reason| {
        let count = totals.omitted.get(&reason).copied().unwrap_or_default();
        (label("reason", reason.as_str()), number(count as u64))
    });
    text.metric(Gauge, "enlist_agent_xds_omitted_instances", "Instances that assignments do not contain.", omitted);
    let not_sent = [unlabelled(totals.not_sent)];
    text.metric(Gauge, "enlist_agent_xds_assignments_not_sent", "Assignments that are too large to be sent.", not_sent);
}

/// Returns the kind of a client of xDS, by the name of its library.
fn client_kind(client: &XdsClient) -> &'static str {
    match &*client.user_agent {
        "envoy" => "envoy",
        agent if agent.starts_with("gRPC") => "grpc",
        _ => "other",
    }
}
