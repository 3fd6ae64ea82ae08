//! Together with the Go libraries that services in the field use: `cargo xtask interop` builds `testkit/interop-go` and runs this.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use enlist::{
    Deregistered, Directory, Election, Endpoint, Instance, InstanceId, Lock, LockName, LockOptions, Moment, OnDelete,
    RegisterOptions, Registration, Registry, Released, Resolver, ServiceRef,
};
use enlist_etcd::{Etcd, EtcdConcurrency, EtcdNaming, GoKit, GobaseLock, Kitex};
use enlist_grpc::Channel;
use enlist_testkit::{BackgroundTask, EtcdServer, Proxy, eventually, soon};
use tokio::sync::mpsc;
use tonic::transport::server::TcpIncoming;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// A program of the Go side. Dropping it kills it.
struct Go {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Go {
    fn start(server: &EtcdServer, arguments: &[&str]) -> Self {
        let program =
            std::env::var_os("ENLIST_INTEROP_BIN").expect("`cargo xtask interop` builds the Go side and runs this");
        let mut command = Command::new(program);
        command.args(arguments).env("ENLIST_ENDPOINTS", server.address().to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines }
    }

    async fn says(&mut self) -> String {
        soon("the Go side says something", self.lines.recv()).await.expect("it goes on")
    }

    /// Tells it to go on.
    fn go_on(&mut self) {
        writeln!(self.child.stdin.as_mut().unwrap()).unwrap();
    }

    fn is_silent(&mut self) -> bool {
        self.lines.try_recv().is_err()
    }
}

impl Drop for Go {
    fn drop(&mut self) {
        // An error says that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server of ours that answers gRPC health checks.
struct Server {
    address: SocketAddr,
    _serving: BackgroundTask<()>,
}

impl Server {
    fn start() -> Self {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let (_, health) = tonic_health::server::health_reporter();
        let serve = tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming);
        Self { address, _serving: BackgroundTask::run(async move { serve.await.unwrap() }) }
    }

    async fn register(&self, etcd: &Etcd, service: &ServiceRef) -> Registration {
        let id = InstanceId::parse(self.address.to_string()).unwrap();
        let instance = Instance::new(id, [Endpoint::try_from(self.address).unwrap()]).unwrap();
        let options = RegisterOptions::new().ttl(Duration::from_secs(5));
        soon("registered", etcd.register(service, instance, options)).await.unwrap()
    }
}

/// Lets it go on until it says so.
async fn until(go: &mut Go, wanted: &str) {
    soon(wanted, async {
        while go.says().await != wanted {
            go.go_on();
        }
    })
    .await;
}

fn short() -> LockOptions {
    LockOptions::new().ttl(Duration::from_secs(5))
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn rust_registers_and_go_finds_it_and_calls_it() {
    let etcd_server = EtcdServer::start().await;
    let etcd = Etcd::builder([etcd_server.url()]).layout(EtcdNaming::default()).connect().await.unwrap();
    // grpc-go sends the name as the `:authority` of its calls, where hyper takes no `/`.
    let service = ServiceRef::parse("greeter").unwrap();
    let first = Server::start();
    let registration = first.register(&etcd, &service).await;
    let mut go = Go::start(&etcd_server, &["naming-client", "greeter"]);
    assert_eq!(go.says().await, "answered SERVING");
    // Another takes over.
    let second = Server::start();
    let _second = second.register(&etcd, &service).await;
    assert_eq!(soon("deregistered", registration.deregister()).await.unwrap(), Deregistered::Removed);
    drop(first);
    go.go_on();
    assert_eq!(go.says().await, "answered SERVING");
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn go_registers_and_rust_finds_it_and_calls_it() {
    let etcd_server = EtcdServer::start().await;
    let etcd = Etcd::builder([etcd_server.url()]).layout(EtcdNaming::default()).connect().await.unwrap();
    let view = Directory::new(Arc::new(etcd)).view(&ServiceRef::parse("team/greeter").unwrap());
    soon("the view is ready", view.ready()).await.unwrap();
    assert!(view.snapshot().unwrap().is_empty());
    let mut go = Go::start(&etcd_server, &["naming-server", "team/greeter"]);
    let address = go.says().await.strip_prefix("registered ").unwrap().to_owned();
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
    assert_eq!(go.says().await, "left");
    // The view holds the last one for 15 s if it has died.
    let begun = Moment::now();
    eventually("it is gone", || async {
        let listed: Vec<_> = view.snapshot().unwrap().entries().map(|entry| entry.presence()).collect();
        if listed.is_empty() { Ok(()) } else { Err(listed) }
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(10), "it was held for {:?}", begun.elapsed());
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn go_kit_and_rust_find_each_other() {
    let etcd_server = EtcdServer::start().await;
    let etcd = Etcd::builder([etcd_server.url()]).layout(GoKit::default()).connect().await.unwrap();
    let service = ServiceRef::parse("foosvc").unwrap();
    let server = Server::start();
    let registration = server.register(&etcd, &service).await;
    let mut go = Go::start(&etcd_server, &["kit-client", "/services/foosvc/"]);
    // Its balancer hears of changes a moment later.
    until(&mut go, &format!("calls {}", server.address)).await;
    soon("deregistered", registration.deregister()).await.unwrap();
    go.go_on();
    until(&mut go, "nobody").await;
    let mut go = Go::start(&etcd_server, &["kit-server", "/services/foosvc/1.2.3.4:8080", "http://1.2.3.4:8080"]);
    assert_eq!(go.says().await, "registered http://1.2.3.4:8080");
    let found = etcd.resolve(&service).await.unwrap();
    let found: Vec<_> = found.entries().map(|entry| entry.instance().endpoints()[0].to_string()).collect();
    assert_eq!(found, ["http://1.2.3.4:8080"]);
    go.go_on();
    assert_eq!(go.says().await, "left");
    assert!(etcd.resolve(&service).await.unwrap().is_empty());
}

/// An instance whose id is its address is where kitex looks for that address; one with another id is not. What is deleted without a word
/// is restored.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn kitex_deregisters_an_address_of_ours_which_is_restored() {
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
    let mut go = Go::start(&etcd_server, &["kitex-deregister", "echo", "127.0.0.1:8888"]);
    assert_eq!(go.says().await, "deregistered 127.0.0.1:8888");
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
    let mut go = Go::start(&etcd_server, &["lock", "nightly"]);
    assert!(go.says().await.starts_with("locked nightly/"));
    let mut waiting = {
        let (etcd, job) = (etcd.clone(), job.clone());
        BackgroundTask::run(async move { etcd.acquire(&job, short()).await.unwrap() })
    };
    assert!(etcd.try_acquire(&job, short()).await.unwrap().is_none());
    waiting.assert_running();
    go.go_on();
    assert_eq!(go.says().await, "unlocked");
    let ours = waiting.done("our turn").await;
    assert!(ours.is_held());
    // It queues behind us now.
    go.go_on();
    let other = etcd.try_acquire(&job, short()).await.unwrap();
    assert!(other.is_none() && go.is_silent());
    assert_eq!(soon("released", ours.release()).await.unwrap(), Released::Released);
    assert!(go.says().await.starts_with("locked nightly/"));
}

#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn both_stand_for_one_office() {
    let etcd_server = EtcdServer::start().await;
    let etcd = Etcd::builder([etcd_server.url()]).lock_layout(EtcdConcurrency).connect().await.unwrap();
    let office = LockName::parse("office").unwrap();
    let ours = soon("elected", etcd.campaign(&office, "rust", short())).await.unwrap();
    assert_eq!(Go::start(&etcd_server, &["leader", "office"]).says().await, "leader rust");
    let mut go = Go::start(&etcd_server, &["elect", "office", "go"]);
    let mut observer = etcd.observe(&office).await.unwrap();
    assert_eq!(soon("observed", observer.next()).await.unwrap().leader.unwrap().value, "rust");
    assert!(go.is_silent());
    soon("resigned", ours.resign()).await.unwrap();
    assert_eq!(go.says().await, "leads go");
    while soon("observed", observer.next()).await.unwrap().leader.is_none_or(|leader| leader.value != "go") {}
    go.go_on();
    assert_eq!(go.says().await, "resigned");
    while soon("observed", observer.next()).await.unwrap().leader.is_some() {}
}

/// gobase's lock has one key, which whoever creates it holds. A process of either side that ends lets go of it after its TTL.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn gobase_and_ours_exclude_each_other() {
    let etcd_server = EtcdServer::start().await;
    let proxy = Proxy::start(etcd_server.address()).await.unwrap();
    let etcd = Etcd::builder([proxy.url()]).lock_layout(GobaseLock).connect().await.unwrap();
    let job = LockName::parse("/locks/nightly").unwrap();
    let waits = || {
        let (etcd, job) = (etcd.clone(), job.clone());
        BackgroundTask::run(async move { etcd.acquire(&job, short()).await.unwrap() })
    };
    // Go holds, and deletes its key.
    let mut go = Go::start(&etcd_server, &["gobase-lock", "/locks/nightly"]);
    assert_eq!(go.says().await, "locked");
    assert!(etcd.try_acquire(&job, short()).await.unwrap().is_none());
    let mut waiting = waits();
    waiting.assert_running();
    go.go_on();
    assert_eq!(go.says().await, "deleted");
    let ours = waiting.done("our turn").await;
    // Ours holds, and releases.
    let mut go = Go::start(&etcd_server, &["gobase-lock", "/locks/nightly"]);
    assert_eq!(go.says().await, "busy");
    go.go_on();
    assert_eq!(go.says().await, "busy");
    assert!(ours.is_held());
    assert_eq!(soon("released", ours.release()).await.unwrap(), Released::Released);
    go.go_on();
    assert_eq!(go.says().await, "locked");
    // Go crashes.
    let mut waiting = waits();
    assert!(etcd.try_acquire(&job, short()).await.unwrap().is_none());
    drop(go);
    let ours = waiting.done("our turn").await;
    assert!(ours.is_held());
    // Ours is never heard of again.
    let mut go = Go::start(&etcd_server, &["gobase-lock", "/locks/nightly"]);
    assert_eq!(go.says().await, "busy");
    proxy.cut();
    soon("the loss", ours.lost()).await;
    let go = tokio::sync::Mutex::new(go);
    eventually("Go has it", || async {
        let mut go = go.lock().await;
        go.go_on();
        let says = go.says().await;
        if says == "locked" { Ok(()) } else { Err(says) }
    })
    .await;
    assert!(!ours.is_held());
}
