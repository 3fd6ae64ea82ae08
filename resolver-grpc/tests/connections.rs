//! The connections of a channel: their number, their monitoring, and the conditions for giving them up.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{BackoffPolicy, Moment, Registry, TaskOwner};
use enlist_grpc::{Channel, InstanceState, WaitForReady};
use enlist_testkit::{Direction, Mode, eventually, soon};
use support::{SETTINGS, Server, World, addresses, begun, hold, id, listen, say, stream, swallow, until, until_ready};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Streaming};

/// Long enough for a connection to be given up by a wrong decision.
const WRONGLY_CUT: Duration = Duration::from_secs(3);

/// Opens concurrent streams, and waits until each has a response.
async fn streams(channel: &Channel, count: usize) -> Vec<Streaming<String>> {
    let open = || async {
        let mut stream = stream(channel).await.unwrap();
        assert!(stream.message().await.unwrap().is_some());
        stream
    };
    soon("all streams have a response", futures::future::join_all((0..count).map(|_| open()))).await
}

/// Returns `true` if one of these streams ends within `limit`.
async fn any_ends(streams: &mut [Streaming<String>], limit: Duration) -> bool {
    let ends = streams.iter_mut().map(|stream| Box::pin(stream.message()));
    timeout(limit, futures::future::select_all(ends)).await.is_ok()
}

#[tokio::test]
async fn a_full_connection_is_not_given_up() {
    let servers = [Server::limited("a", 4).await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().silence(Duration::from_millis(300)), 1).await;
    let mut idle = streams(&channel, 4).await;
    assert!(!any_ends(&mut idle, WRONGLY_CUT).await, "an idle stream was cut");
    assert_eq!(channel.instances()[0].in_flight, 4);
}

#[tokio::test]
async fn a_concurrency_limit_keeps_the_connection() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let builder = Channel::builder()
        .silence(Duration::from_millis(300))
        .settings(|_, settings| Ok(settings.concurrency_limit(1)));
    let channel = world.channel(builder, 1).await;
    // tonic counts a call until its headers arrive.
    let slow = begun(say(&channel, "sleep 3000".to_owned()));
    assert_eq!(soon("a response", slow).await.unwrap(), "a");
}

#[tokio::test]
async fn an_unread_upload_keeps_the_connection() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().silence(Duration::from_millis(300)), 1).await;
    let mut idle = streams(&channel, 1).await;
    // More than the window of the whole connection: 1 MiB.
    let uploading = channel.clone();
    let _upload = begun(async move { hold(&uploading, 64).await });
    assert!(!any_ends(&mut idle, WRONGLY_CUT).await, "an idle stream was cut");
    assert_eq!(channel.instances()[0].in_flight, 2);
}

#[tokio::test]
async fn a_silent_connection_with_room_is_given_up() {
    let servers = [Server::limited("a", 4).await];
    let world = World::of(&servers).await;
    let builder = Channel::builder().silence(Duration::from_millis(300)).probe_timeout(Duration::from_millis(200));
    let channel = world.channel(builder, 1).await;
    let mut idle = streams(&channel, 3).await;
    servers[0].proxy.set(Mode::BlackHole(Direction::Both));
    for stream in &mut idle {
        soon("the stream breaks", stream.message()).await.unwrap_err();
    }
}

#[tokio::test]
async fn excess_streams_open_further_connections() {
    let servers = [Server::limited("a", 4).await, Server::limited("b", 4).await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 2).await;
    let open = streams(&channel, 40).await;
    let in_flight: Vec<_> = channel.instances().iter().map(|one| one.in_flight).collect();
    assert_eq!(in_flight.iter().sum::<usize>(), 40);
    assert!(in_flight.iter().all(|count| *count > 8), "{in_flight:?}");
    let connections: Vec<_> = channel.instances().iter().map(|one| one.connections).collect();
    assert!(connections.iter().all(|count| (3..=8).contains(count)), "{connections:?}");
    drop(open);
}

#[tokio::test]
async fn calls_at_the_ceiling_go_elsewhere_or_wait() {
    let servers = [Server::limited("a", 4).await, Server::limited("b", 4).await];
    let world = World::of(&servers).await;
    let builder = Channel::builder().connections(1).queue_limit(2).wait_limit(Duration::from_secs(600));
    let channel = world.channel(builder, 2).await;
    let mut open = streams(&channel, 8).await;
    assert!(channel.instances().iter().all(|one| one.in_flight == 4));
    // Two calls wait, and the third one is refused.
    let calls = (0..3).map(|_| Box::pin(begun(say(&channel, String::new()))));
    let (refused, _, waiting) = soon("a call is refused", futures::future::select_all(calls)).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    for part in ["2 with all streams taken", "too many calls wait"] {
        assert!(refused.message().contains(part), "{refused}");
    }
    open.pop();
    for call in waiting {
        soon("a response", call).await.unwrap();
    }
    assert_eq!(servers.iter().map(Server::dials).collect::<Vec<_>>(), [1, 1]);
    // A call without a free stream fails at the wait limit.
    let builder = Channel::builder().connections(1).wait_limit(Duration::from_millis(300));
    let channel = world.channel(builder, 2).await;
    let _open = streams(&channel, 8).await;
    let status = soon("the call ends", say(&channel, String::new())).await.unwrap_err();
    assert!(status.code() == Code::Unavailable && status.message().contains("all streams taken"), "{status}");
}

#[tokio::test]
async fn a_ready_instance_takes_calls_at_once() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut servers = Vec::new();
    for name in names {
        servers.push(Server::limited(name, 1).await);
    }
    let world = World::of(&servers[..1]).await;
    let channel = world.channel(Channel::builder().connections(1).queue_limit(0), 1).await;
    let mut open = streams(&channel, 1).await;
    for (at, server) in servers.iter().enumerate().skip(1) {
        world.register(server, server.instance()).await;
        until_ready(&channel, at + 1).await;
        // The picker states of calls are built at intervals; this instance is newer.
        open.extend(streams(&channel, 1).await);
    }
    assert!(channel.instances().iter().all(|one| one.in_flight == 1));
}

#[tokio::test]
async fn a_health_stream_may_occupy_the_only_stream() {
    let servers = [Server::limited("a", 1).await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().health_check(""), 1).await;
    assert_eq!(soon("a response over a further connection", say(&channel, String::new())).await.unwrap(), "a");
}

/// SETTINGS frame with the server's maximum number of concurrent streams (RFC 9113, section 6.5.2).
fn max_streams(streams: u8) -> [u8; 15] {
    [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, streams]
}

#[tokio::test]
async fn a_server_without_streams_gets_no_further_connections() {
    let tasks = TaskOwner::new();
    let dials = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&dials);
    let port = listen(&tasks, move |mut connection| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            connection.write_all(&max_streams(0)).await.unwrap();
            swallow(&mut connection).await;
        }
    })
    .await;
    let world = World::new();
    for instance in addresses(1, port) {
        world.servers.publish(&world.service, instance).await.unwrap();
    }
    let channel = world.channel(Channel::builder(), 1).await;
    assert!(timeout(WRONGLY_CUT, say(&channel, String::new())).await.is_err(), "a stream of none");
    assert_eq!(dials.load(Ordering::SeqCst), 1);
}

/// Returns `true` if a client has sent a HEADERS frame after its preface of 24 bytes (RFC 9113, sections 3.4 and 4.1).
fn has_called(received: &[u8]) -> bool {
    let mut rest = received.get(24..).unwrap_or_default();
    while let [high, middle, low, kind, ..] = *rest {
        if kind == 1 {
            return true;
        }
        let payload = usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap();
        rest = rest.get(9 + payload..).unwrap_or_default();
    }
    false
}

#[tokio::test]
async fn waiting_calls_use_a_raised_stream_limit() {
    let tasks = TaskOwner::new();
    let (raised, called) = (CancellationToken::new(), CancellationToken::new());
    let (raise, call) = (raised.clone(), called.clone());
    let port = listen(&tasks, move |mut connection| {
        let (raise, call) = (raise.clone(), call.clone());
        async move {
            connection.write_all(&max_streams(0)).await.unwrap();
            let (mut reader, mut writer) = connection.split();
            let raise = async {
                raise.cancelled().await;
                writer.write_all(&max_streams(1)).await.unwrap();
            };
            let read = async {
                let mut received = Vec::new();
                while reader.read_buf(&mut received).await.is_ok_and(|read| read > 0) {
                    if has_called(&received) {
                        call.cancel();
                    }
                }
            };
            tokio::join!(raise, read);
        }
    })
    .await;
    let world = World::new();
    for instance in addresses(1, port) {
        world.servers.publish(&world.service, instance).await.unwrap();
    }
    let builder = Channel::builder().connections(1).queue_limit(1).wait_limit(Duration::from_secs(600));
    let channel = world.channel(builder, 1).await;
    // Waits until no further picker state is due, which would also wake calls.
    assert!(timeout(Duration::from_millis(300), say(&channel, String::new())).await.is_err(), "a stream of none");
    // One call waits, and the second one is refused.
    let calls = (0..2).map(|_| Box::pin(begun(say(&channel, String::new()))));
    let (refused, _, _waiting) = soon("a call is refused", futures::future::select_all(calls)).await;
    assert!(refused.unwrap_err().message().contains("too many calls wait"));
    raised.cancel();
    soon("the call is sent", called.cancelled()).await;
}

#[tokio::test]
async fn a_lost_further_connection_is_replaced() {
    let servers = [Server::limited("a", 4).await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 1).await;
    let first = streams(&channel, 10).await;
    servers[0].proxy.cut();
    eventually("the connections are broken", || async {
        match servers[0].open() {
            0 => Ok(()),
            open => Err(open),
        }
    })
    .await;
    servers[0].proxy.heal();
    drop(first);
    until_ready(&channel, 1).await;
    assert_eq!(streams(&channel, 10).await.len(), 10);
}

#[tokio::test]
async fn further_connections_serve_without_the_first() {
    let (server, tasks, broken) = (Server::limited("a", 4).await, TaskOwner::new(), CancellationToken::new());
    let (target, breaking, made) = (server.address(), broken.clone(), AtomicUsize::new(0));
    let port = listen(&tasks, move |mut client| {
        let (number, breaks) = (made.fetch_add(1, Ordering::SeqCst), breaking.clone());
        async move {
            // It accepts two connections.
            if number > 1 {
                return;
            }
            let mut server = TcpStream::connect(target).await.unwrap();
            let relay = copy_bidirectional(&mut client, &mut server);
            if number == 0 {
                _ = breaks.run_until_cancelled(relay).await;
            } else {
                _ = relay.await;
            }
        }
    })
    .await;
    let world = World::new();
    for instance in addresses(1, port) {
        world.servers.publish(&world.service, instance).await.unwrap();
    }
    let channel = world.channel(Channel::builder(), 1).await;
    let _open = streams(&channel, 5).await;
    broken.cancel();
    eventually("the first connection is lost and not replaced", || async {
        let stats = channel.instances().remove(0);
        if stats.connections == 1 && stats.last_failure.is_some() { Ok(()) } else { Err(stats) }
    })
    .await;
    assert_eq!(channel.instances()[0].state, InstanceState::Ready);
    assert_eq!(soon("a response", say(&channel, String::new())).await.unwrap(), "a");
}

#[tokio::test]
async fn a_demoted_connection_is_observed_until_its_end() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let builder = Channel::builder().silence(Duration::from_millis(300)).dial_timeout(Duration::from_secs(2));
    let channel = world.channel(builder, 1).await;
    let mut idle = streams(&channel, 1).await;
    servers[0].go_away();
    eventually("the connection takes no more calls", || async {
        say(&channel, String::new()).await.map_or_else(|_| Ok(()), Err)
    })
    .await;
    // Its server refuses new connections but is healthy.
    assert!(!any_ends(&mut idle, WRONGLY_CUT).await, "an idle stream was cut");
    servers[0].proxy.set(Mode::BlackHole(Direction::Both));
    soon("the stream breaks", idle[0].message()).await.unwrap_err();
}

#[tokio::test]
async fn the_drain_limit_covers_demoted_connections() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().drain(Duration::from_millis(300)), 1).await;
    let mut endless = streams(&channel, 1).await;
    servers[0].go_away();
    eventually("the connection takes no more calls", || async {
        say(&channel, String::new()).await.map_or_else(|_| Ok(()), Err)
    })
    .await;
    world.deregister(&servers[0]).await;
    soon("the stream breaks", endless[0].message()).await.unwrap_err();
}

#[tokio::test]
async fn an_idle_channel_obeys_goaway() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().health_check(""), 1).await;
    // This fails if the server does not end: it waits for the end of the health stream.
    servers[0].stop().await;
    until(&channel, "a", InstanceState::Failing).await;
}

/// Returns the port of a server that ends each connection soon after its first frame.
async fn flapping(tasks: &TaskOwner) -> u16 {
    listen(tasks, |mut connection| async move {
        connection.write_all(&SETTINGS).await.unwrap();
        _ = timeout(Duration::from_millis(500), swallow(&mut connection)).await;
    })
    .await
}

#[tokio::test]
async fn short_lived_connections_delay_no_call() {
    let tasks = TaskOwner::new();
    let port = flapping(&tasks).await;
    let world = World::new();
    for instance in addresses(1, port) {
        world.servers.publish(&world.service, instance).await.unwrap();
    }
    let rarely = BackoffPolicy::new(Duration::from_secs(600), Duration::from_secs(600)).unwrap();
    // Far above the limit of `soon`: a call that waits for the backoff fails the test.
    let wait = Duration::from_secs(600);
    let channel = Channel::builder().redial(rarely).wait_limit(wait).build(&world.view()).unwrap();
    until(&channel, "i0", InstanceState::Failing).await;
    for _ in 0..10 {
        let refused = soon("the call fails at once", say(&channel, String::new())).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert!(refused.message().contains("the connection ended after"), "{refused:?}");
        let refused = soon("the stream fails at once", stream(&channel)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    }
    assert_eq!(channel.instances()[0].in_flight, 0);
    // A call that waits for readiness waits.
    let mut waiting = Request::new(String::new());
    waiting.extensions_mut().insert(WaitForReady(true));
    waiting.set_timeout(Duration::from_millis(300));
    let waited = soon("its deadline", say(&channel, waiting)).await.unwrap_err();
    assert_eq!(waited.code(), Code::DeadlineExceeded, "{waited:?}");
    // Calls then go to a connected instance, although it is not ready.
    let server = Server::start("ill").await;
    server.health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    world.register(&server, server.instance()).await;
    let builder = Channel::builder().redial(rarely).wait_limit(wait).health_check("");
    let channel = builder.build(&world.view()).unwrap();
    until(&channel, "ill", InstanceState::Unhealthy).await;
    until(&channel, "i0", InstanceState::Failing).await;
    for _ in 0..10 {
        assert_eq!(soon("a response", say(&channel, String::new())).await.unwrap(), "ill");
    }
    assert_eq!(server.calls(), 10);
}

#[tokio::test]
async fn concurrent_dials_are_limited() {
    let tasks = TaskOwner::new();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let port = listen(&tasks, move |mut connection| {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            connection.write_all(&SETTINGS).await.unwrap();
            swallow(&mut connection).await;
        }
    })
    .await;
    let world = World::new();
    for instance in addresses(300, port) {
        world.servers.publish(&world.service, instance).await.unwrap();
    }
    let channel = Channel::builder().build(&world.view()).unwrap();
    until_ready(&channel, 300).await;
    let most = seen.load(Ordering::SeqCst);
    assert!((2..=64).contains(&most), "{most} at a time");
}

/// Returns the timers of this host's IPv4 connections to `port`: 2 is that of keepalive (the kernel's
/// `proc_net_tcp.rst`).
#[cfg(target_os = "linux")]
fn timers(port: u16) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let columns = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_port = columns.filter(|line| line[2].ends_with(&format!(":{port:04X}")) && line[3] == "01");
    of_port.map(|line| line[5].to_owned()).collect()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_idle_connection_is_kept_alive() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 1).await;
    say(&channel, String::new()).await.unwrap();
    // In hundredths of a second.
    eventually("the kernel is about to ask", || async {
        let timers = timers(servers[0].address().port());
        let due = |timer: &String| {
            let due = timer.strip_prefix("02:").and_then(|due| u64::from_str_radix(due, 16).ok());
            due.is_some_and(|due| (1..=3100).contains(&due))
        };
        if timers.len() == 1 && timers.iter().all(due) { Ok(()) } else { Err(timers) }
    })
    .await;
}

#[tokio::test]
async fn an_idle_channel_closes_connections_until_a_call() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().idle_timeout(Some(Duration::from_millis(200))), 1).await;
    // A call in flight counts as use.
    let mut long = streams(&channel, 1).await;
    assert!(!any_ends(&mut long, Duration::from_secs(1)).await);
    assert_eq!((servers[0].dials(), channel.instances()[0].state), (1, InstanceState::Ready));
    drop(long);
    for dials in 1..=2 {
        until(&channel, "a", InstanceState::Idle).await;
        eventually("the connection is closed", || async {
            match servers[0].open() {
                0 => Ok(()),
                open => Err(open),
            }
        })
        .await;
        assert_eq!(servers[0].dials(), dials);
        assert_eq!(soon("a response", say(&channel, String::new())).await.unwrap(), "a");
    }
    // A call to `ready` counts as use, too.
    until(&channel, "a", InstanceState::Idle).await;
    channel.ready(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn a_waiting_call_counts_as_use() {
    let (server, tasks) = (Server::start("a").await, TaskOwner::new());
    let target = server.address();
    let port = listen(&tasks, move |mut client| async move {
        tokio::time::sleep(Duration::from_millis(800)).await;
        let mut server = TcpStream::connect(target).await.unwrap();
        _ = copy_bidirectional(&mut client, &mut server).await;
    })
    .await;
    let world = World::new();
    for instance in addresses(1, port) {
        world.servers.publish(&world.service, instance).await.unwrap();
    }
    let channel = Channel::builder().idle_timeout(Some(Duration::from_millis(200))).build(&world.view()).unwrap();
    until(&channel, "i0", InstanceState::Idle).await;
    assert_eq!(soon("a response", say(&channel, String::new())).await.unwrap(), "a");
}

/// Returns the duration of the load: three seconds, or `ENLIST_SATURATION_SECONDS`.
fn load_time() -> Duration {
    let seconds = std::env::var("ENLIST_SATURATION_SECONDS").map_or(3, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

#[tokio::test]
async fn an_instance_with_few_streams_fails_no_call() {
    let servers = [Server::limited("few", 2).await, Server::start("b").await, Server::start("c").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().silence(Duration::from_millis(300)), 3).await;
    let (begun, time) = (Moment::now(), load_time());
    let mut long = streams(&channel, 64).await;
    let caller = || async {
        let mut calls = 0;
        while begun.elapsed() < time {
            say(&channel, "sleep 2".to_owned()).await.unwrap();
            calls += 1;
            let few = channel.instances().into_iter().find(|one| one.id == id("few")).unwrap();
            // No call is assigned to a connection without a free stream.
            assert!(few.connections <= 8 && few.in_flight <= 2 * few.connections, "{few:?}");
        }
        calls
    };
    let callers = futures::future::join_all((0..16).map(|_| caller()));
    let (calls, ended) = tokio::join!(callers, any_ends(&mut long, time));
    assert!(!ended, "a long stream was cut");
    println!("{time:?}: 64 long streams, {} calls beside them, {:?}", calls.iter().sum::<usize>(), channel.instances());
    assert!(servers.iter().all(|server| server.calls() > 0));
}
