//! Scenarios that each client has to withstand, by the name of the guarantee.

use std::{net::SocketAddr, time::Duration};

use enlist_agent::DEFAULT_XDS_SETTLE;
use enlist_testkit::free_port;
use tokio::{net::TcpSocket, time::Instant};

use crate::{
    caller::Caller,
    checks::{NONE, all_fail, fails_at_once, fails_no_call, goes_on, leave, shares, stays, texts, withstands},
    relay::Relay,
    server::Running,
    shown::{self, ShownClient},
    support::AdsClient,
    world::{Crowded, Failure, Offer, Settings, World},
};

/// Identity of all clients in their requests.
pub(crate) const NODE: &str = "caller-1";

/// Zone of all clients.
pub(crate) const ZONE: &str = "eu-1a";

/// Minimum number of calls per second, of the 500 that a client makes where it can.
const RATE: f64 = 450.0;

/// Time for which a server is draining that has a call, or leaves while the client has no agent, where the layout knows
/// that.
const DRAIN: Duration = Duration::from_secs(3);

/// A client library.
pub(crate) trait Client {
    /// Beginning of the name with which the client introduces itself.
    const USER_AGENT: &'static str;

    /// Beginning of the failure of calls for which there is no instance.
    const UNAVAILABLE: &'static str = "UNAVAILABLE";

    /// Calls the last server after an assignment without instances, for as long as their connection lasts.
    const KEEPS_LAST_SERVER: bool = false;

    /// Calls instances to which it cannot connect.
    const CALLS_DEAD_INSTANCES: bool = false;

    /// Beginnings of the failures of calls without an agent.
    const WITHOUT_AGENT: &'static [&'static str] = &["UNAVAILABLE", "DEADLINE_EXCEEDED"];

    /// Maximum milliseconds of the first call, with the start of the library. Unanswered requests take 15,000, and the
    /// deadline of a call is 5,000.
    const FIRST_CALL_MS: u64 = 4_500;

    /// Settings of the agent that it needs.
    fn settings(&self) -> Settings {
        Settings::default()
    }

    /// Starts calls of a service, as [`NODE`] in [`ZONE`], with the agent at an address.
    async fn start(&self, agent: SocketAddr, service: &str) -> Caller;
}

/// A client that shows its clusters.
pub(crate) trait ShowsClusters: Client {
    /// Waits until it uses clusters with this time for connections, and none waits for an assignment.
    async fn has_changed_clusters(&self, connect_timeout: Duration);
}

/// Makes tests of the scenarios for a client: those of [`tests_over`] and `also` over each layout, `weights` over those
/// with weights, and `zones` over those with zones.
macro_rules! tests {
    ($client:expr, also: [$($also:ident),*], weights: [$($weights:ident),*], zones: [$($zones:ident),*]) => {
        mod over_memory {
            crate::scenarios::tests_over!(crate::over_memory::Memory, $client, $($also,)* $($weights,)* $($zones,)*);
        }
        mod over_etcd {
            type Over = crate::over_etcd::OverEtcd<crate::over_etcd::Native>;
            crate::scenarios::tests_over!(Over, $client, $($also,)* $($weights,)* $($zones,)*);
        }
        mod over_kitex {
            type Over = crate::over_etcd::OverEtcd<crate::over_etcd::Kitex>;
            crate::scenarios::tests_over!(Over, $client, $($also,)* $($weights,)*);
        }
        mod over_kitex_by_default {
            type Over = crate::over_etcd::OverEtcd<crate::over_etcd::KitexByDefault>;
            crate::scenarios::tests_of!(read, Over, $client, late_registrations_after_a_loss_fail_no_call,);
        }
        mod over_go_zero {
            type Over = crate::over_etcd::OverEtcd<crate::over_etcd::GoZero>;
            crate::scenarios::tests_over!(Over, $client, $($also,)*);
        }
    };
}
pub(crate) use tests;

/// Makes tests in one world, of the scenarios for all clients and of those named.
macro_rules! tests_over {
    ($world:ty, $client:expr, $($also:ident,)*) => {
        crate::scenarios::tests_of!(write, $world, $client, restarts_of_servers_and_agent_fail_no_call,);
        crate::scenarios::tests_of! {
            read,
            $world,
            $client,
            calls_follow_the_instances_without_a_failure,
            a_server_that_leaves_finishes_its_calls,
            calls_work_again_once_an_empty_service_has_an_instance,
            an_outage_of_the_store_fails_no_call,
            a_killed_agent_fails_no_call,
            an_agent_that_starts_over_an_empty_store_fails_no_call,
            a_rejected_assignment_is_shown_and_harmless,
            $($also,)*
        }
    };
}
pub(crate) use tests_over;

/// Makes a test of each scenario. `$share`: `read`, or `write` for those beside which no heavy one runs.
macro_rules! tests_of {
    ($share:ident, $world:ty, $client:expr, $($name:ident,)+) => {$(
        #[tokio::test]
        #[ignore = "needs the client's library: cargo xtask clients"]
        async fn $name() {
            let _machine = crate::MACHINE.$share().await;
            crate::scenarios::$name::<_, $world>(&$client).await;
        }
    )+};
}
pub(crate) use tests_of;

pub(crate) async fn calls_follow_the_instances_without_a_failure<C: Client, W: World>(client: &C) {
    let mut world = W::new(client.settings()).await;
    world.start_agent().await;
    let one = Running::start(&world, "greeter-1").await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE, "the first call works");
    let _two = Running::start(&world, "greeter-2").await;
    assert_eq!(caller.reaches(&["greeter-1", "greeter-2"]).await, NONE);
    withstands(&mut world, &mut caller, &["greeter-1", "greeter-2"]).await;
    assert_eq!(one.leave(&world, &mut caller).await, NONE);
    assert_eq!(caller.reaches(&["greeter-2"]).await, NONE);
    let found = ShownClient::only(&world, |client| client.node == NODE).await;
    assert!(found.rejected == 0 && found.user_agent.starts_with(C::USER_AGENT), "{found:?}");
}

pub(crate) async fn a_server_that_leaves_finishes_its_calls<C: Client, W: World>(client: &C) {
    let mut world = W::new(client.settings()).await;
    world.start_agent().await;
    let _two = Running::start(&world, "greeter-2").await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["greeter-2"]).await, NONE);
    withstands(&mut world, &mut caller, &["greeter-2"]).await;
    let one = Running::with(&world, "greeter-1", |offer| offer.drain = DRAIN).await;
    assert_eq!(caller.reaches(&["greeter-1", "greeter-2"]).await, NONE);
    let hold = one.hold_a_call().await;
    let avoided = async {
        assert_eq!(caller.reaches(&["greeter-2"]).await, NONE, "new calls avoid it");
        hold.end();
        assert_eq!(caller.meets("greeter-1").await, [("greeter-1".to_owned(), 1)], "the call that it held ends");
        Instant::now()
    };
    let removed = async { (one.deregister(&world).await, Instant::now()) };
    let (avoided, (one, removed)) = tokio::join!(avoided, removed);
    // It was draining meanwhile.
    assert!(!W::DRAINS || avoided < removed);
    one.stop().await;
    stays(&mut caller, &["greeter-2"]).await;
}

pub(crate) async fn calls_work_again_once_an_empty_service_has_an_instance<C: Client, W: World>(client: &C) {
    let mut world = W::new(client.settings()).await;
    world.start_agent().await;
    let one = Running::start(&world, "greeter-1").await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
    withstands(&mut world, &mut caller, &["greeter-1"]).await;
    let one = one.deregister(&world).await;
    // Others that left just before look as if they had crashed as well, and are held for as long.
    let calls_dead = C::CALLS_DEAD_INSTANCES && !W::ANNOUNCES_DEPARTURES;
    if W::ANNOUNCES_DEPARTURES && !C::KEEPS_LAST_SERVER {
        let report = caller.fails().await;
        assert!(report.failures[0].starts_with(C::UNAVAILABLE), "{report:?}");
        one.stop().await;
    } else {
        // It is called until it stops.
        if calls_dead {
            caller.meets("greeter-1").await;
        } else {
            stays(&mut caller, &["greeter-1"]).await;
        }
        one.stop().await;
        caller.fails().await;
    }
    let _two = Running::start(&world, "greeter-2").await;
    if calls_dead {
        let back = Instant::now();
        while !caller.report().await.failures.is_empty() {
            assert!(back.elapsed() < 2 * DEFAULT_XDS_SETTLE, "it is held for longer than that");
        }
    }
    caller.reaches(&["greeter-2"]).await;
    assert_eq!(caller.reaches(&["greeter-2"]).await, NONE);
}

pub(crate) async fn an_outage_of_the_store_fails_no_call<C: Client, W: World>(client: &C) {
    let mut world = W::new(client.settings()).await;
    world.start_agent().await;
    let _one = Running::start(&world, "greeter-1").await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
    world.cut_agent();
    let _two = Running::start(&world, "greeter-2").await;
    stays(&mut caller, &["greeter-1"]).await;
    world.heal_agent();
    assert_eq!(caller.reaches(&["greeter-1", "greeter-2"]).await, NONE);
    withstands(&mut world, &mut caller, &["greeter-1", "greeter-2"]).await;
}

pub(crate) async fn a_killed_agent_fails_no_call<C: Client, W: World>(client: &C) {
    let mut world = W::new(client.settings()).await;
    world.start_agent().await;
    let one = Running::start(&world, "greeter-1").await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
    // Nothing has changed when it comes back.
    world.kill_agent().await;
    stays(&mut caller, &["greeter-1"]).await;
    world.start_agent().await;
    withstands(&mut world, &mut caller, &["greeter-1"]).await;
    // An instance has come, and another one has gone.
    world.kill_agent().await;
    let _two = Running::start(&world, "greeter-2").await;
    let one = one.deregister(&world).await;
    stays(&mut caller, &["greeter-1"]).await;
    world.start_agent().await;
    assert_eq!(caller.reaches(&["greeter-2"]).await, NONE);
    one.stop().await;
    stays(&mut caller, &["greeter-2"]).await;
}

pub(crate) async fn an_agent_that_starts_over_an_empty_store_fails_no_call<C: Client, W: World>(client: &C) {
    let mut world = W::new(client.settings()).await;
    world.start_agent().await;
    let _one = Running::start(&world, "greeter-1").await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
    world.kill_agent().await;
    world.cut_servers();
    world.begin(Failure::Wiped).await;
    world.end(Failure::Wiped).await;
    world.start_agent().await;
    // The agent knows by now that the service is empty.
    assert_eq!(AdsClient::connect(world.xds()).await.assignment("greeter").await, []);
    stays(&mut caller, &["greeter-1"]).await;
    world.heal_servers();
    let two = Running::start(&world, "greeter-2").await;
    assert_eq!(caller.reaches(&["greeter-1", "greeter-2"]).await, NONE);
    leave(&world, &mut caller, vec![two], &["greeter-1"]).await;
    withstands(&mut world, &mut caller, &["greeter-1"]).await;
}

pub(crate) async fn calls_that_precede_the_agent_work_once_it_runs<C: Client, W: World>(client: &C) {
    let mut world = W::new(client.settings()).await;
    let _one = Running::start(&world, "greeter-1").await;
    let mut caller = client.start(world.xds(), "greeter").await;
    let report = caller.fails().await;
    let is_expected = |failure: &String| C::WITHOUT_AGENT.iter().any(|text| failure.starts_with(text));
    assert!(report.failures.iter().all(is_expected), "{report:?}");
    world.start_agent().await;
    caller.reaches(&["greeter-1"]).await;
    withstands(&mut world, &mut caller, &["greeter-1"]).await;
}

/// Scenario of a library that rarely looks for its registrations.
pub(crate) async fn late_registrations_after_a_loss_fail_no_call<C: Client, W: World>(client: &C) {
    /// Maximum time until all are registered again, shorter than that for which the agent holds lost instances.
    const LATEST: Duration = Duration::from_secs(55);
    /// Interval at which the library looks.
    const INTERVAL: Duration = Duration::from_secs(30);
    const SERVERS: [&str; 2] = ["greeter-1", "greeter-2"];
    let mut world = W::new(client.settings()).await;
    world.start_agent().await;
    let _one = Running::start(&world, SERVERS[0]).await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&SERVERS[..1]).await, NONE);
    let registered = Instant::now();
    let two = Running::start(&world, SERVERS[1]).await;
    assert_eq!(caller.reaches(&SERVERS).await, NONE);
    world.begin(Failure::Wiped).await;
    let lost = Instant::now();
    world.end(Failure::Wiped).await;
    shown::instances(&world, 0).await;
    while shown::live(&world).await.unwrap() < SERVERS.len() {
        assert!(lost.elapsed() < LATEST, "not registered again");
        goes_on(&mut caller, &SERVERS).await;
    }
    assert!(registered.elapsed() >= INTERVAL, "the library looked sooner");
    stays(&mut caller, &SERVERS).await;
    leave(&world, &mut caller, vec![two], &SERVERS[..1]).await;
}

pub(crate) async fn restarts_of_servers_and_agent_fail_no_call<C: Client, W: World>(client: &C) {
    const SERVERS: usize = 6;
    let mut world = W::new(client.settings()).await;
    world.start_agent().await;
    let names = |age| (1..=SERVERS).map(|number| format!("{age}-{number}")).collect::<Vec<_>>();
    let (old, new) = (names("old"), names("new"));
    let mut running = Vec::new();
    for (number, name) in old.iter().enumerate() {
        // One leaves right after the restart of the agent, while the client connects again.
        let drain = if number == SERVERS / 2 { DRAIN } else { Offer::DRAIN };
        running.push(Running::with(&world, name, |offer| offer.drain = drain).await);
    }
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&texts(&old)).await, NONE);
    caller.count().await;
    let mut successors = Vec::new();
    for (number, (former, name)) in running.into_iter().zip(&new).enumerate() {
        successors.push(Running::start(&world, name).await);
        if number == SERVERS / 2 {
            world.stop_agent().await;
            world.start_agent().await;
        }
        assert_eq!(former.leave(&world, &mut caller).await, NONE);
    }
    assert_eq!(caller.reaches(&texts(&new)).await, NONE);
    let rate = caller.rate();
    assert!(rate >= RATE, "{rate} calls per second");
    withstands(&mut world, &mut caller, &texts(&new)).await;
}

pub(crate) async fn shares_follow_the_weights<C: Client, W: World>(client: &C) {
    let mut world = W::new(client.settings()).await;
    world.start_agent().await;
    let _light = Running::with(&world, "light", |offer| offer.weight = Some(1)).await;
    let _heavy = Running::with(&world, "heavy", |offer| offer.weight = Some(3)).await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["heavy", "light"]).await, NONE);
    shares(&mut caller).await;
    for failure in Failure::ALL {
        world.begin(failure).await;
        goes_on(&mut caller, &["heavy", "light"]).await;
        world.end(failure).await;
        shown::instances(&world, 2).await;
        assert_eq!(caller.reaches(&["heavy", "light"]).await, NONE, "after {failure:?}");
        shares(&mut caller).await;
    }
}

pub(crate) async fn calls_leave_the_zone_only_without_an_instance_in_it<C: Client, W: World>(client: &C) {
    let mut world = W::new(Settings { prefers_own_zone: true, ..client.settings() }).await;
    world.start_agent().await;
    let _far = Running::with(&world, "far", |offer| offer.zone = Some("eu-1b")).await;
    let near = Running::with(&world, "near", |offer| offer.zone = Some(ZONE)).await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["near"]).await, NONE);
    stays(&mut caller, &["near"]).await;
    for failure in Failure::ALL {
        world.begin(failure).await;
        // After a loss of everything, the other one may be the first that is back.
        let known = if failure == Failure::Wiped { &["far", "near"][..] } else { &["near"] };
        fails_no_call(&mut caller, known, failure).await;
        world.end(failure).await;
        shown::instances(&world, 2).await;
        assert_eq!(caller.reaches(&["near"]).await, NONE, "after {failure:?}");
    }
    assert_eq!(near.leave(&world, &mut caller).await, NONE);
    assert_eq!(caller.reaches(&["far"]).await, NONE);
    let _near = Running::with(&world, "next", |offer| offer.zone = Some(ZONE)).await;
    assert_eq!(caller.reaches(&["next"]).await, NONE);
    let found = ShownClient::only(&world, |client| client.node == NODE).await;
    assert_eq!((found.zone.as_str(), found.rejected), (ZONE, 0));
}

/// The others are in another zone, so that the client does not connect to them.
pub(crate) async fn calls_work_beside_ten_thousand_instances<C: Client, W: Crowded>(client: &C) {
    const OTHERS: u16 = 10_000;
    const ALL: usize = OTHERS as usize + 2;
    let mut world = W::new(Settings { prefers_own_zone: true, ..client.settings() }).await;
    world.start_agent().await;
    let near = Running::with(&world, "near", |offer| offer.zone = Some(ZONE)).await;
    world.register_many("eu-1b", OTHERS).await;
    shown::instances(&world, ALL - 1).await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["near"]).await, NONE);
    let _next = Running::with(&world, "next", |offer| offer.zone = Some(ZONE)).await;
    assert_eq!(caller.reaches(&["near", "next"]).await, NONE);
    for failure in Failure::ALL {
        world.begin(failure).await;
        fails_no_call(&mut caller, &["near", "next"], failure).await;
        world.end(failure).await;
        if failure == Failure::Wiped {
            world.register_many("eu-1b", OTHERS).await;
        }
        shown::instances(&world, ALL).await;
        assert_eq!(caller.reaches(&["near", "next"]).await, NONE, "after {failure:?}");
    }
    assert_eq!(near.leave(&world, &mut caller).await, NONE);
    stays(&mut caller, &["next"]).await;
}

pub(crate) async fn calls_of_an_unknown_service_fail_at_once<C: Client, W: World>(client: &C) {
    /// Instances of another service, whose arrival shows that the agent reads the store again.
    const MARKERS: [(&str, u16); Failure::ALL.len()] = [("marker-1", 11), ("marker-2", 12), ("marker-3", 13)];
    let settings = client.settings();
    let envoy = settings.envoy.iter().map(|(address, _)| (*address, "unknown")).collect();
    let mut world = W::new(Settings { envoy, ..settings }).await;
    world.start_agent().await;
    let mut caller = client.start(world.xds(), "unknown").await;
    let report = caller.fails().await;
    assert!(report.failures[0].starts_with(C::UNAVAILABLE) && report.slowest_ms < C::FIRST_CALL_MS, "{report:?}");
    // The start of the library is in the first report only.
    fails_at_once::<C>(&mut caller).await;
    let mut markers = Vec::new();
    for (failure, (name, port)) in Failure::ALL.into_iter().zip(MARKERS) {
        world.begin(failure).await;
        all_fail::<C>(&mut caller).await;
        world.end(failure).await;
        markers.push(world.register(Offer::new(name, port)).await);
        shown::instances(&world, markers.len()).await;
        all_fail::<C>(&mut caller).await;
    }
    fails_at_once::<C>(&mut caller).await;
}

/// Scenario of instances that crashed, until their leases end.
pub(crate) async fn dead_instances_fail_no_call<C: Client, W: World>(client: &C) {
    beside_dead_instances::<_, W>(client, None).await;
}

/// Scenario of a zone in which all instances crashed.
pub(crate) async fn a_zone_of_dead_instances_fails_no_call<C: Client, W: World>(client: &C) {
    beside_dead_instances::<_, W>(client, Some(ZONE)).await;
}

/// Lets three of four instances be dead: nothing listens at their ports. `zone`: theirs, which the client prefers. The
/// other one is in another zone then.
async fn beside_dead_instances<C: Client, W: World>(client: &C, zone: Option<&str>) {
    let mut world = W::new(Settings { prefers_own_zone: zone.is_some(), ..client.settings() }).await;
    world.start_agent().await;
    let _one = Running::with(&world, "greeter-1", |offer| offer.zone = zone.map(|_| "eu-1b")).await;
    let mut dead = Vec::new();
    for name in ["dead-1", "dead-2", "dead-3"] {
        // The socket keeps the port.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let port = socket.local_addr().unwrap().port();
        dead.push((world.register(Offer { zone, ..Offer::new(name, port) }).await, socket));
    }
    shown::instances(&world, 4).await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
    // After a loss of everything they would not be registered again.
    for failure in [Failure::Down, Failure::Compacted] {
        world.begin(failure).await;
        stays(&mut caller, &["greeter-1"]).await;
        world.end(failure).await;
        shown::instances(&world, 4).await;
        stays(&mut caller, &["greeter-1"]).await;
    }
}

/// Scenario of an assignment that no agent sends.
pub(crate) async fn a_rejected_assignment_is_shown_and_harmless<C: Client, W: World>(client: &C) {
    let mut world = W::new(client.settings()).await;
    world.start_agent().await;
    let relay = Relay::start(world.xds()).await;
    let _one = Running::start(&world, "greeter-1").await;
    let mut caller = client.start(relay.address, "greeter").await;
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
    relay.spoil();
    let _two = Running::start(&world, "greeter-2").await;
    let found = ShownClient::only(&world, |client| client.node == NODE && client.rejected > 0).await;
    assert_eq!(found.last_rejection.unwrap().r#type, "assignment");
    stays(&mut caller, &["greeter-1"]).await;
    let mut other = AdsClient::connect(world.xds()).await;
    assert_eq!(other.assignment("greeter").await.len(), 2, "another client is not affected");
    relay.heal();
    let _three = Running::start(&world, "greeter-3").await;
    assert_eq!(other.changed("greeter").await.len(), 3);
    drop(other);
    assert_eq!(caller.reaches(&["greeter-1", "greeter-2", "greeter-3"]).await, NONE);
    withstands(&mut world, &mut caller, &["greeter-1", "greeter-2", "greeter-3"]).await;
}

/// Scenario for Envoy.
pub(crate) async fn a_refused_listener_is_shown_and_harmless<C: Client, W: World>(client: &C) {
    let mut world = W::new(client.settings()).await;
    world.start_agent().await;
    let _one = Running::start(&world, "greeter-1").await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
    // An address of no host, see RFC 5737.
    world.settings_mut().envoy.push(("192.0.2.1:10000".parse().unwrap(), "greeter"));
    world.stop_agent().await;
    world.start_agent().await;
    let found = ShownClient::only(&world, |client| client.rejected > 0).await;
    let rejection = found.last_rejection.unwrap();
    assert!(rejection.r#type == "listener" && rejection.message.contains("192.0.2.1"), "{rejection:?}");
    let _two = Running::start(&world, "greeter-2").await;
    assert_eq!(caller.reaches(&["greeter-1", "greeter-2"]).await, NONE);
    withstands(&mut world, &mut caller, &["greeter-1", "greeter-2"]).await;
}

/// Scenario for Envoy.
pub(crate) async fn a_listener_with_another_service_fails_no_call<C: Client, W: World>(client: &C) {
    let (edge, _) = client.settings().envoy[0];
    // As documented, both services have a listener before and after the change.
    let unused = ([127, 0, 0, 1], free_port()).into();
    let before = vec![(edge, "former"), (unused, "greeter")];
    let mut world = W::new(Settings { envoy: before, ..client.settings() }).await;
    world.start_agent().await;
    let _former = Running::with(&world, "former-1", |offer| offer.service = "former").await;
    let _one = Running::start(&world, "greeter-1").await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["former-1"]).await, NONE);
    world.settings_mut().envoy = vec![(edge, "greeter"), (unused, "former")];
    world.stop_agent().await;
    world.start_agent().await;
    // Calls that began before may end later than others.
    assert_eq!(caller.avoids("former-1").await, NONE);
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
    withstands(&mut world, &mut caller, &["greeter-1"]).await;
}

/// Scenario for Envoy, which replaces a changed cluster once it has an assignment for it. On a new stream it asks for
/// one, for which it waits up to 15 s.
pub(crate) async fn changed_clusters_fail_no_call<C: ShowsClusters, W: World>(client: &C) {
    /// Envoy connects to the agent again, which can take several seconds.
    const WARM: Duration = Duration::from_secs(12);
    const CHANGED: Duration = Duration::from_secs(2);
    let mut world = W::new(client.settings()).await;
    world.start_agent().await;
    let _one = Running::start(&world, "greeter-1").await;
    let mut caller = client.start(world.xds(), "greeter").await;
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE);
    withstands(&mut world, &mut caller, &["greeter-1"]).await;
    world.settings_mut().connect_timeout = Some(CHANGED);
    world.stop_agent().await;
    world.start_agent().await;
    let restarted = Instant::now();
    client.has_changed_clusters(CHANGED).await;
    assert!(restarted.elapsed() < WARM, "{:?}", restarted.elapsed());
    stays(&mut caller, &["greeter-1"]).await;
    let _two = Running::start(&world, "greeter-2").await;
    assert_eq!(caller.reaches(&["greeter-1", "greeter-2"]).await, NONE);
}
