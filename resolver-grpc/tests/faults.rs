//! A channel with failing instances: they refuse, drop packets, break connections, respond with errors, or are
//! unhealthy.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

use enlist::{Directory, DirectoryOptions, Ejection, Moment, RegisterOptions, Registry as _};
use enlist_grpc::{Channel, InstanceState, RetryPolicy, balance_channel};
use enlist_memory::MemoryClient;
use enlist_testkit::{Direction, Mode, eventually, soon};
use support::{
    Server, World, begun, calls_side_by_side, id, say, say_within, shares, stream, until, until_called, until_ready,
};
use tonic::{Code, Request, Status};

async fn three() -> [Server; 3] {
    [Server::start("a").await, Server::start("b").await, Server::start("c").await]
}

/// Returns the number of failed calls of `tonic`'s own balanced channel, over the same instances.
async fn failed_by_tonic(world: &World, callers: usize, calls: usize) -> usize {
    let view = world.view();
    view.ready().await.unwrap();
    let balanced = balance_channel(&view).unwrap();
    let channel = balanced.channel();
    calls_side_by_side(callers, calls, || say(&channel, String::new())).await.len()
}

#[tokio::test]
async fn a_dead_instance_costs_at_most_one_call() {
    let servers = three().await;
    let world = World::of(&servers).await;
    servers[0].kill();
    for callers in [1, 20] {
        let channel = world.channel(Channel::builder(), 2).await;
        let failed = calls_side_by_side(callers, 2000, || say(&channel, String::new())).await;
        assert!(failed.len() <= 1, "{callers} callers: {failed:?}");
    }
    let failed = failed_by_tonic(&world, 1, 2000).await;
    println!("one of three dead, 2,000 calls: tonic's own balanced channel fails {failed}");
    assert!(failed >= 100, "the control failed only {failed}");
}

#[tokio::test]
async fn a_dying_instance_fails_only_calls_in_flight() {
    let servers = three().await;
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 3).await;
    let idempotent = world.channel(Channel::builder().retry("", RetryPolicy::new()), 3).await;
    for channel in [&channel, &idempotent] {
        until_called(channel, &["a", "b", "c"]).await;
    }
    let before = servers[0].calls();
    let callers = 20;
    let load = calls_side_by_side(callers, 2000, || say(&channel, "sleep 2".to_owned()));
    let repeated = calls_side_by_side(callers, 2000, || say(&idempotent, "sleep 2".to_owned()));
    let kill = async {
        let are_under_way = || servers[0].calls() > before + 50;
        eventually("calls are under way", || async { if are_under_way() { Ok(()) } else { Err(()) } }).await;
        let in_flight = channel.instances().iter().find(|one| one.id == id("a")).unwrap().in_flight;
        servers[0].kill();
        in_flight
    };
    let (failed, repeated, in_flight) = soon("all calls", async { tokio::join!(load, repeated, kill) }).await;
    // Each caller may have started one more call between the count and the kill.
    assert!(failed.len() <= callers, "{in_flight} in flight, {} failed: {failed:?}", failed.len());
    assert!(failed.iter().all(|status| status.code() == Code::Unavailable), "{failed:?}");
    assert!(repeated.is_empty(), "{repeated:?}");
}

#[tokio::test]
async fn a_silent_instance_costs_one_call_per_caller() {
    // Calls to the others do not take as long, also on a busy machine.
    let limit = Duration::from_secs(2);
    for from_the_start in [false, true] {
        let servers = three().await;
        let world = World::of(&servers).await;
        let black_hole = || servers[0].proxy.set(Mode::BlackHole(Direction::Both));
        let channel = if from_the_start {
            black_hole();
            world.channel(Channel::builder(), 2).await
        } else {
            let channel = world.channel(Channel::builder(), 3).await;
            shares(&channel, 30).await;
            black_hole();
            channel
        };
        let callers = 20;
        let failed = calls_side_by_side(callers, 4000, || say_within(&channel, "", limit)).await;
        println!("one black hole, from the start: {from_the_start}, {callers} callers: {} failed", failed.len());
        assert!(failed.len() <= callers, "{}: {failed:?}", failed.len());
        // The first call that ends without a response causes a probe. It can end the connection under a call that began
        // later, on a busy machine.
        let is_of_silence = |status: &Status| match status.code() {
            Code::Unavailable => status.message().contains("was lost during the call"),
            code => code == Code::DeadlineExceeded,
        };
        assert!(failed.iter().all(is_of_silence), "{failed:?}");
        servers[0].proxy.heal();
        until_ready(&channel, 3).await;
    }
}

#[tokio::test]
async fn a_silent_instance_fails_calls_without_deadline() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().silence(Duration::from_millis(300)), 2).await;
    until_called(&channel, &["a", "b"]).await;
    // An idle stream does not count against an instance.
    let mut idle = Vec::new();
    for _ in 0..8 {
        let mut stream = stream(&channel).await.unwrap();
        stream.message().await.unwrap();
        idle.push(stream);
    }
    let stuck = calls_side_by_side(8, 8, || say(&channel, "sleep 1500".to_owned())).await;
    assert_eq!(stuck.len(), 0, "{stuck:?}");

    servers[0].proxy.set(Mode::BlackHole(Direction::Both));
    let calls = soon("all calls end", calls_side_by_side(8, 8, || say(&channel, String::new()))).await;
    assert!(calls.iter().all(|status| status.code() == Code::Unavailable), "{calls:?}");
    until(&channel, "a", InstanceState::Failing).await;
    assert_eq!(shares(&channel, 20).await["b"], 20);
    // The streams of the silent instance were broken off, the others continue.
    let mut broken = 0;
    for stream in &mut idle {
        broken += usize::from(tokio::time::timeout(Duration::from_millis(50), stream.message()).await.is_ok());
    }
    assert!((1..8).contains(&broken), "{broken}");
}

#[tokio::test]
async fn a_slow_instance_gets_fewer_calls() {
    let servers =
        [Server::slow("slow", Duration::from_secs(5)).await, Server::start("b").await, Server::start("c").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 3).await;
    let failed = calls_side_by_side(60, 900, || say(&channel, String::new())).await;
    assert!(failed.is_empty(), "{failed:?}");
    let calls = servers.each_ref().map(Server::calls);
    assert!(calls[0] < 150, "a third would be 300: {calls:?}");
}

/// The instances are deregistered, killed, or both without notice from the store: the error is immediate and states the
/// known facts.
#[tokio::test]
async fn calls_without_any_instance_fail_at_once() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 2).await;
    servers.iter().for_each(Server::kill);
    eventually("both are found to be gone", || async {
        match say(&channel, String::new()).await {
            Err(status) if status.message().contains("2 listed, 0 ready, 0 held") => Ok(()),
            other => Err(other),
        }
    })
    .await;
    // The fastest of several calls, because the machine may be busy.
    let fails_at_once = || async {
        let mut quickest = None;
        for _ in 0..10 {
            let start = Moment::now();
            let status = say(&channel, String::new()).await.unwrap_err();
            let took = start.elapsed();
            if quickest.as_ref().is_none_or(|(_, quickest)| took < *quickest) {
                quickest = Some((status, took));
            }
        }
        quickest.unwrap()
    };
    let (status, took) = fails_at_once().await;
    assert!(status.code() == Code::Unavailable && took < Duration::from_millis(50), "{took:?}: {status}");
    assert!(status.message().contains("refused") || status.message().contains("reset"), "{status}");
    // Their leases end too: the view holds the instances for a while, and the message states this.
    let registrations: Vec<_> = servers.iter().map(|server| world.registration(server)).collect();
    for lease in registrations.iter().filter_map(enlist::Registration::lease).collect::<BTreeSet<_>>() {
        assert!(world.store.revoke(lease));
    }
    drop(registrations);
    eventually("they are held", || async {
        let (status, took) = fails_at_once().await;
        if status.message().contains("2 held") && took < Duration::from_millis(50) { Ok(()) } else { Err(status) }
    })
    .await;
}

#[tokio::test]
async fn calls_continue_without_the_store() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 2).await;
    world.client.cut();
    let view = world.view();
    eventually("the view is stale", || async {
        if view.freshness().is_some_and(|freshness| freshness.is_live()) { Err(()) } else { Ok(()) }
    })
    .await;
    let shares = shares(&channel, 200).await;
    assert!(shares.values().all(|share| *share > 50), "{shares:?}");
    servers[0].kill();
    until(&channel, "a", InstanceState::Failing).await;
    servers[0].proxy.heal();
    until_ready(&channel, 2).await;
}

#[tokio::test]
async fn a_view_beyond_its_age_is_not_called() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let options = DirectoryOptions::new().max_age(Duration::from_secs(3));
    let directory = Directory::with_options(std::sync::Arc::new(world.client.clone()), options);
    let channel = Channel::new(&directory.view(&world.service)).unwrap();
    until_ready(&channel, 1).await;
    say(&channel, String::new()).await.unwrap();
    world.client.cut();
    let too_old = || async {
        match say(&channel, String::new()).await {
            Err(status) if status.message().contains("too long ago") => Ok(()),
            other => Err(other),
        }
    };
    eventually("it is too old", too_old).await;
    world.client.heal();
    eventually("it is called again", || say(&channel, String::new())).await;
}

/// Ends the connections to a server and allows new ones.
async fn break_connections(server: &Server) {
    server.proxy.cut();
    eventually("the connections are broken", || async {
        match server.open() {
            0 => Ok(()),
            open => Err(open),
        }
    })
    .await;
    server.proxy.heal();
}

#[tokio::test]
async fn waiting_calls_survive_an_instance_restart() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().wait_for_ready(), 1).await;
    for restart in 1..=5 {
        break_connections(&servers[0]).await;
        let response = soon("a response", say(&channel, String::new())).await;
        assert_eq!(response.unwrap_or_else(|status| panic!("restart {restart}: {status}")), "a");
    }
}

#[tokio::test]
async fn an_orderly_stop_fails_no_call() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 2).await;
    until_called(&channel, &["a", "b"]).await;
    let before = servers[0].calls();
    let load = calls_side_by_side(10, 1000, || say(&channel, "sleep 2".to_owned()));
    let stop = async {
        let are_under_way = || servers[0].calls() > before + 50;
        eventually("calls are under way", || async { if are_under_way() { Ok(()) } else { Err(()) } }).await;
        // The registry still lists it: clients see only its GOAWAY.
        servers[0].stop().await;
    };
    let (failed, ()) = soon("all calls", async { tokio::join!(load, stop) }).await;
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test]
async fn errors_are_repeated_only_by_policy() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::of(&servers).await;
    let fail_once = || servers.iter().for_each(|server| server.echo.failing.store(1, Ordering::SeqCst));
    let plain = world.channel(Channel::builder(), 2).await;
    fail_once();
    assert_eq!(say(&plain, String::new()).await.unwrap_err().code(), Code::Unavailable);

    let repeating = world.channel(Channel::builder().retry("/test.Echo/", RetryPolicy::new()), 2).await;
    fail_once();
    assert!(say(&repeating, String::new()).await.is_ok());
    // Each attempt carries the number of previous ones.
    fail_once();
    let previous = say(&repeating, "header grpc-previous-rpc-attempts".to_owned()).await.unwrap();
    assert!(["1", "2"].contains(&previous.as_str()), "{previous}");
    let twice = RetryPolicy::new().attempts(2);
    let other_method = world.channel(Channel::builder().retry("/test.Echo/Other", twice), 2).await;
    fail_once();
    assert!(say(&other_method, String::new()).await.is_err());
    // A message above the limit is not kept, so its call cannot be repeated.
    let small = Channel::builder().retry("", RetryPolicy::new()).replay_limit(10);
    let small = world.channel(small, 2).await;
    fail_once();
    assert!(say(&small, "a text of more than ten bytes".to_owned()).await.is_err());
}

#[tokio::test]
async fn retries_end_with_the_budget() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let builder = Channel::builder().ejection(None).retry("", RetryPolicy::new().attempts(5));
    let channel = world.channel(builder.retry_budget(Duration::from_secs(10), 1, 0.0), 1).await;
    servers[0].echo.failing.store(usize::MAX, Ordering::SeqCst);
    for _ in 0..50 {
        say(&channel, String::new()).await.unwrap_err();
    }
    // 50 calls, and one retry per second from a window of ten seconds.
    let calls = servers[0].calls();
    assert!((51..=65).contains(&calls), "{calls}");
}

#[tokio::test]
async fn the_deadline_covers_all_attempts() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().ejection(None).retry("", RetryPolicy::new()), 1).await;
    servers[0].echo.failing.store(1, Ordering::SeqCst);
    let mut request = Request::new("header grpc-timeout".to_owned());
    request.set_timeout(Duration::from_secs(10));
    let timeout = say(&channel, request).await.unwrap();
    let left: u64 = timeout.trim_end_matches('u').parse().unwrap();
    assert!((5_000_000..10_000_000).contains(&left), "{timeout}");
    let start = Moment::now();
    let late = say_within(&channel, "sleep 5000", Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn time_spent_waiting_counts_against_the_deadline() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    servers[0].proxy.set(Mode::BlackHole(Direction::Both));
    let channel = Channel::new(&world.view()).unwrap();
    let start = Moment::now();
    let mut request = Request::new("header grpc-timeout".to_owned());
    request.set_timeout(Duration::from_secs(20));
    let call = begun(say(&channel, request));
    until(&channel, "a", InstanceState::Connecting).await;
    eventually("time has passed", || async {
        if start.elapsed() > Duration::from_millis(500) { Ok(()) } else { Err(()) }
    })
    .await;
    servers[0].proxy.heal();
    let timeout = soon("a response", call).await.unwrap();
    let left: u64 = timeout.trim_end_matches('u').parse().unwrap();
    assert!(left < 19_600_000, "{timeout}");
}

#[tokio::test]
async fn settings_that_panic_fail_the_calls() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let builder = Channel::builder().settings(|_, _| panic!("on purpose"));
    let channel = builder.build(&world.view()).unwrap();
    until(&channel, "a", InstanceState::Failing).await;
    let failed = say(&channel, String::new()).await.unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable);
}

#[tokio::test]
async fn settings_that_panic_once_cost_one_dial() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let first = std::sync::atomic::AtomicBool::new(true);
    let builder = Channel::builder().settings(move |_, settings| {
        assert!(!first.swap(false, Ordering::SeqCst), "on purpose");
        Ok(settings)
    });
    let channel = builder.build(&world.view()).unwrap();
    until_ready(&channel, 1).await;
    assert_eq!(say(&channel, String::new()).await.unwrap(), "a");
}

#[tokio::test]
async fn an_ejected_instance_is_readmitted() {
    let servers = three().await;
    let world = World::of(&servers).await;
    // The ejection lasts at least half of this, long enough to be observed on a slow machine.
    let time = Duration::from_secs(10);
    let ejection = Ejection::new().failures(5).time(time, time).unwrap();
    let channel = world.channel(Channel::builder().ejection(Some(ejection)), 3).await;
    until_called(&channel, &["a", "b", "c"]).await;
    servers[0].echo.failing.store(5, Ordering::SeqCst);
    let failed = calls_side_by_side(1, 60, || say(&channel, String::new())).await;
    assert_eq!(failed.len(), 5);
    until(&channel, "a", InstanceState::Ejected).await;
    let before = servers[0].calls();
    shares(&channel, 30).await;
    assert_eq!(servers[0].calls(), before, "it is ejected");
    until_ready(&channel, 3).await;
    until_called(&channel, &["a", "b", "c"]).await;
}

#[tokio::test]
async fn an_error_of_the_caller_blames_no_instance() {
    let servers = three().await;
    let world = World::of(&servers).await;
    let time = Duration::from_secs(600);
    let ejection = Ejection::new().failures(1).time(time, time).unwrap();
    let channel = world.channel(Channel::builder().ejection(Some(ejection)), 3).await;
    for _ in 0..40 {
        let status = support::say_at_most(&channel, 100, 8).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    }
    let stats = channel.instances();
    assert!(stats.iter().all(|one| one.state == InstanceState::Ready && one.failed == 0), "{stats:?}");
}

#[tokio::test]
async fn a_restarted_instance_is_not_ejected() {
    let servers = three().await;
    let world = World::of(&servers).await;
    let time = Duration::from_secs(300);
    let ejection = Ejection::new().failures(5).time(time, time).unwrap();
    let channel = world.channel(Channel::builder().ejection(Some(ejection)), 3).await;
    until_called(&channel, &["a", "b", "c"]).await;
    servers[0].echo.failing.store(5, Ordering::SeqCst);
    assert_eq!(calls_side_by_side(1, 60, || say(&channel, String::new())).await.len(), 5);
    until(&channel, "a", InstanceState::Ejected).await;
    // Registers at the same address, within the time for which its connection is kept.
    world.deregister(&servers[0]).await;
    world.register(&servers[0], servers[0].instance()).await;
    until_ready(&channel, 3).await;
    until_called(&channel, &["a", "b", "c"]).await;
}

#[tokio::test]
async fn a_successor_by_owner_is_not_ejected() {
    let servers = three().await;
    let world = World::new();
    let register = async |client: &MemoryClient, server: &Server| {
        let options = RegisterOptions::new().owner(server.name);
        soon("registered", client.register(&world.service, server.instance(), options)).await.unwrap()
    };
    let mut registrations = Vec::new();
    for server in &servers {
        registrations.push(register(&world.servers, server).await);
    }
    let time = Duration::from_secs(300);
    let ejection = Ejection::new().failures(5).time(time, time).unwrap();
    let channel = world.channel(Channel::builder().ejection(Some(ejection)), 3).await;
    until_called(&channel, &["a", "b", "c"]).await;
    // The key is taken over while the former registration is alive, by the same and by another process.
    for client in [world.servers.clone(), world.store.client()] {
        servers[0].echo.failing.store(5, Ordering::SeqCst);
        assert_eq!(calls_side_by_side(1, 60, || say(&channel, String::new())).await.len(), 5);
        until(&channel, "a", InstanceState::Ejected).await;
        registrations.push(register(&client, &servers[0]).await);
        until_ready(&channel, 3).await;
        until_called(&channel, &["a", "b", "c"]).await;
    }
}

#[tokio::test]
async fn ejection_is_limited_when_all_fail() {
    let servers = three().await;
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 3).await;
    for server in &servers {
        server.echo.failing.store(usize::MAX, Ordering::SeqCst);
    }
    let failed = calls_side_by_side(1, 100, || say(&channel, String::new())).await;
    assert_eq!(failed.len(), 100);
    let ejected = channel.instances().iter().filter(|one| one.state == InstanceState::Ejected).count();
    assert_eq!(ejected, 1, "a third of three");
}

#[tokio::test]
async fn only_serving_instances_are_called() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().health_check(""), 2).await;
    let set = |server: usize, status| servers[server].health.set_service_status("", status);
    set(0, tonic_health::ServingStatus::NotServing).await;
    until(&channel, "a", InstanceState::Unhealthy).await;
    assert_eq!(shares(&channel, 30).await["b"], 30);
    // No instance serves: calls go to those that are connected.
    set(1, tonic_health::ServingStatus::NotServing).await;
    until(&channel, "b", InstanceState::Unhealthy).await;
    shares(&channel, 10).await;
    set(0, tonic_health::ServingStatus::Serving).await;
    until(&channel, "a", InstanceState::Ready).await;
    assert_eq!(shares(&channel, 30).await["a"], 30);
    // A service that is unknown to the health service is not served.
    let unknown = Channel::builder().health_check("nobody.knows").build(&world.view()).unwrap();
    until(&unknown, "a", InstanceState::Unhealthy).await;
}

#[tokio::test]
async fn a_dropped_call_blames_no_live_instance() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 1).await;
    for _ in 0..20 {
        let dropped = tokio::time::timeout(Duration::from_millis(5), say(&channel, "sleep 60000".to_owned()));
        assert!(dropped.await.is_err());
        assert!(say(&channel, String::new()).await.is_ok());
    }
    assert_eq!(servers[0].dials(), 1);
    until_ready(&channel, 1).await;
}

#[tokio::test]
async fn sent_calls_are_repeated_only_by_policy() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder(), 1).await;
    let call = begun(say(&channel, "sleep 60000".to_owned()));
    eventually("the call is under way", || async { if servers[0].calls() == 1 { Ok(()) } else { Err(()) } }).await;
    break_connections(&servers[0]).await;
    let failed: Status = soon("the call fails", call).await.unwrap_err();
    assert!(failed.code() == Code::Unavailable && failed.message().contains("lost during the call"), "{failed}");
    until_ready(&channel, 1).await;
    assert_eq!(servers[0].calls(), 1);
}
