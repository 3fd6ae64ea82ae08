//! Assignments that streams share. Each requested name has one task, which follows the views of the services that the
//! name can mean, encodes the assignment once per change, and marks it in the inbox of each stream that subscribes to
//! it. The task ends with the last subscription; the directory keeps the watch for its idle time, in which the name
//! still counts towards the limit.

use std::{
    collections::HashMap,
    fmt, mem,
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use enlist::{
    Change, Directory, Epoch, Error, Revision, ServiceRef, ServiceView, Snapshot, TaskOwner,
    backend::{LONGEST, MutexExt as _, SnapshotBuilder},
    escape::escaped,
};
use futures::{Stream, StreamExt as _, stream};
use tokio::time::Instant;

use super::{
    assignment::{Assignment, Omission, TooLarge, assignment},
    inbox::Inbox,
    resource::{Resource, Version},
    target,
};
use crate::{
    limits::{Limit, LimitUse},
    staleness::Staleness,
};

/// Assignments by requested name.
pub(super) struct SharedAssignments {
    directory: Directory,
    limit: Arc<Limit>,
    /// Time for which the directory keeps a watch without a user.
    idle: Duration,
    /// Time after the first answer of the store in which a client that has instances receives no empty assignment.
    settle: Duration,
    names: Mutex<Names>,
}

/// Names that count towards the limit. Each is in one of the maps.
#[derive(Default)]
struct Names {
    followed: HashMap<Arc<str>, Arc<FollowedAssignment>>,
    /// Names without a subscription, with the end of their watches.
    idle: HashMap<Arc<str>, Instant>,
    /// No idle name ends before this time; `None` if there was none at the last look.
    earliest_end: Option<Instant>,
}

impl Names {
    /// Returns `true` if one more name can be followed beside the present ones.
    fn have_room(&mut self, max: usize, now: Instant) -> bool {
        let is_full = self.followed.len() + self.idle.len() >= max;
        if is_full && self.earliest_end.is_some_and(|end| end <= now) {
            self.idle.retain(|_, end| *end > now);
            self.earliest_end = self.idle.values().min().copied();
        }
        self.followed.len() + self.idle.len() < max
    }

    /// Counts a name without a subscription until this time.
    fn rest(&mut self, name: &Arc<str>, end: Instant) {
        self.idle.insert(Arc::clone(name), end);
        self.earliest_end = Some(self.earliest_end.map_or(end, |earliest| earliest.min(end)));
    }
}

/// Failure to subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The agent follows as many names as permitted.
    TooManyNames,
    /// The agent stops.
    Stopping,
}

/// Completeness of the latest assignment of a service. Its changes are logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Completeness {
    /// It contains all instances that take calls.
    #[default]
    All,
    /// It lacks some, for these reasons.
    Partial(Vec<Omission>),
    /// It is too large to be sent.
    NotSent,
}

impl Completeness {
    fn of(assignment: &Result<Assignment, TooLarge>) -> Self {
        match assignment {
            Ok(assignment) => {
                let reasons = assignment.omitted.keys().copied().filter(|reason| !reason.is_intended());
                let reasons: Vec<_> = reasons.collect();
                if reasons.is_empty() { Self::All } else { Self::Partial(reasons) }
            }
            Err(_) => Self::NotSent,
        }
    }
}

/// The latest assignment that can be sent.
struct Published {
    assignment: Assignment,
    /// `false` while the present one is too large to be sent.
    is_current: bool,
}

/// The assignment of one name.
struct FollowedAssignment {
    name: Arc<str>,
    /// Views of the services that the name can mean.
    views: Vec<ServiceView>,
    /// `None`: not known yet.
    published: Mutex<Option<Published>>,
    /// Assignments for clients that prefer a zone, each with the version of the published one from which it was made.
    /// Only zones of that one are present.
    by_zone: Mutex<HashMap<String, (Version, Resource)>>,
    /// Time after the first answer of the store in which instances register again.
    settle: Duration,
    /// Its end; none before that answer.
    settled: OnceLock<Instant>,
    /// State that was logged last.
    logged: Mutex<Completeness>,
    subscribers: Mutex<Subscribers>,
    /// Ends the task with the last user.
    task: TaskOwner,
}

#[derive(Default)]
struct Subscribers {
    last: u64,
    inboxes: HashMap<u64, Arc<Inbox>>,
}

/// Subscription of a stream to an assignment. Dropping it ends the subscription.
pub(super) struct Subscription {
    number: u64,
    shared: Arc<FollowedAssignment>,
    all: Weak<SharedAssignments>,
}

impl SharedAssignments {
    /// Creates the assignments of at most `max` names at a time. `idle`: time for which the directory keeps a watch
    /// without a user. `settle`: time after the first answer of the store in which instances register again.
    pub(super) fn new(directory: Directory, max: usize, idle: Duration, settle: Duration) -> Self {
        let settle = settle.min(LONGEST);
        Self { directory, limit: Limit::new("xds_services", max), idle, settle, names: Mutex::default() }
    }

    /// Subscribes to the assignment of a name. Later changes are marked in the inbox. The caller counts a refusal, once
    /// for all attempts.
    pub(super) fn subscribe(self: &Arc<Self>, name: &str, inbox: &Arc<Inbox>) -> Result<Subscription, Refusal> {
        let mut names = self.names.locked();
        let shared = match names.followed.get(name).cloned() {
            Some(shared) => shared,
            None if !names.idle.contains_key(name) && !names.have_room(self.limit.max(), Instant::now()) => {
                return Err(Refusal::TooManyNames);
            }
            None => {
                let shared = self.start(name)?;
                names.idle.remove(name);
                names.followed.insert(Arc::clone(&shared.name), Arc::clone(&shared));
                shared
            }
        };
        // Under the lock of the names, so that the last subscription does not end in between.
        let number = shared.subscribers.locked().add(Arc::clone(inbox));
        Ok(Subscription { number, shared, all: Arc::downgrade(self) })
    }

    /// Counts a name that has to wait for room.
    pub(super) fn count_refusal(&self) {
        self.limit.refuse();
    }

    /// Returns the assignments that are known.
    pub(super) fn known(&self) -> Vec<Assignment> {
        let shared: Vec<_> = self.names.locked().followed.values().cloned().collect();
        shared
            .iter()
            .filter_map(|shared| shared.published.locked().as_ref().map(|one| one.assignment.clone()))
            .collect()
    }

    /// Returns the staleness of all assignments that have a subscription.
    pub(super) fn staleness(&self) -> Staleness {
        let shared: Vec<_> = self.names.locked().followed.values().cloned().collect();
        let mut staleness = Staleness::default();
        for shared in &shared {
            match *shared.published.locked() {
                Some(_) => staleness.add(shared.views.iter().filter_map(ServiceView::freshness)),
                None => staleness.add_unknown(),
            }
        }
        staleness
    }

    /// Returns the number of services whose latest assignment is too large to be sent.
    pub(super) fn not_sent(&self) -> usize {
        let names = self.names.locked();
        names.followed.values().filter(|shared| *shared.logged.locked() == Completeness::NotSent).count()
    }

    /// Returns the use of the limit of services.
    pub(super) fn usage(&self) -> LimitUse {
        let names = self.names.locked();
        self.limit.usage(Some(names.followed.len() + names.idle.len()))
    }

    fn start(&self, name: &str) -> Result<Arc<FollowedAssignment>, Refusal> {
        let (name, task): (Arc<str>, _) = (Arc::from(name), TaskOwner::new());
        let views: Vec<_> = target::services(&name).iter().map(|service| self.directory.view(service)).collect();
        let shared = Arc::new(FollowedAssignment {
            name,
            views: views.clone(),
            published: Mutex::default(),
            by_zone: Mutex::default(),
            settle: self.settle,
            settled: OnceLock::new(),
            logged: Mutex::default(),
            subscribers: Mutex::default(),
            task,
        });
        let task = follow(Arc::downgrade(&shared), views);
        shared.task.spawn_until_stopped("assignment", task).map_err(|_| Refusal::Stopping)?;
        Ok(shared)
    }
}

impl Subscribers {
    fn add(&mut self, inbox: Arc<Inbox>) -> u64 {
        self.last += 1;
        self.inboxes.insert(self.last, inbox);
        self.last
    }
}

impl Subscription {
    /// Returns the requested name.
    pub(super) fn name(&self) -> Arc<str> {
        Arc::clone(&self.shared.name)
    }

    /// Returns an assignment for a client that prefers a zone.
    pub(super) fn preferring(&self, zone: &str, assignment: Assignment) -> Resource {
        let mut by_zone = self.shared.by_zone.locked();
        if let Some((_, resource)) = by_zone.get(zone).filter(|(base, _)| *base == assignment.resource.version()) {
            return resource.clone();
        }
        let Some(resource) = assignment.preferring(zone) else { return assignment.resource };
        by_zone.insert(zone.to_owned(), (assignment.resource.version(), resource.clone()));
        resource
    }

    /// Returns the present assignment; `None` if it is not known yet, or too large to be sent: a former one can be of
    /// any age, and clients that have it keep it.
    pub(super) fn assignment(&self) -> Option<Assignment> {
        let published = self.shared.published.locked();
        published.as_ref().filter(|published| published.is_current).map(|published| published.assignment.clone())
    }

    /// Returns `true` if an assignment without an instance that takes calls is not due to instances that are about to
    /// register again.
    pub(super) fn is_settled(&self) -> bool {
        self.shared.settled.get().is_some_and(|settled| *settled <= Instant::now())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let all = self.all.upgrade();
        let names = all.as_deref().map(|all| (all.names.locked(), all.idle));
        let is_last = {
            let mut subscribers = self.shared.subscribers.locked();
            subscribers.inboxes.remove(&self.number);
            subscribers.inboxes.is_empty()
        };
        if let (Some((mut names, idle)), true) = (names, is_last) {
            names.followed.remove(&self.shared.name);
            names.rest(&self.shared.name, Instant::now() + idle);
        }
    }
}

impl FollowedAssignment {
    /// Publishes the assignment of a snapshot. Subscribers are informed if its content differs from the one before. One
    /// that is too large is not published: clients would not receive it. They keep what they have, and new ones get
    /// nothing.
    fn publish(&self, snapshot: &Snapshot) {
        let new = assignment(&self.name, snapshot);
        self.log(snapshot.service(), &new);
        let Ok(assignment) = new else {
            self.published.locked().iter_mut().for_each(|published| published.is_current = false);
            return;
        };
        let version = assignment.resource.version();
        let before = self.published.locked().replace(Published { assignment, is_current: true });
        if before.is_some_and(|before| before.is_current && before.assignment.resource.version() == version) {
            return;
        }
        self.by_zone.locked().clear();
        self.inform();
    }

    /// Logs a change of the completeness.
    fn log(&self, service: &ServiceRef, new: &Result<Assignment, TooLarge>) {
        let completeness = Completeness::of(new);
        if mem::replace(&mut *self.logged.locked(), completeness.clone()) == completeness {
            return;
        }
        let service = escaped(service);
        match new {
            Ok(_) if completeness == Completeness::All => tracing::info!(%service, "assignment complete"),
            Ok(new) => tracing::warn!(%service, omitted = ?new.omitted, "instances omitted"),
            Err(too_large) => tracing::error!(%service, %too_large, "assignment not sent"),
        }
    }

    fn inform(&self) {
        for inbox in self.subscribers.locked().inboxes.values() {
            inbox.put(&self.name);
        }
    }

    /// Records an answer of the store. After the first one, instances have the time to register again, at whose end
    /// subscribers are informed.
    fn answered(self: &Arc<Self>) {
        let settled = Instant::now() + self.settle;
        if self.settled.set(settled).is_err() {
            return;
        }
        let shared = Arc::downgrade(self);
        let settling = async move {
            tokio::time::sleep_until(settled).await;
            if let Some(shared) = shared.upgrade() {
                shared.inform();
            }
        };
        if self.task.spawn_until_stopped("settling", settling).is_err() {
            tracing::debug!("the assignment has no user");
        }
    }
}

/// Knowledge about one of the services that a name can mean.
#[derive(Clone, Debug)]
enum Known {
    /// None yet.
    Pending,
    /// An older copy, from the disk or a member that lags behind. The store has not answered yet.
    Copied(Snapshot),
    /// Its instances, as listed by the store.
    Listed(Snapshot),
}

impl Known {
    fn has_instances(&self) -> bool {
        match self {
            Self::Pending => false,
            Self::Copied(snapshot) | Self::Listed(snapshot) => !snapshot.is_empty(),
        }
    }

    /// Returns the knowledge after a change. The store has answered once a change was live, also if it is lost again.
    fn after(&self, change: Change) -> Self {
        match self {
            Self::Pending | Self::Copied(_) if !change.freshness.is_live() => Self::Copied(change.snapshot),
            Self::Pending | Self::Copied(_) | Self::Listed(_) => Self::Listed(change.snapshot),
        }
    }
}

/// Returns the snapshot that answers a name: that of the first service that has instances, or an empty one if none has;
/// `None` if that is not known yet. A copy without instances is no knowledge: it can be older than all instances.
fn chosen(services: &[Known]) -> Option<&Snapshot> {
    let mut empty = None;
    for known in services {
        match known {
            Known::Copied(snapshot) | Known::Listed(snapshot) if !snapshot.is_empty() => return Some(snapshot),
            Known::Pending | Known::Copied(_) => return None,
            Known::Listed(snapshot) => empty = empty.or(Some(snapshot)),
        }
    }
    empty
}

/// Publishes the assignment of a name whenever one of its services changes, until the assignment has no user.
async fn follow(shared: Weak<FollowedAssignment>, views: Vec<ServiceView>) {
    let services: Vec<_> = views.iter().map(|view| view.service().clone()).collect();
    let mut known = vec![Known::Pending; views.len()];
    let mut logged = vec![String::new(); views.len()];
    let mut changes = stream::select_all(views.into_iter().enumerate().map(|(at, view)| changes(at, &view).boxed()));
    while let Some((at, change)) = changes.next().await {
        match change {
            Ok(change) => known[at] = known[at].after(change),
            // No service can have the name in this layout, or the namespace. Instances that are known stay.
            Err(Error::InvalidName { .. } | Error::Unsupported { .. }) if !known[at].has_instances() => {
                known[at] = Known::Listed(empty(services[at].clone()));
            }
            Err(cause) => {
                let (service, cause) = (escaped(&services[at]), enlist::with_causes(&cause).to_string());
                if logged[at] != cause {
                    tracing::warn!(%service, %cause, "assignment not known");
                    logged[at] = cause;
                }
                continue;
            }
        }
        let Some(shared) = shared.upgrade() else { return };
        if let Some(snapshot) = chosen(&known) {
            shared.publish(snapshot);
        }
        if known.iter().all(|known| matches!(known, Known::Listed(_))) {
            shared.answered();
        }
    }
}

/// Returns the changes of a view, with its number, until the directory is closed.
fn changes(at: usize, view: &ServiceView) -> impl Stream<Item = (usize, Result<Change, Error>)> + use<> {
    stream::unfold(view.changes(), move |mut changes| async move {
        match changes.next().await {
            Err(Error::Closed) => None,
            change => Some(((at, change), changes)),
        }
    })
}

fn empty(service: ServiceRef) -> Snapshot {
    SnapshotBuilder::new(service, Revision::default(), Epoch::default()).build()
}

impl fmt::Debug for SharedAssignments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names.locked().followed.len();
        f.debug_struct("SharedAssignments").field("names", &names).finish_non_exhaustive()
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logged::Logged;
    use async_trait::async_trait;
    use enlist::{
        Endpoint, Entry, Freshness, Health, Instance, InstanceId, Moment, Namespace, RegisterOptions, Registry as _,
        Resolver, ServiceName, Watcher,
    };
    use enlist_memory::{MemoryClient, MemoryStore};
    use enlist_testkit::{eventually, soon};

    fn snapshot(service: &str, instances: usize) -> Snapshot {
        let service = ServiceRef::parse(service).unwrap();
        let mut snapshot = SnapshotBuilder::new(service, Revision::new(1), Epoch::default());
        for number in 0..instances {
            let entry = Entry::new(instance(&number.to_string()), Revision::new(1), Revision::new(1));
            snapshot.insert(Arc::new(entry));
        }
        snapshot.build()
    }

    fn instance(id: &str) -> Instance {
        let endpoint = Endpoint::parse("10.0.0.1:80").unwrap();
        Instance::new(InstanceId::parse(id).unwrap(), [endpoint]).unwrap()
    }

    #[test]
    fn a_name_means_the_first_service_that_has_instances() {
        let listed = |name, instances| Known::Listed(snapshot(name, instances));
        let copied = |name, instances| Known::Copied(snapshot(name, instances));
        for (services, expected) in [
            (vec![Known::Pending], None),
            (vec![listed("a", 1)], Some("a")),
            (vec![listed("a", 0)], Some("a")),
            (vec![listed("a", 0), Known::Pending], None),
            (vec![Known::Pending, listed("b", 1)], None),
            (vec![listed("a", 1), Known::Pending], Some("a")),
            (vec![listed("a", 0), listed("b", 1)], Some("b")),
            (vec![listed("a", 0), listed("b", 0)], Some("a")),
            (vec![copied("a", 1), Known::Pending], Some("a")),
            (vec![copied("a", 0)], None),
            (vec![copied("a", 0), listed("b", 1)], None),
            (vec![listed("a", 0), copied("b", 0)], None),
            (vec![], None),
        ] {
            let name = chosen(&services).map(|snapshot| snapshot.service().name().as_str());
            assert_eq!(name, expected, "{services:?}");
        }
    }

    #[tokio::test]
    async fn streams_share_an_assignment_which_ends_with_the_last_of_them() {
        let registry = MemoryStore::new().client();
        let service = ServiceRef::parse("greeter").unwrap();
        let _a = registry.register(&service, instance("a"), RegisterOptions::new()).await.unwrap();
        let directory = Directory::new(Arc::new(registry));
        let all = Arc::new(SharedAssignments::new(directory, 1, Duration::ZERO, Duration::ZERO));
        let (one, two) = (Arc::new(Inbox::default()), Arc::new(Inbox::default()));
        let first = all.subscribe("greeter", &one).unwrap();
        let second = all.subscribe("greeter", &two).unwrap();
        assert!(first.assignment().is_none(), "not known yet");
        assert_eq!(one.take().await.len() + two.take().await.len(), 2);
        assert_eq!(first.assignment().unwrap().callable, 1);
        assert!(Arc::ptr_eq(&first.shared, &second.shared));
        assert_eq!(all.subscribe("other", &one).err(), Some(Refusal::TooManyNames));
        drop(first);
        assert_eq!(all.known().len(), 1);
        drop(second);
        assert_eq!(all.known().len(), 0);
        all.subscribe("other", &one).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_makes_followed_assignments_stale() {
        let store = MemoryStore::new();
        let (registry, reader) = (store.client(), store.client());
        let _a = registry.register(&ServiceRef::parse("greeter").unwrap(), instance("a"), RegisterOptions::new()).await;
        let all = Arc::new(SharedAssignments::new(
            Directory::new(Arc::new(reader.clone())),
            2,
            Duration::ZERO,
            Duration::ZERO,
        ));
        let inbox = Arc::new(Inbox::default());
        let _subscription = all.subscribe("greeter", &inbox).unwrap();
        inbox.take().await;
        let live = all.staleness();
        assert_eq!((live.followed, live.stale, live.unknown), (1, 0, 0));
        reader.cut();
        let _other = all.subscribe("other", &inbox).unwrap();
        let is_stale = async || match all.staleness() {
            Staleness { followed: 2, stale: 1, unknown: 1, .. } => Ok(()),
            staleness => Err(staleness),
        };
        eventually("one is stale, and one not known", is_stale).await;
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(all.staleness().oldest >= Duration::from_secs(3600));
    }

    /// A store of which a member that lags behind answers first: it lists no instance.
    #[derive(Debug)]
    struct Lagging(MemoryClient);

    #[derive(Debug)]
    struct LaggingWatcher {
        first: Option<Change>,
        then: Box<dyn Watcher>,
    }

    #[async_trait]
    impl Resolver for Lagging {
        async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
            self.0.resolve(service).await
        }

        async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
            let freshness = Freshness::Stale { proven: Moment::now(), cause: Error::unavailable("it lags behind") };
            let first = Change { snapshot: empty(service.clone()), events: Vec::new(), freshness };
            Ok(Box::new(LaggingWatcher { first: Some(first), then: self.0.watch(service).await? }))
        }

        async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
            self.0.services(namespace).await
        }
    }

    #[async_trait]
    impl Watcher for LaggingWatcher {
        async fn next(&mut self) -> Result<Change, Error> {
            match self.first.take() {
                Some(change) => Ok(change),
                None => self.then.next().await,
            }
        }
    }

    #[tokio::test]
    async fn a_copy_without_instances_is_no_answer_of_the_store() {
        let registry = MemoryStore::new().client();
        let service = ServiceRef::parse("greeter").unwrap();
        let _a = registry.register(&service, instance("a"), RegisterOptions::new()).await.unwrap();
        let all = Arc::new(SharedAssignments::new(
            Directory::new(Arc::new(Lagging(registry))),
            1,
            Duration::ZERO,
            Duration::ZERO,
        ));
        let inbox = Arc::new(Inbox::default());
        let subscription = all.subscribe("greeter", &inbox).unwrap();
        inbox.take().await;
        assert_eq!(subscription.assignment().unwrap().callable, 1, "the first assignment");
    }

    /// A store whose layout has no namespaces.
    #[derive(Debug)]
    struct WithoutNamespaces(MemoryClient);

    impl WithoutNamespaces {
        fn check(service: &ServiceRef) -> Result<(), Error> {
            let refusal = || Error::Unsupported { what: "a namespace other than `default`".to_owned() };
            if *service.namespace() == Namespace::default() { Ok(()) } else { Err(refusal()) }
        }
    }

    #[async_trait]
    impl Resolver for WithoutNamespaces {
        async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
            Self::check(service)?;
            self.0.resolve(service).await
        }

        async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
            Self::check(service)?;
            self.0.watch(service).await
        }

        async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
            self.0.services(namespace).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_cannot_exist_has_an_empty_assignment() {
        let directory = Directory::new(Arc::new(WithoutNamespaces(MemoryStore::new().client())));
        let all = Arc::new(SharedAssignments::new(directory, 1, Duration::ZERO, Duration::ZERO));
        let inbox = Arc::new(Inbox::default());
        let subscription = all.subscribe("team/greeter", &inbox).unwrap();
        let logged = Logged::of("enlist_agent::xds::shared");
        let _logging = tracing::subscriber::set_default(logged.clone());
        soon("an answer", inbox.take()).await;
        assert_eq!(subscription.assignment().map(|assignment| assignment.callable), Some(0));
        // The refusal is repeated, and is not logged as missing knowledge.
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(logged.messages("service"), []);
    }

    /// Returns instances at different addresses, each in a zone of its own with a name of this length.
    fn zones(count: usize, length: usize) -> Snapshot {
        let service = ServiceRef::parse("gr\u{202e}eeter").unwrap();
        let mut snapshot = SnapshotBuilder::new(service, Revision::new(1), Epoch::default());
        for number in 0..count {
            let endpoint = Endpoint::parse(format!("10.0.0.{number}:80")).unwrap();
            let instance = Instance::new(InstanceId::parse(number.to_string()).unwrap(), [endpoint]).unwrap();
            let instance = instance.with_zone(format!("{number}{}", "z".repeat(length)));
            snapshot.insert(Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1))));
        }
        snapshot.build()
    }

    /// Returns a snapshot of an instance that is not serving.
    fn idle() -> Snapshot {
        let mut snapshot =
            SnapshotBuilder::new(ServiceRef::parse("greeter").unwrap(), Revision::new(1), Epoch::default());
        let endpoint = Endpoint::parse("10.0.0.1:80").unwrap();
        let instance = Instance::new(InstanceId::parse("idle").unwrap(), [endpoint]).unwrap();
        let instance = instance.with_health(Health::NotServing);
        snapshot.insert(Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1))));
        snapshot.build()
    }

    #[tokio::test]
    async fn a_former_assignment_is_not_sent_as_present() {
        let directory = Directory::new(Arc::new(MemoryStore::new().client()));
        let all = Arc::new(SharedAssignments::new(directory, 1, Duration::ZERO, Duration::ZERO));
        let inbox = Arc::new(Inbox::default());
        let subscription = all.subscribe("greeter", &inbox).unwrap();
        subscription.shared.publish(&zones(1, 1));
        assert_eq!((inbox.take().await.len(), subscription.assignment().unwrap().callable), (1, 1));
        subscription.shared.publish(&zones(40, 100_000));
        assert!(subscription.assignment().is_none());
        subscription.shared.publish(&zones(1, 1));
        assert_eq!(subscription.assignment().unwrap().callable, 1);
        assert_eq!(inbox.take().await.len(), 1, "clients that came meanwhile get it");
    }

    #[tokio::test]
    async fn transitions_are_logged_once() {
        let directory = Directory::new(Arc::new(MemoryStore::new().client()));
        let all = Arc::new(SharedAssignments::new(directory, 1, Duration::ZERO, Duration::ZERO));
        let subscription = all.subscribe("greeter", &Arc::default()).unwrap();
        let logged = Logged::of("enlist_agent::xds::shared");
        tracing::subscriber::with_default(logged.clone(), || {
            // One that takes no calls; instances with one address; too many bytes.
            let snapshots =
                [idle(), snapshot("greeter", 2), snapshot("greeter", 3), zones(40, 100_000), zones(41, 100_000)];
            for snapshot in snapshots {
                subscription.shared.publish(&snapshot);
            }
            for count in [1, 2] {
                subscription.shared.publish(&zones(count, 1));
            }
        });
        let expected = [
            ("instances omitted", "default/greeter"),
            ("assignment not sent", "default/gr\\u{202e}eeter"),
            ("assignment complete", "default/gr\\u{202e}eeter"),
        ];
        let messages = logged.messages("service");
        assert_eq!(messages, expected.map(|(message, service)| (message.to_owned(), service.to_owned())));
    }
}
