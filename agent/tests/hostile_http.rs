//! Input over HTTP of clients that are broken or hostile: others are served meanwhile, and the memory is bounded.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use enlist::{Registry as _, ServiceRef};
use enlist_agent::{Agent, HttpOptions};
use enlist_testkit::{eventually, soon};
use support::{
    Store, TestAgent,
    hostile::{CHECKED, Random, alone, assert_growth, memory, permit_files, send},
    instance, local,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::Instant,
};

/// A request of each kind.
const REQUESTS: [&str; 4] = [
    "GET /v1/services?namespace=default HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "GET /v1/services/default/greeter HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer t\r\n\r\n",
    "GET /v1/prometheus/targets?service=greeter&protocol=grpc HTTP/1.1\r\nhost: localhost\r\norigin: x\r\n\r\n",
    "GET /v1/clients HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\ntransfer-encoding: chunked\r\n\r\n",
];

async fn start(store: &Store, options: HttpOptions) -> (TestAgent, SocketAddr) {
    let http = options.address(([127, 0, 0, 1], 0).into());
    let agent = TestAgent::of(Agent::builder(Arc::new(store.agents.clone())).xds(local()).http(http)).await;
    let address = agent.http.unwrap();
    (agent, address)
}

/// Checks that a client is served, once there is a slot for it.
async fn serves(agent: SocketAddr) {
    eventually("a client is served", || async {
        let mut stream = TcpStream::connect(agent).await.map_err(|error| error.to_string())?;
        let request = b"GET /v1/services HTTP/1.0\r\nhost: localhost\r\n\r\n";
        stream.write_all(request).await.map_err(|error| error.to_string())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.map_err(|error| error.to_string())?;
        if text.starts_with("HTTP/1.0 200") { Ok(()) } else { Err(text) }
    })
    .await;
}

/// A client of events that is connected during an attack.
struct Connected<'a> {
    store: &'a Store,
    stream: BufReader<TcpStream>,
}

impl<'a> Connected<'a> {
    async fn new(store: &'a Store, agent: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(agent).await.unwrap();
        let request = b"GET /v1/events?service=connected HTTP/1.1\r\nhost: localhost\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut connected = Self { store, stream: BufReader::new(stream) };
        connected.until("event: synced").await;
        connected
    }

    /// Waits for a line of the response that begins so.
    async fn until(&mut self, beginning: &str) {
        let lines = async {
            let mut line = String::new();
            while !line.starts_with(beginning) {
                line.clear();
                assert_ne!(self.stream.read_line(&mut line).await.unwrap(), 0, "the events have ended");
            }
        };
        soon(beginning, lines).await;
    }

    /// Checks that it learns of changes.
    async fn learns(&mut self) {
        let one = self.store.register("connected", instance("one", 1002)).await;
        self.until("event: added").await;
        one.deregister().await.unwrap();
        self.until("event: removed").await;
    }
}

#[tokio::test]
async fn random_bytes_are_survived() {
    const CONNECTIONS: usize = 300;
    let _alone = alone().await;
    // Slots of connections that are over are free again.
    let store = Store::new();
    let (_agent, address) = start(&store, HttpOptions::new().max_connections(8)).await;
    let mut connected = Connected::new(&store, address).await;
    let (mut random, before) = (Random(4), memory());
    for number in 0..CONNECTIONS {
        let count = random.below(8192);
        send(address, &random.bytes(count)).await;
        if number % CHECKED == 0 {
            connected.learns().await;
        }
    }
    assert_growth(before, 16 << 20, "random bytes");
    serves(address).await;
}

#[tokio::test]
async fn corrupted_requests_are_survived() {
    const CONNECTIONS: usize = 500;
    let _alone = alone().await;
    let store = Store::new();
    let (_agent, address) = start(&store, HttpOptions::new().max_connections(8)).await;
    let mut connected = Connected::new(&store, address).await;
    let (mut random, before) = (Random(5), memory());
    for number in 0..CONNECTIONS {
        let mut bytes = Vec::new();
        for _ in 0..=random.below(4) {
            bytes.extend_from_slice(REQUESTS[random.below(REQUESTS.len())].as_bytes());
        }
        for _ in 0..random.below(6) {
            let place = random.below(bytes.len());
            bytes[place] = random.next().to_le_bytes()[0];
        }
        send(address, &bytes).await;
        if number % CHECKED == 0 {
            connected.learns().await;
        }
    }
    assert_growth(before, 16 << 20, "corrupted requests");
    serves(address).await;
}

#[tokio::test]
async fn huge_heads_are_not_kept() {
    const CONNECTIONS: usize = 20;
    const BYTES: usize = 16 << 20;
    let _alone = alone().await;
    let store = Store::new();
    let (_agent, address) = start(&store, HttpOptions::new()).await;
    let mut connected = Connected::new(&store, address).await;
    let before = memory();
    let part = vec![b'x'; 64 << 10];
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: ").await.unwrap();
        let mut sent = 0;
        // The agent refuses it, and reads no further.
        while sent < BYTES && stream.write_all(&part).await.is_ok() {
            sent += part.len();
        }
        assert!(sent < BYTES, "a head of {sent} bytes was read");
        connected.learns().await;
    }
    assert_growth(before, 8 << 20, "huge heads");
    serves(address).await;
}

#[tokio::test]
async fn unfinished_requests_cost_little() {
    const CONNECTIONS: usize = 2_000;
    const BYTES_EACH: usize = 48 << 10;
    let _alone = alone().await;
    permit_files(5_000);
    let (_agent, address) = start(&Store::new(), HttpOptions::new().max_connections(CONNECTIONS + 1)).await;
    serves(address).await;
    let before = memory();
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n").await.unwrap();
        idle.push(stream);
    }
    serves(address).await;
    assert_growth(before, CONNECTIONS * BYTES_EACH, "unfinished requests");
}

/// They are more than the agent takes: each is closed, or gives way to others.
#[tokio::test]
async fn ten_thousand_connections_at_once_cost_little() {
    const CONNECTIONS: usize = 10_000;
    const BYTES: usize = 128 << 20;
    /// Both ends of the connections that the agent takes, and those of the test that it has closed.
    const FILES: u64 = 12_500;
    let _alone = alone().await;
    permit_files(FILES);
    let store = Store::new();
    let (_agent, address) = start(&store, HttpOptions::new()).await;
    let mut connected = Connected::new(&store, address).await;
    let before = memory();
    let mut idle = Vec::new();
    for number in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The agent may have closed it.
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n").await;
        idle.push(stream);
        if number % 1000 == 0 {
            connected.learns().await;
        }
    }
    assert_growth(before, BYTES, "connections");
    connected.learns().await;
    serves(address).await;
}

/// A client is served at once although others occupy all connections with requests that they do not finish.
#[tokio::test]
async fn unfinished_requests_give_way() {
    const SLOTS: usize = 100;
    let _alone = alone().await;
    let (_agent, address) = start(&Store::new(), HttpOptions::new().max_connections(SLOTS)).await;
    let mut begun = Vec::new();
    for _ in 0..SLOTS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        begun.push(stream);
    }
    let start = Instant::now();
    serves(address).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// No further client is served until one of them ends, and what is refused is counted.
#[tokio::test]
async fn connections_above_the_limit_end_at_once() {
    const CONNECTIONS: usize = 10_000;
    let _alone = alone().await;
    let store = Store::new();
    let (_agent, address) = start(&store, HttpOptions::new().max_connections(2)).await;
    let used = [Connected::new(&store, address).await, Connected::new(&store, address).await];
    let before = memory();
    for _ in 0..CONNECTIONS {
        let mut refused = TcpStream::connect(address).await.unwrap();
        let end = soon("it is closed", refused.read(&mut [0])).await;
        assert_eq!(end.unwrap_or(0), 0);
    }
    assert_growth(before, 8 << 20, "refused connections");
    drop(used);
    serves(address).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).await.unwrap();
    let refused =
        metrics.lines().find_map(|line| line.strip_prefix("enlist_agent_refused_total{limit=\"http_connections\"} "));
    // The attempts after them count as well.
    assert!(refused.is_some_and(|count| count.parse::<usize>().unwrap() >= CONNECTIONS), "{metrics}");
}

/// The response is made as it is read: what waits for a client is not the whole.
#[tokio::test]
async fn slow_readers_of_large_responses_cost_little() {
    const INSTANCES: u32 = 5_000;
    const CLIENTS: usize = 10;
    const BYTES_EACH: usize = 512 << 10;
    let _alone = alone().await;
    let store = Store::new();
    let service = ServiceRef::parse("large").unwrap();
    for number in 0..INSTANCES {
        let large = instance(&number.to_string(), 80).with_metadata("text", "x".repeat(2_000));
        store.services.publish(&service, large).await.unwrap();
    }
    let (_agent, address) = start(&store, HttpOptions::new()).await;
    serves(address).await;
    let before = memory();
    let mut slow = Vec::new();
    for path in ["/v1/services/default/large", "/v1/prometheus/targets?service=large", "/v1/events?service=large"] {
        for _ in 0..CLIENTS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            // The response has begun.
            stream.read_exact(&mut [0; 12]).await.unwrap();
            slow.push(stream);
        }
    }
    serves(address).await;
    assert_growth(before, 3 * CLIENTS * BYTES_EACH, "slow readers");
}
