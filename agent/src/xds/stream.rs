//! State of the stream of one client: what it subscribes to, what it has received, and what it is to receive. There
//! is no queue: each response is made from the latest resources at the moment at which the client can take it.
//!
//! - A request with a nonce that is not the latest of its type crossed a response and is ignored, except for its error:
//!   the client answers the newer response as well.
//! - A response contains resources that the client does not have in this version. One that it rejected is not sent
//!   again until its content changes.
//! - Listeners and clusters are sent as complete sets, because what is missing is deleted. Of routes and assignments
//!   each response has one: a client may discard a whole response for one resource.
//! - Nothing is sent for what is not known yet, or for names above the limit. A client repeats its names in each
//!   request, so those come in once there is room. Names without memory are not answered either. Once there is memory
//!   for them, their stream is ended, so that the client requests them again.
//! - After a change of a cluster its assignment is sent again: Envoy waits for it, and does not always ask.

use std::{collections::BTreeMap, mem, sync::Arc};

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;

use super::{
    name_budget::NameAccount,
    resource::{Resource, ResourceType, Version},
    responses::Response,
    subscription::{Names, Omitted, Room, Subscription},
};

/// Maximum bytes of the text of an error that are kept. C-core's texts are short; in Envoy's, which contain the
/// resource, the reason comes last.
const MAX_ERROR_BYTES: usize = 1024;

/// Resources from which responses are made.
pub(super) trait Resources {
    /// Looks up the resource that a client requested by this name.
    fn named(&self, kind: ResourceType, name: &str, origin: Origin) -> Lookup;

    /// Returns the resources for a client that requests all of them; `None` if there is no such set.
    fn all(&self, kind: ResourceType) -> Option<Vec<Resource>>;
}

/// Result of a look-up.
#[derive(Clone, Debug)]
pub(super) enum Lookup {
    /// The resource.
    Found(Resource),
    /// It is not known yet: nothing is sent, and the client keeps what it has.
    Pending,
    /// No resource can have this name.
    Impossible,
}

/// Origin of the interest in a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It is new: the client has no resource of this name.
    Fresh,
    /// An earlier stream, to this agent or to another one, from which the client may have a resource.
    Resumed,
}

/// Result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A subscription has begun, changed or ended.
    Subscribed,
    /// The client accepted the latest response of the type.
    Accepted,
    /// The client rejected a response.
    Rejected(Rejection),
    /// The request crossed a response.
    Crossed,
    /// The agent does not serve the type.
    UnknownType,
}

/// Rejection of a response by a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rejection {
    /// Type of the rejected resources.
    pub(super) kind: ResourceType,
    /// The client's text, at most its last kilobyte. It is foreign: show it [escaped](enlist::escape).
    pub(super) message: String,
}

/// Responses that a client is to receive.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Due {
    /// The complete set, if it is new to the client or the client awaits it.
    Set(Answer),
    /// Those of these names that are known and new to the client.
    Names(Names),
}

/// Answer that a client expects to its latest request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// None: only changes are sent.
    Given,
    /// The subscription is new or has changed.
    Awaited,
}

/// State of one type.
#[derive(Debug)]
struct TypeState {
    subscription: Subscription,
    omitted: Omitted,
    /// Memory that was taken for names, which is that of the most names so far.
    taken: usize,
    /// Names that the client has from an earlier stream: those of the first request, and those that came in while some
    /// of them may have been omitted.
    resumed: Names,
    /// Some of the names of the first request may be among the omitted ones.
    omits_resumed: bool,
    due: Due,
    /// Latest nonce; 0 before the first response.
    nonce: u64,
    /// Resources that the client has received, also those that it rejected.
    sent: BTreeMap<Arc<str>, Version>,
}

/// State of the stream of one client.
#[derive(Debug)]
pub(super) struct StreamState {
    max_names: usize,
    account: NameAccount,
    last_nonce: u64,
    /// In the order of [`ResourceType::ALL`].
    types: [TypeState; ResourceType::ALL.len()],
}

impl StreamState {
    /// Creates the state of a new stream that may subscribe to this number of names of each type. `account`: for their
    /// memory.
    pub(super) fn new(max_names: usize, account: NameAccount) -> Self {
        Self { max_names, account, last_nonce: 0, types: ResourceType::ALL.map(TypeState::new) }
    }

    /// Processes a request.
    pub(super) fn receive(&mut self, request: &DiscoveryRequest) -> Received {
        let Some(kind) = ResourceType::from_url(&request.type_url) else { return Received::UnknownType };
        let state = &mut self.types[kind as usize];
        let rejection = request.error_detail.as_ref().map(|error| Rejection { kind, message: tail(&error.message) });
        let is_latest = request.response_nonce.is_empty() || request.response_nonce == state.nonce.to_string();
        if !is_latest {
            return rejection.map_or(Received::Crossed, Received::Rejected);
        }
        let is_resumed = state.subscription == Subscription::None && !request.version_info.is_empty();
        let mut subscription = state.subscription.after(kind, &request.resource_names);
        let mut room = Room::new(kind, self.max_names, &mut state.taken, &mut self.account);
        let omitted = subscription.limit(&state.subscription, &mut room);
        let missing_before = mem::replace(&mut state.omitted, room.omitted()).missing_bytes;
        if state.omitted.missing_bytes > missing_before {
            self.account.refuse();
        }
        if is_resumed || state.omits_resumed {
            let new = subscription.names().into_iter().flatten().filter(|name| !state.subscription.contains(name));
            state.resumed.extend(new.cloned());
        }
        let omits_resumed = (is_resumed || state.omits_resumed) && omitted > 0;
        let is_complete_again = mem::replace(&mut state.omits_resumed, omits_resumed) && !omits_resumed;
        let has_changed = subscription != state.subscription;
        state.subscribe(subscription);
        if let (true, Due::Set(answer)) = (is_complete_again, &mut state.due) {
            // The set was held back.
            *answer = Answer::Awaited;
        }
        match rejection {
            Some(rejection) => Received::Rejected(rejection),
            None if has_changed => Received::Subscribed,
            None => Received::Accepted,
        }
    }

    /// Returns the number of requested names that are above the limit of the stream.
    pub(super) fn above_limit(&self) -> usize {
        self.types.iter().map(|state| state.omitted.above_limit).sum()
    }

    /// Returns `true` if there is no memory for some of the requested names.
    pub(super) fn lacks_memory(&self) -> bool {
        self.missing_bytes() > 0
    }

    /// Returns `true` if there was no memory for some of the requested names, and now there is for all of them, or for
    /// as many as the stream has.
    pub(super) fn has_memory_again(&self) -> bool {
        let missing = self.missing_bytes();
        let enough = match self.account.used() {
            0 => missing,
            used => missing.min(used),
        };
        missing > 0 && self.account.has_room(enough)
    }

    fn missing_bytes(&self) -> usize {
        self.types.iter().map(|state| state.omitted.missing_bytes).sum()
    }

    /// Returns the names of the assignments that the client subscribes to.
    pub(super) fn assignments(&self) -> impl Iterator<Item = &str> {
        let state = &self.types[ResourceType::Assignment as usize];
        state.subscription.names().into_iter().flatten().map(|name| &**name)
    }

    /// Records that an assignment may have changed.
    pub(super) fn mark(&mut self, assignment: &str) {
        let state = self.state(ResourceType::Assignment);
        if let (Some(name), Due::Names(due)) = (state.subscription.name(assignment), &mut state.due) {
            due.insert(Arc::clone(name));
        }
    }

    /// Returns `true` if [`next`](Self::next) may return a response.
    pub(super) fn is_due(&self) -> bool {
        self.types.iter().any(|state| match &state.due {
            Due::Set(answer) => *answer == Answer::Awaited,
            Due::Names(names) => !names.is_empty(),
        })
    }

    /// Returns the next response, which counts as sent; `None` if the client is up to date.
    pub(super) fn next(&mut self, resources: &impl Resources) -> Option<Response> {
        ResourceType::ALL.into_iter().find_map(|kind| {
            if kind.is_complete() { self.complete_set(kind, resources) } else { self.changed_one(kind, resources) }
        })
    }

    /// Returns the response with all listeners or clusters, if one is due.
    fn complete_set(&mut self, kind: ResourceType, resources: &impl Resources) -> Option<Response> {
        let state = self.state(kind);
        if mem::replace(&mut state.due, Due::Set(Answer::Given)) == Due::Set(Answer::Given) {
            return None;
        }
        if state.omits_resumed {
            // The client may have those that are omitted, and would delete them.
            return None;
        }
        let found = state.wanted(kind, resources)?;
        let versions: BTreeMap<_, _> = found.iter().map(|one| (one.shared_name(), one.version())).collect();
        let before = mem::replace(&mut state.sent, versions);
        // Names that cannot exist are answered, so that the client need not wait for them. The end of an interest is
        // not.
        if found.is_empty() && state.subscription.names().is_none_or(Names::is_empty) {
            return None;
        }
        if kind == ResourceType::Cluster {
            let changed = found.iter().filter(|one| before.get(one.name()) != Some(&one.version()));
            self.repeat_assignments(changed.map(Resource::name));
        }
        let version = Version::of_set(&found);
        Some(self.response(kind, version, found))
    }

    /// Returns the response with the first route or assignment that is due and new to the client.
    fn changed_one(&mut self, kind: ResourceType, resources: &impl Resources) -> Option<Response> {
        let TypeState { due: Due::Names(due), sent, resumed, .. } = self.state(kind) else { return None };
        while let Some(name) = due.pop_first() {
            let Lookup::Found(resource) = resources.named(kind, &name, origin(resumed, &name)) else { continue };
            let version = resource.version();
            if due.is_empty() {
                // An empty set keeps a node, which most clients do not need for long.
                *due = Names::new();
            }
            if sent.insert(name, version) != Some(version) {
                return Some(self.response(kind, version, vec![resource]));
            }
        }
        None
    }

    /// Causes the assignments of these clusters to be sent again.
    fn repeat_assignments<'a>(&mut self, clusters: impl Iterator<Item = &'a str>) {
        let state = self.state(ResourceType::Assignment);
        for cluster in clusters {
            if let (Some((name, _)), Due::Names(due)) = (state.sent.remove_entry(cluster), &mut state.due) {
                due.insert(name);
            }
        }
    }

    fn response(&mut self, kind: ResourceType, version: Version, resources: Vec<Resource>) -> Response {
        self.last_nonce += 1;
        let nonce = self.last_nonce;
        self.state(kind).nonce = nonce;
        Response { kind, version, nonce, resources }
    }

    fn state(&mut self, kind: ResourceType) -> &mut TypeState {
        &mut self.types[kind as usize]
    }
}

impl TypeState {
    fn new(kind: ResourceType) -> Self {
        let due = if kind.is_complete() { Due::Set(Answer::Given) } else { Due::Names(Names::new()) };
        let (resumed, sent) = (Names::new(), BTreeMap::new());
        Self {
            subscription: Subscription::None,
            omitted: Omitted::default(),
            taken: 0,
            resumed,
            omits_resumed: false,
            due,
            nonce: 0,
            sent,
        }
    }

    /// Replaces the subscription. What the client no longer wants counts as not sent.
    fn subscribe(&mut self, subscription: Subscription) {
        if subscription == self.subscription {
            return;
        }
        if let Some(names) = subscription.names() {
            self.resumed.retain(|name| names.contains(name));
            // A missing listener or cluster is deleted by the next set, which differs from what was sent.
            if let Due::Names(due) = &mut self.due {
                self.sent.retain(|name, _| names.contains(name));
                due.retain(|name| names.contains(name));
                due.extend(names.iter().filter(|name| !self.subscription.contains(name)).cloned());
            }
        }
        if let Due::Set(answer) = &mut self.due {
            *answer = Answer::Awaited;
        }
        self.subscription = subscription;
    }

    /// Returns the set that the client is to have; `None` if there was no request, or there is no such set.
    fn wanted(&self, kind: ResourceType, resources: &impl Resources) -> Option<Vec<Resource>> {
        match &self.subscription {
            Subscription::None => None,
            Subscription::Wildcard => resources.all(kind),
            Subscription::Names(names) => {
                let found =
                    names.iter().filter_map(|name| match resources.named(kind, name, origin(&self.resumed, name)) {
                        Lookup::Found(resource) => Some(resource),
                        Lookup::Pending | Lookup::Impossible => None,
                    });
                Some(found.collect())
            }
        }
    }
}

fn origin(resumed: &Names, name: &str) -> Origin {
    if resumed.contains(name) { Origin::Resumed } else { Origin::Fresh }
}

/// Returns the end of a text.
fn tail(text: &str) -> String {
    let start = (text.len().saturating_sub(MAX_ERROR_BYTES)..=text.len()).find(|at| text.is_char_boundary(*at));
    text[start.unwrap_or(0)..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::{
        assignment::assignment,
        name_budget::{cost, tests::account},
        options::DEFAULT_XDS_CONNECT_TIMEOUT,
        resources,
        responses::tests::decoded,
        subscription::MEAN_NAME_BYTES,
    };
    use enlist::{
        Endpoint, Entry, Epoch, Instance, InstanceId, Revision, ServiceRef, Snapshot, backend::SnapshotBuilder,
    };
    use envoy_types::pb::{envoy::service::discovery::v3::DiscoveryResponse, google::rpc::Status};
    use std::sync::Arc;

    use ResourceType::{Assignment, Cluster, Listener, Route};

    /// Services with the ports of their instances; `None` is not known yet.
    #[derive(Default)]
    struct Registry {
        known: BTreeMap<String, Option<Vec<u16>>>,
        /// Content of clusters, which changes with this number.
        generation: u32,
        wildcard: Option<Vec<String>>,
    }

    impl Registry {
        fn with(services: &[(&str, Option<&[u16]>)]) -> Self {
            let known = services.iter().map(|(name, ports)| ((*name).to_owned(), ports.map(<[u16]>::to_vec)));
            Self { known: known.collect(), ..Self::default() }
        }

        fn set(&mut self, name: &str, ports: &[u16]) {
            self.known.insert(name.to_owned(), Some(ports.to_vec()));
        }

        fn cluster(&self, name: &str) -> Resource {
            if self.generation == 0 {
                resources::cluster(name, DEFAULT_XDS_CONNECT_TIMEOUT)
            } else {
                resources::routes(name)
            }
        }
    }

    fn snapshot(ports: &[u16]) -> Snapshot {
        let service = ServiceRef::parse("s").unwrap();
        let mut snapshot = SnapshotBuilder::new(service, Revision::new(1), Epoch::default());
        for port in ports {
            let endpoint = Endpoint::new("10.0.0.1", *port).unwrap();
            let instance = Instance::new(InstanceId::parse(port.to_string()).unwrap(), [endpoint]).unwrap();
            snapshot.insert(Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1))));
        }
        snapshot.build()
    }

    impl Resources for Registry {
        fn named(&self, kind: ResourceType, name: &str, origin: Origin) -> Lookup {
            if name.is_empty() || name.starts_with('/') {
                return Lookup::Impossible;
            }
            match kind {
                Listener => Lookup::Found(resources::api_listener(name)),
                Route => Lookup::Found(resources::routes(name)),
                Cluster => Lookup::Found(self.cluster(name)),
                Assignment => match self.known.get(name) {
                    Some(Some(ports)) if ports.is_empty() && origin == Origin::Resumed => Lookup::Pending,
                    Some(Some(ports)) => Lookup::Found(assignment(name, &snapshot(ports)).unwrap().resource),
                    Some(None) | None => Lookup::Pending,
                },
            }
        }

        fn all(&self, kind: ResourceType) -> Option<Vec<Resource>> {
            let names = self.wildcard.as_ref()?;
            let make = |name: &String| if kind == Cluster { self.cluster(name) } else { resources::api_listener(name) };
            Some(names.iter().map(make).collect())
        }
    }

    fn request(kind: ResourceType, names: &[&str], nonce: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: kind.url().to_owned(),
            resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
            response_nonce: nonce.to_owned(),
            ..DiscoveryRequest::default()
        }
    }

    fn rejecting(mut request: DiscoveryRequest, message: &str) -> DiscoveryRequest {
        request.error_detail = Some(Status { message: message.to_owned(), ..Status::default() });
        request
    }

    /// Returns the types of responses, with their numbers of resources.
    fn kinds(responses: &[DiscoveryResponse]) -> Vec<(ResourceType, usize)> {
        let kind = |one: &DiscoveryResponse| (ResourceType::from_url(&one.type_url).unwrap(), one.resources.len());
        responses.iter().map(kind).collect()
    }

    /// Returns all responses that are due after any assignment may have changed.
    fn respond(stream: &mut StreamState, registry: &Registry) -> Vec<DiscoveryResponse> {
        let names: Vec<_> = stream.assignments().map(str::to_owned).collect();
        for name in names {
            stream.mark(&name);
        }
        let responses = std::iter::from_fn(|| stream.next(registry).map(decoded)).collect();
        assert!(!stream.is_due(), "nothing remains");
        responses
    }

    fn stream() -> StreamState {
        StreamState::new(100, account(0))
    }

    #[test]
    fn a_grpc_client_gets_each_type_once() {
        let (mut stream, mut registry) = (stream(), Registry::with(&[("s", Some(&[1]))]));
        for kind in [Listener, Route, Cluster, Assignment] {
            assert_eq!(stream.receive(&request(kind, &["s"], "")), Received::Subscribed);
            let responses = respond(&mut stream, &registry);
            assert_eq!(kinds(&responses), [(kind, 1)]);
            assert!(!responses[0].version_info.is_empty() && !responses[0].nonce.is_empty());
            assert_eq!(stream.receive(&request(kind, &["s"], &responses[0].nonce)), Received::Accepted);
            assert_eq!(kinds(&respond(&mut stream, &registry)), [], "an acknowledgement is not answered");
        }
        registry.set("s", &[1, 2]);
        let responses = respond(&mut stream, &registry);
        assert_eq!(kinds(&responses), [(Assignment, 1)]);
        assert_eq!(kinds(&respond(&mut stream, &registry)), []);
        registry.set("s", &[]);
        assert_eq!(kinds(&respond(&mut stream, &registry)), [(Assignment, 1)], "known to be empty");
    }

    #[test]
    fn nothing_is_sent_for_what_is_not_known_yet() {
        let (mut stream, mut registry) = (stream(), Registry::with(&[("a", Some(&[1])), ("b", None)]));
        stream.receive(&request(Assignment, &["a", "b", "c"], ""));
        assert_eq!(kinds(&respond(&mut stream, &registry)), [(Assignment, 1)]);
        assert_eq!(kinds(&respond(&mut stream, &registry)), []);
        registry.set("b", &[2]);
        assert_eq!(kinds(&respond(&mut stream, &registry)), [(Assignment, 1)]);
        // A view that is lost again changes nothing.
        registry.known.insert("a".to_owned(), None);
        assert_eq!(kinds(&respond(&mut stream, &registry)), []);
        // All clusters, of which there are none.
        stream.receive(&request(Cluster, &[], ""));
        assert_eq!(kinds(&respond(&mut stream, &registry)), []);
    }

    #[test]
    fn each_assignment_has_a_response_of_its_own() {
        let (mut stream, registry) = (stream(), Registry::with(&[("a", Some(&[1])), ("b", Some(&[2]))]));
        stream.receive(&request(Assignment, &["a", "b"], ""));
        let responses = respond(&mut stream, &registry);
        assert_eq!(kinds(&responses), [(Assignment, 1), (Assignment, 1)]);
        assert_ne!(responses[0].nonce, responses[1].nonce);
        // The acknowledgement of the first one is no longer the latest.
        assert_eq!(stream.receive(&request(Assignment, &["a", "b"], &responses[0].nonce)), Received::Crossed);
        assert_eq!(stream.receive(&request(Assignment, &["a", "b"], &responses[1].nonce)), Received::Accepted);
        assert_eq!(kinds(&respond(&mut stream, &registry)), []);
    }

    #[test]
    fn a_request_that_crossed_a_response_is_ignored() {
        let (mut stream, mut registry) = (stream(), Registry::with(&[("a", Some(&[1])), ("b", Some(&[2]))]));
        stream.receive(&request(Assignment, &["a"], ""));
        let first = respond(&mut stream, &registry);
        registry.set("a", &[1, 3]);
        let second = respond(&mut stream, &registry);
        assert_eq!(stream.receive(&request(Assignment, &["a", "b"], &first[0].nonce)), Received::Crossed);
        assert_eq!(kinds(&respond(&mut stream, &registry)), []);
        // The answer to the newer response has the same names.
        assert_eq!(stream.receive(&request(Assignment, &["a", "b"], &second[0].nonce)), Received::Subscribed);
        assert_eq!(kinds(&respond(&mut stream, &registry)), [(Assignment, 1)], "only the new one");
    }

    #[test]
    fn a_rejected_resource_is_sent_again_when_it_has_changed() {
        let (mut stream, mut registry) = (stream(), Registry::with(&[("a", Some(&[1]))]));
        stream.receive(&request(Assignment, &["a"], ""));
        let first = respond(&mut stream, &registry);
        let rejected = stream.receive(&rejecting(request(Assignment, &["a"], &first[0].nonce), "a: bad\u{1b}"));
        let Received::Rejected(rejection) = rejected else { panic!("{rejected:?}") };
        assert_eq!((rejection.kind, rejection.message.as_str()), (Assignment, "a: bad\u{1b}"));
        assert_eq!(kinds(&respond(&mut stream, &registry)), []);
        registry.set("a", &[2]);
        let second = respond(&mut stream, &registry);
        assert_eq!(kinds(&second), [(Assignment, 1)]);
        // A late rejection is counted, although it crossed a response.
        let late = stream.receive(&rejecting(request(Assignment, &["a"], &first[0].nonce), "late"));
        assert!(matches!(late, Received::Rejected(_)), "{late:?}");
        assert_eq!(stream.receive(&request(Assignment, &["a"], &second[0].nonce)), Received::Accepted);
        let long = "é".repeat(MAX_ERROR_BYTES) + "the reason";
        let Received::Rejected(rejection) = stream.receive(&rejecting(request(Assignment, &["a"], ""), &long)) else {
            panic!("a rejection")
        };
        assert!(rejection.message.ends_with("the reason") && rejection.message.len() <= MAX_ERROR_BYTES);
    }

    #[test]
    fn an_assignment_follows_a_change_of_its_cluster() {
        let (mut stream, mut registry) = (stream(), Registry::with(&[("a", Some(&[1])), ("b", Some(&[2]))]));
        stream.receive(&request(Cluster, &["a"], ""));
        assert_eq!(kinds(&respond(&mut stream, &registry)), [(Cluster, 1)]);
        stream.receive(&request(Assignment, &["a", "b"], ""));
        assert_eq!(respond(&mut stream, &registry).len(), 2);
        registry.generation = 1;
        stream.receive(&request(Cluster, &["a", "c"], ""));
        let changed = respond(&mut stream, &registry);
        assert_eq!(kinds(&changed), [(Cluster, 2), (Assignment, 1)], "in this order");
        // Envoy repeats its request, which is an acknowledgement.
        let repeated = request(Assignment, &["a", "b"], &changed[1].nonce);
        assert_eq!(stream.receive(&repeated), Received::Accepted);
        assert_eq!(kinds(&respond(&mut stream, &registry)), []);
    }

    #[test]
    fn a_client_of_all_clusters_gets_the_configured_ones() {
        let (mut stream, mut registry) = (stream(), Registry::with(&[("a", Some(&[1]))]));
        registry.wildcard = Some(vec!["a".to_owned(), "b".to_owned()]);
        stream.receive(&request(Cluster, &[], ""));
        let clusters = respond(&mut stream, &registry);
        assert_eq!(kinds(&clusters), [(Cluster, 2)]);
        assert_eq!(stream.receive(&request(Cluster, &[], &clusters[0].nonce)), Received::Accepted);
        assert_eq!(kinds(&respond(&mut stream, &registry)), []);
        stream.receive(&request(Cluster, &["*"], &clusters[0].nonce));
        assert_eq!(kinds(&respond(&mut stream, &registry)), [], "a wildcard in words is the same one");
    }

    #[test]
    fn an_empty_assignment_can_wait_for_a_client_that_has_another() {
        let (mut stream, registry) = (stream(), Registry::with(&[("a", Some(&[]))]));
        let mut resumed = request(Assignment, &["a"], "");
        resumed.version_info = "of an earlier stream".to_owned();
        stream.receive(&resumed);
        assert_eq!(kinds(&respond(&mut stream, &registry)), []);
    }

    #[test]
    fn a_name_that_comes_later_is_a_fresh_one() {
        let (mut stream, registry) = (stream(), Registry::with(&[("a", Some(&[])), ("b", Some(&[]))]));
        let mut resumed = request(Assignment, &["a"], "");
        resumed.version_info = "of an earlier stream".to_owned();
        stream.receive(&resumed);
        assert_eq!(kinds(&respond(&mut stream, &registry)), []);
        stream.receive(&request(Assignment, &["a", "b"], ""));
        assert_eq!(kinds(&respond(&mut stream, &registry)), [(Assignment, 1)], "the new one");
        stream.receive(&request(Assignment, &["b"], "1"));
        stream.receive(&request(Assignment, &["a", "b"], "1"));
        assert_eq!(kinds(&respond(&mut stream, &registry)), [(Assignment, 1)], "the client has lost it meanwhile");
    }

    #[test]
    fn an_omitted_name_of_a_resumed_stream_is_no_fresh_one() {
        let (mut stream, registry) =
            (StreamState::new(1, account(0)), Registry::with(&[("b", Some(&[])), ("c", Some(&[]))]));
        let mut resumed = request(Assignment, &["a", "b"], "");
        resumed.version_info = "of an earlier stream".to_owned();
        stream.receive(&resumed);
        assert_eq!(stream.above_limit(), 1);
        stream.receive(&request(Assignment, &["b"], ""));
        assert_eq!(kinds(&respond(&mut stream, &registry)), [], "the client has it");
        stream.receive(&request(Assignment, &["c"], ""));
        assert_eq!(kinds(&respond(&mut stream, &registry)), [(Assignment, 1)], "none is omitted any more");
    }

    #[test]
    fn a_set_of_clusters_is_sent_as_a_whole() {
        let (mut stream, registry) = (stream(), Registry::with(&[]));
        stream.receive(&request(Cluster, &["a"], ""));
        let one = respond(&mut stream, &registry);
        stream.receive(&request(Cluster, &["b", "a"], &one[0].nonce));
        let both = respond(&mut stream, &registry);
        assert_eq!(kinds(&both), [(Cluster, 2)], "what is missing would be deleted");
        stream.receive(&request(Cluster, &["b"], &both[0].nonce));
        assert_eq!(kinds(&respond(&mut stream, &registry)), [(Cluster, 1)]);
    }

    #[test]
    fn no_names_after_names_end_the_interest() {
        let (mut stream, mut registry) = (stream(), Registry::with(&[("a", Some(&[1]))]));
        registry.wildcard = Some(vec!["a".to_owned()]);
        for kind in ResourceType::ALL {
            stream.receive(&request(kind, &["a"], ""));
        }
        let nonces: BTreeMap<_, _> =
            respond(&mut stream, &registry).into_iter().map(|one| (one.type_url, one.nonce)).collect();
        for kind in ResourceType::ALL {
            assert_eq!(stream.receive(&request(kind, &[], &nonces[kind.url()])), Received::Subscribed);
        }
        registry.set("a", &[2]);
        assert_eq!(
            kinds(&respond(&mut stream, &registry)),
            [],
            "also of listeners and clusters, where it is no wildcard"
        );
        stream.receive(&request(Assignment, &["a"], &nonces[Assignment.url()]));
        assert_eq!(kinds(&respond(&mut stream, &registry)), [(Assignment, 1)], "interest that returns is a new one");
    }

    #[test]
    fn a_wildcard_for_assignments_or_routes_is_no_name() {
        let (mut stream, registry) = (stream(), Registry::with(&[("a", Some(&[1]))]));
        for kind in [Assignment, Route] {
            stream.receive(&request(kind, &["*", "a"], ""));
            let responses = respond(&mut stream, &registry);
            assert_eq!(kinds(&responses), [(kind, 1)], "only the name");
            let repeated = request(kind, &["a"], &responses[0].nonce);
            assert_eq!(stream.receive(&repeated), Received::Accepted);
        }
    }

    #[test]
    fn a_name_that_no_service_can_have_is_answered_at_once() {
        let (mut stream, registry) = (stream(), Registry::with(&[]));
        stream.receive(&request(Listener, &["/bad"], ""));
        assert_eq!(kinds(&respond(&mut stream, &registry)), [(Listener, 0)], "the client need not wait");
        assert_eq!(kinds(&respond(&mut stream, &registry)), []);
        stream.receive(&request(Assignment, &["/bad"], ""));
        assert_eq!(kinds(&respond(&mut stream, &registry)), []);
    }

    #[test]
    fn a_new_stream_gets_everything_whatever_versions_it_names() {
        let registry = Registry::with(&[("a", Some(&[1]))]);
        let versions = |mut stream: StreamState| {
            let mut responses = Vec::new();
            for kind in ResourceType::ALL {
                let mut first = request(kind, &["a"], "");
                first.version_info = "of another agent".to_owned();
                stream.receive(&first);
                responses.extend(respond(&mut stream, &registry));
            }
            responses.into_iter().map(|one| (one.type_url, one.version_info)).collect::<Vec<_>>()
        };
        let first = versions(stream());
        assert_eq!(first.len(), 4);
        assert_eq!(first, versions(stream()), "two agents agree on the versions");
    }

    #[test]
    fn names_above_the_limit_are_not_deleted() {
        let (mut stream, registry) = (StreamState::new(2, account(0)), Registry::with(&[]));
        let mut resumed = request(Cluster, &["a", "b", "c"], "");
        resumed.version_info = "of an earlier stream".to_owned();
        for fewer in [["b", "c"], ["a", "b"]] {
            let mut stream = StreamState::new(2, account(0));
            stream.receive(&resumed);
            assert_eq!((kinds(&respond(&mut stream, &registry)), stream.above_limit()), (vec![], 1));
            stream.receive(&request(Cluster, &fewer, ""));
            assert_eq!(kinds(&respond(&mut stream, &registry)), [(Cluster, 2)], "there is room for all");
        }
        let mut few = request(Cluster, &["a"], "");
        few.version_info.clone_from(&resumed.version_info);
        let mut growing = StreamState::new(2, account(0));
        growing.receive(&few);
        assert_eq!(kinds(&respond(&mut growing, &registry)), [(Cluster, 1)]);
        growing.receive(&request(Cluster, &["a", "b", "c"], ""));
        assert_eq!(kinds(&respond(&mut growing, &registry)), [(Cluster, 2)], "the client has none of the new ones");
        stream.receive(&request(Cluster, &["a", "b", "c"], ""));
        assert_eq!(kinds(&respond(&mut stream, &registry)), [(Cluster, 2)], "a new client has nothing");
        stream.receive(&request(Cluster, &["a", "b"], "1"));
        assert_eq!(kinds(&respond(&mut stream, &registry)), [], "it has these");
    }

    #[test]
    fn names_are_limited() {
        let mut stream = StreamState::new(2, account(0));
        assert_eq!(stream.receive(&request(Cluster, &["a", "b"], "")), Received::Subscribed);
        assert_eq!(stream.receive(&request(Assignment, &["a", "b"], "")), Received::Subscribed, "of each type");
        assert_eq!(stream.receive(&request(Assignment, &["0", "b", "a"], "")), Received::Accepted);
        assert_eq!((stream.above_limit(), stream.assignments().collect::<Vec<_>>()), (1, vec!["a", "b"]));
        assert_eq!(stream.receive(&request(Assignment, &["0", "b"], "")), Received::Subscribed, "there is room again");
        assert_eq!((stream.above_limit(), stream.assignments().collect::<Vec<_>>()), (0, vec!["0", "b"]));
        let mut stream = StreamState::new(3, account(0));
        let long = "a".repeat(3 * MEAN_NAME_BYTES + 1);
        stream.receive(&request(Assignment, &[&long, "b"], ""));
        assert_eq!((stream.above_limit(), stream.assignments().collect::<Vec<_>>()), (1, vec!["b"]));
        let other = DiscoveryRequest { type_url: "x".to_owned(), ..DiscoveryRequest::default() };
        assert_eq!(stream.receive(&other), Received::UnknownType);
    }

    #[test]
    fn names_without_memory_are_omitted() {
        const NAMES: usize = 100;
        let names: Vec<_> = (0..NAMES).map(|number| format!("name-{number:02}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let subscribed = |stream: &StreamState| stream.assignments().count();
        let mut stream = StreamState::new(NAMES, account(0));
        stream.receive(&request(Assignment, &names, ""));
        let own = subscribed(&stream);
        assert!((1..NAMES).contains(&own), "{own}");
        assert!(stream.lacks_memory() && stream.above_limit() == 0, "the stream has room");
        assert!(!stream.has_memory_again());
        let mut long = StreamState::new(NAMES, account(0));
        long.receive(&request(Assignment, &[&"x".repeat(NAMES * MEAN_NAME_BYTES)], ""));
        assert!(long.lacks_memory() && !long.has_memory_again(), "none is enough");
        stream.receive(&request(Assignment, &names[NAMES - own..], ""));
        assert_eq!((subscribed(&stream), stream.lacks_memory()), (own, false), "others take the place of former ones");
        stream.receive(&request(Assignment, &[], ""));
        stream.receive(&request(Cluster, &names, ""));
        assert_eq!(kinds(&respond(&mut stream, &Registry::with(&[]))), [], "former ones are charged for");
        assert!(stream.lacks_memory());
        let all = cost(Assignment, names[0]) * NAMES;
        let mut stream = StreamState::new(NAMES, account(all));
        stream.receive(&request(Assignment, &names, ""));
        assert_eq!((subscribed(&stream), stream.lacks_memory()), (NAMES, false));
    }
}
