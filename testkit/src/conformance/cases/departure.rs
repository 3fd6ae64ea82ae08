//! Departures and deaths: a view holds the last instances that died, and none that departed.

use std::time::Duration;

use enlist::{
    Change, Directory, DirectoryOptions, Entry, Health, InstanceId, LeaseChoice, Presence, RegisterOptions, ServiceRef,
    Snapshot, ViewChanges,
};

use super::support::*;
use crate::{
    conformance::harness::{Client, Harness},
    wait::soon,
};

/// Maximum number of departures that a view may take for deaths, because the store reported them too late.
const TRIES: usize = 10;

pub async fn a_deregistered_instance_has_left(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    for lease in [LeaseChoice::Shared, LeaseChoice::Own] {
        let mut tries = 0..TRIES;
        loop {
            assert!(tries.next().is_some(), "the last instance has left: {lease:?}");
            let options = options(h).lease(lease);
            let a = soon("registered", server.register(&service, instance("a"), options)).await.unwrap();
            let mut watching = Watching::begin(&client, &service).await;
            soon("deregistered", a.deregister()).await.unwrap();
            if watching.ends().await.all_departed() {
                break;
            }
        }
    }
}

pub async fn an_instance_deregistered_before_a_close_departed(h: &impl Harness) {
    let (client, service) = (h.client().await, service(h, "svc"));
    let mut tries = 0..TRIES;
    loop {
        assert!(tries.next().is_some(), "the last instance has left");
        let server = h.client().await;
        let a = register(h, &server, &service, "a").await;
        let mut watching = Watching::begin(&client, &service).await;
        soon("deregistered", a.deregister()).await.unwrap();
        // Closing ends the leases. The watcher reads at the same time, because a later read would notice the departure
        // later.
        let (ends, ()) = tokio::join!(watching.ends(), soon("closed", server.close()));
        if ends.all_departed() {
            break;
        }
    }
}

pub async fn deletions_under_a_live_lease_are_a_departure(h: &impl Harness) {
    let (client, service) = (h.client().await, service(h, "svc"));
    let long = RegisterOptions::new().ttl(Duration::from_secs(300));
    for lease in [LeaseChoice::Shared, LeaseChoice::Own] {
        let mut tries = 0..TRIES;
        loop {
            assert!(tries.next().is_some(), "both have left: {lease:?}");
            let server = h.client().await;
            let mut kept = Vec::new();
            for name in ["a", "b"] {
                let registered = server.register(&service, instance(name), long.clone().lease(lease));
                kept.push(soon("registered", registered).await.unwrap());
            }
            let mut watching = Watching::begin(&client, &service).await;
            // The instances neither return nor give up their leases.
            server.crash().await;
            h.delete(&service, &id("a")).await;
            h.delete(&service, &id("b")).await;
            if watching.ends().await.all_departed() {
                break;
            }
        }
    }
}

pub async fn a_fixed_instance_without_its_key_departed(h: &impl Harness) {
    let (client, service) = (h.client().await, service(h, "svc"));
    client.publish(&service, instance("a")).await.unwrap();
    let mut watching = Watching::begin(&client, &service).await;
    h.delete(&service, &id("a")).await;
    assert_eq!(watching.ends().await, Ends { departed: 1, held: 0 }, "the last instance has left");
}

pub async fn a_revoked_lease_is_a_death(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    let mut watching = Watching::begin(&client, &service).await;
    let lease = h.lease_of(&service, &id("a")).await.unwrap();
    // The instance does not return.
    server.crash().await;
    h.revoke(lease).await;
    assert_eq!(watching.ends().await, Ends { departed: 0, held: 1 }, "the last instance has died");
}

/// Another instance remains, which takes no calls.
pub async fn a_death_beside_an_idle_instance_is_held(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let idle = instance("idle").with_health(Health::NotServing);
    let _idle = soon("registered", server.register(&service, idle, options(h))).await.unwrap();
    let crashing = h.client().await;
    let _a = register(h, &crashing, &service, "a").await;
    let mut watching = Watching::begin(&client, &service).await;
    let lease = h.lease_of(&service, &id("a")).await.unwrap();
    crashing.crash().await;
    h.revoke(lease).await;
    assert_eq!(watching.ends().await, Ends { departed: 0, held: 1 }, "it has died");
    let long = RegisterOptions::new().ttl(Duration::from_secs(300));
    let mut tries = 0..TRIES;
    loop {
        assert!(tries.next().is_some(), "it has left");
        let crashing = h.client().await;
        let _b = soon("registered", crashing.register(&service, instance("b"), long.clone())).await.unwrap();
        let mut watching = Watching::begin(&client, &service).await;
        crashing.crash().await;
        h.delete(&service, &id("b")).await;
        if watching.ends().await.all_departed() {
            break;
        }
    }
}

/// Number of departed instances by a watcher, and of held ones in a view. The two are independent.
#[derive(Debug, PartialEq, Eq)]
struct Ends {
    departed: usize,
    held: usize,
}

impl Ends {
    /// Returns `true` if no instance died. A watcher need not know departures before the last one.
    fn all_departed(&self) -> bool {
        self.departed > 0 && self.held == 0
    }
}

/// A watcher, and a view that holds lost instances.
struct Watching {
    watcher: Box<dyn enlist::Watcher>,
    view: ViewChanges,
    ids: Vec<InstanceId>,
}

impl Watching {
    /// Starts to watch a service with instances that take calls.
    async fn begin(client: &Client, service: &ServiceRef) -> Self {
        let mut watcher = watch(client, service).await;
        let there = |change: &Change| change.snapshot.has_callable();
        let ids = ids(&until(&mut watcher, "it is there", there).await.snapshot);
        let options = DirectoryOptions::new().hold(Duration::from_secs(3600));
        let mut view = Directory::with_options(client.resolver(), options).view(service).changes();
        shown(&mut view, Snapshot::has_callable).await;
        Self { watcher, view, ids }
    }

    /// Waits until all instances that took calls are gone, and returns their ends.
    async fn ends(&mut self) -> Ends {
        let gone = until(&mut self.watcher, "they are gone", |change| !change.snapshot.has_callable()).await.snapshot;
        let departed = self.ids.iter().filter(|id| gone.departed(id)).count();
        let is_held = |entry: &Entry| entry.presence() == Presence::Held;
        let all_held = |snapshot: &Snapshot| {
            snapshot.entries().filter(|entry| entry.instance().takes_calls()).all(|entry| is_held(entry))
        };
        let shown = shown(&mut self.view, all_held).await;
        Ends { departed, held: shown.entries().filter(|entry| is_held(entry)).count() }
    }
}

fn ids(snapshot: &Snapshot) -> Vec<InstanceId> {
    snapshot.entries().map(|entry| entry.instance().id().clone()).collect()
}

async fn shown(view: &mut ViewChanges, fits: impl Fn(&Snapshot) -> bool) -> Snapshot {
    let read = async {
        loop {
            let snapshot = view.next().await.unwrap().snapshot;
            if fits(&snapshot) {
                return snapshot;
            }
        }
    };
    soon("the view shows it", read).await
}
