//! Reads of locks and elections with their queues.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use enlist::{ElectionQueue, LockMode, LockQueue, Namespace, QueuedCandidate, QueuedContender, Queues};
use serde::Serialize;

use crate::http::{
    api::cache::Read,
    messages::{
        error::{ApiError, Code},
        freshness::FreshnessJson,
        json,
        parameters::{NamespaceQuery, Parameters},
    },
    shared::RequestContext,
};

/// Beginning of a response; the locks or elections follow.
#[derive(Serialize)]
struct Head<'a> {
    namespace: &'a str,
    freshness: FreshnessJson,
}

#[derive(Serialize)]
struct LockJson<'a> {
    name: &'a str,
    delayed: bool,
    holders: Vec<ContenderJson<'a>>,
    waiting: Vec<ContenderJson<'a>>,
}

#[derive(Serialize)]
struct ContenderJson<'a> {
    token: u64,
    mode: &'static str,
    process: Option<&'a str>,
    created: u64,
}

impl<'a> From<&'a QueuedContender> for ContenderJson<'a> {
    fn from(contender: &'a QueuedContender) -> Self {
        let mode = match contender.mode {
            LockMode::Exclusive => "exclusive",
            LockMode::Shared => "shared",
        };
        let (token, created) = (contender.token.get(), contender.created.get());
        Self { token, mode, process: contender.process.as_deref(), created }
    }
}

#[derive(Serialize)]
struct ElectionJson<'a> {
    name: &'a str,
    delayed: bool,
    leader: Option<CandidateJson<'a>>,
    waiting: Vec<CandidateJson<'a>>,
}

#[derive(Serialize)]
struct CandidateJson<'a> {
    token: u64,
    value: &'a str,
    created: u64,
    modified: u64,
}

impl<'a> From<&'a QueuedCandidate> for CandidateJson<'a> {
    fn from(candidate: &'a QueuedCandidate) -> Self {
        let QueuedCandidate { token, value, created, modified } = candidate;
        Self { token: token.get(), value, created: created.get(), modified: modified.get() }
    }
}

/// Returns the reader of queues.
fn reader(shared: &RequestContext) -> Result<Arc<dyn Queues>, ApiError> {
    let missing = || ApiError::new(Code::Unsupported, "reading locks and elections is not supported by the backend");
    shared.queues.clone().ok_or_else(missing)
}

/// Serves the locks of a namespace that have a contender.
pub(crate) async fn locks(
    State(shared): State<Arc<RequestContext>>,
    Parameters(query): Parameters<NamespaceQuery>,
) -> Result<Response, ApiError> {
    let (namespace, queues) = (query.namespace()?, reader(&shared)?);
    let key = namespace.clone();
    let read = shared.locks.read(key.clone(), move || async move { queues.lock_queues(&key).await }).await?;
    let write = |queue: &LockQueue| {
        json::text(&LockJson {
            name: queue.name.name(),
            delayed: queue.delayed,
            holders: queue.holders().iter().map(Into::into).collect(),
            waiting: queue.waiting().iter().map(Into::into).collect(),
        })
    };
    Ok(in_parts(&namespace, "locks", &read, write))
}

/// Serves the elections of a namespace that have a candidate.
pub(crate) async fn elections(
    State(shared): State<Arc<RequestContext>>,
    Parameters(query): Parameters<NamespaceQuery>,
) -> Result<Response, ApiError> {
    let (namespace, queues) = (query.namespace()?, reader(&shared)?);
    let key = namespace.clone();
    let read = shared.elections.read(key.clone(), move || async move { queues.election_queues(&key).await }).await?;
    let write = |queue: &ElectionQueue| {
        json::text(&ElectionJson {
            name: queue.name.name(),
            delayed: queue.delayed,
            leader: queue.leader().map(Into::into),
            waiting: queue.waiting().iter().map(Into::into).collect(),
        })
    };
    Ok(in_parts(&namespace, "elections", &read, write))
}

/// Returns a response with queues that requests share. It is written in parts, so that each client has one part of it
/// in memory.
fn in_parts<Q: Send + Sync + 'static>(
    namespace: &Namespace,
    list: &str,
    read: &Read<Vec<Q>>,
    write: impl Fn(&Q) -> Vec<u8> + Send + 'static,
) -> Response {
    let (freshness, queues) = (read.freshness(), Arc::clone(&read.value));
    let head = Head { namespace: namespace.as_str(), freshness: freshness.clone() };
    let all = (0..queues.len()).collect();
    let write = move |at: usize| queues.get(at).map(&write);
    freshness.mark(json::in_parts(json::open_list(&head, list), all, write, b"]}"))
}
