//! A backend over a `BTreeMap`, written with the helpers of `enlist::backend`, and its conformance run.
//! `docs/writing-a-backend.md` builds it step by step. Begin with `store.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod client;
mod discovery;
mod lease;
mod registration_task;
mod registry;
mod store;

use std::{env, process::Command, sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{InstanceId, LeaseId, Namespace, ServiceRef};
use enlist_testkit::{
    Client, ClientFaults, Harness, LayoutFeature,
    cases::{Case, all},
};

use self::{
    client::MapClient,
    store::{Cause, Data, Store},
};

/// Step 7. Faults of one client.
struct Process(MapClient);

#[async_trait]
impl ClientFaults for Process {
    async fn cut(&self) {
        self.0.0.link.cut.send_replace(true);
    }

    async fn heal(&self) {
        self.0.0.link.cut.send_replace(false);
    }

    async fn crash(&self) {
        self.0.0.tasks.stop(Duration::from_secs(5)).await.unwrap();
    }

    async fn close(&self) {
        self.0.0.departures.leave(Duration::from_secs(3)).await;
        self.crash().await;
        let leases: Vec<_> = self.0.0.shared.lock().unwrap().values().map(|lease| lease.id).collect();
        let _ = self.0.0.link.ask(|data| leases.into_iter().for_each(|lease| _ = data.revoke(lease)));
    }
}

/// Step 8. The harness: one store per case.
#[derive(Default)]
struct MapHarness(Arc<Store>);

#[async_trait]
impl Harness for MapHarness {
    fn namespace(&self) -> Namespace {
        Namespace::parse("third-backend").unwrap()
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(3)
    }

    async fn client(&self) -> Client {
        let client = MapClient::new(Arc::clone(&self.0));
        Client::without_locks(client.clone(), Process(client))
    }

    async fn lease_of(&self, service: &ServiceRef, id: &InstanceId) -> Option<LeaseId> {
        self.0.with(|data| data.records.get(&(service.clone(), id.clone()))?.lease)
    }

    async fn revoke(&self, lease: LeaseId) {
        assert!(self.0.with(|data| data.revoke(lease)).is_some(), "there is no lease {lease}");
    }

    async fn delete(&self, service: &ServiceRef, id: &InstanceId) {
        let deleted = self.0.with(|data| data.delete(&(service.clone(), id.clone()), Cause::Eviction, |_| true));
        assert!(deleted.is_some(), "there is no instance {id}");
    }

    async fn compact(&self) {
        // The store keeps no history: watches list after each change.
    }

    async fn wipe(&self) {
        self.0.with(|data| {
            let (epoch, last_lease) = (data.epoch + 1, data.last_lease);
            *data = Data { epoch, last_lease, ..Data::default() };
        });
    }
}

enlist_testkit::conformance!(
    #[tokio::test(start_paused = true)]
    MapHarness::default(),
    without [Locks, Raw, Config]
);

/// The run has each case that needs none of the omitted features, and no other.
#[test]
fn a_run_omits_cases_of_named_features() {
    let listed = Command::new(env::current_exe().unwrap()).arg("--list").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let is_listed = |name: &str| listed.lines().any(|line| line.strip_suffix(": test") == Some(name));
    let is_omitted =
        |need: &LayoutFeature| matches!(need, LayoutFeature::Locks | LayoutFeature::Raw | LayoutFeature::Config);
    for Case { name, needs, .. } in all::<MapHarness>() {
        assert_eq!(is_listed(name), !needs.iter().any(is_omitted), "{name} needs {needs:?}");
    }
}

/// The page shows the code as it is here.
#[test]
fn the_backend_author_page_is_up_to_date() {
    let code = [
        include_str!("main.rs"),
        include_str!("store.rs"),
        include_str!("client.rs"),
        include_str!("discovery.rs"),
        include_str!("lease.rs"),
        include_str!("registration_task.rs"),
        include_str!("registry.rs"),
    ];
    let page = include_str!("../../../docs/writing-a-backend.md");
    let shown: Vec<_> = page.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(shown.len() >= 12, "{} pieces of code", shown.len());
    for piece in shown {
        assert!(code.iter().any(|file| file.contains(piece)), "this is not in the code:\n{piece}");
    }
}
