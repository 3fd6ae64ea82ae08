//! From service names to shared channels.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{
    Change, DirectoryOptions, Endpoint, Error, Instance, Namespace, RegisterOptions, Registry, Resolver, ServiceName,
    ServiceRef, Snapshot, Watcher,
};
use enlist_grpc::{
    BoxError, CallHead, Callee, Channel, ConnectionManager, Dns, Intercept, Invocation, Locator, Lookup,
    ManagerOptions, Schemes, Target,
};
use enlist_memory::{MemoryClient, MemoryStore};
use enlist_testkit::{eventually, soon};
use support::{Server, World, id, say};
use tokio::net::TcpStream;

fn invocation(json: &str) -> Invocation {
    serde_json::from_str(json).unwrap()
}

fn locator(json: &str) -> Locator {
    Locator::new(invocation(json)).unwrap()
}

fn manager(world: &World, json: &str, options: ManagerOptions) -> ConnectionManager {
    ConnectionManager::from_resolver(Arc::new(world.client.clone()), invocation(json), options).unwrap()
}

fn schemes(world: &World) -> Schemes {
    Schemes::with_options(DirectoryOptions::new()).with("enlist", Arc::new(world.client.clone()))
}

#[tokio::test]
async fn environments_of_a_callee_are_kept_apart() {
    let servers = [Server::start("default").await, Server::start("test").await];
    let world = World::of(&servers[..1]).await;
    let locator = locator("{}");
    let Ok(Target::Service { service, .. }) = locator.target(&Callee::parse("echo").unwrap().in_environment("test"))
    else {
        panic!("not a service");
    };
    let _test = world.servers.register(&service, servers[1].instance(), RegisterOptions::new()).await.unwrap();
    let manager = manager(&world, "{}", ManagerOptions::new());
    let call = |callee: Callee| {
        let channel = manager.channel(&callee).unwrap();
        async move { soon("a response", say(&channel, String::new())).await.unwrap() }
    };
    assert_eq!(call(Callee::parse("echo").unwrap()).await, "default");
    assert_eq!(call(Callee::from(world.service.clone())).await, "default");
    assert_eq!(call(Callee::parse("echo").unwrap().in_environment("test")).await, "test");
    assert_eq!(manager.targets().len(), 2);
    soon("closed", manager.close(Duration::from_secs(5))).await.unwrap();
    assert!(matches!(manager.channel(&Callee::parse("echo").unwrap()), Err(Error::Closed)));
}

#[tokio::test]
async fn callers_of_a_target_share_one_channel() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let manager = manager(&world, "{}", ManagerOptions::new());
    let callee = Callee::parse("echo").unwrap();
    let calls = (0..100).map(|_| {
        let channel = manager.channel(&callee).unwrap();
        async move { say(&channel, String::new()).await }
    });
    let responses = soon("all responses", futures::future::join_all(calls)).await;
    assert!(responses.iter().all(Result::is_ok), "{responses:?}");
    assert_eq!((manager.targets().len(), servers[0].dials()), (1, 1));
}

#[tokio::test]
async fn an_unheld_channel_is_removed() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let keep = Duration::from_millis(200);
    let manager = manager(&world, "{}", ManagerOptions::new().keep(keep));
    let callee = Callee::parse("echo").unwrap();
    let held = manager.channel(&callee).unwrap();
    say(&held, String::new()).await.unwrap();
    // A holder that is idle for long still counts as a holder.
    let lapsed = say(&held, "sleep 1000".to_owned());
    soon("a response", lapsed).await.unwrap();
    assert_eq!((manager.targets().len(), servers[0].dials()), (1, 1));
    drop(held);
    eventually("it is let go of, and its connection closed", || async {
        let left = (manager.targets().len(), servers[0].open());
        if left == (0, 0) { Ok(()) } else { Err(left) }
    })
    .await;
    say(&manager.channel(&callee).unwrap(), String::new()).await.unwrap();
    assert_eq!(servers[0].dials(), 2);
    let never_kept = ManagerOptions::new().keep(Duration::ZERO);
    let refused = ConnectionManager::from_resolver(Arc::new(world.client.clone()), Invocation::default(), never_kept);
    assert!(matches!(refused, Err(Error::InvalidConfig { .. })), "{refused:?}");
}

/// Resolver that counts its open watches.
#[derive(Debug)]
struct Counted(MemoryClient, Arc<()>);

#[derive(Debug)]
struct CountedWatcher {
    watcher: Box<dyn Watcher>,
    _watches: Arc<()>,
}

#[async_trait::async_trait]
impl Watcher for CountedWatcher {
    async fn next(&mut self) -> Result<Change, Error> {
        self.watcher.next().await
    }
}

#[async_trait::async_trait]
impl Resolver for Counted {
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
        self.0.resolve(service).await
    }

    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        let watcher = self.0.watch(service).await?;
        Ok(Box::new(CountedWatcher { watcher, _watches: Arc::clone(&self.1) }))
    }

    async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
        self.0.services(namespace).await
    }
}

/// Returns the number of watches that are open `wait` after the last holder of a channel was dropped, and the number of
/// channels that are kept.
async fn watched_after(cache_ttl: &str, wait: Duration) -> (usize, usize) {
    let watches = Arc::new(());
    let resolver = Arc::new(Counted(MemoryStore::new().client(), Arc::clone(&watches)));
    let count = |watches: &Arc<()>| Arc::strong_count(watches) - 2;
    // The options of views are kept, apart from their idle time.
    let options = ManagerOptions::new()
        .keep(Duration::from_secs(2))
        .directory(DirectoryOptions::new().idle(Duration::from_secs(10_000)));
    let invocation = invocation(&format!("{{\"cache_ttl\": \"{cache_ttl}\"}}"));
    let manager = ConnectionManager::from_resolver(resolver, invocation, options).unwrap();
    let channel = manager.channel(&Callee::parse("echo").unwrap()).unwrap();
    channel.view().ready().await.unwrap();
    assert_eq!(count(&watches), 1);
    drop(channel);
    tokio::time::sleep(wait).await;
    (manager.targets().len(), count(&watches))
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_after_the_cache_ttl() {
    let seconds = Duration::from_secs;
    assert_eq!(watched_after("1m", seconds(30)).await, (0, 1));
    assert_eq!(watched_after("1m", seconds(70)).await, (0, 0));
    assert_eq!(watched_after("1h", seconds(3500)).await, (0, 1));
    // The default, 5 s.
    assert_eq!(watched_after("0s", seconds(12)).await, (0, 0));
}

/// Fails the first dial, panics at the second, and connects from the third on.
async fn third(dial: usize, address: SocketAddr) -> Result<TcpStream, BoxError> {
    match dial {
        0 => Err("the proxy is away".into()),
        1 => panic!("on purpose"),
        _ => Ok(TcpStream::connect(address).await?),
    }
}

#[tokio::test]
async fn a_custom_connector_opens_each_stream() {
    let servers = [Server::start("a").await];
    let world = World::new();
    // Only the connector can resolve this address.
    let endpoint = Endpoint::parse("nowhere.invalid:1").unwrap();
    world.register(&servers[0], Instance::new(id("a"), [endpoint]).unwrap()).await;
    let (dials, address) = (Arc::new(AtomicUsize::new(0)), servers[0].address());
    let dialled = Arc::clone(&dials);
    let options = ManagerOptions::new().channel(move |_| {
        let dialled = Arc::clone(&dialled);
        Channel::builder().connector(move |instance, endpoint| {
            assert_eq!((instance.id().as_str(), endpoint.to_string().as_str()), ("a", "nowhere.invalid:1"));
            third(dialled.fetch_add(1, Ordering::SeqCst), address)
        })
    });
    let manager = manager(&world, "{}", options);
    let channel = manager.channel(&Callee::parse("echo").unwrap()).unwrap();
    soon("ready", channel.ready(Duration::from_secs(5))).await.unwrap();
    assert_eq!(soon("a response", say(&channel, String::new())).await.unwrap(), "a");
    assert_eq!((dials.load(Ordering::SeqCst), servers[0].dials()), (3, 1));
    // The stream is monitored as any other: its end is noticed, and the next dial uses the connector as well.
    servers[0].proxy.cut();
    eventually("it is dialled again", || async {
        let dials = dials.load(Ordering::SeqCst);
        if dials > 3 { Ok(()) } else { Err(dials) }
    })
    .await;
    servers[0].proxy.heal();
    support::until_ready(&channel, 1).await;
    assert_eq!(soon("a response", say(&channel, String::new())).await.unwrap(), "a");
}

/// Returns `true` if the manager can be used now, from another thread.
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
async fn user_options_run_without_a_lock() {
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
    let free = eventually("the channel has no holder", || std::future::ready(is_free_then.try_recv())).await;
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
async fn service_dns_names_are_balanced() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::new();
    let names = Names(servers.iter().map(Server::address).collect());
    let dns = Dns::new().with_lookup(Arc::new(names)).every(Duration::from_millis(50));
    let json = r#"{"prefer_service_dns": true, "default_port": 7000}"#;
    let manager = manager(&world, json, ManagerOptions::new().scheme("dns", Arc::new(dns)));
    let channel = manager.channel(&Callee::parse("team/echo").unwrap()).unwrap();
    support::until_called(&channel, &["a", "b"]).await;
}

#[tokio::test]
async fn targets_without_names_need_no_registry() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let world = World::new();
    let manager = ConnectionManager::new(locator("{}"), schemes(&world)).unwrap();
    let fixed = format!("static:///{},{}", servers[0].address(), servers[1].address());
    let channel = manager.channel_to(&Target::parse(fixed).unwrap()).unwrap();
    support::until_called(&channel, &["a", "b"]).await;

    let local = Target::parse(format!("dns:///localhost:{}", servers[0].address().port())).unwrap();
    let channel = manager.channel_to(&local).unwrap();
    assert_eq!(soon("a response", say(&channel, String::new())).await.unwrap(), "a");

    let unknown = manager.channel_to(&Target::parse("consul:///echo").unwrap()).unwrap_err().to_string();
    assert!(unknown.contains("consul") && unknown.contains("dns, enlist"), "{unknown}");
}
