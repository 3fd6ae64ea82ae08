//! What each client has to withstand, by the name of the guarantee.

use std::net::SocketAddr;

use enlist_agent::XdsOptions;

use crate::{
    caller::Caller,
    server::Running,
    support::{Store, TestAgent, local},
};

/// Identity of all clients in their requests.
pub(crate) const NODE: &str = "caller-1";

/// Zone of all clients.
pub(crate) const ZONE: &str = "eu-1a";

/// Number of reports for which nothing has to change.
const REPORTS: u32 = 10;

const NONE: [&str; 0] = [];

/// A client library.
pub(crate) trait Client {
    /// Beginning of the name with which the client introduces itself.
    const USER_AGENT: &'static str;

    /// Beginning of the failure of calls for which there is no instance.
    const UNAVAILABLE: &'static str = "UNAVAILABLE";

    /// Maximum milliseconds of the first call, with the start of the library. Unanswered requests take 15,000, and the
    /// deadline of a call is 5,000.
    const FIRST_CALL_MS: u64 = 4_500;

    /// Options of the agent that it needs.
    fn options(&self) -> XdsOptions {
        local()
    }

    /// Starts calls of a service, as [`NODE`] in [`ZONE`], with the agent at an address.
    async fn start(&self, agent: SocketAddr, service: &str) -> Caller;
}

/// Makes a test of each scenario for a client.
macro_rules! tests {
    ($client:expr, $($name:ident),+ $(,)?) => {$(
        #[tokio::test]
        #[ignore = "needs the client's library: cargo xtask clients"]
        async fn $name() {
            crate::scenarios::$name(&$client).await;
        }
    )+};
}
pub(crate) use tests;

pub(crate) async fn calls_follow_the_instances_without_a_failure<C: Client>(client: &C) {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, client.options()).await;
    let one = Running::start(&store, "greeter-1").await;
    let mut caller = client.start(agent.address, "greeter").await;
    assert_eq!(caller.reaches(&["greeter-1"]).await, NONE, "the first call works");
    let _two = Running::start(&store, "greeter-2").await;
    assert_eq!(caller.reaches(&["greeter-1", "greeter-2"]).await, NONE);
    one.leave().await;
    assert_eq!(caller.reaches(&["greeter-2"]).await, NONE, "a server that drains finishes its calls");
    let [found] = &agent.status.xds_clients()[..] else { panic!("one client") };
    assert_eq!((found.node.as_str(), found.rejected), (NODE, 0));
    assert!(found.user_agent.starts_with(C::USER_AGENT), "{found:?}");
}

pub(crate) async fn calls_work_again_once_an_empty_service_has_an_instance<C: Client>(client: &C) {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, client.options()).await;
    let one = Running::start(&store, "greeter-1").await;
    let mut caller = client.start(agent.address, "greeter").await;
    caller.reaches(&["greeter-1"]).await;
    one.leave().await;
    let report = caller.fails().await;
    assert!(report.failures[0].starts_with(C::UNAVAILABLE), "{report:?}");
    let _two = Running::start(&store, "greeter-2").await;
    caller.reaches(&["greeter-2"]).await;
    assert_eq!(caller.reaches(&["greeter-2"]).await, NONE);
}

pub(crate) async fn an_outage_of_the_store_fails_no_call<C: Client>(client: &C) {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, client.options()).await;
    let _one = Running::start(&store, "greeter-1").await;
    let mut caller = client.start(agent.address, "greeter").await;
    caller.reaches(&["greeter-1"]).await;
    store.agents.cut();
    let _two = Running::start(&store, "greeter-2").await;
    stays(&mut caller, &["greeter-1"]).await;
    store.agents.heal();
    assert_eq!(caller.reaches(&["greeter-1", "greeter-2"]).await, NONE);
}

pub(crate) async fn an_outage_of_the_agent_fails_no_call<C: Client>(client: &C) {
    let store = Store::new();
    let mut agent = TestAgent::start(&store.agents, client.options()).await;
    let _one = Running::start(&store, "greeter-1").await;
    let mut caller = client.start(agent.address, "greeter").await;
    caller.reaches(&["greeter-1"]).await;
    agent.stop().await;
    let _two = Running::start(&store, "greeter-2").await;
    stays(&mut caller, &["greeter-1"]).await;
    let _agent = TestAgent::start(&store.agents, client.options().address(agent.address)).await;
    assert_eq!(caller.reaches(&["greeter-1", "greeter-2"]).await, NONE);
}

pub(crate) async fn restarts_of_servers_and_agent_fail_no_call<C: Client>(client: &C) {
    const SERVERS: usize = 6;
    let store = Store::new();
    let mut agent = TestAgent::start(&store.agents, client.options()).await;
    let names = |age| (1..=SERVERS).map(|number| format!("{age}-{number}")).collect::<Vec<_>>();
    let (old, new) = (names("old"), names("new"));
    let mut running = Vec::new();
    for name in &old {
        running.push(Running::start(&store, name).await);
    }
    let mut caller = client.start(agent.address, "greeter").await;
    assert_eq!(caller.reaches(&texts(&old)).await, NONE);
    let mut successors = Vec::new();
    for (number, (former, name)) in running.into_iter().zip(&new).enumerate() {
        successors.push(Running::start(&store, name).await);
        if number == SERVERS / 2 {
            agent.stop().await;
            agent = TestAgent::start(&store.agents, client.options().address(agent.address)).await;
        }
        former.leave().await;
    }
    assert_eq!(caller.reaches(&texts(&new)).await, NONE);
}

pub(crate) async fn calls_leave_the_zone_only_without_an_instance_in_it<C: Client>(client: &C) {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, client.options().prefer_own_zone()).await;
    let _far = Running::start_in(&store, "eu-1b", "far").await;
    let near = Running::start_in(&store, ZONE, "near").await;
    let mut caller = client.start(agent.address, "greeter").await;
    assert_eq!(caller.reaches(&["near"]).await, NONE);
    stays(&mut caller, &["near"]).await;
    near.leave().await;
    assert_eq!(caller.reaches(&["far"]).await, NONE);
    let _near = Running::start_in(&store, ZONE, "next").await;
    assert_eq!(caller.reaches(&["next"]).await, NONE);
    let [found] = &agent.status.xds_clients()[..] else { panic!("one client") };
    assert_eq!((found.zone.as_str(), found.rejected), (ZONE, 0));
}

pub(crate) async fn calls_of_an_unknown_service_fail_at_once<C: Client>(client: &C) {
    let store = Store::new();
    let agent = TestAgent::start(&store.agents, client.options()).await;
    let mut caller = client.start(agent.address, "team/unknown").await;
    let report = caller.fails().await;
    assert!(report.failures[0].starts_with(C::UNAVAILABLE) && report.slowest_ms < C::FIRST_CALL_MS, "{report:?}");
    // The start of the library is in the first report only. On a busy machine, the quickest of five counts.
    let mut quickest = u64::MAX;
    for _ in 0..5 {
        let report = caller.fails().await;
        assert!(report.failures.iter().all(|failure| failure.starts_with(C::UNAVAILABLE)), "{report:?}");
        quickest = quickest.min(report.slowest_ms);
    }
    assert!(quickest < 1_000, "{quickest} ms");
}

/// Checks that calls go on without a failure, to exactly these servers.
async fn stays(caller: &mut Caller, servers: &[&str]) {
    for _ in 0..REPORTS {
        let report = caller.report().await;
        assert!(report.failures.is_empty() && report.names() == servers, "{report:?}");
    }
}

fn texts(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}
