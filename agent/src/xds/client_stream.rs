//! The task of one stream: it passes requests and changes to the [`StreamState`], and responses to the client, each
//! when the client can take it.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tonic::Status;

use super::{
    clients::Connected,
    delivery::{DeliveryEnd, Progress},
    envoy::EnvoyResources,
    inbox::Inbox,
    name_budget::NameAccount,
    options::ZonePreference,
    requests::Requests,
    resource::{Resource, ResourceType},
    resources,
    responses::{QueuedResponse, ResponseSender},
    shared::{Refusal, SharedAssignments, Subscription},
    status::XdsStatus,
    stream::{Lookup, Origin, Received, Resources, StreamState},
    target,
};
use crate::limits::Limit;

/// Interval of the attempts to follow names for which there was no room.
const RETRY: Duration = Duration::from_secs(5);

/// Interval of checks whether there is memory for the names that lack it: from this time to twice as long, at random.
const RENEWAL: Duration = Duration::from_secs(20);

/// Maximum number of refusals in an attempt, so that it costs little.
const MAX_REFUSED: usize = 16;

/// Stream of a client.
#[derive(Debug)]
pub(super) struct ClientStream {
    state: StreamState,
    resources: StreamResources,
    assignments: Arc<SharedAssignments>,
    inbox: Arc<Inbox>,
    client: Connected,
    names: Arc<Limit>,
    zones: ZonePreference,
    /// Requested names of assignments for which the agent had no room.
    waiting: BTreeSet<String>,
    /// Next attempt to follow them.
    retry: Instant,
    /// Time at which the stream ends if there is memory for the names that lacked it.
    renewal: Option<Instant>,
}

/// Resources that a stream can send.
#[derive(Debug)]
struct StreamResources {
    /// The zone that the client prefers, if it prefers one.
    zone: Option<String>,
    /// By requested name.
    subscriptions: BTreeMap<Arc<str>, Subscription>,
    envoy: Arc<EnvoyResources>,
}

impl Resources for StreamResources {
    fn named(&self, kind: ResourceType, name: &str, origin: Origin) -> Lookup {
        if target::services(name).is_empty() {
            return Lookup::Impossible;
        }
        match kind {
            ResourceType::Listener => Lookup::Found(resources::api_listener(name)),
            ResourceType::Route => Lookup::Found(resources::routes(name)),
            ResourceType::Cluster => Lookup::Found(self.envoy.cluster(name)),
            ResourceType::Assignment => self.assignment(name, origin),
        }
    }

    fn all(&self, kind: ResourceType) -> Option<Vec<Resource>> {
        self.envoy.all(kind)
    }
}

impl StreamResources {
    /// Looks up an assignment. When the agent or the store is back, instances that lost their registration may not be:
    /// a client that has instances keeps them until that must have happened, also if only draining ones are known.
    fn assignment(&self, name: &str, origin: Origin) -> Lookup {
        let Some(subscription) = self.subscriptions.get(name) else { return Lookup::Pending };
        match subscription.assignment() {
            Some(one) if one.callable == 0 && origin == Origin::Resumed && !subscription.is_settled() => {
                Lookup::Pending
            }
            Some(assignment) => Lookup::Found(match &self.zone {
                Some(zone) => subscription.preferring(zone, assignment),
                None => assignment.resource,
            }),
            None => Lookup::Pending,
        }
    }
}

/// Reason for the end of a stream.
#[derive(Debug)]
enum StreamEnd {
    /// The client ended its requests; with a status, one cannot be read, or its names are to be requested again.
    Requests(Option<Status>),
    /// The responses have ended, or the client does not take them.
    Delivery(DeliveryEnd),
    /// The agent stops.
    Stopping,
}

impl ClientStream {
    /// Creates the stream of a client of a server with this status.
    pub(super) fn new(
        client: Connected,
        status: &XdsStatus,
        envoy: Arc<EnvoyResources>,
        zones: ZonePreference,
    ) -> Self {
        let (assignments, names) = (Arc::clone(&status.assignments), Arc::clone(&status.names));
        let resources = StreamResources { zone: None, subscriptions: BTreeMap::new(), envoy };
        let state = StreamState::new(names.max(), NameAccount::new(Arc::clone(&status.name_budget)));
        let (inbox, waiting, retry) = (Arc::default(), BTreeSet::new(), Instant::now());
        Self { state, resources, assignments, inbox, client, names, zones, waiting, retry, renewal: None }
    }

    /// Serves the client until it ends the stream or `stop` completes. `progress`: that of the client with the
    /// responses. Boxed: a future may hold its arguments twice, and each client has one.
    pub(super) async fn run(
        mut self: Box<Self>,
        requests: Box<Requests>,
        responses: ResponseSender,
        mut progress: Progress,
        stop: impl Future<Output = ()>,
    ) {
        let mut stop = pin!(stop);
        let end = tokio::select! {
            () = &mut stop => StreamEnd::Stopping,
            end = progress.end() => StreamEnd::Delivery(end),
            end = self.serve(requests, &responses) => end,
        };
        tracing::debug!(client = ?self.client, ?end, "stream ended");
        self.resources.subscriptions.clear();
        // A client that has not taken the last response sees the end only.
        let delivery = match end {
            StreamEnd::Delivery(end) => end,
            StreamEnd::Stopping => {
                let _ = responses.try_send(Box::new(Err(Status::unavailable("the agent stops"))));
                return;
            }
            StreamEnd::Requests(status) => {
                if let Some(status) = status {
                    let _ = responses.try_send(Box::new(Err(status)));
                }
                drop(responses);
                tokio::select! {
                    () = stop => return,
                    end = progress.end() => end,
                }
            }
        };
        // Bytes that the client does not take stay in memory as long as its connection.
        if delivery == DeliveryEnd::Stalled {
            self.client.disconnect();
        }
    }

    async fn serve(&mut self, mut requests: Box<Requests>, responses: &ResponseSender) -> StreamEnd {
        loop {
            tokio::select! {
                request = requests.next() => match request {
                    Ok(Some(request)) => {
                        if let Err(end) = self.receive(&request) {
                            return end;
                        }
                    }
                    Ok(None) => return StreamEnd::Requests(None),
                    Err(status) => return StreamEnd::Requests(Some(status)),
                },
                changed = self.inbox.take() => self.mark(&changed),
                () = sleep_until(self.retry), if !self.waiting.is_empty() => {
                    if let Err(end) = self.follow_waiting() {
                        return end;
                    }
                }
                () = sleep_until(self.renewal.unwrap_or_else(Instant::now)), if self.renewal.is_some() => {
                    self.renewal = None;
                    if self.state.has_memory_again() {
                        let status = Status::unavailable("there was no memory for some names: request them again");
                        return StreamEnd::Requests(Some(status));
                    }
                    self.await_memory();
                }
                slot = responses.reserve(), if self.state.is_due() => match slot {
                    Ok(slot) => self.respond(slot),
                    Err(_) => return StreamEnd::Delivery(DeliveryEnd::Complete),
                },
            }
        }
    }

    fn receive(&mut self, request: &DiscoveryRequest) -> Result<(), StreamEnd> {
        if let Some(node) = &request.node {
            self.client.describe(node);
            self.resources.zone = self.zones.of(node);
        }
        let above_limit = self.state.above_limit();
        let received = self.state.receive(request);
        if self.state.above_limit() > above_limit {
            self.names.refuse();
        }
        self.await_memory();
        tracing::trace!(kind = request.type_url, nonce = request.response_nonce, ?received, "request received");
        match received {
            Received::UnknownType => tracing::debug!(kind = request.type_url, "type not served"),
            Received::Subscribed | Received::Rejected(_) => self.follow_subscription()?,
            Received::Accepted | Received::Crossed => {}
        }
        self.client.record(&received, self.state.assignments());
        Ok(())
    }

    /// Sets the time of the next check for memory, if some names lack it.
    fn await_memory(&mut self) {
        if self.state.lacks_memory() {
            self.renewal.get_or_insert_with(|| Instant::now() + RENEWAL.mul_f64(1.0 + fastrand::f64()));
        }
    }

    /// Subscribes to the assignments of the names that the client wants, and to no others. Those for which the agent
    /// has no room wait: the client has, or gets, all others.
    fn follow_subscription(&mut self) -> Result<(), StreamEnd> {
        let wanted: BTreeSet<&str> = self.state.assignments().collect();
        let subscriptions = &mut self.resources.subscriptions;
        subscriptions.retain(|name, _| wanted.contains(&**name));
        self.waiting.retain(|name| wanted.contains(name.as_str()));
        for name in wanted {
            let is_known = subscriptions.contains_key(name) || self.waiting.contains(name);
            if is_known || target::services(name).is_empty() {
                continue;
            }
            match self.assignments.subscribe(name, &self.inbox) {
                Ok(subscription) => _ = subscriptions.insert(subscription.name(), subscription),
                Err(Refusal::TooManyNames) => {
                    self.assignments.count_refusal();
                    if self.waiting.is_empty() {
                        self.retry = Instant::now() + RETRY;
                    }
                    self.waiting.insert(name.to_owned());
                }
                Err(Refusal::Stopping) => return Err(StreamEnd::Stopping),
            }
        }
        Ok(())
    }

    /// Subscribes to names that wait, until there is no room. It begins with any of them: other clients may follow some
    /// meanwhile, which need no room.
    fn follow_waiting(&mut self) -> Result<(), StreamEnd> {
        self.retry = Instant::now() + RETRY;
        let mut names: Vec<_> = mem::take(&mut self.waiting).into_iter().collect();
        let first = fastrand::usize(..names.len().max(1));
        names.rotate_left(first);
        let mut refused = 0;
        for name in names {
            if refused == MAX_REFUSED {
                self.waiting.insert(name);
                continue;
            }
            match self.assignments.subscribe(&name, &self.inbox) {
                Ok(subscription) => {
                    self.state.mark(&name);
                    self.resources.subscriptions.insert(subscription.name(), subscription);
                }
                Err(Refusal::TooManyNames) => {
                    refused += 1;
                    self.waiting.insert(name);
                }
                Err(Refusal::Stopping) => return Err(StreamEnd::Stopping),
            }
        }
        Ok(())
    }

    fn mark(&mut self, changed: &BTreeSet<Arc<str>>) {
        for name in changed {
            self.state.mark(name);
        }
    }

    fn respond(&mut self, slot: mpsc::Permit<'_, QueuedResponse>) {
        if let Some(response) = self.state.next(&self.resources) {
            self.client.count(response.kind);
            slot.send(Box::new(Ok(response)));
        }
    }
}
