//! From names to shared channels.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use enlist::{DirectoryOptions, Error, RegisterOptions, Registry};
use enlist_grpc::{
    CallHead, Callee, Channel, ConnectionManager, Dns, Intercept, Invocation, Locator, Lookup, Schemes, Target,
};
use enlist_testkit::{eventually, soon};
use support::{Server, World, say};

fn locator(json: &str) -> Locator {
    Locator::new(serde_json::from_str::<Invocation>(json).unwrap()).unwrap()
}

fn schemes(world: &World) -> Schemes {
    Schemes::with_options(DirectoryOptions::new()).with("enlist", Arc::new(world.client.clone()))
}

#[tokio::test]
async fn a_callee_is_called_through_the_registry_and_its_environment_kept_apart() {
    let servers = [Server::start("default").await, Server::start("test").await];
    let world = World::of(&servers[..1]).await;
    let locator = locator("{}");
    let Ok(Target::Service { service, .. }) = locator.target(&Callee::parse("echo").unwrap().in_environment("test"))
    else {
        panic!("not a service");
    };
    let _test = world.servers.register(&service, servers[1].instance(), RegisterOptions::new()).await.unwrap();
    let manager = ConnectionManager::new(locator, schemes(&world)).unwrap();
    let call = |callee: Callee| {
        let channel = manager.channel(&callee).unwrap();
        async move { soon("an answer", say(&channel, String::new())).await.unwrap() }
    };
    assert_eq!(call(Callee::parse("echo").unwrap()).await, "default");
    assert_eq!(call(Callee::from(world.service.clone())).await, "default");
    assert_eq!(call(Callee::parse("echo").unwrap().in_environment("test")).await, "test");
    assert_eq!(manager.targets().len(), 2);
    soon("closed", manager.close(Duration::from_secs(5))).await.unwrap();
    assert!(matches!(manager.channel(&Callee::parse("echo").unwrap()), Err(Error::Closed)));
}

#[tokio::test]
async fn however_many_ask_there_is_one_channel_and_one_connection() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let manager = ConnectionManager::new(locator("{}"), schemes(&world)).unwrap();
    let callee = Callee::parse("echo").unwrap();
    let calls = (0..100).map(|_| {
        let channel = manager.channel(&callee).unwrap();
        async move { say(&channel, String::new()).await }
    });
    let answers = soon("all answers", futures::future::join_all(calls)).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!((manager.targets().len(), servers[0].dials()), (1, 1));
}

#[tokio::test]
async fn a_channel_that_nobody_holds_is_let_go_of() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let keep = Duration::from_millis(200);
    let manager =
        ConnectionManager::with_options(locator("{}"), schemes(&world), keep, |_| Channel::builder()).unwrap();
    let callee = Callee::parse("echo").unwrap();
    let held = manager.channel(&callee).unwrap();
    say(&held, String::new()).await.unwrap();
    // A holder that does nothing for long is one all the same.
    let lapsed = say(&held, "sleep 1000".to_owned());
    soon("an answer", lapsed).await.unwrap();
    assert_eq!((manager.targets().len(), servers[0].dials()), (1, 1));
    drop(held);
    eventually("it is let go of, and its connection closed", || async {
        let left = (manager.targets().len(), servers[0].open());
        if left == (0, 0) { Ok(()) } else { Err(left) }
    })
    .await;
    say(&manager.channel(&callee).unwrap(), String::new()).await.unwrap();
    assert_eq!(servers[0].dials(), 2);
    assert!(
        ConnectionManager::with_options(locator("{}"), schemes(&world), Duration::ZERO, |_| Channel::builder())
            .is_err()
    );
}

/// Says whether the manager can be used now, from another thread.
fn is_free(manager: &Arc<OnceLock<ConnectionManager>>) -> bool {
    let (manager, (free, is_free)) = (Arc::clone(manager), std::sync::mpsc::channel());
    std::thread::spawn(move || free.send(manager.get().unwrap().targets().len()));
    is_free.recv_timeout(Duration::from_secs(5)).is_ok()
}

/// Part of a channel's options that only the channel keeps.
struct Dropped(Arc<OnceLock<ConnectionManager>>, std::sync::mpsc::Sender<bool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.1.send(is_free(&self.0));
    }
}

#[async_trait::async_trait]
impl Intercept for Dropped {
    async fn before(&self, _: CallHead<'_>) -> Result<(), tonic::Status> {
        Ok(())
    }
}

#[tokio::test]
async fn options_of_the_users_run_and_end_under_no_lock() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let shared = Arc::new(OnceLock::<ConnectionManager>::new());
    let (manager, (free, is_free_then)) = (Arc::clone(&shared), std::sync::mpsc::channel());
    let options = move |target: &Target| {
        assert_ne!(target.to_string(), "enlist:///default/broken", "on purpose");
        free.send(is_free(&manager)).unwrap();
        Channel::builder().intercept(Arc::new(Dropped(Arc::clone(&manager), free.clone())))
    };
    let keep = Duration::from_millis(50);
    let made = ConnectionManager::with_options(locator("{}"), schemes(&world), keep, options).unwrap();
    assert!(shared.set(made).is_ok());
    let manager = shared.get().unwrap();
    drop(manager.channel(&Callee::parse("echo").unwrap()).unwrap());
    assert_eq!(is_free_then.try_recv(), Ok(true), "while the options are made");
    let free = eventually("nobody holds the channel", || std::future::ready(is_free_then.try_recv())).await;
    assert!(free, "while the options are dropped");
    let broken = || manager.channel(&Callee::parse("broken").unwrap());
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(broken)).is_err());
    assert_eq!(manager.targets(), []);
}

/// Finds two servers behind one name.
#[derive(Debug)]
struct Names(Vec<std::net::SocketAddr>);

#[async_trait::async_trait]
impl Lookup for Names {
    async fn lookup(&self, host: &str, port: u16) -> std::io::Result<Vec<std::net::SocketAddr>> {
        assert_eq!((host, port), ("echo.team.svc.cluster.local", 7000));
        Ok(self.0.clone())
    }
}

#[tokio::test]
async fn service_dns_is_balanced_too() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::new();
    let names = Names(servers.iter().map(Server::address).collect());
    let dns = Dns::new().with_lookup(Arc::new(names)).every(Duration::from_millis(50));
    let manager = ConnectionManager::new(
        locator(r#"{"prefer_service_dns": true, "default_port": 7000}"#),
        schemes(&world).with("dns", Arc::new(dns)),
    )
    .unwrap();
    let channel = manager.channel(&Callee::parse("team/echo").unwrap()).unwrap();
    support::until_ready(&channel, 2).await;
    let shares = support::shares(&channel, 100).await;
    assert_eq!(shares.len(), 2, "{shares:?}");
}

#[tokio::test]
async fn static_targets_and_the_systems_dns_work_as_they_are() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::new();
    let manager = ConnectionManager::new(locator("{}"), schemes(&world)).unwrap();
    let fixed = format!("static:///{},{}", servers[0].address(), servers[1].address());
    let channel = manager.channel_to(&Target::parse(fixed).unwrap()).unwrap();
    support::until_ready(&channel, 2).await;
    assert_eq!(support::shares(&channel, 100).await.len(), 2);

    let local = Target::parse(format!("dns:///localhost:{}", servers[0].address().port())).unwrap();
    let channel = manager.channel_to(&local).unwrap();
    assert_eq!(soon("an answer", say(&channel, String::new())).await.unwrap(), "a");

    let unknown = manager.channel_to(&Target::parse("consul:///echo").unwrap()).unwrap_err().to_string();
    assert!(unknown.contains("consul") && unknown.contains("dns, enlist"), "{unknown}");
}
