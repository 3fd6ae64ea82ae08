//! A backend from scratch, over a `BTreeMap`, and its conformance run. `docs/conformance.md` is the tutorial to it. Begin with
//! `store.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod client;
mod registrar;
mod store;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{InstanceId, LeaseId, Namespace, ServiceRef};
use enlist_testkit::{Client, ClientFaults, Harness};

use self::{
    client::Scratch,
    store::{Data, Store},
};

/// 6. The harness: what the suite needs to know, and the faults that it brings.
struct Process(Scratch);

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

#[derive(Default)]
struct ScratchHarness(Arc<Store>);

#[async_trait]
impl Harness for ScratchHarness {
    fn namespace(&self) -> Namespace {
        Namespace::parse("scratch").unwrap()
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(3)
    }

    async fn client(&self) -> Client {
        let client = Scratch::new(Arc::clone(&self.0));
        Client::without_locks(client.clone(), Process(client))
    }

    async fn lease_of(&self, service: &ServiceRef, id: &InstanceId) -> Option<LeaseId> {
        self.0.with(|data| data.records.get(&(service.clone(), id.clone()))?.lease)
    }

    async fn revoke(&self, lease: LeaseId) {
        assert!(self.0.with(|data| data.revoke(lease)), "there is no lease {lease}");
    }

    async fn delete(&self, service: &ServiceRef, id: &InstanceId) {
        let deleted = self.0.with(|data| data.delete(&(service.clone(), id.clone()), false, |_| true));
        assert!(deleted.is_some(), "there is no instance {id}");
    }

    async fn compact(&self) {
        // Watches list again instead of reading a history.
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
    ScratchHarness::default(),
    without locks
);

/// The tutorial shows the code as it is here.
#[test]
fn the_tutorial_is_up_to_date() {
    let code =
        [include_str!("main.rs"), include_str!("store.rs"), include_str!("client.rs"), include_str!("registrar.rs")];
    let tutorial = include_str!("../../../docs/conformance.md");
    let shown: Vec<_> = tutorial.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(shown.len() >= 6, "{} pieces of code", shown.len());
    for piece in shown {
        assert!(code.iter().any(|file| file.contains(piece)), "this is not in the code:\n{piece}");
    }
}
