//! Input of clients that are broken or hostile: other clients are served meanwhile, and the memory is bounded.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{cell::Cell, future::poll_fn, net::SocketAddr, time::Duration};
#[cfg(feature = "tls")]
use std::{iter::repeat_n, sync::Arc};

use bytes::Bytes;
use enlist::DirectoryOptions;
#[cfg(feature = "tls")]
use enlist_agent::{Agent, HttpOptions, TlsIdentity};
use enlist_agent::{DEFAULT_XDS_NAMES, DEFAULT_XDS_STREAMS, ResourceType};
use enlist_testkit::{eventually, soon};
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use futures::future::join_all;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message as _;
#[cfg(feature = "tls")]
use support::authority::{Authority, HOST, channel, health};
use support::{
    ASSIGNMENT, AdsClient, CLUSTER, LISTENER, ROUTE, Store, TestAgent,
    hostile::{ALONE, CHECKED, Random, alone, assert_growth, memory, permit_files, send},
    instance, local, ports, request_in_zone,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Service as _, http},
    transport::{Channel, Endpoint},
};

/// Beginning of a connection of HTTP/2 (RFC 9113, section 3.4), with empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Maximum bytes by which the memory grows in an attack of a thousand connections, one at a time. Their buffers would
/// take 28 MB if they stayed.
const GROWTH: usize = 16 << 20;

/// Bytes of the header of a frame.
const FRAME_HEADER: usize = 9;

/// `HEALTHY` of xDS.
const HEALTHY: i32 = 1;

/// Returns a frame of any type, flags and stream, whose length is right or nearly right.
fn frame(random: &mut Random) -> Vec<u8> {
    let payload = random.below(64);
    let length = if random.below(4) == 0 { random.below(1 << 24) } else { payload };
    let mut frame = u32::try_from(length).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([u8::try_from(random.below(12)).unwrap(), random.next().to_le_bytes()[0]]);
    frame.extend(u32::try_from(random.below(6)).unwrap().to_be_bytes());
    assert_eq!(frame.len(), FRAME_HEADER);
    frame.extend(random.bytes(payload));
    frame
}

/// Awaits the end of all streams.
async fn no_client(agent: &TestAgent) {
    eventually("no client is left", || async {
        let clients = agent.status.xds_clients();
        if clients.is_empty() { Ok(()) } else { Err(clients) }
    })
    .await;
}

/// A client that is connected during an attack.
struct Connected<'a> {
    store: &'a Store,
    client: AdsClient,
}

impl<'a> Connected<'a> {
    async fn new(store: &'a Store, agent: SocketAddr) -> Self {
        let mut client = AdsClient::connect(agent).await;
        assert_eq!(client.assignment("connected").await, []);
        Self { store, client }
    }

    /// Checks that it learns of changes.
    async fn learns(&mut self) {
        let one = self.store.register("connected", instance("one", 1002)).await;
        assert_eq!(self.client.changed("connected").await, [(1002, HEALTHY)]);
        one.deregister().await.unwrap();
        assert_eq!(self.client.changed("connected").await, []);
    }
}

/// Checks that a client is served, and learns of a change.
async fn serves(store: &Store, agent: SocketAddr) {
    let mut client = AdsClient::connect(agent).await;
    assert_eq!(client.assignment("sound").await, []);
    let one = store.register("sound", instance("one", 1001)).await;
    assert_eq!(client.changed("sound").await, [(1001, HEALTHY)]);
    one.deregister().await.unwrap();
    assert_eq!(client.changed("sound").await, []);
}

#[tokio::test]
async fn random_bytes_are_survived() {
    const CONNECTIONS: usize = 1_000;
    let _alone = alone().await;
    let store = Store::new();
    // Slots of connections that are over are free again.
    let agent = TestAgent::start(&store.agents, local().max_streams(8)).await;
    let mut connected = Connected::new(&store, agent.address).await;
    let (mut random, before) = (Random(1), memory());
    for number in 0..CONNECTIONS {
        let count = random.below(4096);
        send(agent.address, &random.bytes(count)).await;
        if number % CHECKED == 0 {
            connected.learns().await;
        }
    }
    assert_growth(before, GROWTH, "random bytes");
    drop(connected);
    no_client(&agent).await;
    serves(&store, agent.address).await;
}

#[tokio::test]
async fn random_frames_are_survived() {
    const CONNECTIONS: usize = 1_000;
    let _alone = alone().await;
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local().max_streams(8)).await;
    let mut connected = Connected::new(&store, agent.address).await;
    let (mut random, before) = (Random(2), memory());
    for number in 0..CONNECTIONS {
        let mut bytes = PREFACE.to_vec();
        for _ in 0..random.below(64) {
            bytes.extend(frame(&mut random));
        }
        send(agent.address, &bytes).await;
        if number % CHECKED == 0 {
            connected.learns().await;
        }
    }
    assert_growth(before, GROWTH, "random frames");
    drop(connected);
    no_client(&agent).await;
    serves(&store, agent.address).await;
}

#[tokio::test]
async fn a_corrupted_conversation_is_survived() {
    const CONNECTIONS: usize = 1_000;
    let _alone = alone().await;
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local().max_streams(8)).await;
    let recorded = conversation().await;
    let mut connected = Connected::new(&store, agent.address).await;
    let (mut random, before) = (Random(3), memory());
    for number in 0..CONNECTIONS {
        let mut bytes = recorded.clone();
        for _ in 0..=random.below(4) {
            // The preface stays, so that what follows is parsed.
            let place = PREFACE.len() + random.below(bytes.len() - PREFACE.len());
            bytes[place] = random.next().to_le_bytes()[0];
        }
        send(agent.address, &bytes).await;
        if number % CHECKED == 0 {
            connected.learns().await;
        }
    }
    assert_growth(before, GROWTH, "a corrupted conversation");
    drop(connected);
    no_client(&agent).await;
    serves(&store, agent.address).await;
}

/// Returns an agent whose servers have TLS, and this number of slots for connections each; and the address of HTTP.
#[cfg(feature = "tls")]
async fn with_tls(store: &Store, authority: &Authority, slots: usize) -> (TestAgent, SocketAddr) {
    let identity = || {
        let (certificate, key) = authority.issue(HOST);
        TlsIdentity::new(certificate, key)
    };
    let http = HttpOptions::new().address(([127, 0, 0, 1], 0).into()).tls(identity()).max_connections(slots);
    let builder = Agent::builder(Arc::new(store.agents.clone())).xds(local().tls(identity()).max_streams(slots));
    let agent = TestAgent::of(builder.http(http)).await;
    let address = agent.http.unwrap();
    (agent, address)
}

#[cfg(feature = "tls")]
async fn over_tls<'a>(store: &'a Store, agent: &TestAgent, authority: &Authority) -> Connected<'a> {
    let channel = eventually("a connection", || channel(agent.address, authority.trusting())).await;
    let mut client = AdsClient::over(channel).await.unwrap();
    assert_eq!(client.assignment("connected").await, []);
    Connected { store, client }
}

/// Half of them begin as a handshake does.
#[cfg(feature = "tls")]
#[tokio::test]
async fn random_bytes_for_tls_are_survived() {
    const CONNECTIONS: usize = 1_000;
    const HANDSHAKE: &[u8] = &[22, 3, 1];
    let _alone = alone().await;
    let store = Store::new();
    let authority = Authority::new();
    let (agent, http) = with_tls(&store, &authority, 8).await;
    let mut connected = over_tls(&store, &agent, &authority).await;
    let (mut random, before) = (Random(6), memory());
    for number in 0..CONNECTIONS {
        for address in [agent.address, http] {
            let mut bytes = if number % 2 == 0 { HANDSHAKE.to_vec() } else { Vec::new() };
            let count = random.below(4096);
            bytes.extend(random.bytes(count));
            send(address, &bytes).await;
        }
        if number % CHECKED == 0 {
            connected.learns().await;
        }
    }
    assert_growth(before, GROWTH, "random bytes");
    over_tls(&store, &agent, &authority).await.learns().await;
    let response = health(http, &authority, None).await.unwrap();
    assert!(response.starts_with("HTTP/1.0 200"), "{response}");
}

/// Records the bytes that a client sends which requests each type.
async fn conversation() -> Vec<u8> {
    recorded(|endpoint| endpoint, 1, &[LISTENER, CLUSTER, ASSIGNMENT, ROUTE], &["greeter"]).await
}

/// Records the bytes that a client sends which requests these types on each of its streams. The last one is `ROUTE`.
async fn recorded(
    options: impl FnOnce(Endpoint) -> Endpoint,
    streams: usize,
    kinds: &[&str],
    names: &[&str],
) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let record = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Empty settings, and the acknowledgement of those of the client.
        stream.write_all(b"\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0").await.unwrap();
        let mut bytes = Vec::new();
        // The messages are not compressed.
        while bytes.windows(ROUTE.len()).filter(|window| *window == ROUTE.as_bytes()).count() < streams {
            assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0);
        }
        bytes
    };
    let talk = async {
        let endpoint = options(Channel::from_shared(format!("http://{address}")).unwrap());
        let channel = endpoint.connect().await.unwrap();
        // They wait for headers, which never come.
        join_all((0..streams).map(|_| AdsClient::sending(channel.clone(), kinds, names))).await;
    };
    tokio::select! {
        bytes = record => bytes,
        () = talk => panic!("nothing answers"),
    }
}

/// Sender of the parts of a request.
type Frames = mpsc::Sender<Result<Frame<Bytes>, Status>>;

/// Sends a request on a stream of its own, without this number of bytes at its end.
async fn send_request(channel: &Channel, content: &Bytes, missing: usize) -> (Frames, http::Response<Body>) {
    let (frames, receiver) = mpsc::channel(2);
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
    let request = http::Request::post(format!("http://agent{path}"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    let request = request.body(Body::new(StreamBody::new(ReceiverStream::new(receiver)))).unwrap();
    let mut channel = channel.clone();
    soon("the channel is ready", poll_fn(|cx| channel.poll_ready(cx))).await.unwrap();
    let response = soon("a stream", channel.call(request)).await.unwrap();
    let mut header = vec![0];
    header.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
    for bytes in [header.into(), content.slice(..content.len() - missing)] {
        frames.send(Ok(Frame::data(bytes))).await.unwrap();
    }
    (frames, response)
}

#[tokio::test]
async fn requests_that_never_end_cost_little() {
    const CONNECTIONS: usize = 8;
    const STREAMS_EACH: usize = 50;
    /// That of all together, and the buffers of their streams.
    const MOST: usize = 96 << 20;
    let _alone = alone().await;
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local()).await;
    serves(&store, agent.address).await;
    let (before, content) = (memory(), Bytes::from(vec![b'x'; 500_000]));
    let mut begun = Vec::new();
    for _ in 0..CONNECTIONS {
        let channel = Channel::from_shared(format!("http://{}", agent.address)).unwrap().connect().await.unwrap();
        for _ in 0..STREAMS_EACH {
            begun.push(send_request(&channel, &content, 1).await);
        }
    }
    let most = Cell::new(0);
    // A third of them has room at a time, for ten seconds.
    for rest in [begun.len() / 2, 0] {
        eventually("streams are ended", || async {
            most.set(memory().max(most.get()));
            let clients = agent.status.xds_clients().len();
            if clients <= rest { Ok(()) } else { Err(clients) }
        })
        .await;
    }
    let growth = most.get().saturating_sub(before);
    assert!(growth <= MOST, "{growth} bytes for requests that never end");
    serves(&store, agent.address).await;
}

/// Each client stays after a request of nearly the maximum size, of which its zone is one half.
#[tokio::test]
async fn large_requests_are_not_kept() {
    const CONNECTIONS: usize = 4;
    const STREAMS_EACH: usize = 50;
    const BYTES: usize = 500_000;
    /// Requests that are decoded at a time, and bytes of a stream besides.
    const REQUESTS: usize = 16;
    const BYTES_EACH: usize = 32 << 10;
    let _alone = alone().await;
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local().prefer_own_zone()).await;
    serves(&store, agent.address).await;
    let content = Bytes::from(request_in_zone(CLUSTER, &["greeter"], BYTES / 2, BYTES / 2).encode_to_vec());
    let (before, mut clients) = (memory(), Vec::new());
    for _ in 0..CONNECTIONS {
        let channel = Channel::from_shared(format!("http://{}", agent.address)).unwrap().connect().await.unwrap();
        for _ in 0..STREAMS_EACH {
            let (frames, mut response) = send_request(&channel, &content, 0).await;
            soon("a response", response.body_mut().frame()).await.unwrap().unwrap();
            clients.push((frames, response));
        }
    }
    assert_growth(before, REQUESTS * BYTES + clients.len() * BYTES_EACH, "large requests");
    serves(&store, agent.address).await;
}

/// Returns a frame of data with a request.
fn data_frame(stream: u32, request: &DiscoveryRequest) -> Vec<u8> {
    let content = request.encode_to_vec();
    let message = [&[0][..], &u32::try_from(content.len()).unwrap().to_be_bytes(), &content].concat();
    let mut frame = u32::try_from(message.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([0, 0]);
    frame.extend(stream.to_be_bytes());
    assert_eq!(frame.len(), FRAME_HEADER);
    frame.extend(message);
    frame
}

/// Each permits as many bytes as it can, requests other names again and again, and does not even read from its socket.
#[tokio::test]
async fn clients_that_leave_sockets_unread_cost_little() {
    const CONNECTIONS: usize = 25;
    const STREAMS_EACH: u32 = 8;
    const NAMES: usize = 18;
    /// The responses of all rounds have 840 KB. The system takes 4 MB of each connection.
    const BYTES_EACH: usize = 64 << 10;
    const WINDOW: u32 = (1 << 31) - 1;
    let _alone = alone().await;
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local()).await;
    let windows =
        |endpoint: Endpoint| endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let begin = recorded(windows, usize::try_from(STREAMS_EACH).unwrap(), &[ROUTE], &[]).await;
    let (before, mut clients) = (memory(), Vec::new());
    for _ in 0..CONNECTIONS {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1024).unwrap();
        let mut client = socket.connect(agent.address).await.unwrap();
        client.write_all(&begin).await.unwrap();
        clients.push(client);
    }
    // Once the system has taken its bytes, the agent permits 64 KB more of requests: those of all rounds have 130.
    for round in 0..70 {
        let names: Vec<_> = (0..NAMES).map(|number| format!("{}{number}", ["a", "b"][round % 2])).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let service = format!("round-{round}");
        let requests = [request_in_zone(CLUSTER, &names, 0, 0), request_in_zone(ASSIGNMENT, &[&service], 0, 0)];
        // A client numbers its streams by odd numbers.
        let streams = (0..STREAMS_EACH).map(|number| 2 * number + 1);
        let frames = streams.flat_map(|stream| requests.iter().flat_map(move |one| data_frame(stream, one)));
        let frames: Vec<_> = frames.collect();
        for client in &mut clients {
            client.write_all(&frames).await.unwrap();
        }
        eventually("the requests are processed", || async {
            let clients = agent.status.xds_clients();
            let missing = clients.iter().filter(|client| client.services != [&*service]).count();
            if missing == 0 { Ok(()) } else { Err(missing) }
        })
        .await;
    }
    let streams = CONNECTIONS * usize::try_from(STREAMS_EACH).unwrap();
    assert_eq!(agent.status.xds_clients().len(), streams);
    assert_growth(before, streams * BYTES_EACH, "unread sockets");
    serves(&store, agent.address).await;
}

/// They are ten thousand, or as many as this process can have both ends of, and leave no room for others. Those give
/// way that are unused for longest.
#[tokio::test]
async fn idle_connections_cost_little() {
    const BYTES_EACH: usize = 64 << 10;
    /// Open files of the test besides the connections.
    const OTHER_FILES: u64 = 500;
    let _alone = alone().await;
    let files = permit_files(12_500);
    let connections = usize::try_from((files - OTHER_FILES) / 2).unwrap().min(DEFAULT_XDS_STREAMS);
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local().max_streams(connections + 1)).await;
    let mut connected = Connected::new(&store, agent.address).await;
    let before = memory();
    let mut idle = Vec::new();
    for _ in 0..connections {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        // The agent has begun with this one.
        stream.read_exact(&mut [0; FRAME_HEADER]).await.unwrap();
        idle.push(stream);
    }
    assert_growth(before, connections * BYTES_EACH, "idle connections");
    connected.learns().await;
    serves(&store, agent.address).await;
}

/// Of both servers. They leave no room for others.
#[cfg(feature = "tls")]
#[tokio::test]
async fn unfinished_handshakes_give_way() {
    const SLOTS: usize = 1_000;
    const HANDSHAKE: &[u8] = &[22, 3, 1];
    let _alone = alone().await;
    permit_files(5_000);
    let store = Store::new();
    let authority = Authority::new();
    let (agent, http) = with_tls(&store, &authority, SLOTS).await;
    let mut connected = over_tls(&store, &agent, &authority).await;
    let (before, start, mut begun) = (memory(), Instant::now(), Vec::new());
    for address in repeat_n(agent.address, SLOTS - 1).chain(repeat_n(http, SLOTS)) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(HANDSHAKE).await.unwrap();
        begun.push(stream);
    }
    connected.learns().await;
    let other = async { over_tls(&store, &agent, &authority).await.learns().await };
    soon("another client is served", other).await;
    let served = || async {
        let response = health(http, &authority, None).await.map_err(|error| error.to_string())?;
        if response.starts_with("HTTP/1.0 200") { Ok(()) } else { Err(response) }
    };
    eventually("another client of HTTP is served", served).await;
    // Until then, none of them ends by itself.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_growth(before, 2 * SLOTS * (64 << 10), "unfinished handshakes");
}

/// They answer pings, so they would be kept for ever.
#[tokio::test(start_paused = true)]
async fn idle_connections_give_way() {
    const SLOTS: usize = 8;
    let _alone = ALONE.lock().await;
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local().max_streams(SLOTS)).await;
    let mut used = AdsClient::connect(agent.address).await;
    assert_eq!(used.assignment("sound").await, []);
    let mut idle = Vec::new();
    for _ in 1..SLOTS {
        let channel = Channel::from_shared(format!("http://{}", agent.address)).unwrap();
        idle.push(channel.connect().await.unwrap());
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut others = Vec::new();
    for _ in 1..SLOTS {
        let mut other = AdsClient::connect(agent.address).await;
        assert_eq!(other.assignment("sound").await, []);
        others.push(other);
    }
    let _one = store.register("sound", instance("one", 1001)).await;
    assert_eq!(used.changed("sound").await, [(1001, HEALTHY)], "the one in use stays");
}

/// Each has a response that is being sent, and one that waits. They share the resources.
#[tokio::test]
async fn clients_that_do_not_read_share_responses() {
    const CLIENTS: usize = 100;
    const CHANGES: u32 = 20;
    const RESPONSE: usize = 500_000;
    /// Responses that exist at a time, and bytes of a client besides: what its connection has taken.
    const RESPONSES: usize = 8;
    const BYTES_EACH: usize = 256 << 10;
    let _alone = alone().await;
    let store = Store::new();
    let one = store.register("large", instance("one", 1001).with_zone("z".repeat(RESPONSE))).await;
    let directory = DirectoryOptions::new().debounce(Duration::ZERO);
    let agent = TestAgent::with_directory(&store.agents, local(), directory).await;
    let mut sound = AdsClient::connect(agent.address).await;
    sound.assignment("large").await;
    let (before, mut slow) = (memory(), Vec::new());
    for _ in 0..CLIENTS {
        let client = AdsClient::connect(agent.address).await;
        client.request(ASSIGNMENT, &["large"]).await;
        slow.push(client);
    }
    for weight in 1..=CHANGES {
        one.update(|update| _ = update.weight(weight)).await.unwrap();
        sound.changed("large").await;
    }
    assert_growth(before, RESPONSES * RESPONSE + CLIENTS * BYTES_EACH, "clients that do not read");
    serves(&store, agent.address).await;
}

/// Each requests as many names as a stream may, then others, then none, and reads nothing. The responses remain.
#[tokio::test]
async fn names_of_all_streams_share_memory() {
    const CONNECTIONS: usize = 2;
    const STREAMS_EACH: usize = 100;
    /// Those of the agent are 84 KiB for each permitted stream. Without a limit they were 300 MB.
    const BYTES: usize = 64 << 20;
    let _alone = alone().await;
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local().max_streams(2 * CONNECTIONS * STREAMS_EACH)).await;
    let mut connected = Connected::new(&store, agent.address).await;
    let names = |text: &str| (0..DEFAULT_XDS_NAMES).map(|number| format!("{text}-{number}")).collect::<Vec<_>>();
    let (one, other) = (names("service"), names("another"));
    let (before, mut clients) = (memory(), Vec::new());
    for _ in 0..CONNECTIONS {
        let channel = Channel::from_shared(format!("http://{}", agent.address)).unwrap().connect().await.unwrap();
        for _ in 0..STREAMS_EACH {
            let client = AdsClient::over(channel.clone()).await.unwrap();
            for names in [&one, &other] {
                client.request(CLUSTER, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
            }
            client.request(CLUSTER, &[]).await;
            clients.push(client);
        }
    }
    let answered = async || {
        let answered = agent.status.xds_totals().responses[&ResourceType::Cluster];
        if answered >= u64::try_from(clients.len()).unwrap() { Ok(()) } else { Err(answered) }
    };
    eventually("all requests are processed", answered).await;
    assert_growth(before, BYTES, "names");
    connected.learns().await;
    serves(&store, agent.address).await;
}

/// There is no memory for its names, until another one ends.
#[tokio::test(start_paused = true)]
async fn names_without_memory_come_in_later() {
    let _alone = ALONE.lock().await;
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local().max_streams(2)).await;
    let names: Vec<_> = (0..200).map(|number| format!("service-{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut first = AdsClient::connect(agent.address).await;
    first.request(CLUSTER, &names).await;
    let has_all = first.next(CLUSTER).await.resources.len();
    assert!((1..names.len()).contains(&has_all), "{has_all}");
    let mut second = AdsClient::connect(agent.address).await;
    second.request(CLUSTER, &names).await;
    let has_few = second.next(CLUSTER).await.resources.len();
    assert!((1..has_all).contains(&has_few), "{has_few}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(agent.status.xds_clients().len(), 2, "its end would not help");
    drop(first);
    // The maximum, after which the client is to request its names again.
    tokio::time::sleep(Duration::from_secs(40)).await;
    let end = second.ended().await;
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    let mut second = AdsClient::connect(agent.address).await;
    second.request(CLUSTER, &names).await;
    assert_eq!(second.next(CLUSTER).await.resources.len(), has_all);
}

/// Returns the time until a client that does not read `responses` of this size is disconnected. Its connection answers
/// pings meanwhile. `then`: what it does after its request.
async fn disconnected(bytes: usize, responses: u32, then: impl FnOnce(&mut AdsClient)) -> Duration {
    let _alone = ALONE.lock().await;
    let store = Store::new();
    let one = store.register("large", instance("one", 1001).with_zone("z".repeat(bytes))).await;
    let agent = TestAgent::start(&store.agents, local()).await;
    let (mut sound, mut slow) = (AdsClient::connect(agent.address).await, AdsClient::connect(agent.address).await);
    slow.request(ASSIGNMENT, &["large"]).await;
    assert_eq!(sound.assignment("large").await, [(1001, HEALTHY)]);
    for weight in 1..responses {
        one.update(|update| _ = update.weight(weight)).await.unwrap();
        sound.changed("large").await;
    }
    let sent = async || {
        let sent = agent.status.xds_totals().responses[&ResourceType::Assignment];
        if sent == 2 * u64::from(responses) { Ok(()) } else { Err(sent) }
    };
    eventually("both have the responses", sent).await;
    then(&mut slow);
    let start = Instant::now();
    while agent.status.xds_clients().len() == 2 {
        assert!(start.elapsed() < Duration::from_secs(180), "it is still connected");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let time = start.elapsed();
    let end = slow.ended().await;
    assert_ne!(end.code(), Code::Ok, "its connection is closed: {end:?}");
    let _two = store.register("large", instance("two", 1002)).await;
    assert_eq!(sound.changed("large").await.len(), 2, "a client that waits for changes stays");
    time
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_disconnected() {
    let time = disconnected(500_000, 1, |_| ()).await;
    assert!(time >= Duration::from_secs(59), "{time:?}");
}

/// The second response is passed on in one part, of which the client's window has room for a few bytes.
#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_a_rest_is_disconnected() {
    let time = disconnected(60_000, 2, |_| ()).await;
    assert!(time >= Duration::from_secs(59), "{time:?}");
}

/// It sends no more requests, so its stream has ended for the agent.
#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_unread_is_disconnected() {
    let time = disconnected(500_000, 1, AdsClient::end_requests).await;
    assert!(time >= Duration::from_secs(59), "{time:?}");
}

#[tokio::test]
async fn a_client_without_acknowledgements_gets_the_latest_state() {
    const CHANGES: u32 = 200;
    let _alone = alone().await;
    let store = Store::new();
    let one = store.register("greeter", instance("one", 1001)).await;
    let directory = DirectoryOptions::new().debounce(Duration::ZERO);
    let agent = TestAgent::with_directory(&store.agents, local(), directory).await;
    let (mut mute, mut sound) = (AdsClient::connect(agent.address).await, AdsClient::connect(agent.address).await);
    mute.request(ASSIGNMENT, &["greeter"]).await;
    sound.assignment("greeter").await;
    for weight in 1..=CHANGES {
        one.update(|update| _ = update.weight(weight)).await.unwrap();
        sound.changed("greeter").await;
    }
    let _two = store.register("greeter", instance("two", 1002)).await;
    assert_eq!(sound.changed("greeter").await.len(), 2);
    while ports(&mute.next(ASSIGNMENT).await).1.len() < 2 {}
    let [one, two] = &agent.status.xds_clients()[..] else { panic!("two clients") };
    assert_eq!((one.rejected, two.rejected), (0, 0));
}
