//! Tests in both directions that are common to all frameworks.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use enlist::{
    Deregistered, Directory, Endpoint, Entry, Instance, InstanceUpdate, Moment, Presence, ServiceRef, ServiceView,
};
use enlist_etcd::{Etcd, EtcdBuilder};
use enlist_grpc::{Channel, WaitForReady};
use enlist_testkit::{EtcdServer, LIMIT, Proxy, eventually, soon};
use tonic::Request;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{Go, Server, own_etcd, recorded};

/// Interval at which a view is read.
const VIEW_POLL: Duration = Duration::from_millis(20);

/// Reaction of a framework's registration to the end of its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LostLease {
    /// It registers again.
    ComesBack,
    /// It stays away until its program is restarted.
    StaysAway,
}

/// Bytes of the registration of a framework's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Those that our layout writes for the same instance.
    AsByOurs,
    /// They also describe the methods of the server, which an instance of ours does not have.
    WithMethods,
}

/// Part of an instance that is changed in place.
pub(super) enum Change {
    /// Its address, because the layout carries nothing else.
    Address,
    /// Parts that the layout carries beside the address.
    Parts {
        /// The change that ours makes.
        ours: fn(&mut InstanceUpdate),
        /// The text after the address in the view of theirs, once it has seen that change.
        theirs_sees: &'static str,
        /// Returns `true` if an instance has what the program changes at theirs.
        ours_sees: fn(&Instance) -> bool,
    },
}

impl Change {
    /// The entry `team` of the metadata.
    pub(super) const fn team(theirs_sees: &'static str) -> Self {
        let ours = |update: &mut InstanceUpdate| {
            update.metadata("team", "green");
        };
        Self::Parts { ours, theirs_sees, ours_sees: is_green }
    }
}

/// Returns `true` if the metadata has the entry of [`Change::team`].
pub(super) fn is_green(instance: &Instance) -> bool {
    instance.metadata().get("team").is_some_and(|team| team == "green")
}

/// Tests of a change of one instance of a [`Framework`].
macro_rules! tests_of_changes {
    ($framework:expr) => {
        #[tokio::test]
        #[ignore = "needs Go: `cargo xtask interop` runs it"]
        async fn a_change_of_ours_is_seen() {
            crate::both::a_change_of_ours_is_seen(&$framework).await;
        }

        #[tokio::test]
        #[ignore = "needs Go: `cargo xtask interop` runs it"]
        async fn a_change_of_theirs_is_seen() {
            crate::both::a_change_of_theirs_is_seen(&$framework).await;
        }
    };
}
pub(crate) use tests_of_changes;

/// A framework, with the formats of its program and of our layout.
pub(super) struct Framework {
    pub(super) program: &'static str,
    pub(super) layout: fn(EtcdBuilder) -> EtcdBuilder,
    pub(super) service: &'static str,
    /// Prefix of the keys of the service.
    pub(super) prefix: &'static str,
    /// Part of an endpoint before the address, such as `grpc://`.
    pub(super) scheme: &'static str,
    pub(super) lost_lease: LostLease,
    pub(super) stored: Stored,
    pub(super) change: Change,
}

impl Framework {
    pub(super) async fn connect(&self, server: &EtcdServer) -> Etcd {
        self.connect_to(server.url()).await
    }

    pub(super) async fn connect_to(&self, url: String) -> Etcd {
        (self.layout)(Etcd::builder([url])).connect().await.unwrap()
    }

    pub(super) fn service(&self) -> ServiceRef {
        ServiceRef::parse(self.service).unwrap()
    }

    /// Starts a client that follows the service.
    pub(super) fn follow(&self, server: &EtcdServer) -> Follower {
        Follower { go: Go::start(server, self.program, &["client", self.service]), seen: BTreeSet::new() }
    }

    /// Starts a server that is registered.
    pub(super) async fn serve(&self, server: &EtcdServer) -> (Go, String) {
        let mut go = Go::start(server, self.program, &["server", self.service]);
        let address = served(&mut go).await;
        (go, address)
    }

    /// Revokes the lease of the only instance of the service.
    pub(super) async fn revoke(&self, server: &EtcdServer) {
        assert_eq!(Go::start(server, "etcd", &["revoke", self.prefix]).line().await, "revoked 1");
    }

    /// Returns the leases of the instances of the service.
    pub(super) async fn leases(&self, server: &EtcdServer) -> Vec<i64> {
        recorded::leases(server, self.prefix).await
    }

    /// Revokes the lease of the only instance of the service, and waits until it has another one.
    pub(super) async fn replace_lease(&self, server: &EtcdServer) {
        let before = self.leases(server).await;
        self.revoke(server).await;
        eventually("it is registered again", || async {
            let now = self.leases(server).await;
            if now.len() == 1 && now != before { Ok(()) } else { Err((before.clone(), now)) }
        })
        .await;
    }
}

/// Returns the address at which a program serves.
async fn served(go: &mut Go) -> String {
    let line = go.line().await;
    line.strip_prefix("serves ").unwrap_or_else(|| panic!("{line}")).to_owned()
}

/// A client of a framework, and its last view.
pub(super) struct Follower {
    go: Go,
    seen: BTreeSet<String>,
}

impl Follower {
    async fn read(&mut self) -> Option<String> {
        let line = self.go.lines.recv().await.expect("it goes on");
        let Some(instances) = line.strip_prefix("sees") else { return Some(line) };
        self.seen = instances.split_whitespace().map(str::to_owned).collect();
        None
    }

    /// Waits until it sees exactly one instance for each text, a part of its printed form.
    pub(super) async fn sees(&mut self, wanted: &[&str]) {
        let is_seen = |seen: &BTreeSet<String>| {
            seen.len() == wanted.len() && wanted.iter().all(|text| seen.iter().any(|one| one.contains(text)))
        };
        let begun = Moment::now();
        while !is_seen(&self.seen) {
            let left = LIMIT.saturating_sub(begun.elapsed());
            let Ok(line) = tokio::time::timeout(left, self.read()).await else {
                panic!("not within {LIMIT:?}: Go sees {wanted:?}; it sees {:?}", self.seen);
            };
            assert_eq!(line, None);
        }
    }

    /// Waits for a successful call. Its balancer may receive a change later than the view does.
    pub(super) async fn calls(&mut self) {
        soon("a call is answered", async {
            loop {
                self.go.go_on();
                let line = loop {
                    if let Some(line) = self.read().await {
                        break line;
                    }
                };
                if line == "answered SERVING" {
                    return;
                }
                assert!(line.starts_with("refused "), "{line}");
            }
        })
        .await;
    }
}

/// Our server registers; their client finds it, sees its changes and its end, and calls it, across a lost lease, a
/// restart of etcd and a crash of our process.
pub(super) async fn ours_is_found(framework: &Framework) {
    let mut server = own_etcd().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (etcd, service, scheme) = (framework.connect_to(proxy.url()).await, framework.service(), framework.scheme);
    let first = Server::start();
    let registration = first.register(&etcd, &service, scheme).await;
    let first_address = first.address.to_string();
    let mut theirs = framework.follow(&server);
    theirs.sees(&[&first_address]).await;
    theirs.calls().await;

    let second = Server::start();
    let second_address = second.address.to_string();
    let remaining = second.register(&etcd, &service, scheme).await;
    theirs.sees(&[&first_address, &second_address]).await;
    assert_eq!(soon("deregistered", registration.deregister()).await.unwrap(), Deregistered::Removed);
    drop(first);
    theirs.sees(&[&second_address]).await;
    theirs.calls().await;

    framework.replace_lease(&server).await;
    // Ours cannot register again before theirs has seen the removal.
    proxy.cut();
    framework.revoke(&server).await;
    theirs.sees(&[]).await;
    proxy.heal();
    theirs.sees(&[&second_address]).await;
    theirs.calls().await;

    server.kill().await;
    server.restart().await;
    let third = Server::start();
    let third_address = third.address.to_string();
    // A separate session: the abandoned instance shares no lease with the others.
    let crashing = third.register(&framework.connect(&server).await, &service, scheme).await;
    theirs.sees(&[&second_address, &third_address]).await;
    theirs.calls().await;

    crashing.abandon();
    drop(third);
    theirs.sees(&[&second_address]).await;
    theirs.calls().await;
    soon("deregistered", remaining.deregister()).await.unwrap();
    theirs.sees(&[]).await;
}

/// An instance of ours is changed in place, under its key and its lease. Theirs sees the change, and calls it.
pub(super) async fn a_change_of_ours_is_seen(framework: &Framework) {
    let server = own_etcd().await;
    let etcd = framework.connect(&server).await;
    let (first, moved) = (Server::start(), Server::start());
    let registration = first.register(&etcd, &framework.service(), framework.scheme).await;
    let (address, moved_address) = (first.address.to_string(), moved.address.to_string());
    let mut theirs = framework.follow(&server);
    theirs.sees(&[&address]).await;
    theirs.calls().await;
    let leases = framework.leases(&server).await;
    match framework.change {
        Change::Address => {
            let endpoint = Endpoint::parse(format!("{}{moved_address}", framework.scheme)).unwrap();
            let update = registration.update(|update| {
                update.endpoints([endpoint.clone()]);
            });
            soon("stored", update).await.unwrap();
            theirs.sees(&[&moved_address]).await;
            drop(first);
        }
        Change::Parts { ours, theirs_sees, .. } => {
            soon("stored", registration.update(ours)).await.unwrap();
            theirs.sees(&[&format!("{address}{theirs_sees}")]).await;
        }
    }
    theirs.calls().await;
    assert_eq!(framework.leases(&server).await, leases, "it was not registered again");
}

/// A server of theirs registers once more under its key, with other content. Ours sees the change, and calls it.
pub(super) async fn a_change_of_theirs_is_seen(framework: &Framework) {
    let server = own_etcd().await;
    let view = Directory::new(Arc::new(framework.connect(&server).await)).view(&framework.service());
    soon("the view is ready", view.ready()).await.unwrap();
    let mut theirs = Go::start(&server, framework.program, &["changing", framework.service]);
    let before_address = served(&mut theirs).await;
    shows(&view, &[&before_address]).await;
    let before = entry_at(&view, &before_address).unwrap();
    theirs.go_on();
    let address = served(&mut theirs).await;
    let is_changed = |entry: &Entry| match framework.change {
        Change::Address => address != before_address,
        Change::Parts { ours_sees, .. } => ours_sees(entry.instance()),
    };
    assert!(matches!(framework.change, Change::Address) || !is_changed(&before));
    let after = eventually("ours shows the change", || async {
        entry_at(&view, &address).filter(|entry| is_changed(entry)).ok_or_else(|| view.snapshot())
    })
    .await;
    assert_eq!(after.created(), before.created(), "it was changed in place");
    shows(&view, &[&address]).await;
    answered(&mut HealthClient::new(Channel::new(&view).unwrap())).await;
}

/// Waits until the view has these addresses and no others.
pub(super) async fn shows(view: &ServiceView, wanted: &[&str]) {
    shows_within(LIMIT, view, wanted).await;
}

/// As [`shows`], for changes that a framework makes late.
pub(super) async fn shows_within(limit: Duration, view: &ServiceView, wanted: &[&str]) {
    let mut last = Vec::new();
    let shown = async {
        loop {
            let snapshot = view.snapshot();
            let entries = snapshot.iter().flat_map(enlist::Snapshot::entries);
            last = entries.map(|entry| entry.instance().endpoints()[0].to_string()).collect();
            let has = |address: &&str| last.iter().any(|endpoint: &String| endpoint.ends_with(*address));
            if snapshot.is_some() && last.len() == wanted.len() && wanted.iter().all(has) {
                return;
            }
            tokio::time::sleep(VIEW_POLL).await;
        }
    };
    let in_time = tokio::time::timeout(limit, shown).await.is_ok();
    assert!(in_time, "not within {limit:?}: ours shows {wanted:?}; it shows {last:?}");
}

/// Returns the entry with this address.
fn entry_at(view: &ServiceView, address: &str) -> Option<Arc<Entry>> {
    let snapshot = view.snapshot()?;
    snapshot.entries().find(|entry| entry.instance().endpoints()[0].to_string().ends_with(address)).cloned()
}

/// Waits until the view has the instance of `before` as one that was registered again. It holds the last one of a
/// service meanwhile, so that it is never empty.
async fn shows_again(view: &ServiceView, address: &str, before: &Entry) {
    eventually("ours shows that it was registered again", || async {
        let now = entry_at(view, address);
        let again =
            now.as_ref().is_some_and(|now| now.presence() == Presence::Live && now.created() > before.created());
        if again { Ok(()) } else { Err(now) }
    })
    .await;
}

/// Waits for an answered call. The channel may follow its view with a short delay.
pub(super) async fn answered(client: &mut HealthClient<Channel>) {
    let mut request = Request::new(HealthCheckRequest::default());
    request.extensions_mut().insert(WaitForReady(true));
    let answer = soon("answered", client.check(request)).await.unwrap();
    assert_eq!(answer.get_ref().status, 1, "SERVING");
}

/// Their server registers; our client finds it, follows it and calls it, across a departure, a lost lease, a restart of
/// etcd and a crash of their process.
pub(super) async fn theirs_is_found(framework: &Framework) {
    let mut server = own_etcd().await;
    let etcd = framework.connect(&server).await;
    let view = Directory::new(Arc::new(etcd.clone())).view(&framework.service());
    soon("the view is ready", view.ready()).await.unwrap();
    assert!(view.snapshot().unwrap().is_empty());
    let (mut first, first_address) = framework.serve(&server).await;
    shows(&view, &[&first_address]).await;
    if framework.stored == Stored::AsByOurs {
        recorded::the_server_is_stored_as_by_ours(&server, etcd.layout(), &framework.service()).await;
    }
    let mut client = HealthClient::new(Channel::new(&view).unwrap());
    let mut calls = async || answered(&mut client).await;
    calls().await;

    let (mut second, second_address) = framework.serve(&server).await;
    shows(&view, &[&first_address, &second_address]).await;
    first.go_on();
    assert_eq!(first.line().await, "left");
    shows(&view, &[&second_address]).await;
    drop(first);
    calls().await;

    let before = entry_at(&view, &second_address).unwrap();
    framework.revoke(&server).await;
    let second_address = match framework.lost_lease {
        LostLease::ComesBack => {
            shows_again(&view, &second_address, &before).await;
            second_address
        }
        LostLease::StaysAway => {
            // The view holds the last instance for a while after its death.
            shows(&view, &[]).await;
            assert!(framework.leases(&server).await.is_empty(), "it stays away");
            let (next, address) = framework.serve(&server).await;
            second = next;
            address
        }
    };
    shows(&view, &[&second_address]).await;
    calls().await;

    server.kill().await;
    server.restart().await;
    let (third, third_address) = framework.serve(&server).await;
    shows(&view, &[&second_address, &third_address]).await;
    calls().await;
    drop(third);
    shows(&view, &[&second_address]).await;
    calls().await;
    second.go_on();
    assert_eq!(second.line().await, "left");
}
