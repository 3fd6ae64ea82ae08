//! Which connection a failure counts against, and what makes a client leave a member.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::time::Duration;

use enlist::{Counter, LeaseChoice, RegisterOptions, Registration, Registry, Resolver, ServiceRef, Watcher};
use enlist_etcd::Etcd;
use enlist_testkit::{Direction, EtcdServer, Mode, Proxy, eventually, soon};
use support::{instance, pass, server};

/// Watches, and instances, of one client.
const MANY: usize = 200;

/// How long nothing arrives: twice as long as a request may take.
const OUTAGE: Duration = Duration::from_secs(10);

/// Two ways to one etcd, and a client that began with the first.
struct Ways {
    server: EtcdServer,
    first: Proxy,
    second: Proxy,
    /// Connections to the second before the client had it.
    before: usize,
    etcd: Etcd,
}

impl Ways {
    async fn start() -> Self {
        let server = server().await;
        let first = Proxy::start(server.address()).await.unwrap();
        let second = Proxy::start(server.address()).await.unwrap();
        second.set(Mode::Refuse);
        eventually("the second is closed", || async {
            let connected = tokio::net::TcpStream::connect(second.address()).await;
            if connected.is_err() { Ok(()) } else { Err(connected) }
        })
        .await;
        let etcd = Etcd::builder([first.url(), second.url()]).connect().await.unwrap();
        eventually("one connection for requests and one for watches", || async {
            let opened = first.connections().len();
            if opened == 2 { Ok(()) } else { Err(opened) }
        })
        .await;
        let before = second.connections().len();
        second.heal();
        Self { server, first, second, before, etcd }
    }

    /// Each member was dialled once for requests and once for watches at most, so neither was given up twice. What is not in use is
    /// not open.
    async fn each_was_given_up_once_at_most(&self) {
        let dialled = [self.first.connections().len(), self.second.connections().len() - self.before];
        println!("connections to each member: {dialled:?}");
        assert!(dialled.iter().all(|count| *count <= 2), "{dialled:?}");
        few_are_open(&[&self.first, &self.second]).await;
    }
}

fn named(number: usize) -> ServiceRef {
    ServiceRef::parse(format!("svc{number}")).unwrap()
}

async fn watch_many(etcd: &Etcd) -> Vec<Box<dyn Watcher>> {
    let mut watchers = Vec::new();
    for number in 0..MANY {
        let mut watcher = etcd.watch(&named(number)).await.unwrap();
        soon("a list", watcher.next()).await.unwrap();
        watchers.push(watcher);
    }
    watchers
}

/// Instances with a lease each, so that as many renewals are under way as there are instances.
async fn register_many(etcd: &Etcd) -> Vec<Registration> {
    let mut registrations = Vec::new();
    for number in 0..MANY {
        let options = RegisterOptions::new().lease(LeaseChoice::Own);
        let service = named(number);
        let registering = etcd.register(&service, instance("a"), options);
        registrations.push(soon("registered", registering).await.unwrap());
    }
    registrations
}

/// Waits until each watcher shows an instance that is put now.
async fn follow(server: &EtcdServer, watchers: &mut [Box<dyn Watcher>]) {
    let mut raw = support::raw(server).await;
    for (number, watcher) in watchers.iter_mut().enumerate() {
        let key = format!("enlist/services/default/svc{number}/late");
        raw.put(key, r#"{"v":1,"id":"late","endpoints":["h:1"]}"#, None).await.unwrap();
        while soon("the late one", watcher.next()).await.unwrap().snapshot.is_empty() {}
    }
}

async fn black_hole(proxy: &Proxy) {
    proxy.set(Mode::BlackHole(Direction::Both));
    pass(OUTAGE).await;
    proxy.heal();
}

fn open(proxy: &Proxy) -> usize {
    proxy.connections().iter().filter(|connection| !connection.ended).count()
}

async fn few_are_open(proxies: &[&Proxy]) {
    eventually("at most ten connections are open", || async {
        let open: usize = proxies.iter().map(|proxy| open(proxy)).sum();
        if open <= 10 { Ok(()) } else { Err(open) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_fall_silent_together_give_their_member_up_once() {
    let ways = Ways::start().await;
    let mut watchers = watch_many(&ways.etcd).await;
    black_hole(&ways.first).await;
    follow(&ways.server, &mut watchers).await;
    ways.each_was_given_up_once_at_most().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_time_out_together_give_their_member_up_once() {
    let ways = Ways::start().await;
    let _registrations = register_many(&ways.etcd).await;
    black_hole(&ways.first).await;
    ways.each_was_given_up_once_at_most().await;
    assert_eq!(ways.etcd.counters().get(Counter::LeaseLosses), 0);
}

/// With one endpoint it is dialled again and again while nothing arrives, each connection at least as long as an answer may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redials_of_the_only_member_leave_no_connections_behind() {
    let server = server().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let etcd = Etcd::builder([proxy.url()]).connect().await.unwrap();
    let mut watchers = watch_many(&etcd).await;
    let _registrations = register_many(&etcd).await;
    black_hole(&proxy).await;
    follow(&server, &mut watchers).await;
    let dialled = proxy.connections().len();
    println!("{dialled} connections in all");
    assert!(dialled <= 20, "{dialled} connections in all");
    few_are_open(&[&proxy]).await;
}
