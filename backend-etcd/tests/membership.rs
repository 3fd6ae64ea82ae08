//! Changes of a cluster's membership while clients run: learners, and members that are removed, added, or wiped and
//! added again.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{
    Counter, Error, Event, Lock, LockGuard, LockName, LockOptions, Registration, Resolver, TaskOwner, Watcher,
    backend::MutexExt as _,
};
use enlist_etcd::{Etcd, SessionRuntime};
use enlist_testkit::{EtcdCluster, EtcdServer, Proxy, eventually, soon};
use support::{
    between::{send, serve},
    in_background,
    logged::Logged,
    register, service,
};
use tonic::{Status, transport::Endpoint};
use tracing_subscriber::filter::LevelFilter;

/// A cluster that loses its leader elects another one within seconds on a busy machine.
const LOCK_TTL: Duration = Duration::from_secs(15);

/// Removals of keys of instances, seen by a raw watch over one member.
struct Departures {
    url: String,
    keys: Arc<Mutex<Vec<String>>>,
}

impl Departures {
    async fn follow(url: &str, tasks: &TaskOwner) -> Self {
        let keys = Arc::new(Mutex::new(Vec::new()));
        let mut raw = etcd_client::Client::connect([url], None).await.unwrap();
        let options = etcd_client::WatchOptions::new().with_prefix();
        let mut stream = raw.watch(support::PREFIX, Some(options)).await.unwrap();
        let gone = Arc::clone(&keys);
        in_background(tasks, async move {
            while let Ok(Some(message)) = stream.message().await {
                let events = message.events().iter();
                let deletions = events.filter(|event| event.event_type() == etcd_client::EventType::Delete);
                let deleted = deletions.map(|event| event.kv().unwrap().key_str().unwrap().to_owned());
                gone.locked().extend(deleted);
            }
        });
        Self { url: url.to_owned(), keys }
    }

    /// Fails if a key was removed. The watch has to see the removal of a marker first, because it ends with its stream.
    async fn are_none(&self) {
        let marker = format!("{}marker", support::PREFIX);
        let mut raw = etcd_client::Client::connect([&self.url], None).await.unwrap();
        raw.put(marker.clone(), "no instance", None).await.unwrap();
        raw.delete(marker.clone(), None).await.unwrap();
        let gone = eventually("the removal of the marker is seen", || async {
            let gone = self.keys.locked().clone();
            if gone.contains(&marker) { Ok(gone) } else { Err(gone) }
        })
        .await;
        assert_eq!(gone, [marker], "no instance was absent");
    }
}

/// A client with an instance, a watcher and a lock, which the changes of the cluster must not affect.
struct User {
    etcd: Etcd,
    registration: Registration,
    watcher: Box<dyn Watcher>,
    guard: LockGuard,
    weight: u32,
}

impl User {
    async fn new(etcd: Etcd, id: &str) -> Self {
        let registration = register(&etcd, id).await;
        let mut watcher = etcd.watch(&service()).await.unwrap();
        soon("a list", watcher.next()).await.unwrap();
        let name = LockName::parse(id).unwrap();
        let guard = soon("acquired", etcd.acquire(&name, LockOptions::new().ttl(LOCK_TTL))).await.unwrap();
        Self { etcd, registration, watcher, guard, weight: 1 }
    }

    /// Changes its instance and sees the change; no instance is removed meanwhile, and its lock is kept.
    async fn works(&mut self) {
        self.weight += 1;
        let (id, weight) = (self.registration.instance().id().clone(), self.weight);
        let update = self.registration.update(move |update| {
            update.weight(weight);
        });
        soon("stored", update).await.unwrap();
        let seen = async {
            loop {
                let change = self.watcher.next().await.unwrap();
                assert!(!change.events.iter().any(|event| matches!(event, Event::Removed(_))), "{:?}", change.events);
                let mut entries = change.snapshot.entries().map(|entry| entry.instance());
                if entries.any(|instance| *instance.id() == id && instance.weight() == weight) {
                    return;
                }
            }
        };
        soon("the change is seen", seen).await;
        assert!(self.guard.is_held(), "the lock is kept");
        assert_eq!(self.etcd.counters().get(Counter::LeaseLosses), 0);
    }
}

/// Clients leave a learner among their endpoints for a member. The learner is promoted, and serves the clients when
/// others are removed. The client with member sync starts with a single member, which is removed first; the final
/// quorum consists of members that were not among its endpoints. Control: a client without member sync is cut off then,
/// and the learner itself refuses requests.
#[tokio::test]
async fn running_clients_follow_changed_members() {
    let mut cluster = EtcdCluster::start().await;
    let learner = cluster.add_learner().await;
    let refused = soon("refused", Etcd::connect(learner.clone())).await.unwrap_err();
    assert!(format!("{refused:?}").contains("learner"), "{refused:?}");

    let first = cluster.urls()[0].clone();
    let address = learner.strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = Proxy::start(address).await.unwrap();
    let mut endpoints = vec![proxy.url()];
    endpoints.extend(cluster.urls());
    let alone = Etcd::connect(first.clone()).await.unwrap();
    let following = Etcd::builder([first]).member_sync(Some(Duration::from_secs(1))).connect().await.unwrap();
    let mut users = vec![User::new(following, "following").await];
    // Each client starts with a random endpoint; at least one has to start with the learner.
    while users.len() < 5 || proxy.connections().is_empty() {
        assert!(users.len() < 60, "none starts with the learner");
        let etcd = Etcd::builder(endpoints.clone()).connect().await.unwrap();
        users.push(User::new(etcd, &format!("u{}", users.len())).await);
    }
    let tasks = TaskOwner::new();
    let departures = Departures::follow(&cluster.urls()[2], &tasks).await;

    let promoted = cluster.promote_learner().await;
    for user in &mut users {
        user.works().await;
    }
    cluster.remove(0).await;
    for user in &mut users {
        user.works().await;
    }
    let service = service();
    let (cut_off, added) = tokio::join!(soon("an answer", alone.resolve(&service)), cluster.add());
    assert!(matches!(cut_off, Err(Error::Unavailable(_))), "{cut_off:?}");

    cluster.remove(1).await;
    for user in &mut users {
        user.works().await;
    }
    departures.are_none().await;
    // Two of three are a quorum: the promoted member and the added one.
    cluster.member_mut(2).kill().await;
    for user in &mut users {
        user.works().await;
    }
    assert!([promoted, added].contains(&cluster.leader().await));
}

/// A proxy refuses the member list.
#[tokio::test]
async fn a_refused_member_list_is_reported_once() {
    let server = EtcdServer::start().await;
    let channel = Endpoint::from_shared(server.url()).unwrap().connect().await.unwrap();
    let (tasks, refused) = (TaskOwner::new(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&refused);
    let url = serve(&tasks, move |request| {
        let (channel, count) = (channel.clone(), Arc::clone(&count));
        async move {
            if request.uri().path().ends_with("/MemberList") {
                count.fetch_add(1, Ordering::Relaxed);
                return Ok(Status::permission_denied("etcdserver: permission denied").into_http());
            }
            Ok(send(channel, request).await.unwrap_or_else(|error| Status::unavailable(error.to_string()).into_http()))
        }
    });
    // Control.
    let mut raw = etcd_client::Client::connect([&url], None).await.unwrap();
    assert!(raw.member_list().await.unwrap_err().to_string().contains("permission denied"));

    let (logged, _logging) = Logged::from(LevelFilter::WARN);
    let builder = Etcd::builder([&url]).member_sync(Some(Duration::from_millis(100)));
    let mut user = User::new(builder.runtime(SessionRuntime::Caller).connect().await.unwrap(), "u").await;
    eventually("it is refused repeatedly", || async {
        let now = refused.load(Ordering::Relaxed);
        if now >= 5 { Ok(()) } else { Err(now) }
    })
    .await;
    user.works().await;
    let warnings = logged.lines("member list");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains("the endpoints stay as they are"), "{warnings:#?}");
}

/// The leader loses its disk, is removed, and is added again without data at the same address. Until then, clients use
/// another member. Control: it has another member id than before.
#[tokio::test]
async fn a_replaced_member_is_not_noticed() {
    let mut cluster = EtcdCluster::start().await;
    let leader = cluster.leader().await;
    let proxy = Proxy::start(cluster.member(leader).address()).await.unwrap();
    let mut urls = cluster.urls();
    urls[leader] = proxy.url();
    let mut users = Vec::new();
    // Each client starts with a random endpoint; at least one has to use the leader.
    while users.len() < 6 || proxy.connections().is_empty() {
        users.push(User::new(Etcd::builder(urls.clone()).connect().await.unwrap(), &format!("u{}", users.len())).await);
    }
    let tasks = TaskOwner::new();
    let departures = Departures::follow(&cluster.urls()[(leader + 1) % 3], &tasks).await;
    let url = cluster.urls()[leader].clone();
    let id = async || {
        let raw = etcd_client::Client::connect([url.clone()], None).await.unwrap();
        raw.maintenance_client().status().await.unwrap().header().unwrap().member_id()
    };
    let before = id().await;
    cluster.member_mut(leader).kill().await;
    for user in &mut users {
        user.works().await;
    }
    cluster.replace(leader).await;
    assert_ne!(id().await, before, "it is another member");
    for user in &mut users {
        user.works().await;
    }
    departures.are_none().await;
    eventually("the wiped member has everything", || async {
        let etcd = Etcd::connect(url.clone()).await.map_err(|error| format!("{error:?}"))?;
        let count = etcd.resolve(&service()).await.map_err(|error| format!("{error:?}"))?.len();
        if count == users.len() { Ok(()) } else { Err(format!("{count} instances")) }
    })
    .await;
}
