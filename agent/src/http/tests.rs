//! Tests of the routes over the memory backend, under a paused clock.

mod openapi;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use enlist::{
    DEFAULT_IDLE, Directory, Endpoint, Error, Health, Instance, InstanceId, LeaseChoice, Lock as _, LockName,
    LockOptions, Namespace, Queues, RegisterOptions, Registration, Registry as _, Resolver, ServiceName, ServiceRef,
    ServicesWatcher, Snapshot, Watcher,
};
use enlist_memory::{MemoryClient, MemoryStore};
use enlist_testkit::eventually;
use futures::StreamExt as _;
use serde_json::Value;
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::{HttpOptions, Sources, messages::json::PART_BYTES, router::router, shared::RequestContext, stop::Stop};
use crate::{
    BearerToken,
    logged::Logged,
    xds::{XdsOptions, XdsStatus},
};

/// Routes over a store.
struct Fixture {
    store: MemoryStore,
    /// The client that the routes read through.
    reader: MemoryClient,
    writer: MemoryClient,
    /// Views that clients of xDS share.
    directory: Directory,
    router: Router,
    stop: watch::Sender<Stop>,
}

/// A registry that refuses services whose names begin with `secret` while the switch is on.
#[derive(Debug)]
struct Refusing(MemoryClient, Arc<AtomicBool>);

#[async_trait]
impl Resolver for Refusing {
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
        self.0.resolve(service).await
    }

    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        if service.name().as_str().starts_with("secret") && self.1.load(Ordering::SeqCst) {
            return Err(Error::PermissionDenied { what: "secret".to_owned() });
        }
        self.0.watch(service).await
    }

    async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
        self.0.services(namespace).await
    }

    async fn watch_services(&self, namespace: &Namespace) -> Result<Box<dyn ServicesWatcher>, Error> {
        self.0.watch_services(namespace).await
    }
}

impl Fixture {
    fn new() -> Self {
        Self::with(&HttpOptions::new())
    }

    fn with(options: &HttpOptions) -> Self {
        Self::reading(options, |reader| Arc::new(reader))
    }

    /// The routes read through what `resolver` makes of a client.
    fn reading(options: &HttpOptions, resolver: impl FnOnce(MemoryClient) -> Arc<dyn Resolver>) -> Self {
        let store = MemoryStore::new();
        let (reader, writer) = (store.client(), store.client());
        let (stop, stopped) = watch::channel(Stop::Serving);
        let resolver = resolver(reader.clone());
        let directory = Directory::new(Arc::clone(&resolver));
        let queues: Arc<dyn Queues> = Arc::new(reader.clone());
        let xds = XdsStatus::new(directory.clone(), Duration::ZERO, &XdsOptions::new());
        let sources = Sources { resolver, directory: directory.clone(), idle: DEFAULT_IDLE, queues: Some(queues), xds };
        let shared = RequestContext::new(sources, options, stopped);
        Self { store, reader, writer, directory, router: router(Arc::new(shared)), stop }
    }

    async fn register(&self, service: &str, instance: Instance) -> Registration {
        self.writer.register(&ServiceRef::parse(service).unwrap(), instance, RegisterOptions::new()).await.unwrap()
    }

    async fn send(&self, request: Request<Body>) -> axum::response::Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn get(&self, uri: &str) -> (StatusCode, HeaderMap, Value) {
        let response = self.send(request(uri)).await;
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (parts.status, parts.headers, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn json(&self, uri: &str) -> Value {
        let (status, headers, body) = self.get(uri).await;
        assert_eq!(status, StatusCode::OK, "{uri}: {body}");
        assert_eq!(headers["content-type"], "application/json");
        body
    }

    /// The first body that satisfies a condition.
    async fn json_once(&self, uri: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let condition = &condition;
        let read = || async move {
            let body = self.json(uri).await;
            if condition(&body) { Ok(body) } else { Err(body) }
        };
        eventually("the body has changed", read).await
    }

    /// The status and the code of a refused request.
    async fn refusal(&self, request: Request<Body>) -> (u16, String) {
        let response = self.send(request).await;
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    /// The number of refusals by a limit, which the metrics have as well.
    async fn refused(&self, limit: &str) -> u64 {
        let body = self.json("/v1/limits").await;
        let limits = body["limits"].as_array().unwrap();
        let refused = limits.iter().find(|one| one["name"] == limit).unwrap()["refused"].as_u64().unwrap();
        let metric = format!("enlist_agent_refused_total{{limit=\"{limit}\"}} {refused}");
        let metrics = self.metrics().await;
        assert!(metrics.lines().any(|line| line == metric), "{metric} in {metrics}");
        refused
    }

    async fn metrics(&self) -> String {
        let response = self.send(request("/metrics")).await;
        assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    }

    async fn events(&self, uri: &str, last: Option<&str>) -> Events {
        let mut request = request(uri);
        if let Some(last) = last {
            request.headers_mut().insert("last-event-id", last.parse().unwrap());
        }
        let response = self.send(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { body: response.into_body().into_data_stream(), text: String::new() }
    }
}

/// A client that reads events.
struct Events {
    body: axum::body::BodyDataStream,
    text: String,
}

/// An event that a client received.
#[derive(Debug)]
struct Received {
    event: String,
    id: Option<String>,
    data: Value,
}

impl Received {
    /// The event, and the service and instance that it is about.
    fn short(&self) -> String {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", self.event, text(&self.data["service"]), text(&self.data["instance"]["id"]))
    }
}

impl Events {
    async fn next(&mut self) -> Option<Received> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                let Some(data) = field("data: ") else { continue };
                let data = serde_json::from_str(&data).unwrap();
                return Some(Received {
                    event: field("event: ").unwrap(),
                    id: field("id:").map(|id| id.trim().to_owned()),
                    data,
                });
            }
            self.text.push_str(std::str::from_utf8(&self.body.next().await?.unwrap()).unwrap());
        }
    }

    /// The events up to the next `synced`, and its id.
    async fn synced(&mut self) -> (Vec<String>, String) {
        let mut events = Vec::new();
        loop {
            let received = self.next().await.unwrap();
            match &*received.event {
                "synced" => return (events, received.id.unwrap()),
                "freshness" | "heartbeat" => {}
                _ => events.push(received.short()),
            }
        }
    }
}

fn request(uri: &str) -> Request<Body> {
    Request::get(uri).header("host", "localhost").body(Body::empty()).unwrap()
}

fn instance(id: &str) -> Instance {
    Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse("grpc://10.0.0.1:8080").unwrap()]).unwrap()
}

#[tokio::test(start_paused = true)]
async fn services_are_listed_with_their_numbers() {
    let fixture = Fixture::new();
    let _a = fixture.register("greeter", instance("a").with_version("1").with_zone("eu-1a").with_weight(300)).await;
    let _b = fixture.register("greeter", instance("b").with_version("2").with_health(Health::Draining)).await;
    let _c = fixture.register("mail", instance("c").with_health(Health::NotServing)).await;
    let body = fixture.json("/v1/services").await;
    assert_eq!(body["namespace"], "default");
    assert_eq!(body["freshness"]["state"], "live");
    assert_eq!(body["services"].as_array().unwrap().len(), 2);
    let greeter = &body["services"][0];
    for (field, value) in [
        ("name", "greeter".into()),
        ("instances", 2.into()),
        ("serving", 1.into()),
        ("draining", 1.into()),
        ("weight", 300.into()),
        ("versions", serde_json::json!({"1": 1, "2": 1})),
        ("zones", serde_json::json!({"": 1, "eu-1a": 1})),
    ] {
        assert_eq!(greeter[field], value, "{field}");
    }
    assert_eq!(body["services"][1]["not_serving"], 1);
    assert_eq!(fixture.json("/v1/services?namespace=other").await["services"], serde_json::json!([]));
}

#[tokio::test(start_paused = true)]
async fn a_service_has_its_departures() {
    let fixture = Fixture::new();
    let heavy = fixture.register("greeter", instance("heavy").with_weight(300).with_metadata("team", "blue")).await;
    let _light = fixture.register("greeter", instance("light").with_weight(100)).await;
    let body = fixture.json("/v1/services/default/greeter").await;
    assert_eq!(body["instances"][0]["id"], "heavy");
    assert_eq!(body["instances"][0]["share"], 0.75);
    assert_eq!(body["instances"][0]["metadata"]["team"], "blue");
    assert_eq!(body["instances"][1]["share"], 0.25);
    assert_eq!(body["departures"], serde_json::json!([]));
    let mut events = fixture.events("/v1/events?service=greeter", None).await;
    events.synced().await;
    heavy.deregister().await.unwrap();
    assert_eq!(events.synced().await.0, ["removed greeter heavy"]);
    let body = fixture.json("/v1/services/default/greeter").await;
    assert_eq!(body["instances"][0]["share"], 1.0);
    assert_eq!(body["departures"][0]["reason"], "departed");
    assert_eq!(body["departures"][0]["instance"]["id"], "heavy");
}

#[tokio::test(start_paused = true)]
async fn a_service_without_instances_is_an_empty_list() {
    let fixture = Fixture::new();
    assert_eq!(fixture.json("/v1/services/default/unknown").await["instances"], serde_json::json!([]));
}

#[tokio::test(start_paused = true)]
async fn names_are_decoded() {
    let fixture = Fixture::new();
    let _registered = fixture.register("a/b <ü>", instance("a")).await;
    let body = fixture.json("/v1/services/default/a%2Fb%20%3C%C3%BC%3E").await;
    assert_eq!((&body["name"], body["instances"].as_array().unwrap().len()), (&"a/b <ü>".into(), 1));
    for (uri, refused) in [
        ("/v1/services/default/%00", (400, "invalid_name")),
        ("/v1/services/default/%FF", (400, "invalid_name")),
        ("/v1/services?namespace=", (400, "invalid_name")),
        ("/v1/services?filter=x", (400, "invalid_parameter")),
        ("/v1/events?service=%0A", (400, "invalid_name")),
        ("/v1/prometheus/targets?service=", (400, "invalid_name")),
        ("/v1/unknown", (404, "not_found")),
    ] {
        assert_eq!(fixture.refusal(request(uri)).await, (refused.0, refused.1.to_owned()), "{uri}");
    }
}

/// The answer is complete although it is made in parts.
#[tokio::test(start_paused = true)]
async fn a_large_service_is_complete() {
    let fixture = Fixture::new();
    let service = ServiceRef::parse("large").unwrap();
    for number in 0..1000 {
        fixture.writer.publish(&service, instance(&format!("i{number:05}"))).await.unwrap();
    }
    let body = fixture.json("/v1/services/default/large").await;
    let ids: Vec<_> = body["instances"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!((ids.len(), ids[0], ids[999]), (1000, "i00000", "i00999"));
    let mut events = fixture.events("/v1/events?service=large", None).await;
    let (received, _) = events.synced().await;
    assert_eq!((received.len(), &*received[1000]), (1001, "added large i00999"));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_over_leaves_the_list() {
    let fixture = Fixture::new();
    let _first = fixture.register("one", instance("a")).await;
    let second = fixture.register("two", instance("b")).await;
    let count = |count| move |body: &Value| body["services"].as_array().unwrap().len() == count;
    fixture.json_once("/v1/services", count(2)).await;
    second.deregister().await.unwrap();
    assert_eq!(fixture.json_once("/v1/services", count(1)).await["services"][0]["name"], "one");
    tokio::time::sleep(Duration::from_secs(61)).await;
    let _third = fixture.register("two", instance("c")).await;
    assert_eq!(fixture.json_once("/v1/services", count(2)).await["services"][1]["name"], "two");
}

#[tokio::test(start_paused = true)]
async fn events_follow_all_services_of_a_namespace() {
    let fixture = Fixture::new();
    let first = fixture.register("one", instance("a")).await;
    let mut events = fixture.events("/v1/events", None).await;
    assert_eq!(events.synced().await.0, ["snapshot - -", "added one a"]);
    let _second = fixture.register("two", instance("b")).await;
    assert_eq!(events.synced().await.0, ["added two b"]);
    first.update(|update| _ = update.weight(7)).await.unwrap();
    assert_eq!(events.synced().await.0, ["updated one a"]);
    first.deregister().await.unwrap();
    let mut received = events.synced().await.0;
    if received.is_empty() {
        received = events.synced().await.0;
    }
    assert_eq!(received, ["removed one a"]);
    assert_eq!(fixture.json("/v1/services").await["services"][0]["name"], "two");
}

/// A slow client learns how the last instance of a service ended.
#[tokio::test(start_paused = true)]
async fn a_lost_service_is_not_reported_as_departed() {
    let fixture = Fixture::new();
    let (service, options) = (ServiceRef::parse("one").unwrap(), RegisterOptions::new().lease(LeaseChoice::Own));
    let registered = fixture.writer.register(&service, instance("a"), options).await.unwrap();
    let mut events = fixture.events("/v1/events", None).await;
    events.synced().await;
    registered.abandon();
    // Longer than the lease and the protection from mass loss; the service has left the list then.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let removed = loop {
        let received = events.next().await.unwrap();
        if received.event == "removed" {
            break received;
        }
    };
    assert_eq!((&removed.data["service"], &removed.data["reason"]), (&"one".into(), &"lost".into()));
}

/// A client that reads so late that the agent has forgotten the service receives no cause, because none is known.
#[tokio::test(start_paused = true)]
async fn a_forgotten_end_has_no_cause() {
    let fixture = Fixture::new();
    let (service, options) = (ServiceRef::parse("one").unwrap(), RegisterOptions::new().lease(LeaseChoice::Own));
    let registered = fixture.writer.register(&service, instance("a"), options).await.unwrap();
    let mut events = fixture.events("/v1/events", None).await;
    events.synced().await;
    registered.abandon();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let removed = loop {
        let received = events.next().await.unwrap();
        if received.event == "removed" {
            break received;
        }
    };
    assert_eq!((&removed.data["service"], &removed.data["reason"]), (&"one".into(), &"unknown".into()));
}

#[tokio::test(start_paused = true)]
async fn a_returning_client_gets_only_the_differences() {
    let fixture = Fixture::new();
    let first = fixture.register("s", instance("a")).await;
    let _second = fixture.register("s", instance("b")).await;
    let mut events = fixture.events("/v1/events?service=s", None).await;
    let (_, id) = events.synced().await;
    drop(events);
    first.update(|update| _ = update.weight(7)).await.unwrap();
    let _third = fixture.register("s", instance("c")).await;
    let mut events = fixture.events("/v1/events?service=s", Some(&id)).await;
    let (mut received, mut latest) = events.synced().await;
    if received.len() < 2 {
        let more = events.synced().await;
        received.extend(more.0);
        latest = more.1;
    }
    assert_eq!(received, ["updated s a", "added s c"]);
    // Another process, an unknown position, garbage: the complete state.
    for last in ["0.1", "00000000000000aa.9999", "\"", ""] {
        let mut events = fixture.events("/v1/events?service=s", Some(last)).await;
        assert_eq!(events.synced().await.0.len(), 4, "{last}");
    }
    // Nothing has changed: the client learns that at once.
    let mut events = fixture.events("/v1/events?service=s", Some(&latest)).await;
    let synced = tokio::time::timeout(Duration::from_secs(1), events.synced()).await;
    assert_eq!(synced.expect("the state is confirmed"), (vec![], latest));
    first.deregister().await.unwrap();
    assert_eq!(events.synced().await.0, ["removed s a"]);
}

/// Without the reset, the differences to the earlier state would not mention the instances that came and went.
#[tokio::test(start_paused = true)]
async fn a_client_with_a_part_of_a_difference_returns_without_a_position() {
    let fixture = Fixture::new();
    let _first = fixture.register("s", instance("a")).await;
    let mut events = fixture.events("/v1/events?service=s", None).await;
    let (_, id) = events.synced().await;
    let _second = fixture.register("s", instance("b")).await;
    let added = events.next().await.unwrap();
    assert_eq!((&*added.event, added.id.as_deref()), ("added", Some("")));
    let synced = events.next().await.unwrap();
    assert_eq!(synced.event, "synced");
    assert!(synced.id.is_some_and(|later| later != id && !later.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_gets_the_net_difference() {
    let fixture = Fixture::new();
    let changing = fixture.register("s", instance("a")).await;
    let mut slow = fixture.events("/v1/events?service=s", None).await;
    slow.synced().await;
    let mut fast = fixture.events("/v1/events?service=s", None).await;
    fast.synced().await;
    for weight in 0..500 {
        changing.update(|update| _ = update.weight(weight)).await.unwrap();
        // Longer than the publication intervals of the view and the follower.
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert_eq!(fast.synced().await.0, ["updated s a"]);
    }
    let _marker = fixture.register("s", instance("b")).await;
    fast.synced().await;
    assert_eq!(slow.synced().await.0, ["updated s a", "added s b"]);
}

#[tokio::test(start_paused = true)]
async fn events_mark_stale_data() {
    let fixture = Fixture::new();
    let _registered = fixture.register("s", instance("a")).await;
    let mut events = fixture.events("/v1/events?service=s", None).await;
    events.synced().await;
    fixture.reader.cut();
    loop {
        let received = events.next().await.unwrap();
        if received.event == "freshness" && received.data["state"] == "stale" {
            assert!(received.data["cause"].is_string());
            break;
        }
    }
    fixture.reader.heal();
    loop {
        let received = events.next().await.unwrap();
        if received.event == "freshness" && received.data["state"] == "live" {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_event_client_sees_the_age() {
    let fixture = Fixture::new();
    let mut events = fixture.events("/v1/events", None).await;
    events.synced().await;
    let received = events.next().await.unwrap();
    assert_eq!((&*received.event, &received.data["state"]), ("heartbeat", &"live".into()));
    fixture.stop.send_replace(Stop::Stopping);
    while events.next().await.is_some() {}
}

/// A part ends after its bytes, so a client that does not read costs no more if instances are large.
#[tokio::test(start_paused = true)]
async fn parts_of_large_instances_are_small() {
    const BYTES: usize = 40_000;
    let fixture = Fixture::new();
    let mut kept = Vec::new();
    for number in 0..20 {
        let large = instance(&number.to_string()).with_metadata("text", "x".repeat(BYTES));
        kept.push(fixture.register("s", large).await);
    }
    for uri in ["/v1/services/default/s", "/v1/prometheus/targets", "/v1/events"] {
        let mut parts = fixture.send(request(uri)).await.into_body().into_data_stream();
        let mut read = 0;
        while read < 20 * BYTES {
            let part = parts.next().await.unwrap().unwrap();
            assert!(part.len() < PART_BYTES + BYTES + 2_000, "{uri}: {}", part.len());
            read += part.len();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn event_clients_are_limited() {
    let fixture = Fixture::with(&HttpOptions::new().max_event_clients(1));
    let events = fixture.events("/v1/events", None).await;
    assert_eq!(fixture.refusal(request("/v1/events")).await, (503, "too_many_event_clients".to_owned()));
    assert_eq!(fixture.refused("http_event_clients").await, 1);
    drop(events);
    fixture.events("/v1/events", None).await;
}

#[tokio::test(start_paused = true)]
async fn queues_are_served() {
    let fixture = Fixture::new();
    let name = LockName::parse("jobs").unwrap();
    let held = fixture.writer.acquire(&name, LockOptions::new()).await.unwrap();
    let second = fixture.store.client();
    let waiting = second.acquire(&name, LockOptions::new());
    tokio::pin!(waiting);
    assert!(futures::poll!(&mut waiting).is_pending());
    while fixture.store.queue_length(&name) < 2 {
        tokio::select! { _ = &mut waiting => panic!("held"), () = tokio::time::sleep(Duration::from_millis(1)) => {} }
    }
    let body = fixture.json("/v1/locks").await;
    let lock = &body["locks"][0];
    assert_eq!((&lock["name"], &lock["delayed"]), (&"jobs".into(), &false.into()));
    assert_eq!(lock["holders"][0]["token"], held.fencing_token().get());
    assert_eq!(lock["holders"][0]["mode"], "exclusive");
    assert_eq!(lock["waiting"].as_array().unwrap().len(), 1);
    assert_eq!(body["freshness"]["state"], "live");
    let leadership = enlist::Election::campaign(&fixture.writer, &name, "node-1", LockOptions::new()).await.unwrap();
    let body = fixture.json("/v1/elections").await;
    assert_eq!(body["elections"][0]["leader"]["value"], "node-1");
    assert_eq!(body["elections"][0]["waiting"], serde_json::json!([]));
    drop(leadership);
}

#[tokio::test(start_paused = true)]
async fn a_backend_without_queues_is_unsupported() {
    let reader = MemoryStore::new().client();
    let resolver: Arc<dyn enlist::Resolver> = Arc::new(reader);
    let (_stop, stopped) = watch::channel(Stop::Serving);
    let directory = Directory::new(Arc::clone(&resolver));
    let xds = XdsStatus::new(directory.clone(), Duration::ZERO, &XdsOptions::new());
    let sources = Sources { resolver, directory, idle: DEFAULT_IDLE, queues: None, xds };
    let shared = Arc::new(RequestContext::new(sources, &HttpOptions::new(), stopped));
    for uri in ["/v1/locks", "/v1/elections"] {
        let response = router(Arc::clone(&shared)).oneshot(request(uri)).await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_IMPLEMENTED, "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn stale_data_are_marked() {
    let fixture = Fixture::new();
    let _registered = fixture.register("s", instance("a")).await;
    fixture.json("/v1/services/default/s").await;
    let (_, headers, _) = fixture.get("/v1/services").await;
    assert_eq!(headers["x-enlist-freshness"], "live");
    fixture.reader.cut();
    let body = fixture.json_once("/v1/services/default/s", |body| body["freshness"]["state"] == "stale").await;
    assert!(body["freshness"]["cause"].is_string(), "{body}");
    assert_eq!(body["instances"][0]["id"], "a");
    let (_, headers, _) = fixture.get("/v1/services/default/s").await;
    assert_eq!(headers["x-enlist-freshness"], "stale");
    fixture.reader.heal();
    fixture.json_once("/v1/services/default/s", |body| body["freshness"]["state"] == "live").await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_state_is_an_error() {
    let fixture = Fixture::new();
    let _registered = fixture.register("s", instance("a")).await;
    fixture.reader.cut();
    for uri in ["/v1/services", "/v1/services/default/s", "/v1/events", "/v1/prometheus/targets", "/readyz"] {
        assert_eq!(fixture.refusal(request(uri)).await.0, 503, "{uri}");
    }
    assert_eq!(fixture.get("/healthz").await.0, StatusCode::OK);
    fixture.reader.heal();
    assert_eq!(fixture.json("/v1/services/default/s").await["instances"][0]["id"], "a");
    assert_eq!(fixture.json("/readyz").await["status"], "ready");
    // Ready once, ready during an outage: the last known state is served.
    fixture.reader.cut();
    assert_eq!(fixture.json("/readyz").await["status"], "ready");
}

#[tokio::test(start_paused = true)]
async fn views_are_limited() {
    let fixture = Fixture::with(&HttpOptions::new().max_views(1));
    let _registered = [fixture.register("two", instance("a")).await, fixture.register("three", instance("a")).await];
    let events = fixture.events("/v1/events?service=one", None).await;
    let refused = fixture.refusal(request("/v1/services/default/two")).await;
    assert_eq!(refused, (503, "too_many_views".to_owned()));
    assert_eq!(fixture.refused("http_views").await, 1);
    drop(events);
    fixture.json("/v1/services/default/two").await;
    // The watch of the first one exists until the directory ends it.
    assert_eq!(fixture.refusal(request("/v1/services/default/three")).await.0, 503);
    tokio::time::sleep(DEFAULT_IDLE).await;
    fixture.json("/v1/services/default/three").await;
}

/// Clients of xDS have a view of it, which holds an instance that the store has lost.
#[tokio::test(start_paused = true)]
async fn a_service_with_a_view_is_not_read_anew() {
    let fixture = Fixture::new();
    let registered = fixture.register("s", instance("a")).await;
    let view = fixture.directory.view(&ServiceRef::parse("s").unwrap());
    view.ready().await.unwrap();
    fixture.writer.cut();
    eventually("the store has lost it", || async {
        let stored = fixture.reader.resolve(view.service()).await.unwrap();
        if stored.is_empty() { Ok(()) } else { Err(stored) }
    })
    .await;
    assert_eq!(fixture.json("/v1/services/default/s").await["instances"][0]["id"], "a");
    drop(registered);
}

/// A request for something that the store does not have opens no watch, so it needs no slot.
#[tokio::test(start_paused = true)]
async fn what_does_not_exist_is_not_followed() {
    let fixture = Fixture::with(&HttpOptions::new().max_views(1));
    let _registered = fixture.register("s", instance("a")).await;
    for number in 0..100 {
        let body = fixture.json(&format!("/v1/services/default/{number}")).await;
        assert_eq!((&body["instances"], &body["freshness"]["state"]), (&Value::Array(vec![]), &"live".into()));
        let body = fixture.json(&format!("/v1/services?namespace={number}")).await;
        assert_eq!(body["services"], Value::Array(vec![]));
        assert_eq!(fixture.json(&format!("/v1/prometheus/targets?service={number}")).await, Value::Array(vec![]));
    }
    assert!(fixture.metrics().await.contains("enlist_agent_views 0\n"));
    assert_eq!(fixture.json("/v1/services/default/s").await["instances"][0]["id"], "a");
}

/// A view without a user makes room, the one that has been unused for the longest time first.
#[tokio::test(start_paused = true)]
async fn unused_views_make_room() {
    let fixture = Fixture::with(&HttpOptions::new().max_views(8));
    let registered = fixture.register("s", instance("a")).await;
    let mut others = vec![fixture.register("other", instance("a")).await];
    for number in 0..20 {
        others.push(fixture.register(&number.to_string(), instance("a")).await);
    }
    fixture.json("/v1/services/default/s").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    fixture.json("/v1/services/default/other").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    fixture.json("/v1/services/default/s").await;
    registered.deregister().await.unwrap();
    // A view that was started anew would not know the departure.
    let departed = |body: &Value| body["departures"].as_array().unwrap().len() == 1;
    fixture.json_once("/v1/services/default/s", departed).await;
    for number in 0..20 {
        tokio::time::sleep(DEFAULT_IDLE).await;
        fixture.json(&format!("/v1/services/default/{number}")).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(departed(&fixture.json("/v1/services/default/s").await));
    }
}

/// An operator opens the page of a service in the middle of a rolling restart.
#[tokio::test(start_paused = true)]
async fn a_service_has_departures_since_its_namespace_is_followed() {
    let fixture = Fixture::new();
    let first = fixture.register("s", instance("a")).await;
    let second = fixture.register("s", instance("b")).await;
    let _third = fixture.register("s", instance("c")).await;
    let mut events = fixture.events("/v1/events", None).await;
    events.synced().await;
    first.deregister().await.unwrap();
    assert_eq!(events.synced().await.0, ["removed s a"]);
    let departed = async || {
        let body = fixture.json("/v1/services/default/s").await;
        let departures = body["departures"].as_array().unwrap().iter();
        departures.map(|one| one["instance"]["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(departed().await, ["a"]);
    // Both followers learn of this one.
    second.deregister().await.unwrap();
    fixture.json_once("/v1/services/default/s", |body| body["departures"].as_array().unwrap().len() == 2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(departed().await, ["b", "a"]);
}

/// Requests are short, and most come while the follower does not run.
#[tokio::test(start_paused = true)]
async fn a_polled_view_outlasts_an_outage() {
    let fixture = Fixture::new();
    let first = fixture.register("s", instance("a")).await;
    let _second = fixture.register("s", instance("b")).await;
    let uris = ["/v1/services/default/s", "/v1/prometheus/targets"];
    for uri in uris {
        fixture.json(uri).await;
    }
    first.deregister().await.unwrap();
    fixture.json_once(uris[0], |body| body["departures"].as_array().unwrap().len() == 1).await;
    fixture.reader.cut();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        for uri in uris {
            fixture.json(uri).await;
        }
    }
    assert_eq!(fixture.json(uris[0]).await["departures"][0]["instance"]["id"], "a");
}

/// Their absence is shown: a state without them would look complete.
#[tokio::test(start_paused = true)]
async fn refused_services_of_a_namespace_are_counted() {
    let logged = Logged::of("enlist_agent::http::following::follower");
    let _guard = tracing::subscriber::set_default(logged.clone());
    let refuses = Arc::new(AtomicBool::new(true));
    let switch = Arc::clone(&refuses);
    let fixture = Fixture::reading(&HttpOptions::new(), |reader| Arc::new(Refusing(reader, switch)));
    let mut registered = Vec::new();
    for service in ["open", "secret-1", "secret-2"] {
        registered.push(fixture.register(service, instance("a")).await);
    }
    let body = fixture.json("/v1/services").await;
    assert_eq!((body["omitted"].as_u64(), body["services"].as_array().unwrap().len()), (Some(2), 1), "{body}");
    assert_eq!(logged.messages("cause").len(), 1, "one log for all");
    refuses.store(false, Ordering::SeqCst);
    let complete = |body: &Value| body["omitted"] == 0 && body["services"].as_array().unwrap().len() == 3;
    fixture.json_once("/v1/services", complete).await;
}

#[tokio::test(start_paused = true)]
async fn services_above_the_limit_are_counted() {
    let logged = Logged::of("enlist_agent::http::following::follower");
    let _guard = tracing::subscriber::set_default(logged.clone());
    let fixture = Fixture::with(&HttpOptions::new().max_services(1));
    let first = fixture.register("a", instance("a")).await;
    let _second = fixture.register("b", instance("b")).await;
    let body = fixture.json("/v1/services").await;
    assert_eq!((body["services"].as_array().unwrap().len(), &body["omitted"]), (1, &1.into()));
    let omitted = "enlist_agent_services_omitted{namespace=\"default\"} 1";
    assert!(fixture.metrics().await.contains(omitted));
    first.deregister().await.unwrap();
    // A service that is over makes room at once.
    let body = fixture.json_once("/v1/services", |body| body["services"][0]["name"] == "b").await;
    assert_eq!(body["omitted"], 0);
    let expected = [("services omitted", "default"), ("no service omitted", "default")];
    let expected = expected.map(|(message, namespace)| (message.to_owned(), namespace.to_owned()));
    assert_eq!(logged.messages("namespace"), expected);
}

#[tokio::test(start_paused = true)]
async fn namespaces_are_listed() {
    let fixture = Fixture::new();
    let service = ServiceRef::new(Namespace::parse("blue").unwrap(), ServiceName::parse("s").unwrap());
    fixture.writer.publish(&service, instance("a")).await.unwrap();
    assert_eq!(fixture.json("/v1/namespaces").await["namespaces"], serde_json::json!(["blue"]));
}

#[tokio::test(start_paused = true)]
async fn prometheus_gets_targets() {
    let fixture = Fixture::new();
    let _registered = fixture.register("s", instance("a").with_metadata("metrics.port", "x")).await;
    let body = fixture.json("/v1/prometheus/targets").await;
    assert_eq!(body[0]["targets"], serde_json::json!(["10.0.0.1:8080"]));
    assert_eq!(body[0]["labels"]["__meta_enlist_service"], "s");
    assert_eq!(body[0]["labels"]["__meta_enlist_metadata_metrics_port"], "x");
    assert_eq!(fixture.json("/v1/prometheus/targets?service=s&protocol=http").await, serde_json::json!([]));
}

#[tokio::test(start_paused = true)]
async fn clients_of_xds_are_listed() {
    assert_eq!(Fixture::new().json("/v1/clients").await["clients"], serde_json::json!([]));
}

#[tokio::test(start_paused = true)]
async fn hostile_texts_are_data() {
    let fixture = Fixture::new();
    let hostile = "</script><script>alert(1)</script>\u{202e}\u{1b}[2J\ndata: x\n\n";
    let hostile_name = "<img src=x onerror=alert(1)>\u{202e}";
    let _registered = fixture.register(hostile_name, instance(hostile_name).with_metadata(hostile, hostile)).await;
    for uri in
        ["/v1/services", "/v1/prometheus/targets", "/v1/services/default/%3Cimg%20src=x%20onerror=alert(1)%3E%E2%80%AE"]
    {
        let response = fixture.send(request(uri)).await;
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let text = std::str::from_utf8(&body).unwrap();
        assert!(!text.contains(['<', '>']) && !text.contains(enlist::escape::is_unprintable), "{text}");
        assert!(text.contains("onerror"), "{text}");
    }
    let mut events = fixture.events("/v1/events", None).await;
    events.next().await.unwrap();
    let added = events.next().await.unwrap();
    assert_eq!(added.data["instance"]["metadata"][hostile], hostile);
    assert!(!events.text.contains(['<', '>']));
}

#[tokio::test(start_paused = true)]
async fn requests_of_other_sites_are_refused() {
    let fixture = Fixture::new();
    let with = |name: &'static str, value: &'static str| {
        let mut request = request("/v1/services");
        request.headers_mut().insert(name, value.parse().unwrap());
        request
    };
    assert_eq!(fixture.refusal(with("host", "evil.example")).await, (421, "forbidden_host".to_owned()));
    assert_eq!(fixture.refusal(with("origin", "http://evil.example")).await, (403, "forbidden_origin".to_owned()));
    assert_eq!(fixture.refusal(with("content-length", "9")).await, (413, "body_not_allowed".to_owned()));
    let mut post = request("/v1/services");
    *post.method_mut() = axum::http::Method::POST;
    assert_eq!(fixture.refusal(post).await, (405, "method_not_allowed".to_owned()));
    let long = format!("/v1/services?namespace={}", "x".repeat(5000));
    assert_eq!(fixture.refusal(request(&long)).await, (414, "uri_too_long".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_token_is_required_for_data() {
    let fixture = Fixture::with(&HttpOptions::new().token(BearerToken::new("s3cret").unwrap()));
    for uri in ["/v1/services", "/v1/events", "/v1/locks", "/v1/prometheus/targets", "/metrics", "/v1/unknown"] {
        assert_eq!(fixture.refusal(request(uri)).await, (401, "unauthorized".to_owned()), "{uri}");
        let mut wrong = request(uri);
        wrong.headers_mut().insert("authorization", "Bearer s3creT".parse().unwrap());
        assert_eq!(fixture.refusal(wrong).await.0, 401, "{uri}");
    }
    for uri in ["/healthz", "/readyz", "/", "/console/console.js"] {
        assert_eq!(fixture.get(uri).await.0, StatusCode::OK, "{uri}");
    }
    let mut right = request("/v1/services");
    right.headers_mut().insert("authorization", "Bearer s3cret".parse().unwrap());
    assert_eq!(fixture.send(right).await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn responses_carry_headers_of_security() {
    let fixture = Fixture::new();
    for uri in ["/", "/console/console.js", "/healthz", "/v1/services", "/v1/unknown"] {
        let (_, headers, _) = fixture.get(uri).await;
        assert_eq!(headers["x-content-type-options"], "nosniff", "{uri}");
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{uri}: {policy}");
        assert!(!headers.contains_key("access-control-allow-origin"), "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_agent_exports_metrics() {
    let fixture = Fixture::new();
    let _registered = fixture.register("s", instance("a")).await;
    fixture.json("/v1/services").await;
    let text = fixture.metrics().await;
    for line in [
        "enlist_agent_http_responses_total{status=\"2xx\"} 1",
        "enlist_agent_event_clients 0",
        "enlist_agent_stale_views{server=\"http\"} 0",
        "enlist_agent_unknown_views{server=\"xds\"} 0",
        "enlist_agent_instances{namespace=\"default\"} 1",
        "enlist_agent_stale{namespace=\"default\"} 0",
        "enlist_agent_xds_streams{client=\"grpc\"} 0",
        "enlist_agent_xds_rejections_total{type=\"assignment\"} 0",
        "enlist_agent_xds_omitted_instances{reason=\"host_name\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    assert!(text.ends_with('\n'));
}

#[tokio::test(start_paused = true)]
async fn metrics_show_an_unknown_namespace_as_stale() {
    let fixture = Fixture::new();
    fixture.reader.cut();
    assert_eq!(fixture.refusal(request("/v1/services")).await.0, 503);
    let text = fixture.metrics().await;
    let of_namespaces: Vec<_> = text.lines().filter(|line| line.contains("{namespace=")).collect();
    assert_eq!(of_namespaces, ["enlist_agent_stale{namespace=\"default\"} 1"]);
}

/// The page refers to its own files only, and each of them is served.
#[tokio::test(start_paused = true)]
async fn the_console_has_all_its_files() {
    let fixture = Fixture::new();
    let text = async |uri: &str| {
        let response = fixture.send(request(uri)).await;
        assert_eq!(response.status(), StatusCode::OK, "{uri}");
        String::from_utf8(axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap()
    };
    let page = text("/").await;
    let mut files: Vec<_> =
        page.split('"').filter_map(|part| part.strip_prefix("console/")).map(str::to_owned).collect();
    assert_eq!(files.len(), 2, "{page}");
    let mut read = 0;
    while let Some(file) = files.get(read).cloned() {
        let content = text(&format!("/console/{file}")).await;
        for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "http://", "https://"] {
            assert!(!content.contains(forbidden), "{file}: {forbidden}");
        }
        let imports = content.split('"').filter_map(|part| part.strip_prefix("./")).map(str::to_owned);
        let new: Vec<_> = imports.filter(|name| !files.contains(name)).collect();
        files.extend(new);
        read += 1;
    }
    assert_eq!(files.len(), 9, "{files:?}");
    assert_eq!(fixture.refusal(request("/console/other.js")).await.0, 404);
}
