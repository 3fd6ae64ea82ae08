//! etcd's own client 3.7.3: naming endpoints with grpc-go's resolver, its concurrency package, and gobase's lock, which
//! is made with it.

mod concurrency;

use std::{sync::Arc, time::Duration};

use enlist::{
    Directory, Election, Endpoint, Instance, InstanceId, Lock, LockGuard, LockName, Moment, OnDelete, RegisterOptions,
    Registry, Released, Resolver, ServiceRef,
};
use enlist_etcd::{Etcd, EtcdConcurrency, EtcdNaming, GobaseLock, Kitex};
use enlist_grpc::Channel;
use enlist_testkit::{BackgroundTask, EtcdServer, Proxy, eventually, soon};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{
    Go,
    both::{self, Change, Framework, LostLease, Stored},
    own_etcd, recorded,
    settings::{self, Settings},
    short,
};

const NAMING: Framework = Framework {
    program: "etcd",
    layout: |builder| builder.layout(EtcdNaming::default()),
    // grpc-go sends the name as the `:authority` of its calls, where hyper accepts no `/`.
    service: "greeter",
    prefix: "greeter/",
    scheme: "",
    // The program renews its lease itself, and does not react to its end.
    lost_lease: LostLease::StaysAway,
    stored: Stored::AsByOurs,
    change: Change::team(",team=green"),
};

const GOBASE_JOB: &str = "/locks/nightly";

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn ours_is_found() {
    both::ours_is_found(&NAMING).await;
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn theirs_is_found() {
    both::theirs_is_found(&NAMING).await;
}

both::tests_of_changes!(NAMING);

/// The name of the service has a `/`.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn the_last_one_that_leaves_is_not_held() {
    let etcd_server = EtcdServer::start().await;
    let etcd = Etcd::builder([etcd_server.url()]).layout(EtcdNaming::default()).connect().await.unwrap();
    let view = Directory::new(Arc::new(etcd)).view(&ServiceRef::parse("team/greeter").unwrap());
    soon("the view is ready", view.ready()).await.unwrap();
    assert!(view.snapshot().unwrap().is_empty());
    let mut go = Go::start(&etcd_server, "etcd", &["server", "team/greeter"]);
    let address = go.line().await.strip_prefix("serves ").unwrap().to_owned();
    let shown = || async {
        let entries: Vec<_> =
            view.snapshot().unwrap().entries().map(|entry| entry.instance().endpoints()[0].to_string()).collect();
        if entries == [address.clone()] { Ok(()) } else { Err(entries) }
    };
    eventually("it is found", shown).await;
    let mut client = HealthClient::new(Channel::new(&view).unwrap());
    let answer = soon("answered", client.check(HealthCheckRequest::default())).await.unwrap();
    assert_eq!(answer.get_ref().status, 1, "SERVING");
    go.go_on();
    assert_eq!(go.line().await, "left");
    // The view holds the last one for 15 s if it has died.
    let begun = Moment::now();
    eventually("it is gone", || async {
        let listed: Vec<_> = view.snapshot().unwrap().entries().map(|entry| entry.presence()).collect();
        if listed.is_empty() { Ok(()) } else { Err(listed) }
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(10), "it was held for {:?}", begun.elapsed());
}

/// Ours reads and follows the keys that etcd's client puts under a prefix; a program that reads the prefix as confd
/// does reads ours. Both change and delete what the other one wrote, also across a restart of etcd.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn configuration_is_shared_under_plain_keys() {
    let mut server = own_etcd().await;
    let ours = Settings::connect(&server).await;
    let (mut view, mut theirs) = (ours.watch().await, Go::start(&server, "etcd", &["keys", "/config/"]));
    view.has(&[]).await;
    settings::put(&server, "/config/db/url", "postgres://db").await;
    view.has(&[("db/url", "postgres://db")]).await;
    settings::says(&mut theirs, "sees /config/db/url=postgres://db").await;
    // A key beside the prefix, and one that is no path.
    settings::put(&server, "/config2", "no").await;
    settings::put(&server, "/config/a//b", "no").await;
    ours.put("größe 50%", "12").await;
    view.has(&[("db/url", "postgres://db"), ("größe 50%", "12")]).await;
    let all = "sees /config/a//b=no /config/db/url=postgres://db /config/größe 50%=12";
    settings::says(&mut theirs, all).await;
    server.kill().await;
    server.restart().await;
    settings::put(&server, "/config/größe 50%", "13").await;
    view.has(&[("db/url", "postgres://db"), ("größe 50%", "13")]).await;
    ours.put("db/url", "postgres://other").await;
    settings::delete(&server, "/config/größe 50%").await;
    view.has(&[("db/url", "postgres://other")]).await;
    ours.delete("db/url").await;
    view.has(&[]).await;
    assert_eq!(ours.get("db/url").await, None);
    settings::says(&mut theirs, "sees /config/a//b=no").await;
}

/// kitex looks up an instance by its address, so it finds one whose id is its address, and no other. A deleted key is
/// restored.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn an_address_that_kitex_deregisters_is_restored() {
    let etcd_server = EtcdServer::start().await;
    let etcd = Etcd::builder([etcd_server.url()]).layout(Kitex::default()).connect().await.unwrap();
    let (service, endpoint) = (ServiceRef::parse("echo").unwrap(), Endpoint::parse("tcp://127.0.0.1:8888").unwrap());
    let at = Instance::at([endpoint.clone()]).unwrap();
    let named = Instance::new(InstanceId::parse("named").unwrap(), [endpoint]).unwrap();
    let options = || RegisterOptions::new().ttl(Duration::from_secs(5)).on_delete(OnDelete::Restore);
    let _at = soon("registered", etcd.register(&service, at.clone(), options())).await.unwrap();
    let _named = soon("registered", etcd.register(&service, named.clone(), options())).await.unwrap();
    let created = async |id: &InstanceId| {
        let found = soon("resolved", etcd.resolve(&service)).await.unwrap();
        found.get(id).map(enlist::Entry::created)
    };
    let before = (created(at.id()).await, created(named.id()).await);
    assert!(before.0.is_some() && before.1.is_some());
    let mut go = Go::start(&etcd_server, "etcd", &["kitex-deregister", "echo", "127.0.0.1:8888"]);
    assert_eq!(go.line().await, "deregistered 127.0.0.1:8888");
    eventually("it is restored", || async {
        let now = created(at.id()).await;
        if now > before.0 { Ok(()) } else { Err(now) }
    })
    .await;
    assert_eq!(created(named.id()).await, before.1, "the other one was not found");
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn both_queue_for_one_lock() {
    let etcd_server = EtcdServer::start().await;
    let etcd = Etcd::builder([etcd_server.url()]).lock_layout(EtcdConcurrency).connect().await.unwrap();
    let job = LockName::parse("nightly").unwrap();
    let mut go = Go::start(&etcd_server, "etcd", &["lock", "nightly"]);
    assert!(go.line().await.starts_with("locked nightly/"));
    let mut waiting = {
        let (etcd, job) = (etcd.clone(), job.clone());
        BackgroundTask::run(async move { etcd.acquire(&job, short()).await.unwrap() })
    };
    assert!(etcd.try_acquire(&job, short()).await.unwrap().is_none());
    waiting.assert_running();
    go.go_on();
    assert_eq!(go.line().await, "unlocked");
    let ours = waiting.done("our turn").await;
    assert!(ours.is_held());
    // It queues behind our contender now.
    go.go_on();
    let other = etcd.try_acquire(&job, short()).await.unwrap();
    assert!(other.is_none() && go.is_silent());
    assert_eq!(soon("released", ours.release()).await.unwrap(), Released::Released);
    assert!(go.line().await.starts_with("locked nightly/"));
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn both_stand_for_one_office() {
    let etcd_server = EtcdServer::start().await;
    let etcd = Etcd::builder([etcd_server.url()]).lock_layout(EtcdConcurrency).connect().await.unwrap();
    let office = LockName::parse("office").unwrap();
    let ours = soon("elected", etcd.campaign(&office, "rust", short())).await.unwrap();
    assert_eq!(Go::start(&etcd_server, "etcd", &["leader", "office"]).line().await, "leader rust");
    let mut go = Go::start(&etcd_server, "etcd", &["elect", "office", "go"]);
    let mut observer = etcd.observe(&office).await.unwrap();
    assert_eq!(soon("observed", observer.next()).await.unwrap().leader.unwrap().value, "rust");
    assert!(go.is_silent());
    soon("resigned", ours.resign()).await.unwrap();
    assert_eq!(go.line().await, "leads go");
    while soon("observed", observer.next()).await.unwrap().leader.is_none_or(|leader| leader.value != "go") {}
    go.go_on();
    assert_eq!(go.line().await, "resigned");
    while soon("observed", observer.next()).await.unwrap().leader.is_some() {}
}

fn waits(etcd: &Etcd, job: &LockName) -> BackgroundTask<LockGuard> {
    let (etcd, job) = (etcd.clone(), job.clone());
    BackgroundTask::run(async move { etcd.acquire(&job, short()).await.unwrap() })
}

/// gobase's lock has one key; the process that creates it is the holder.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn a_gobase_lock_has_one_holder() {
    let etcd_server = EtcdServer::start().await;
    let etcd = Etcd::builder([etcd_server.url()]).lock_layout(GobaseLock).connect().await.unwrap();
    let job = LockName::parse(GOBASE_JOB).unwrap();
    // Go holds, and deletes its key.
    let mut go = Go::start(&etcd_server, "etcd", &["gobase-lock", GOBASE_JOB]);
    assert_eq!(go.line().await, "locked");
    assert!(etcd.try_acquire(&job, short()).await.unwrap().is_none());
    let mut waiting = waits(&etcd, &job);
    waiting.assert_running();
    go.go_on();
    assert_eq!(go.line().await, "deleted");
    let ours = waiting.done("our turn").await;
    // Our side holds, and releases.
    let mut go = Go::start(&etcd_server, "etcd", &["gobase-lock", GOBASE_JOB]);
    assert_eq!(go.line().await, "busy");
    go.go_on();
    assert_eq!(go.line().await, "busy");
    assert!(ours.is_held());
    assert_eq!(soon("released", ours.release()).await.unwrap(), Released::Released);
    go.go_on();
    assert_eq!(go.line().await, "locked");
}

/// The lock of a process of either side that ends is free after its TTL.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn an_expired_gobase_lock_is_free() {
    let etcd_server = EtcdServer::start().await;
    let proxy = Proxy::start(etcd_server.address()).await.unwrap();
    let etcd = Etcd::builder([proxy.url()]).lock_layout(GobaseLock).connect().await.unwrap();
    let job = LockName::parse(GOBASE_JOB).unwrap();
    // Go crashes.
    let mut go = Go::start(&etcd_server, "etcd", &["gobase-lock", GOBASE_JOB]);
    assert_eq!(go.line().await, "locked");
    let mut waiting = waits(&etcd, &job);
    assert!(etcd.try_acquire(&job, short()).await.unwrap().is_none());
    drop(go);
    let ours = waiting.done("our turn").await;
    assert!(ours.is_held());
    // Our process stops sending.
    let mut go = Go::start(&etcd_server, "etcd", &["gobase-lock", GOBASE_JOB]);
    assert_eq!(go.line().await, "busy");
    proxy.cut();
    soon("the loss", ours.lost()).await;
    let go = tokio::sync::Mutex::new(go);
    eventually("Go has it", || async {
        let mut go = go.lock().await;
        go.go_on();
        let says = go.line().await;
        if says == "locked" { Ok(()) } else { Err(says) }
    })
    .await;
    assert!(!ours.is_held());
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn theirs_writes_the_recorded_bytes() {
    let fixture = include_str!("../../../backend-etcd/tests/fixtures/etcd-naming.json");
    recorded::the_library_writes_the_recorded_bytes("etcd", fixture, &[]).await;
}
