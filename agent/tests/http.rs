//! HTTP over sockets: the registry as JSON and as events, its protection, limits, and the end of the server.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{net::SocketAddr, sync::Arc};

use enlist::{Election as _, Lock as _, LockName, LockOptions};
use enlist_agent::{Agent, AgentError, BearerToken, HttpOptions};
use enlist_testkit::{eventually, soon};
use serde_json::Value;
use support::{ASSIGNMENT, AdsClient, Store, TestAgent, instance, local};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Returns options for a port that the system chooses.
fn local_http() -> HttpOptions {
    HttpOptions::new().address(([127, 0, 0, 1], 0).into())
}

/// Starts an agent over the client of a store.
async fn start(store: &Store, options: HttpOptions) -> (TestAgent, SocketAddr) {
    let client = Arc::new(store.agents.clone());
    let agent = TestAgent::of(Agent::builder(client.clone()).queues(client).xds(local()).http(options)).await;
    let address = agent.http.unwrap();
    (agent, address)
}

/// A response: its status, its head, and its body.
#[derive(Debug)]
struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Sends a request with these headers, each with its line end, and reads the response to its end.
async fn send(address: SocketAddr, path: &str, headers: &str) -> Response {
    let exchange = async {
        let mut connection = TcpStream::connect(address).await.unwrap();
        // The response of HTTP/1.0 ends with the connection, and has no chunks.
        let request = format!("GET {path} HTTP/1.0\r\n{headers}\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        connection.read_to_string(&mut text).await.unwrap();
        text
    };
    let text = soon("a response", exchange).await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

async fn get(address: SocketAddr, path: &str) -> Response {
    send(address, path, "host: localhost\r\n").await
}

/// A client that reads events.
struct EventClient(TcpStream);

impl EventClient {
    /// Requests the events of the default namespace, after those up to a position.
    async fn connect(address: SocketAddr, position: Option<&str>) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let last = position.map(|position| format!("last-event-id: {position}\r\n")).unwrap_or_default();
        let request = format!("GET /v1/events HTTP/1.1\r\nhost: localhost\r\n{last}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self(stream)
    }

    /// Reads up to the end of the next `synced`. Returns the kinds of the events, and the position.
    async fn synced(&mut self) -> (Vec<String>, String) {
        let mut read = Vec::new();
        let synced = async {
            loop {
                assert_ne!(self.0.read_buf(&mut read).await.unwrap(), 0);
                let text = String::from_utf8_lossy(&read).into_owned();
                if let Some((_, synced)) = text.split_once("event: synced\n")
                    && synced.contains("\n\n")
                {
                    return text;
                }
            }
        };
        let text = soon("synced", synced).await;
        let values =
            |field: &str| text.lines().filter_map(|line| line.strip_prefix(field)).map(str::to_owned).collect();
        let (events, ids): (Vec<_>, Vec<String>) = (values("event: "), values("id: "));
        (events, ids[0].clone())
    }
}

#[tokio::test]
async fn one_agent_serves_json_beside_xds() {
    let store = Store::new();
    let (agent, http) = start(&store, local_http()).await;
    let _registered = store.register("greeter", instance("a", 8080).with_zone("eu-1a")).await;
    let mut xds = AdsClient::connect(agent.address).await;
    assert_eq!(xds.assignment("greeter").await, [(8080, 1)]);
    let services = get(http, "/v1/services").await;
    assert!(services.head.contains("content-type: application/json"), "{services:?}");
    assert_eq!(services.json()["services"][0]["zones"]["eu-1a"], 1);
    let service = get(http, "/v1/services/default/greeter").await.json();
    assert_eq!(service["instances"][0]["endpoints"][0], "127.0.0.1:8080");
    assert_eq!(get(http, "/v1/namespaces").await.json()["namespaces"][0], "default");
}

#[tokio::test]
async fn an_outage_of_the_store_is_shown() {
    let store = Store::new();
    let (_agent, http) = start(&store, local_http()).await;
    let _registered = store.register("greeter", instance("a", 8080)).await;
    get(http, "/v1/services/default/greeter").await.json();
    assert_eq!(get(http, "/readyz").await.status, 200);
    store.agents.cut();
    let stale = || async {
        let response = get(http, "/v1/services/default/greeter").await;
        if response.head.contains("x-enlist-freshness: stale") { Ok(response) } else { Err(response) }
    };
    let response = eventually("the service is stale", stale).await;
    assert_eq!(response.json()["instances"][0]["id"], "a");
    assert_eq!((get(http, "/readyz").await.status, get(http, "/healthz").await.status), (200, 200));
}

#[tokio::test]
async fn an_unknown_registry_is_not_ready() {
    let store = Store::new();
    let (_agent, http) = start(&store, local_http()).await;
    store.agents.cut();
    assert_eq!((get(http, "/readyz").await.status, get(http, "/healthz").await.status), (503, 200));
    let services = get(http, "/v1/services").await;
    assert_eq!(services.status, 503);
    assert!(services.head.contains("retry-after: 1"), "{services:?}");
}

#[tokio::test]
async fn an_event_client_continues_after_a_disconnection() {
    let store = Store::new();
    let (_agent, http) = start(&store, local_http()).await;
    let _first = store.register("greeter", instance("a", 1)).await;
    let mut client = EventClient::connect(http, None).await;
    let (events, position) = client.synced().await;
    assert_eq!(events[..2], ["snapshot", "added"]);
    drop(client);
    let second = store.register("greeter", instance("b", 2)).await;
    let mut client = EventClient::connect(http, Some(&position)).await;
    let mut events = client.synced().await.0;
    if events == ["synced"] {
        // The agent confirmed the earlier state, and read the second instance after that.
        events = client.synced().await.0;
    }
    assert_eq!(events, ["added", "synced"]);
    second.deregister().await.unwrap();
    assert_eq!(client.synced().await.0, ["removed", "synced"]);
    // The history of another agent.
    let (_other, http) = start(&store, local_http()).await;
    let (events, _) = EventClient::connect(http, Some(&position)).await.synced().await;
    assert_eq!(events[..2], ["snapshot", "added"]);
}

#[tokio::test]
async fn queues_are_served() {
    let store = Store::new();
    let (_agent, http) = start(&store, local_http()).await;
    let name = LockName::parse("jobs").unwrap();
    let held = store.services.acquire(&name, LockOptions::new()).await.unwrap();
    let leading = store.services.campaign(&name, "node-1", LockOptions::new()).await.unwrap();
    let locks = get(http, "/v1/locks").await.json();
    assert_eq!(locks["locks"][0]["holders"][0]["token"], held.fencing_token().get());
    let elections = get(http, "/v1/elections").await.json();
    assert_eq!(elections["elections"][0]["leader"]["value"], "node-1");
    drop((held, leading));
}

#[tokio::test]
async fn rejections_of_xds_clients_are_shown() {
    let store = Store::new();
    let (agent, http) = start(&store, local_http()).await;
    let mut xds = AdsClient::connect(agent.address).await;
    xds.request(ASSIGNMENT, &["greeter"]).await;
    let response = xds.next(ASSIGNMENT).await;
    xds.reject(&response, &["greeter"], "<no>").await;
    let rejected = || async {
        let body = get(http, "/v1/clients").await.json();
        if body["clients"][0]["rejected"] == 1 { Ok(body) } else { Err(body) }
    };
    let body = eventually("the rejection is shown", rejected).await;
    let client = &body["clients"][0];
    assert_eq!((&client["node"], &client["services"][0]), (&"test-1".into(), &"greeter".into()));
    assert_eq!(client["last_rejection"]["type"], "assignment");
    assert_eq!(client["last_rejection"]["message"], "<no>");
    let metrics = get(http, "/metrics").await;
    assert!(metrics.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{metrics:?}");
    for line in [
        "enlist_agent_xds_streams{client=\"grpc\"} 1",
        "enlist_agent_xds_subscriptions 1",
        "enlist_agent_xds_rejections_total{type=\"assignment\"} 1",
    ] {
        assert!(metrics.body.lines().any(|found| found == line), "{line}: {metrics:?}");
    }
}

#[tokio::test]
async fn targets_for_prometheus_follow_the_registry() {
    let store = Store::new();
    let (_agent, http) = start(&store, local_http()).await;
    let first = store.register("greeter", instance("a", 1).with_zone("eu-1a")).await;
    let _second = store.register("greeter", instance("b", 2)).await;
    let targets = async || {
        let body = get(http, "/v1/prometheus/targets").await.json();
        let groups = body.as_array().unwrap().clone();
        groups.iter().map(|group| group["targets"][0].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(targets().await, ["127.0.0.1:1", "127.0.0.1:2"]);
    first.deregister().await.unwrap();
    let left = || async {
        let targets = targets().await;
        if targets == ["127.0.0.1:2"] { Ok(()) } else { Err(targets) }
    };
    eventually("the target has left", left).await;
    store.agents.cut();
    assert_eq!(targets().await, ["127.0.0.1:2"]);
}

#[tokio::test]
async fn foreign_hosts_are_refused() {
    let store = Store::new();
    let (_agent, http) = start(&store, local_http().host("agent.test")).await;
    for (headers, status) in [
        (format!("host: {http}\r\n"), 200),
        ("host: agent.test\r\n".to_owned(), 200),
        ("host: evil.test\r\n".to_owned(), 421),
        (String::new(), 421),
    ] {
        assert_eq!(send(http, "/v1/services", &headers).await.status, status, "{headers:?}");
    }
}

#[tokio::test]
async fn foreign_origins_are_refused() {
    let store = Store::new();
    let (_agent, http) = start(&store, local_http()).await;
    for (headers, status) in [
        ("host: localhost\r\norigin: http://evil.test\r\n", 403),
        ("host: localhost\r\norigin: http://localhost\r\n", 200),
    ] {
        assert_eq!(send(http, "/v1/services", headers).await.status, status, "{headers:?}");
    }
}

#[tokio::test]
async fn a_token_is_required() {
    let store = Store::new();
    let (_agent, http) = start(&store, local_http().token(BearerToken::new("s3cret").unwrap())).await;
    for (path, header, status) in [
        ("/v1/services", "", 401),
        ("/v1/services", "authorization: Bearer s3cre\r\n", 401),
        ("/v1/services", "authorization: Bearer s3cret\r\n", 200),
        ("/v1/unknown", "", 401),
        ("/readyz", "", 200),
    ] {
        let response = send(http, path, &format!("host: localhost\r\n{header}")).await;
        assert_eq!(response.status, status, "{path} {header:?}");
    }
}

#[tokio::test]
async fn an_exposed_address_needs_protection() {
    let store = Store::new();
    let bind = async |options: HttpOptions| {
        let options = options.address(([0, 0, 0, 0], 0).into());
        Agent::builder(Arc::new(store.agents.clone())).xds(local()).http(options).bind().await
    };
    assert!(matches!(bind(HttpOptions::new()).await, Err(AgentError::Exposed { .. })));
    bind(HttpOptions::new().insecure()).await.unwrap();
    bind(HttpOptions::new().token(BearerToken::new("t").unwrap())).await.unwrap();
}

#[tokio::test]
async fn connections_above_the_limit_are_closed() {
    let store = Store::new();
    let (_agent, http) = start(&store, local_http().max_connections(1)).await;
    let mut first = TcpStream::connect(http).await.unwrap();
    first.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert_ne!(soon("a response", first.read(&mut [0; 64])).await.unwrap(), 0);
    let mut second = TcpStream::connect(http).await.unwrap();
    assert_eq!(soon("the end", second.read(&mut [0; 64])).await.unwrap_or(0), 0);
    drop(first);
    let served = || async {
        let mut connection = TcpStream::connect(http).await.unwrap();
        // A connection that is closed at once may take the request or not.
        let _ = connection.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        match connection.read(&mut [0; 64]).await {
            Ok(1..) => Ok(()),
            ended => Err(ended),
        }
    };
    eventually("the slot is free", served).await;
}

#[tokio::test]
async fn the_end_of_the_agent_ends_connections() {
    let store = Store::new();
    let (mut agent, http) = start(&store, local_http()).await;
    let mut idle = TcpStream::connect(http).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(b"}") {
        assert_ne!(soon("a response", idle.read_buf(&mut read)).await.unwrap(), 0);
    }
    agent.stop().await;
    assert_eq!(soon("the end", idle.read(&mut [0; 64])).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(http).await.is_err());
}
