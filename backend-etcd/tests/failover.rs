//! Failures counted against connections, and reasons for a client to leave a member; the user's hooks for dials and
//! requests.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{
    Counter, Error, LeaseChoice, Lock, LockName, LockOptions, RegisterOptions, Registration, Registry, Resolver,
    ServiceRef, TaskOwner, Watcher, backend::MutexExt as _,
};
use enlist_etcd::{Etcd, EtcdBuilder, Requests};
use enlist_testkit::{Direction, EtcdServer, Mode, Proxy, eventually, soon};
use futures::future::join_all;
use support::{TTL, between::serve, instance, pass, register_with, server};
use tokio::task::JoinSet;
use tonic::{
    Code, Status,
    body::Body,
    service::InterceptorLayer,
    transport::{Channel, Endpoint},
};
use tower::{BoxError, Service, ServiceExt, layer::layer_fn, service_fn};

const REFUSALS: [Refusal; 5] = [
    Refusal::Status(Code::Unavailable, "etcdserver: rpc not supported for learner"),
    Refusal::Status(Code::Unavailable, "etcdserver: server stopped"),
    Refusal::Status(Code::ResourceExhausted, "etcdserver: too many requests"),
    Refusal::Http(503),
    Refusal::Http(429),
];

/// Number of watches, and of instances, of one client.
const MANY: usize = 200;

/// Duration of an outage: twice the request timeout.
const OUTAGE: Duration = Duration::from_secs(10);

/// Two proxies to one etcd, and a client that started with the first.
struct Ways {
    server: EtcdServer,
    first: Proxy,
    second: Proxy,
    /// Number of connections to the second proxy before the client used it.
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

    /// Checks that each member was dialled at most once for requests and once for watches, so neither was given up
    /// twice, and that unused connections are closed.
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

/// Registers instances with one lease each, so that there are as many concurrent renewals as instances.
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

/// Waits until each watcher shows an instance that is stored now.
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
async fn watches_silent_together_fail_over_once() {
    let ways = Ways::start().await;
    let mut watchers = watch_many(&ways.etcd).await;
    black_hole(&ways.first).await;
    follow(&ways.server, &mut watchers).await;
    ways.each_was_given_up_once_at_most().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_time_out_together_fail_over_once() {
    let ways = Ways::start().await;
    let _registrations = register_many(&ways.etcd).await;
    black_hole(&ways.first).await;
    ways.each_was_given_up_once_at_most().await;
    assert_eq!(ways.etcd.counters().get(Counter::LeaseLosses), 0);
}

/// The only endpoint is dialled repeatedly during the outage; each connection is kept for at least the request timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redials_of_the_only_member_leak_no_connections() {
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

/// Kind of refusal by a member, or by a proxy in front of it.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Status(Code, &'static str),
    Http(u16),
}

/// Behaviour of a gate, with the number of its refusals and the requests that it forwarded.
#[derive(Debug, Default)]
struct Orders {
    refusal: Option<Refusal>,
    refused: usize,
    /// For each method that was called: the user agents, and the tenants that
    /// [`a_layer_wraps_each_request_over_each_connection`] names.
    passed: BTreeMap<String, Vec<(String, String)>>,
}

/// Endpoint that forwards all requests to etcd, or refuses each one.
struct Gate {
    url: String,
    orders: Arc<Mutex<Orders>>,
    _tasks: TaskOwner,
}

impl Gate {
    async fn start(server: &EtcdServer) -> Self {
        let orders = Arc::<Mutex<Orders>>::default();
        let etcd = Endpoint::from_shared(server.url()).unwrap().connect().await.unwrap();
        let shared = Arc::clone(&orders);
        let tasks = TaskOwner::new();
        let url = serve(&tasks, move |request| forward(etcd.clone(), Arc::clone(&shared), request));
        Self { url, orders, _tasks: tasks }
    }

    fn refuse(&self, refusal: Refusal) {
        self.orders.locked().refusal = Some(refusal);
    }

    fn refused(&self) -> usize {
        self.orders.locked().refused
    }
}

async fn forward(
    mut etcd: Channel,
    orders: Arc<Mutex<Orders>>,
    request: http::Request<axum::body::Body>,
) -> Result<http::Response<Body>, Infallible> {
    let refusal = {
        let mut orders = orders.locked();
        orders.refused += usize::from(orders.refusal.is_some());
        let header = |name| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
        orders.passed.entry(method).or_default().push((header("user-agent"), header("x-tenant")));
        orders.refusal
    };
    match refusal {
        Some(Refusal::Status(code, text)) => return Ok(Status::new(code, text).into_http()),
        Some(Refusal::Http(status)) => {
            let body = Body::new("no healthy upstream".to_owned());
            return Ok(http::Response::builder().status(status).body(body).unwrap());
        }
        None => {}
    }
    let answer = async { etcd.ready().await?.call(request.map(Body::new)).await };
    Ok(answer.await.unwrap_or_else(|error| Status::unavailable(error.to_string()).into_http()))
}

/// Runs renewals, registrations, locks and watches, all of which start with the member that later refuses.
async fn refusals_are_left(server: &EtcdServer, refusal: Refusal) {
    let gate = Gate::start(server).await;
    let other = Proxy::start(server.address()).await.unwrap();
    other.set(Mode::Refuse);
    eventually("the other one is out of reach", || async {
        let connected = tokio::net::TcpStream::connect(other.address()).await;
        if connected.is_err() { Ok(()) } else { Err(connected) }
    })
    .await;
    let etcd = Etcd::builder([gate.url.clone(), other.url()]).connect().await.unwrap();
    // The names are unique per gate, because several of these runs are concurrent.
    let own = |what: &str| format!("{what}-{}", gate.url.rsplit(':').next().unwrap());
    let _first = register_with(&etcd, &own("first"), RegisterOptions::new()).await;
    let name = LockName::parse(own("lock")).unwrap();
    let guard = soon("acquired", etcd.acquire(&name, LockOptions::new().ttl(TTL))).await.unwrap();
    soon("resolved", etcd.resolve(&support::service())).await.unwrap();
    other.heal();
    gate.refuse(refusal);
    let service = ServiceRef::parse(own("svc")).unwrap();
    let mut watcher = etcd.watch(&service).await.unwrap();
    assert!(soon("a list", watcher.next()).await.unwrap().snapshot.is_empty());
    let second = etcd.register(&service, instance("second"), support::options());
    let _second = soon("registered", second).await.unwrap();
    while soon("a change", watcher.next()).await.unwrap().snapshot.is_empty() {}
    pass(2 * TTL).await;
    assert!(guard.is_held(), "{refusal:?}");
    assert_eq!(etcd.counters().get(Counter::LeaseLosses), 0, "{refusal:?}");
    println!("{refusal:?}: {} refused", gate.refused());
    assert!((1..20).contains(&gate.refused()), "{refusal:?}: {} refused", gate.refused());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusing_member_is_left_for_another() {
    let server = server().await;
    join_all(REFUSALS.map(|refusal| refusals_are_left(&server, refusal))).await;
}

/// The client connects for either choice of its first member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_connects_although_one_member_refuses() {
    let server = server().await;
    for refusal in REFUSALS {
        let gate = Gate::start(&server).await;
        gate.refuse(refusal);
        let mut begun = 0;
        // The choice is random, so this may take a few attempts.
        while gate.refused() == 0 {
            let etcd = Etcd::builder([gate.url.clone(), server.url()]).connect().await;
            let etcd = etcd.unwrap_or_else(|error| panic!("{refusal:?}: {error:?}"));
            assert!(etcd.resolve(&support::service()).await.unwrap().is_empty(), "{refusal:?}");
            begun += 1;
            assert!(begun < 100, "{refusal:?} was never met");
        }
    }
}

/// If every member refuses, none is dialled in a tight loop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusing_members_are_dialled_at_a_slow_pace() {
    const LASTS: Duration = Duration::from_secs(5);
    let server = server().await;
    let gates = [Gate::start(&server).await, Gate::start(&server).await];
    let address = |gate: &Gate| gate.url.strip_prefix("http://").unwrap().parse().unwrap();
    let ways = [Proxy::start(address(&gates[0])).await.unwrap(), Proxy::start(address(&gates[1])).await.unwrap()];
    let etcd = Etcd::builder(ways.each_ref().map(Proxy::url)).connect().await.unwrap();
    for gate in &gates {
        gate.refuse(Refusal::Status(Code::ResourceExhausted, "etcdserver: too many requests"));
    }
    let mut watchers = Vec::new();
    for number in 0..MANY {
        watchers.push(etcd.watch(&named(number)).await.unwrap());
    }
    pass(LASTS).await;
    let dialled: usize = ways.iter().map(|way| way.connections().len()).sum();
    println!("{dialled} connections, {} refused", gates.iter().map(Gate::refused).sum::<usize>());
    // Each member once per second, for watches and for requests.
    assert!(dialled <= 4 * 6 + 4, "{dialled} connections");
}

/// Idle connections on which responses no longer arrive. The control is a client with the defaults, which notices it
/// after fifteen seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_follow_their_options() {
    let server = server().await;
    let ways = [Proxy::start(server.address()).await.unwrap(), Proxy::start(server.address()).await.unwrap()];
    let [quick, default] = &ways;
    let builder = Etcd::builder([quick.url()]).keep_alive_interval(Duration::from_secs(6));
    let _quick = idle(builder.keep_alive_timeout(Duration::from_secs(1))).await;
    let _default = idle(Etcd::builder([default.url()])).await;
    for way in &ways {
        are_open(way, 2).await;
        way.set(Mode::BlackHole(Direction::ToClient));
    }
    are_open(quick, 0).await;
    assert_eq!(open(default), 2, "those of the control are still open");
    are_open(default, 0).await;
}

/// Returns a client with both of its connections, without requests in progress: a pending request would give up its
/// connection.
async fn idle(builder: EtcdBuilder) -> Etcd {
    let etcd = builder.build().unwrap();
    assert!(soon("a list", etcd.resolve(&named(0))).await.unwrap().is_empty());
    let removed = soon("an answer", etcd.remove(&named(0), instance("a").id())).await;
    assert!(matches!(removed, Err(Error::NotRegistered { .. })), "{removed:?}");
    etcd
}

async fn are_open(way: &Proxy, connections: usize) {
    eventually(&format!("{connections} connections are open"), || async {
        if open(way) == connections { Ok(()) } else { Err(open(way)) }
    })
    .await;
}

/// The durations exceed the range of the clock without a panic.
#[tokio::test]
async fn durations_without_end_are_as_good_as_none() {
    let server = server().await;
    let builder = Etcd::builder([server.url()]).keep_alive_interval(Duration::MAX).keep_alive_timeout(Duration::MAX);
    let builder = builder.connect_timeout(Duration::MAX).request_timeout(Duration::MAX);
    let etcd = builder.audit(Some(Duration::MAX)).probe(Some(Duration::MAX)).connect().await.unwrap();
    let mut watcher = etcd.watch(&named(0)).await.unwrap();
    assert!(soon("the first list", watcher.next()).await.unwrap().snapshot.is_empty());
}

/// One etcd behind three proxies. Each dial uses the user's settings, and the endpoint that they refuse is never
/// connected to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_dial_uses_the_settings_of_the_user() {
    let server = server().await;
    let mut ways = Vec::new();
    for _ in 0..3 {
        ways.push(Proxy::start(server.address()).await.unwrap());
    }
    let url = |way: &Proxy| format!("{}/", way.url());
    let dialled = Arc::<Mutex<Vec<String>>>::default();
    let (note, unwanted) = (Arc::clone(&dialled), url(&ways[0]));
    let builder = Etcd::builder(ways.iter().map(Proxy::url)).settings(move |settings| {
        let url = settings.uri().to_string();
        note.lock().unwrap().push(url.clone());
        if url == unwanted { Err("not this one".into()) } else { Ok(settings) }
    });
    ways[2].set(Mode::Refuse);
    eventually("the third is closed", || async {
        let connected = tokio::net::TcpStream::connect(ways[2].address()).await;
        if connected.is_err() { Ok(()) } else { Err(connected) }
    })
    .await;
    let etcd = builder.connect().await.unwrap();
    let mut watcher = etcd.watch(&named(0)).await.unwrap();
    assert!(soon("a list", watcher.next()).await.unwrap().snapshot.is_empty());
    assert!(dialled.lock().unwrap().contains(&url(&ways[1])));
    let before = dialled.lock().unwrap().len();
    ways[2].heal();
    ways[1].set(Mode::Refuse);
    // The other member takes over, with a dial that used the settings as well.
    follow(&server, std::slice::from_mut(&mut watcher)).await;
    let asked = dialled.lock().unwrap().clone();
    assert!(asked[before..].contains(&url(&ways[2])), "{asked:?}");
    assert!(!ways[2].connections().is_empty());
    assert_eq!(ways[0].connections().len(), 0);
}

/// Calls each request in a separate task, as a layer with a queue does.
fn elsewhere(
    inner: Requests,
) -> impl Service<
    http::Request<Body>,
    Response = http::Response<Body>,
    Error = BoxError,
    Future = impl Future<Output = Result<http::Response<Body>, BoxError>> + Send,
> + Clone
+ Send
+ Sync {
    service_fn(move |request| {
        let inner = inner.clone();
        async move {
            let mut task = JoinSet::new();
            task.spawn(inner.oneshot(request));
            task.join_next().await.unwrap()?
        }
    })
}

/// tonic's interceptor, a layer that counts, and one that calls from another task, while the client fails over from one
/// member to the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_wraps_each_request_over_each_connection() {
    let server = server().await;
    let gates = [Gate::start(&server).await, Gate::start(&server).await];
    let address = |gate: &Gate| gate.url.strip_prefix("http://").unwrap().parse().unwrap();
    let ways = [Proxy::start(address(&gates[0])).await.unwrap(), Proxy::start(address(&gates[1])).await.unwrap()];
    ways[1].set(Mode::Refuse);
    eventually("the second is closed", || async {
        let connected = tokio::net::TcpStream::connect(ways[1].address()).await;
        if connected.is_err() { Ok(()) } else { Err(connected) }
    })
    .await;
    let counted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&counted);
    let builder = Etcd::builder(ways.each_ref().map(Proxy::url)).settings(|settings| Ok(settings.user_agent("shop")?));
    let stamp = |mut request: tonic::Request<()>| {
        request.metadata_mut().insert("x-tenant", "blue".parse().unwrap());
        Ok(request)
    };
    let etcd = builder
        .layer(InterceptorLayer::new(stamp))
        .layer(layer_fn(elsewhere))
        .layer(layer_fn(move |inner: Requests| {
            let count = Arc::clone(&count);
            inner.map_request(move |request: http::Request<Body>| {
                count.fetch_add(1, Ordering::Relaxed);
                request
            })
        }))
        .connect()
        .await
        .unwrap();
    let mut watcher = etcd.watch(&support::service()).await.unwrap();
    let registration = register_with(&etcd, "a", RegisterOptions::new()).await;
    let mut passed = 0;
    for (number, weight) in [(0, 7), (1, 8)] {
        ways[number].heal();
        ways[1 - number].set(Mode::Refuse);
        soon("updated", registration.update(move |update| _ = update.weight(weight))).await.unwrap();
        let shows =
            |change: &enlist::Change| change.snapshot.entries().any(|entry| entry.instance().weight() == weight);
        while !shows(&soon("a change", watcher.next()).await.unwrap()) {}
        let calls = eventually("requests, a watch and renewals go by this way", || async {
            let calls = gates[number].orders.lock().unwrap().passed.clone();
            let all = ["Range", "Txn", "Watch", "LeaseKeepAlive"].iter().all(|method| calls.contains_key(*method));
            if all { Ok(calls) } else { Err(calls.into_keys().collect::<Vec<_>>()) }
        })
        .await;
        for (method, headers) in calls {
            assert!(headers.iter().all(|(agent, _)| agent.starts_with("shop")), "{method}: {headers:?}");
            assert!(headers.iter().all(|(_, tenant)| tenant == "blue"), "{method}: {headers:?}");
            passed += headers.len();
        }
    }
    assert!(counted.load(Ordering::Relaxed) >= passed, "{counted:?} of {passed}");
    assert_eq!(etcd.counters().get(Counter::LeaseLosses), 0);
}

/// A request that does not arrive gives up its connection, also behind a layer that calls from another task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_spawns_requests_leaves_silent_members() {
    let server = server().await;
    let ways = [Proxy::start(server.address()).await.unwrap(), Proxy::start(server.address()).await.unwrap()];
    let builder = Etcd::builder(ways.each_ref().map(Proxy::url)).layer(layer_fn(elsewhere));
    // Pings would detect it as well.
    let builder = builder.request_timeout(Duration::from_secs(1)).keep_alive_interval(Duration::MAX);
    let etcd = builder.connect().await.unwrap();
    for silent in [0, 1] {
        ways[1 - silent].heal();
        ways[silent].set(Mode::BlackHole(Direction::Both));
        eventually("the other one answers", || async { etcd.resolve(&named(0)).await }).await;
    }
}
