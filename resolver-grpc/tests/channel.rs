//! A channel without failures: selection, kept connections, and the removal of instances.

mod support;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{Endpoint, Error, Filter, Health, Instance, Moment, RegisterOptions, Registry, with_causes};
use enlist_grpc::{BalancePolicy, CallHead, Channel, HashKey, InstanceState, Intercept, WaitForReady};
use enlist_testkit::{LIMIT, eventually, soon};
use support::{Server, World, begun, id, say, say_within, shares, stream, until, until_called};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

#[tokio::test]
async fn generated_clients_accept_the_channel() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 1).await;
    let mut client = HealthClient::new(channel);
    let response = soon("a response", client.check(HealthCheckRequest::default())).await.unwrap();
    assert_eq!(response.into_inner().status, 1);
}

#[tokio::test]
async fn a_call_waits_for_an_unknown_service() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    world.client.cut();
    let channel = Channel::new(&world.view()).unwrap();
    let failed = say_within(&channel, "", Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(failed.code(), Code::DeadlineExceeded);
    assert!(failed.message().contains("default/echo is not known yet"), "{failed}");
    let call = begun(say(&channel, String::new()));
    world.client.heal();
    assert_eq!(soon("a response", call).await.unwrap(), "a");
}

#[tokio::test]
async fn a_call_waits_for_the_first_connection() {
    let server = Server::start("a").await;
    let world = World::new();
    let (channel, view) = (Channel::new(&world.view()).unwrap(), world.view());
    let refused = say(&channel, String::new()).await.unwrap_err();
    assert!(refused.message().contains("0 listed"), "{refused}");
    world.register(&server, server.instance()).await;
    while view.snapshot().is_none_or(|snapshot| snapshot.is_empty()) {
        tokio::task::yield_now().await;
    }
    assert_eq!(soon("a response", say(&channel, String::new())).await.unwrap(), "a");
}

#[tokio::test]
async fn an_empty_service_fails_at_once() {
    let world = World::of(&[]).await;
    let view = world.view();
    view.ready().await.unwrap();
    // The fastest of several first calls, because the machine may be busy.
    let mut quickest = Duration::MAX;
    for _ in 0..10 {
        let channel = Channel::new(&view).unwrap();
        let start = Moment::now();
        let failed = say(&channel, String::new()).await.unwrap_err();
        quickest = quickest.min(start.elapsed());
        assert_eq!(failed.code(), Code::Unavailable);
        for part in ["default/echo", "0 listed, 0 ready, 0 held", "revision", "ago"] {
            assert!(failed.message().contains(part), "{failed}");
        }
    }
    assert!(quickest < Duration::from_millis(500), "{quickest:?}");
}

#[tokio::test]
async fn wait_for_ready_waits_for_a_first_instance() {
    let world = World::of(&[]).await;
    let channel = Channel::new(&world.view()).unwrap();
    say(&channel, String::new()).await.unwrap_err();
    let mut waiting = Request::new(String::new());
    waiting.extensions_mut().insert(WaitForReady(true));
    let call = begun(say(&channel, waiting));
    let server = Server::start("late").await;
    world.register(&server, server.instance()).await;
    assert_eq!(soon("a response", call).await.unwrap(), "late");
}

#[tokio::test]
async fn a_filter_that_no_instance_passes_is_named() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::of(&servers).await;
    let channel = Channel::builder().filter(Filter::new().zone("elsewhere")).build(&world.view()).unwrap();
    let known = soon("known", channel.view().ready()).await;
    known.unwrap();
    eventually("it says why", || async {
        let failed = say(&channel, String::new()).await.unwrap_err();
        let complete = failed.message().contains("2 listed, 0 ready, 0 held, 2 left out by the filter");
        if complete { Ok(()) } else { Err(failed) }
    })
    .await;
    let failed = say(&channel, String::new()).await.unwrap_err();
    let age = failed.message().split_once(", right ").unwrap().1.split(" ago").next().unwrap();
    assert!(age.len() <= "999 ms".len(), "rounded: {age}");
}

/// The state in `instances` states the cause of a wait in `ready`.
#[tokio::test]
async fn a_timed_out_wait_states_the_cause() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::of(&servers).await;
    servers.iter().for_each(Server::kill);
    let channel = Channel::new(&world.view()).unwrap();
    until(&channel, "a", InstanceState::Failing).await;
    until(&channel, "b", InstanceState::Failing).await;
    let late = channel.ready(Duration::from_millis(10)).await.unwrap_err();
    assert!(matches!(late, Error::Timeout { .. }), "{late:?}");
    let text = with_causes(&late).to_string();
    assert!(
        text.contains("took longer than 10 ms: default/echo has no instance that can take a call: 2 listed"),
        "{text}"
    );
    for instance in channel.instances() {
        let why = format!("{} at {}: {}", instance.id, instance.endpoint, instance.last_failure.unwrap());
        assert!(text.contains(&why), "{why} in {text}");
    }
}

#[tokio::test]
async fn a_changed_weight_keeps_connections() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 2).await;
    until_called(&channel, &["a", "b"]).await;
    let before = shares(&channel, 400).await;
    assert!(before.values().all(|share| (100..300).contains(share)), "{before:?}");

    let registration = world.registration(&servers[0]);
    let update = registration.update(|update| {
        update.weight(900);
    });
    soon("updated", update).await.unwrap();
    let view = world.view();
    eventually("the client knows", || async {
        let weight = view.snapshot().unwrap().get(&id("a")).unwrap().instance().weight();
        if weight == 900 { Ok(()) } else { Err(weight) }
    })
    .await;
    // The channel follows the view after a short delay that is not visible from outside.
    eventually("nine of ten go there", || async {
        let after = shares(&channel, 200).await;
        if after.get("a").is_some_and(|share| *share > 160) { Ok(()) } else { Err(after) }
    })
    .await;
    assert_eq!(servers.iter().map(Server::dials).collect::<Vec<_>>(), [1, 1]);
}

#[tokio::test]
async fn a_zone_keeps_calls_while_instances_remain() {
    let servers = [Server::start("near-1").await, Server::start("near-2").await, Server::start("far").await];
    let world = World::new();
    for (server, zone) in servers.iter().zip(["eu", "eu", "us"]) {
        world.register(server, server.instance().with_zone(zone)).await;
    }
    let channel = world.channel(Channel::builder().prefer_zone("eu"), 3).await;
    until_called(&channel, &["near-1", "near-2"]).await;
    assert_eq!(shares(&channel, 300).await.get("far"), None);
    servers[0].kill();
    until(&channel, "near-1", InstanceState::Failing).await;
    // Half of the zone is ready: it receives 1.4 times its share, the rest goes to the other zone.
    until_called(&channel, &["far", "near-2"]).await;
    let half = shares(&channel, 600).await;
    assert!((100..260).contains(&half["far"]), "{half:?}");
    servers[1].kill();
    until(&channel, "near-2", InstanceState::Failing).await;
    assert_eq!(shares(&channel, 20).await["far"], 20);
}

#[tokio::test]
async fn a_removed_instance_finishes_its_calls() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 2).await;
    let mut slow = Vec::new();
    // Instances are picked at random, so all of them may go to one instance.
    eventually("both are busy", || {
        let calls = servers.each_ref().map(Server::calls);
        let are_sent = calls.iter().sum::<usize>() == slow.len();
        let are_busy = are_sent && calls.iter().all(|calls| *calls > 0);
        if are_sent && !are_busy {
            slow.extend((0..8).map(|_| begun(say(&channel, "sleep 700".to_owned()))));
        }
        async move { if are_busy { Ok(()) } else { Err(calls) } }
    })
    .await;
    world.deregister(&servers[0]).await;
    until(&channel, "a", InstanceState::Leaving).await;
    let sent = servers[0].calls();
    assert_eq!(shares(&channel, 50).await.get("a"), None);
    assert_eq!(servers[0].calls(), sent);
    for call in slow {
        soon("a response", call).await.unwrap();
    }
    eventually("the connection is let go of", || async {
        match servers[0].open() {
            0 => Ok(()),
            open => Err(open),
        }
    })
    .await;
}

#[tokio::test]
async fn a_moved_instance_finishes_calls_at_its_endpoint() {
    let servers = [Server::start("old").await, Server::start("new").await];
    let world = World::of(&servers[..1]).await;
    let channel = world.channel(Channel::builder(), 1).await;
    let slow = begun(say(&channel, "sleep 700".to_owned()));
    let mut endless = stream(&channel).await.unwrap();
    assert_eq!(soon("a message", endless.message()).await.unwrap().unwrap(), "old");
    eventually("it is busy", || async { if servers[0].calls() > 0 { Ok(()) } else { Err(0) } }).await;
    let moved = servers[1].instance().endpoints().to_vec();
    let registration = world.registration(&servers[0]);
    let update = registration.update(|update| _ = update.endpoints(moved.clone()));
    soon("updated", update).await.unwrap();
    eventually("new calls go to the new endpoint", || async {
        let name = say(&channel, String::new()).await.unwrap();
        if name == "new" { Ok(()) } else { Err(name) }
    })
    .await;
    let sent = servers[0].calls();
    assert_eq!(shares(&channel, 50).await, BTreeMap::from([("new".to_owned(), 50)]));
    assert_eq!(servers[0].calls(), sent);
    assert_eq!(soon("a response", slow).await.unwrap(), "old");
    let leaving: Vec<_> = channel
        .instances()
        .into_iter()
        .filter(|one| one.state == InstanceState::Leaving)
        .map(|one| one.in_flight)
        .collect();
    assert_eq!((leaving, servers[0].open()), (vec![1], 1), "the stream goes on");
    drop(endless);
    eventually("the old connection is let go of", || async {
        match servers[0].open() {
            0 => Ok(()),
            open => Err(open),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_the_only_instance_moves() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::of(&servers[..1]).await;
    let channel = world.channel(Channel::builder(), 1).await;
    let (stop, mut callers) = (CancellationToken::new(), JoinSet::new());
    for _ in 0..4 {
        let (channel, stop) = (channel.clone(), stop.clone());
        callers.spawn(async move {
            while !stop.is_cancelled() {
                say(&channel, String::new()).await.unwrap();
            }
        });
    }
    let registration = world.registration(&servers[0]);
    for turn in 1..=40 {
        let to = &servers[turn % 2];
        let endpoints = to.instance().endpoints().to_vec();
        let update = registration.update(|update| _ = update.endpoints(endpoints.clone()));
        soon("updated", update).await.unwrap();
        eventually("calls go there", || async {
            let name = say(&channel, String::new()).await.unwrap();
            if name == to.name { Ok(()) } else { Err(name) }
        })
        .await;
    }
    stop.cancel();
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn the_drain_limit_aborts_remaining_calls() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().drain(Duration::from_millis(300)), 1).await;
    let mut endless = stream(&channel).await.unwrap();
    assert_eq!(endless.message().await.unwrap().unwrap(), "a");
    world.deregister(&servers[0]).await;
    soon("the stream breaks", endless.message()).await.unwrap_err();
}

#[tokio::test]
async fn calls_are_in_flight_until_the_response_ends() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 1).await;
    let mut streams = Vec::new();
    for opened in 1..=3 {
        let mut stream = stream(&channel).await.unwrap();
        stream.message().await.unwrap();
        streams.push(stream);
        assert_eq!(channel.instances()[0].in_flight, opened);
    }
    drop(streams);
    assert_eq!(channel.instances()[0].in_flight, 0);
    // A call that is dropped while it waits is no longer counted as in flight.
    assert!(tokio::time::timeout(Duration::from_millis(50), say(&channel, "sleep 60000".to_owned())).await.is_err());
    assert_eq!(channel.instances()[0].in_flight, 0);
}

#[tokio::test]
async fn a_reregistered_instance_keeps_its_connection() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 1).await;
    world.deregister(&servers[0]).await;
    until(&channel, "a", InstanceState::Leaving).await;
    // Registered with another id: the address identifies the connection.
    let again = Instance::new(id("a-2"), servers[0].instance().endpoints().to_vec()).unwrap();
    world.register(&servers[0], again).await;
    until(&channel, "a-2", InstanceState::Ready).await;
    assert_eq!(say(&channel, String::new()).await.unwrap(), "a");
    assert_eq!(servers[0].dials(), 1);
}

#[tokio::test]
async fn a_hash_key_stays_on_its_instance() {
    let servers = [Server::start("a").await, Server::start("b").await, Server::start("c").await];
    let world = World::of(&servers).await;
    let by_header = BalancePolicy::ConsistentHash(Some("x-user".parse().unwrap()));
    let channel = world.channel(Channel::builder().balance(by_header), 3).await;
    until_called(&channel, &["a", "b", "c"]).await;
    let by_header = |user: usize| {
        let mut request = Request::new(String::new());
        request.metadata_mut().insert("x-user", user.to_string().parse().unwrap());
        say(&channel, request)
    };
    let by_extension = |user: usize| {
        let mut request = Request::new(String::new());
        request.extensions_mut().insert(HashKey(user.to_string().into()));
        say(&channel, request)
    };
    let mut instances = std::collections::BTreeSet::new();
    for user in 0..40 {
        let instance = by_header(user).await.unwrap();
        assert_eq!(by_header(user).await.unwrap(), instance);
        assert_eq!(by_extension(user).await.unwrap(), instance);
        instances.insert(instance);
    }
    assert_eq!(instances.len(), 3);
}

#[tokio::test]
async fn filtered_instances_are_not_connected_to() {
    let servers = [Server::start("old").await, Server::start("new").await];
    let world = World::new();
    for (server, version) in servers.iter().zip(["1", "2"]) {
        world.register(server, server.instance().with_version(version)).await;
    }
    let channel = world.channel(Channel::builder().filter(Filter::new().version("2")), 1).await;
    assert_eq!(shares(&channel, 20).await["new"], 20);
    assert_eq!(servers[0].dials(), 0);
}

/// Ten thousand instances with one address each, all of them served by one server.
#[tokio::test]
async fn a_subset_connects_to_its_members_only() {
    let server = Server::start("many").await;
    let port = server.address().port();
    let world = World::new();
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", 0)).await.unwrap();
    let everywhere = listener.local_addr().unwrap().port();
    // Connections to any address of the loopback network are forwarded to the one server.
    let tasks = enlist::TaskOwner::new();
    let accepted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    let stop = tasks.stop_signal();
    let forward = async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            connections.spawn(async move {
                let mut to = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    };
    tasks.spawn("forward", async move { _ = stop.run_until_cancelled(forward).await }).unwrap();
    for n in 0..10_000_u32 {
        let [_, _, high, low] = n.to_be_bytes();
        let endpoint = Endpoint::parse(format!("127.1.{high}.{low}:{everywhere}")).unwrap();
        let instance = Instance::new(id(&format!("i{n}")), [endpoint]).unwrap();
        world.servers.publish(&world.service, instance).await.unwrap();
    }
    let channel = world.channel(Channel::builder().filter(Filter::new().subset(20, "client")), 20).await;
    assert_eq!(shares(&channel, 200).await["many"], 200);
    assert_eq!((channel.instances().len(), accepted.load(std::sync::atomic::Ordering::SeqCst)), (20, 20));
}

#[tokio::test]
async fn a_unix_socket_is_an_endpoint() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    let socket = tokio::net::UnixListener::bind(&path).unwrap();
    let server = Server::start("inner").await;
    let (tasks, address) = (enlist::TaskOwner::new(), server.address());
    let stop = tasks.stop_signal();
    let forward = async move {
        let (mut from, _) = socket.accept().await.unwrap();
        let mut to = tokio::net::TcpStream::connect(address).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
    };
    tasks.spawn("forward", async move { _ = stop.run_until_cancelled(forward).await }).unwrap();
    let world = World::new();
    let endpoint = Endpoint::unix(path.to_str().unwrap()).unwrap();
    let instance = Instance::new(id("socket"), [endpoint]).unwrap();
    let _registration = world.servers.register(&world.service, instance, RegisterOptions::new()).await.unwrap();
    let channel = world.channel(Channel::builder().allow_unix(), 1).await;
    assert_eq!(say(&channel, String::new()).await.unwrap(), "inner");
}

#[tokio::test]
async fn settings_are_made_for_each_instance() {
    let servers = [Server::start("good").await, Server::start("bad").await];
    let world = World::of(&servers).await;
    let builder = Channel::builder().settings(|instance, settings| {
        if instance.id().as_str() == "bad" {
            return Err("not this one".into());
        }
        Ok(settings.user_agent("tests")?)
    });
    let channel = world.channel(builder, 1).await;
    let agent = say(&channel, "header user-agent".to_owned()).await.unwrap();
    assert!(agent.starts_with("tests "), "{agent}");
    until(&channel, "bad", InstanceState::Failing).await;
    let bad = channel.instances().into_iter().find(|one| one.id == id("bad")).unwrap();
    assert_eq!(bad.last_failure.as_deref(), Some("not this one"));
}

/// Adds a token, and refuses one method.
struct Guard;

#[async_trait]
impl Intercept for Guard {
    async fn before(&self, call: CallHead<'_>) -> Result<(), Status> {
        if call.path.starts_with("/grpc.health") {
            return Err(Status::permission_denied("not for you"));
        }
        call.headers.insert("authorization", http::HeaderValue::from_static("Bearer token"));
        Ok(())
    }
}

#[tokio::test]
async fn the_last_instance_takes_no_call_after_removal() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 1).await;
    let registration = world.registration(&servers[0]);
    let drained = registration.update(|update| _ = update.health(Health::Draining));
    soon("stored", drained).await.unwrap();
    // Immediately after the removal is known, which is before the next picker state exists.
    while channel.instances().iter().any(|one| one.state != InstanceState::Leaving) {
        tokio::task::yield_now().await;
    }
    let status = say(&channel, String::new()).await.unwrap_err();
    assert_eq!((status.code(), servers[0].calls()), (Code::Unavailable, 0), "{status}");
}

#[tokio::test]
async fn an_interceptor_adds_credentials_or_refuses() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().intercept(Arc::new(Guard)).allow_plaintext(), 1).await;
    assert_eq!(say(&channel, "header authorization".to_owned()).await.unwrap(), "Bearer token");
    let refused = HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_closed_channel_refuses_calls() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 1).await;
    let slow = begun(say(&channel, "sleep 300".to_owned()));
    eventually("the call is under way", || async { if servers[0].calls() == 1 { Ok(()) } else { Err(()) } }).await;
    soon("closed", channel.close(Duration::from_secs(5))).await.unwrap();
    let refused = say(&channel, String::new()).await.unwrap_err();
    assert!(refused.code() == Code::Unavailable && refused.message().contains("closed"), "{refused}");
    assert_eq!(soon("a response", slow).await.unwrap(), "a");
}

#[tokio::test]
async fn a_channel_outside_a_runtime_is_refused() {
    let view = World::new().view();
    std::thread::spawn(move || assert!(Channel::new(&view).is_err())).join().unwrap();
}

#[tokio::test]
async fn nothing_is_left_of_a_thousand_channels() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::of(&servers).await;
    let view = world.view();
    view.ready().await.unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let round = |builder: enlist_grpc::ChannelBuilder| async {
        let channel = builder.build(&view).unwrap();
        channel.ready(LIMIT).await.unwrap();
        shares(&channel, 2).await;
    };
    // The servers' tasks end shortly after a connection does.
    round(Channel::builder().health_check("")).await;
    let closed = || async {
        let open: usize = servers.iter().map(Server::open).sum();
        if open == 0 { Ok(()) } else { Err(open) }
    };
    eventually("the connections are closed", closed).await;
    let before = tasks();
    for n in 0..1000 {
        round(if n % 10 == 0 { Channel::builder().health_check("") } else { Channel::builder() }).await;
    }
    eventually("the connections are closed", closed).await;
    eventually("the tasks have ended", || async {
        let now = tasks();
        if now <= before { Ok(()) } else { Err((before, now)) }
    })
    .await;
}

#[tokio::test]
async fn no_retry_budget_panics() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    for (window, per_second, share) in
        [(Duration::ZERO, u32::MAX, 0.2), (Duration::MAX, 0, f32::NAN), (LIMIT, u32::MAX, f32::INFINITY)]
    {
        let builder = Channel::builder().retry_budget(window, per_second, share);
        let channel = world.channel(builder, 1).await;
        assert_eq!(say(&channel, String::new()).await.unwrap(), "a");
    }
}
