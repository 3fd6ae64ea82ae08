//! The server for xDS, seen by a client that is written by hand.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{sync::Arc, time::Duration};

use enlist::{DirectoryOptions, Health, TaskOwner};
use enlist_agent::{Agent, AgentError, BearerToken, DEFAULT_XDS_SETTLE, EnvoyListener, ResourceType, XdsOptions};
use enlist_testkit::{eventually, soon};
use envoy_types::pb::envoy::service::discovery::v3::{
    DiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    aggregated_discovery_service_server::SERVICE_NAME,
};
use support::{ASSIGNMENT, AdsClient, CLUSTER, LISTENER, ROUTE, Store, TestAgent, instance, local, ports, priorities};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, Request, transport::Channel};
use tonic_prost::ProstCodec;

const UNKNOWN: i32 = 0;
const HEALTHY: i32 = 1;
const DRAINING: i32 = 3;

/// Requests all four types as a gRPC client does, and returns their versions.
async fn versions(client: &mut AdsClient, name: &str) -> Vec<String> {
    let mut versions = Vec::new();
    for kind in [LISTENER, ROUTE, CLUSTER, ASSIGNMENT] {
        client.request(kind, &[name]).await;
        let response = client.next(kind).await;
        client.acknowledge(&response, &[name]).await;
        assert_eq!(response.resources.len(), 1);
        versions.push(response.version_info);
    }
    versions
}

#[tokio::test]
async fn a_client_gets_each_change() {
    let store = Store::new();
    let one = store.register("greeter", instance("one", 1001)).await;
    let agent = TestAgent::start(&store.agents, local()).await;
    let mut client = AdsClient::connect(agent.address).await;
    versions(&mut client, "greeter").await;
    let two = store.register("greeter", instance("two", 1002)).await;
    assert_eq!(client.changed("greeter").await, [(1001, HEALTHY), (1002, HEALTHY)]);
    two.update(|update| _ = update.health(Health::Draining)).await.unwrap();
    assert_eq!(client.changed("greeter").await, [(1001, HEALTHY), (1002, DRAINING)]);
    two.deregister().await.unwrap();
    assert_eq!(client.changed("greeter").await, [(1001, HEALTHY)]);
    one.deregister().await.unwrap();
    assert_eq!(client.changed("greeter").await, [], "known to be empty");
    let _one = store.register("greeter", instance("one", 1001)).await;
    assert_eq!(client.changed("greeter").await, [(1001, HEALTHY)]);
    let [seen] = &agent.status.xds_clients()[..] else { panic!("one client") };
    assert_eq!((seen.node.as_str(), seen.user_agent.as_str(), seen.rejected), ("test-1", "gRPC test", 0));
    assert_eq!(seen.services, ["greeter"]);
    let sent = agent.status.xds_totals().responses;
    assert_eq!((sent[&ResourceType::Listener], sent[&ResourceType::Assignment]), (1, 6));
}

#[tokio::test]
async fn an_unknown_service_is_answered_at_once() {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local()).await;
    let mut client = AdsClient::connect(agent.address).await;
    assert_eq!(client.assignment("unknown").await, []);
    client.request(LISTENER, &["/invalid"]).await;
    assert_eq!(client.next(LISTENER).await.resources, [], "no service can have this name");
}

#[tokio::test]
async fn an_assignment_is_sent_once_it_is_known() {
    let store = Store::new();
    let _one = store.register("greeter", instance("one", 1001)).await;
    store.agents.cut();
    let agent = TestAgent::start(&store.agents, local()).await;
    let mut client = AdsClient::connect(agent.address).await;
    client.request(ASSIGNMENT, &["greeter"]).await;
    for kind in [LISTENER, ROUTE, CLUSTER] {
        client.request(kind, &["greeter"]).await;
        assert_eq!(client.next(kind).await.resources.len(), 1, "it depends on the name only");
    }
    store.agents.heal();
    assert_eq!(client.changed("greeter").await, [(1001, HEALTHY)], "the first one is complete");
}

#[tokio::test]
async fn an_outage_of_the_store_removes_no_instance() {
    let store = Store::new();
    let one = store.register("greeter", instance("one", 1001)).await;
    let agent = TestAgent::start(&store.agents, local()).await;
    let mut client = AdsClient::connect(agent.address).await;
    assert_eq!(client.assignment("greeter").await, [(1001, HEALTHY)]);
    store.agents.cut();
    let _two = store.register("greeter", instance("two", 1002)).await;
    one.deregister().await.unwrap();
    // A client that comes during the outage gets the last known instances.
    let mut late = AdsClient::connect(agent.address).await;
    assert_eq!(late.assignment("greeter").await, [(1001, HEALTHY)]);
    store.agents.heal();
    assert_eq!(client.changed("greeter").await, [(1002, HEALTHY)], "in one step");
    assert_eq!(late.changed("greeter").await, [(1002, HEALTHY)]);
}

#[tokio::test]
async fn all_agents_send_equal_versions() {
    let store = Store::new();
    let _one = store.register("greeter", instance("one", 1001)).await;
    let mut agent = TestAgent::start(&store.agents, local()).await;
    let other = TestAgent::start(&store.memory.client(), local()).await;
    let mut client = AdsClient::connect(agent.address).await;
    let first = versions(&mut client, "greeter").await;
    assert_eq!(versions(&mut AdsClient::connect(other.address).await, "greeter").await, first);
    agent.stop().await;
    let end = client.ended().await;
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    let again = TestAgent::start(&store.agents, local().address(agent.address)).await;
    assert_eq!(versions(&mut AdsClient::connect(again.address).await, "greeter").await, first);
}

#[tokio::test]
async fn a_restarted_agent_empties_no_client() {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local()).await;
    let mut resumed = AdsClient::connect(agent.address).await;
    resumed.resume(ASSIGNMENT, &["greeter"], "of the earlier agent").await;
    // The agent knows by now that the service is empty.
    assert_eq!(AdsClient::connect(agent.address).await.assignment("greeter").await, []);
    let _one = store.register("greeter", instance("one", 1001)).await;
    assert_eq!(resumed.changed("greeter").await, [(1001, HEALTHY)], "the first response");
}

#[tokio::test]
async fn no_resumed_client_gets_draining_instances_only() {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local()).await;
    let _one = store.register("greeter", instance("one", 1001).with_health(Health::Draining)).await;
    let mut resumed = AdsClient::connect(agent.address).await;
    resumed.resume(ASSIGNMENT, &["greeter"], "of the earlier agent").await;
    // The agent knows by now that the only instance is draining.
    assert_eq!(AdsClient::connect(agent.address).await.assignment("greeter").await, [(1001, DRAINING)]);
    let _two = store.register("greeter", instance("two", 1002)).await;
    assert_eq!(resumed.changed("greeter").await, [(1001, DRAINING), (1002, HEALTHY)], "the first response");
}

#[tokio::test(start_paused = true)]
async fn draining_instances_are_sent_after_the_settling() {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local()).await;
    let _one = store.register("greeter", instance("one", 1001).with_health(Health::Draining)).await;
    let mut resumed = AdsClient::connect(agent.address).await;
    resumed.resume(ASSIGNMENT, &["greeter"], "of the earlier agent").await;
    assert_eq!(AdsClient::connect(agent.address).await.assignment("greeter").await, [(1001, DRAINING)]);
    tokio::time::sleep(DEFAULT_XDS_SETTLE).await;
    assert_eq!(resumed.changed("greeter").await, [(1001, DRAINING)]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_returns_late_empties_no_client() {
    let store = Store::new();
    store.agents.cut();
    let agent = TestAgent::start(&store.agents, local()).await;
    let mut resumed = AdsClient::connect(agent.address).await;
    resumed.resume(ASSIGNMENT, &["greeter"], "of the earlier agent").await;
    let mut other = AdsClient::connect(agent.address).await;
    other.resume(ASSIGNMENT, &["other"], "of the earlier agent").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    store.agents.heal();
    // The agent knows by now that the service is empty.
    assert_eq!(AdsClient::connect(agent.address).await.assignment("greeter").await, []);
    let _one = store.register("greeter", instance("one", 1001)).await;
    assert_eq!(resumed.changed("greeter").await, [(1001, HEALTHY)], "the first response");
    tokio::time::sleep(DEFAULT_XDS_SETTLE).await;
    assert_eq!(other.changed("other").await, [], "it stays empty");
}

/// Kitex notices a loss up to 30 s later, and tries again 10 s after a failure.
#[tokio::test(start_paused = true)]
async fn instances_that_return_late_are_kept() {
    let store = Store::new();
    let lost = store.register("greeter", instance("one", 1001)).await;
    let agent = TestAgent::of(Agent::builder(Arc::new(store.agents.clone())).xds(local())).await;
    let mut client = AdsClient::connect(agent.address).await;
    assert_eq!(client.assignment("greeter").await, [(1001, HEALTHY)]);
    store.services.cut();
    assert_eq!(client.changed("greeter").await, [(1001, UNKNOWN)], "its lease has ended");
    tokio::time::sleep(Duration::from_secs(45)).await;
    store.services.heal();
    assert_eq!(client.changed("greeter").await, [(1001, HEALTHY)], "without an empty assignment");
    drop(lost);
}

#[tokio::test]
async fn a_rejected_assignment_is_not_repeated() {
    let store = Store::new();
    let _one = store.register("greeter", instance("one", 1001)).await;
    let agent = TestAgent::start(&store.agents, local()).await;
    let (mut faulty, mut sound) = (AdsClient::connect(agent.address).await, AdsClient::connect(agent.address).await);
    assert_eq!(sound.assignment("greeter").await, [(1001, HEALTHY)]);
    faulty.request(ASSIGNMENT, &["greeter"]).await;
    let response = faulty.next(ASSIGNMENT).await;
    faulty.reject(&response, &["greeter"], "greeter: out of order").await;
    let rejected = eventually("the rejection is listed", || async {
        let clients = agent.status.xds_clients();
        let last = clients.iter().find_map(|client| client.last_rejection.clone());
        last.ok_or(clients)
    });
    let rejected = rejected.await;
    assert_eq!((rejected.kind, rejected.message.as_str()), (ResourceType::Assignment, "greeter: out of order"));
    assert_eq!(agent.status.xds_totals().rejections[&ResourceType::Assignment], 1);
    let _two = store.register("greeter", instance("two", 1002)).await;
    let expected = [(1001, HEALTHY), (1002, HEALTHY)];
    assert_eq!(faulty.changed("greeter").await, expected, "the next response is the changed content");
    assert_eq!(sound.changed("greeter").await, expected);
}

#[tokio::test]
async fn each_assignment_has_a_response_of_its_own() {
    let store = Store::new();
    let _a = store.register("a", instance("one", 1001)).await;
    let _b = store.register("team/b", instance("one", 1002)).await;
    let agent = TestAgent::start(&store.agents, local()).await;
    let mut client = AdsClient::connect(agent.address).await;
    client.request(ASSIGNMENT, &["a", "team/b"]).await;
    let mut found = [ports(&client.next(ASSIGNMENT).await), ports(&client.next(ASSIGNMENT).await)];
    found.sort();
    assert_eq!(found, [("a".to_owned(), vec![(1001, HEALTHY)]), ("team/b".to_owned(), vec![(1002, HEALTHY)])]);
}

#[tokio::test]
async fn an_encoded_name_means_the_decoded_service() {
    let store = Store::new();
    let _one = store.register("gree ter", instance("one", 1001)).await;
    let agent = TestAgent::start(&store.agents, local()).await;
    let mut client = AdsClient::connect(agent.address).await;
    assert_eq!(client.assignment("gree%20ter").await, [(1001, HEALTHY)]);
}

#[tokio::test]
async fn a_slow_client_gets_the_latest_state() {
    const CHANGES: u32 = 200;
    let store = Store::new();
    // Each response is larger than the window of a stream.
    let one = store.register("greeter", instance("one", 1001).with_zone("z".repeat(100_000))).await;
    let directory = DirectoryOptions::new().debounce(Duration::ZERO);
    let agent = TestAgent::with_directory(&store.agents, local(), directory).await;
    let (mut slow, mut fast) = (AdsClient::connect(agent.address).await, AdsClient::connect(agent.address).await);
    slow.request(ASSIGNMENT, &["greeter"]).await;
    fast.assignment("greeter").await;
    for weight in 1..=CHANGES {
        one.update(|update| _ = update.weight(weight)).await.unwrap();
        fast.changed("greeter").await;
    }
    let _two = store.register("greeter", instance("two", 1002)).await;
    assert_eq!(fast.changed("greeter").await.len(), 2, "others do not wait");
    let mut responses = 1;
    while ports(&slow.next(ASSIGNMENT).await).1.len() < 2 {
        responses += 1;
    }
    assert!(responses <= 5, "{responses} responses were waiting");
}

#[tokio::test]
async fn streams_are_limited_like_names() {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local().max_streams(2).max_names(2).max_services(1)).await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", agent.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut one = AdsClient::over(channel.clone()).await.unwrap();
    let mut two = AdsClient::over(channel.clone()).await.unwrap();
    assert_eq!(AdsClient::over(channel.clone()).await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(agent.status.xds_totals().refused, 1);
    one.request(CLUSTER, &["a", "b", "c"]).await;
    let some = one.next(CLUSTER).await;
    assert_eq!(some.resources.len(), 2, "the others wait");
    one.acknowledge(&some, &["c"]).await;
    assert_eq!(one.next(CLUSTER).await.resources.len(), 1, "there is room again");
    drop(one);
    eventually("a stream is free again", || async {
        let clients = agent.status.xds_clients();
        if clients.len() == 1 { Ok(()) } else { Err(clients) }
    })
    .await;
    let mut three = AdsClient::over(channel.clone()).await.unwrap();
    assert_eq!(two.assignment("a").await, []);
    three.request(ASSIGNMENT, &["a", "b"]).await;
    assert_eq!(ports(&three.next(ASSIGNMENT).await), ("a".to_owned(), vec![]));
    let totals = agent.status.xds_totals();
    assert_eq!((totals.refused, totals.too_many_names, totals.too_many_services), (1, 1, 1));
    let _one = store.register("a", instance("one", 1001)).await;
    assert_eq!(two.changed("a").await, [(1001, HEALTHY)], "others are not affected");
    let changed = ports(&three.next(ASSIGNMENT).await);
    assert_eq!(changed, ("a".to_owned(), vec![(1001, HEALTHY)]), "nor is the rest of the stream");
}

#[tokio::test]
async fn envoy_gets_the_configured_resources() {
    let store = Store::new();
    let edge = EnvoyListener::new("edge", "127.0.0.1:10000".parse().unwrap()).route("/", "greeter");
    let agent = TestAgent::start(&store.agents, local().envoy(edge)).await;
    let mut envoy = AdsClient::connect(agent.address).await;
    envoy.request(CLUSTER, &[]).await;
    let clusters = envoy.next(CLUSTER).await;
    assert_eq!(clusters.resources.len(), 1);
    envoy.request(ASSIGNMENT, &["greeter"]).await;
    assert_eq!(ports(&envoy.next(ASSIGNMENT).await), ("greeter".to_owned(), vec![]));
    envoy.request(LISTENER, &[]).await;
    assert_eq!(envoy.next(LISTENER).await.resources.len(), 1);
}

#[tokio::test]
async fn each_client_prefers_its_own_zone() {
    let store = Store::new();
    let _a = store.register("greeter", instance("a", 1001).with_zone("a")).await;
    let b = store.register("greeter", instance("b", 1002).with_zone("b")).await;
    let agent = TestAgent::start(&store.agents, local().prefer_own_zone()).await;
    for (zone, expected) in [("a", [0, 1]), ("b", [1, 0]), ("c", [0, 0]), ("", [0, 0])] {
        let mut client = AdsClient::connect(agent.address).await.in_zone(zone);
        client.request(ASSIGNMENT, &["greeter"]).await;
        let [a, b] = expected;
        let expected = [("a".to_owned(), a), ("b".to_owned(), b)];
        assert_eq!(priorities(&client.next(ASSIGNMENT).await), expected, "a client in {zone:?}");
    }
    let mut client = AdsClient::connect(agent.address).await.in_zone("b");
    client.assignment("greeter").await;
    b.update(|update| _ = update.health(Health::Draining)).await.unwrap();
    let changed = client.next(ASSIGNMENT).await;
    assert_eq!(priorities(&changed), [("a".to_owned(), 0), ("b".to_owned(), 0)], "its zone has no other instance");
}

#[tokio::test]
async fn a_configured_token_is_required() {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local().token(BearerToken::new("s3cret").unwrap())).await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", agent.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    assert_eq!(AdsClient::over(channel.clone()).await.unwrap_err().code(), Code::Unauthenticated);
    let mut client = AdsClient::with_token(channel, "s3cret").await.unwrap();
    assert_eq!(client.assignment("greeter").await, []);
}

/// The refusal names what is supported, as gRPC demands (`compression.md` of grpc/grpc).
#[tokio::test]
async fn compressed_requests_are_refused() {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local()).await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", agent.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    let refusal = AdsClient::with_header(channel.clone(), "grpc-encoding", "gzip").await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unimplemented);
    assert_eq!(refusal.metadata().get("grpc-accept-encoding").unwrap(), "identity");
    let mut client = AdsClient::with_header(channel, "grpc-encoding", "identity").await.unwrap();
    assert_eq!(client.assignment("greeter").await, []);
}

#[tokio::test]
async fn other_hosts_need_a_restriction() {
    let store = Store::new();
    let bind = |options: XdsOptions| {
        let options = options.address("0.0.0.0:0".parse().unwrap());
        Agent::builder(Arc::new(store.agents.clone())).xds(options).bind()
    };
    let refused = bind(XdsOptions::new()).await.unwrap_err();
    assert!(matches!(refused, AgentError::Exposed { .. }), "{refused}");
    bind(XdsOptions::new().insecure()).await.unwrap();
    bind(XdsOptions::new().token(BearerToken::new("s3cret").unwrap())).await.unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_an_error() {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local()).await;
    let second = Agent::builder(Arc::new(store.agents.clone())).xds(local().address(agent.address));
    let Err(AgentError::Bind { address, .. }) = second.bind().await else { panic!("the address is in use") };
    assert_eq!(address, agent.address);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_clients() {
    let store = Store::new();
    let mut agent = TestAgent::start(&store.agents, local()).await;
    // Neither of them ever reads: one has not even begun to speak HTTP/2.
    let _silent = tokio::net::TcpStream::connect(agent.address).await.unwrap();
    let client = AdsClient::connect(agent.address).await;
    client.request(ASSIGNMENT, &["greeter"]).await;
    soon("the agent ends", agent.stop()).await;
    drop(client);
}

#[tokio::test]
async fn dropping_the_agent_ends_all_connections() {
    let (store, tasks) = (Store::new(), TaskOwner::new());
    let agent = Agent::builder(Arc::new(store.agents.clone())).xds(local()).bind().await.unwrap();
    let address = agent.xds_address();
    tasks.spawn_until_stopped("agent", agent.serve(std::future::pending())).unwrap();
    let mut client = AdsClient::connect(address).await;
    assert_eq!(client.assignment("greeter").await, []);
    let mut silent = tokio::net::TcpStream::connect(address).await.unwrap();
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    silent.read_exact(&mut [0]).await.unwrap();
    drop(tasks);
    client.ended().await;
    let _ = soon("the connection ends", silent.read_to_end(&mut Vec::new())).await;
}

#[tokio::test]
async fn a_stopped_agent_keeps_no_connection() {
    let store = Store::new();
    let mut agent = TestAgent::start(&store.agents, local()).await;
    let mut silent = tokio::net::TcpStream::connect(agent.address).await.unwrap();
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    silent.read_exact(&mut [0]).await.unwrap();
    agent.stop().await;
    let _ = soon("the connection ends", silent.read_to_end(&mut Vec::new())).await;
}

#[tokio::test(start_paused = true)]
async fn a_service_counts_until_its_watch_ends() {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local().max_services(1)).await;
    let mut one = AdsClient::connect(agent.address).await;
    assert_eq!(one.assignment("a").await, []);
    drop(one);
    let left = eventually("the client has left", || async {
        let clients = agent.status.xds_clients();
        if clients.is_empty() { Ok(()) } else { Err(clients) }
    });
    left.await;
    let mut waiting = AdsClient::connect(agent.address).await;
    waiting.request(ASSIGNMENT, &["b"]).await;
    let counted = eventually("it waits", || async {
        let count = agent.status.xds_totals().too_many_services;
        if count > 0 { Ok(count) } else { Err(count) }
    });
    assert_eq!(counted.await, 1);
    assert_eq!(AdsClient::connect(agent.address).await.assignment("a").await, [], "it is the same one");
    // Attempts follow until there is room.
    assert_eq!(waiting.changed("b").await, []);
    assert_eq!(agent.status.xds_totals().too_many_services, 1, "it is counted once");
}

#[tokio::test]
async fn delta_discovery_is_refused_with_advice() {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, local()).await;
    let channel = Channel::from_shared(format!("http://{}", agent.address)).unwrap().connect().await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
    let refused = client.delta_aggregated_resources(futures::stream::pending()).await.unwrap_err();
    assert!(refused.code() == Code::Unimplemented && refused.message().contains("api_type"), "{refused:?}");
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = format!("/{SERVICE_NAME}/Unknown").parse().unwrap();
    let codec = ProstCodec::<DiscoveryRequest, DiscoveryRequest>::default();
    let refused = client.unary(Request::new(DiscoveryRequest::default()), path, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");
}
