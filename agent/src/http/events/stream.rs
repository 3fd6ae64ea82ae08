//! Server-sent events. Each client has an [`EventCursor`], from which the connection takes the next part when it can
//! send: a client that does not read makes nothing grow.

use std::{convert::Infallible, fmt::Write as _, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue},
    response::Response,
};
use bytes::Bytes;
use enlist::ServiceName;
use futures::stream;
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, timeout_at},
};

use super::cursor::{EventCursor, Notice};
use crate::http::{
    api::objects::InstanceJson,
    following::{
        position::Position,
        scope::ScopeUser,
        state::{Progress, Published, Scope},
    },
    messages::{
        error::{ApiError, Code},
        freshness::FreshnessJson,
        json,
        parameters::{Parameters, ScopeQuery},
    },
    shared::RequestContext,
    stop::{Stop, stopping},
};

/// Interval of the events that show the age of the data, and that the connection works.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Time after which a client connects again, and the first line of the stream.
const RETRY: &str = "retry: 1000\n\n";

/// Header with the position that a returning client has.
const LAST_EVENT_ID: &str = "last-event-id";

/// Serves the changes of a namespace or service. The complete state comes first, unless the client returns within the
/// history: then only the differences do.
pub(crate) async fn events(
    State(shared): State<Arc<RequestContext>>,
    headers: HeaderMap,
    Parameters(query): Parameters<ScopeQuery>,
) -> Result<Response, ApiError> {
    let Some(slot) = shared.event_clients.take() else {
        return Err(ApiError::new(Code::TooManyEventClients, "as many clients as permitted read events"));
    };
    let user = shared.scopes.open(&query.scope()?)?;
    user.ready().await?;
    let last = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()).and_then(Position::parse);
    let resumed = last.and_then(|last| user.earlier(last)).map(EventCursor::resumed);
    let client = EventClient {
        published: user.subscribe(),
        cursor: resumed.unwrap_or_else(EventCursor::new),
        stop: shared.stop.clone(),
        user,
        opened: false,
        beat: Instant::now() + HEARTBEAT,
        _slot: slot,
    };
    let parts = stream::unfold(client, |mut client| async move { Some((client.next().await?, client)) });
    let body = Body::from_stream(futures::StreamExt::map(parts, Ok::<_, Infallible>));
    let mut response = json::with_media_type(body, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// A client that reads events.
struct EventClient {
    published: watch::Receiver<Arc<Published>>,
    cursor: EventCursor,
    user: ScopeUser,
    stop: watch::Receiver<Stop>,
    opened: bool,
    beat: Instant,
    _slot: OwnedSemaphorePermit,
}

impl EventClient {
    /// Returns the next part of the stream; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        if !self.opened {
            self.opened = true;
            return Some(Bytes::from_static(RETRY.as_bytes()));
        }
        loop {
            let latest = Arc::clone(&self.published.borrow_and_update());
            if matches!(latest.progress, Progress::Complete) {
                let notices = self.cursor.next(&latest);
                if !notices.is_empty() {
                    return Some(self.part(&notices));
                }
            }
            tokio::select! {
                () = stopping(&mut self.stop) => return None,
                changed = timeout_at(self.beat, self.published.changed()) => match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return None,
                    Err(_) => return Some(self.heartbeat()),
                },
            }
        }
    }

    fn heartbeat(&mut self) -> Bytes {
        self.beat = Instant::now() + HEARTBEAT;
        let freshness = self.published.borrow().state.freshness();
        let mut part = String::new();
        write_event(&mut part, "heartbeat", EventId::Unchanged, &self.scope_json(None, Content::Freshness(freshness)));
        part.into()
    }

    /// Returns notices as text.
    fn part(&self, notices: &[Notice]) -> Bytes {
        let mut part = String::new();
        for notice in notices {
            self.write(&mut part, notice);
        }
        part.into()
    }

    fn write(&self, part: &mut String, notice: &Notice) {
        let instance = |entry| Content::Instance { instance: InstanceJson::new(entry), reason: None };
        let (event, id, service, content) = match notice {
            Notice::Snapshot { services, instances } => {
                ("snapshot", EventId::Reset, None, Content::Size { services: *services, instances: *instances })
            }
            Notice::Added(service, entry) => ("added", EventId::Reset, Some(service), instance(entry)),
            Notice::Updated(service, entry) => ("updated", EventId::Reset, Some(service), instance(entry)),
            Notice::Removed(service, entry, end) => {
                let content = Content::Instance { instance: InstanceJson::new(entry), reason: Some(end.as_str()) };
                ("removed", EventId::Reset, Some(service), content)
            }
            Notice::Freshness(service, freshness) => {
                ("freshness", EventId::Unchanged, service.as_ref(), Content::Freshness(freshness.into()))
            }
            Notice::Synced { position, freshness, omitted } => {
                let content = Content::Synced { freshness: freshness.clone(), omitted: *omitted };
                ("synced", EventId::At(*position), None, content)
            }
        };
        write_event(part, event, id, &self.scope_json(service, content));
    }

    fn scope_json<'a>(&'a self, service: Option<&'a ServiceName>, content: Content<'a>) -> EventJson<'a> {
        let own = match self.user.scope() {
            Scope::Namespace(_) => None,
            Scope::Service(service) => Some(service.name()),
        };
        let service = service.or(own).map(ServiceName::as_str);
        EventJson { namespace: self.user.scope().namespace().as_str(), service, content }
    }
}

/// Data of an event.
#[derive(Serialize)]
struct EventJson<'a> {
    namespace: &'a str,
    service: Option<&'a str>,
    #[serde(flatten)]
    content: Content<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Size {
        services: usize,
        instances: usize,
    },
    Instance {
        instance: InstanceJson<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
    },
    Synced {
        freshness: FreshnessJson,
        omitted: usize,
    },
    Freshness(FreshnessJson),
}

/// The position with which a client returns after an event.
#[derive(Clone, Copy, Debug)]
enum EventId {
    /// That of an earlier event.
    Unchanged,
    /// None, so that it gets a snapshot: it has a part of a difference, and an instance in it may be gone by then.
    Reset,
    /// This one.
    At(Position),
}

/// Appends an event. JSON contains no line break.
fn write_event(part: &mut String, event: &str, id: EventId, data: &impl Serialize) {
    let _ = writeln!(part, "event: {event}");
    match id {
        EventId::Unchanged => {}
        // An empty field resets the position of the client.
        EventId::Reset => part.push_str("id:\n"),
        EventId::At(position) => _ = writeln!(part, "id: {position}"),
    }
    let data = json::text(data);
    let _ = writeln!(part, "data: {}\n", String::from_utf8_lossy(&data));
}
