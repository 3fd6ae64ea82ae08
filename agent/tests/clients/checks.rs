//! Checks of the calls of a client.

use std::collections::BTreeSet;

use crate::{
    caller::Caller,
    scenarios::Client,
    server::Running,
    shown,
    world::{Failure, World},
};

/// Number of reports for which nothing has to change.
const REPORTS: u32 = 10;

/// Number of calls in as many reports.
const CALLS: u32 = 200;

/// No failures of calls.
pub(crate) const NONE: [&str; 0] = [];

/// Lets the store fail in each way. Checks that calls go on meanwhile without a failure, to these servers, and that
/// they follow the instances afterwards: after each failure another one comes, and in the end these leave.
pub(crate) async fn withstands<W: World>(world: &mut W, caller: &mut Caller, servers: &[&str]) {
    const FURTHER: [&str; Failure::ALL.len()] = ["a-further-1", "a-further-2", "a-further-3"];
    let (mut further, mut all) = (Vec::new(), servers.to_vec());
    for (failure, name) in Failure::ALL.into_iter().zip(FURTHER) {
        world.begin(failure).await;
        fails_no_call(caller, &all, failure).await;
        world.end(failure).await;
        // They leave later: where a removal has no mark, one just before a loss of everything is a part of the loss.
        further.push(Running::start(world, name).await);
        all.insert(further.len() - 1, name);
        assert_eq!(caller.reaches(&all).await, NONE, "after {failure:?}");
    }
    leave(world, caller, further, servers).await;
}

/// Lets further servers leave without a failed call, once all are registered. Calls reach the others then.
pub(crate) async fn leave<W: World>(world: &W, caller: &mut Caller, further: Vec<Running<W>>, others: &[&str]) {
    // After a loss, some may not be registered again. Where a departure looks like a crash, as in go-zero, the last
    // instance would be held.
    shown::instances(world, further.len() + others.len()).await;
    for server in further {
        assert_eq!(server.leave(world, caller).await, NONE);
    }
    assert_eq!(caller.reaches(others).await, NONE);
}

/// Checks that calls go on without a failure, to exactly these servers. A client that chooses at random may leave one
/// out of a single report.
pub(crate) async fn stays(caller: &mut Caller, servers: &[&str]) {
    assert_eq!(goes_on(caller, servers).await, servers.iter().map(|name| (*name).to_owned()).collect());
}

/// Checks that calls go on without a failure, to exactly these servers; after a loss of everything, in whose course
/// they register again, to at least one of them.
pub(crate) async fn fails_no_call(caller: &mut Caller, servers: &[&str], failure: Failure) {
    if failure == Failure::Wiped {
        goes_on(caller, servers).await;
    } else {
        stays(caller, servers).await;
    }
}

/// Checks that calls go on without a failure, to no other servers. Returns those that were called.
pub(crate) async fn goes_on(caller: &mut Caller, servers: &[&str]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for _ in 0..REPORTS {
        let report = caller.report().await;
        let is_known = report.names().iter().all(|name| servers.contains(name));
        assert!(report.failures.is_empty() && is_known, "{report:?}");
        names.extend(report.servers.into_keys());
    }
    names
}

/// Checks that calls fail because there is no instance.
pub(crate) async fn all_fail<C: Client>(caller: &mut Caller) {
    let report = caller.report_of(CALLS).await;
    let is_expected = |failure: &String| failure.starts_with(C::UNAVAILABLE);
    assert!(report.servers.is_empty() && report.failures.iter().all(is_expected), "{report:?}");
}

/// Checks that calls fail within 100 ms. On a busy machine, the quickest of five reports counts.
pub(crate) async fn fails_at_once<C: Client>(caller: &mut Caller) {
    let mut quickest = u64::MAX;
    for _ in 0..5 {
        let report = caller.fails().await;
        assert!(report.failures.iter().all(|failure| failure.starts_with(C::UNAVAILABLE)), "{report:?}");
        quickest = quickest.min(report.slowest_ms);
    }
    assert!(quickest < 100, "{quickest} ms");
}

/// Checks that `heavy` receives three times the calls of `light`, within six standard deviations.
pub(crate) async fn shares(caller: &mut Caller) {
    const CALLS: f64 = 1_000.0;
    let report = caller.report_of(1_000).await;
    let [heavy, light] = ["heavy", "light"].map(|name| f64::from(report.servers[name]));
    let deviation = (0.75 * 0.25 / CALLS).sqrt();
    assert!((heavy / (heavy + light) - 0.75).abs() < 6.0 * deviation, "{heavy} and {light} calls");
}

pub(crate) fn texts(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}
