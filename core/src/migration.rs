//! Moving a fleet from one registry to another, a program at a time, while both sides see each other.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all, select_all, try_join_all},
};

use crate::{
    backend::publisher::{Publisher, ServiceWatcher},
    discovery::{
        freshness::Freshness,
        resolver::{Change, Resolver, Watcher},
        snapshot::Snapshot,
    },
    error::Error,
    model::{
        instance::{Entry, Health, Instance, Presence},
        name::{InstanceId, Namespace, ServiceName, ServiceRef},
        revision::{Epoch, Revision},
    },
    registration::{
        Deregistered, Desired, Goal, Registration, RegistrationDriver, RegistrationState, Shown,
        lease::Lease,
        registration,
        registry::{Evicted, RegisterOptions, Registry, Start},
    },
    runtime::{clock::Moment, task::TaskOwner},
};

/// Interval at which a merged view asks its sides for newer proofs of what they show.
const LOOK: Duration = Duration::from_secs(1);

/// One registry of a [`Migration`]: a client whose layout, prefix or store differs from the others'.
#[derive(Clone)]
pub struct Side {
    registry: Arc<dyn Registry>,
    resolver: Arc<dyn Resolver>,
    writes: bool,
    default_weight: u32,
    instances: Arc<dyn Fn(Instance) -> Instance + Send + Sync>,
    options: Arc<dyn Fn(RegisterOptions) -> RegisterOptions + Send + Sync>,
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { registry, resolver: _, writes, default_weight, instances: _, options: _ } = self;
        let mut shown = f.debug_struct("Side");
        shown.field("registry", registry).field("writes", writes).field("default_weight", default_weight);
        shown.finish_non_exhaustive()
    }
}

impl Side {
    /// A side that is read and written, whose instances weigh 100 if they say nothing else.
    pub fn new<C: Registry + Resolver>(client: Arc<C>) -> Self {
        let registry = Arc::clone(&client) as Arc<dyn Registry>;
        Self {
            registry,
            resolver: client,
            writes: true,
            default_weight: crate::model::instance::DEFAULT_WEIGHT,
            instances: Arc::new(|instance| instance),
            options: Arc::new(|options| options),
        }
    }

    /// Only reads here.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.writes = false;
        self
    }

    /// The weight of an instance that says nothing about it, to which the weights of all sides are brought in
    /// proportion: 10 in a side whose default is 10 is as much as 100 in one whose default is 100.
    ///
    /// # Panics
    ///
    /// For 0.
    #[must_use]
    pub fn default_weight(mut self, weight: u32) -> Self {
        assert!(weight > 0, "a default weight of 0 has no proportion to any other");
        self.default_weight = weight;
        self
    }

    /// What is written here instead of an instance, for a side that cannot carry all of it. Without this such an
    /// instance is refused.
    #[must_use]
    pub fn fit(mut self, fit: impl Fn(Instance) -> Instance + Send + Sync + 'static) -> Self {
        self.instances = Arc::new(fit);
        self
    }

    /// The options that are used here instead of those given, for instance without an owner where that cannot be
    /// carried.
    #[must_use]
    pub fn fit_options(mut self, fit: impl Fn(RegisterOptions) -> RegisterOptions + Send + Sync + 'static) -> Self {
        self.options = Arc::new(fit);
        self
    }

    fn written(&self, instance: &Instance, own_default: u32) -> Instance {
        let weight = proportion(instance.weight(), own_default, self.default_weight);
        (self.instances)(instance.clone().with_weight(weight))
    }
}

/// A weight out of `from` as one out of `to`. What is picked stays so.
fn proportion(weight: u32, from: u32, to: u32) -> u32 {
    let scaled = u64::from(weight) * u64::from(to) / u64::from(from);
    u32::try_from(scaled).unwrap_or(u32::MAX).max(u32::from(weight > 0))
}

/// Several registries as one: reads all of them, and registers in one or more.
///
/// The first side is one's own: its weights count as they are, and of two instances with one id or one address the
/// first side's is shown. A fleet moves in three steps, each of which may take as long as it likes: every program gets
/// a migration that writes to the old registry and reads both; then one that writes to both; then one that writes to
/// the new one only. At each step programs of the step before and after see each other.
///
/// It costs what its sides cost together, and each change of a watched service is merged in time proportional to all
/// its instances. Revisions of different sides do not compare: a snapshot carries the smallest.
///
/// ```
/// use enlist::{Endpoint, Instance, InstanceId, Migration, RegisterOptions, Registry, Resolver, ServiceRef, Side};
/// use enlist_memory::MemoryStore;
/// use std::sync::Arc;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), enlist::Error> {
/// let (old, new) = (MemoryStore::new(), MemoryStore::new());
/// let both = Migration::new(Side::new(Arc::new(new.client()))).and(Side::new(Arc::new(old.client())));
/// let service = ServiceRef::parse("greeter")?;
/// let instance = Instance::new(InstanceId::parse("g1")?, [Endpoint::parse("10.0.0.1:80")?])?;
/// let registration = both.register(&service, instance, RegisterOptions::new()).await?;
/// assert_eq!(old.client().resolve(&service).await?.len(), 1);
/// assert_eq!(new.client().resolve(&service).await?.len(), 1);
/// assert_eq!(both.resolve(&service).await?.len(), 1);
/// registration.deregister().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Migration {
    sides: Vec<Side>,
}

impl Migration {
    /// A migration whose own side is `own`.
    pub fn new(own: Side) -> Self {
        Self { sides: vec![own] }
    }

    /// Adds another side.
    #[must_use]
    pub fn and(mut self, side: Side) -> Self {
        self.sides.push(side);
        self
    }

    fn writing(&self) -> impl Iterator<Item = &Side> {
        self.sides.iter().filter(|side| side.writes)
    }

    fn own_default(&self) -> u32 {
        self.sides[0].default_weight
    }

    fn check_writing(&self) -> Result<(), Error> {
        match self.writing().next() {
            Some(_) => Ok(()),
            None => Err(Error::invalid_config("migration", "all of its sides are only read")),
        }
    }

    /// What the sides show together. `merged` is what they showed before.
    fn merge(&self, merged: &mut Snapshot, snapshots: &[Snapshot]) {
        let own = self.own_default();
        let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        let mut entries = Vec::new();
        for (side, snapshot) in self.sides.iter().zip(snapshots) {
            // Within a side nothing stands for anything else.
            let mut own_addresses = Vec::new();
            for entry in snapshot.entries() {
                let instance = entry.instance();
                let theirs: Vec<&str> = instance.endpoints().iter().map(crate::Endpoint::authority).collect();
                if ids.contains(instance.id()) || theirs.iter().any(|address| addresses.contains(address)) {
                    continue;
                }
                ids.insert(instance.id().clone());
                own_addresses.extend(theirs);
                entries.push(in_proportion(entry, side.default_weight, own));
            }
            addresses.extend(own_addresses);
        }
        let left: Vec<InstanceId> = merged
            .entries()
            .map(|entry| entry.instance().id().clone())
            .filter(|id| !ids.contains(id) && snapshots.iter().any(|snapshot| snapshot.departed(id)))
            .collect();
        for id in left {
            merged.leave(&id);
        }
        merged.patch(entries);
        let revision = snapshots.iter().map(Snapshot::revision).min().unwrap_or_default();
        let epoch = snapshots.iter().map(|snapshot| snapshot.epoch().get()).sum();
        merged.advance(revision, Epoch::new(epoch));
    }
}

/// The entry with the weight that its side's default makes of it.
fn in_proportion(entry: &Arc<Entry>, from: u32, to: u32) -> Arc<Entry> {
    let weight = entry.instance().weight();
    let scaled = proportion(weight, from, to);
    if scaled == weight || entry.presence() == Presence::Held {
        return Arc::clone(entry);
    }
    Arc::new(Entry::new(entry.instance().clone().with_weight(scaled), entry.created(), entry.modified()))
}

#[async_trait]
impl Resolver for Migration {
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
        let resolving = self.sides.iter().map(|side| side.resolver.resolve(service));
        let snapshots = try_join_all(resolving).await?;
        let mut merged = Snapshot::empty(service.clone(), Revision::default(), Epoch::default());
        self.merge(&mut merged, &snapshots);
        Ok(merged)
    }

    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        let watching = self.sides.iter().map(|side| side.resolver.watch(service));
        let watchers = try_join_all(watching).await?;
        let feed = Arc::new(Publisher::new());
        let tasks = TaskOwner::new();
        let merged = Snapshot::empty(service.clone(), Revision::default(), Epoch::default());
        let follower = Follower { migration: self.clone(), merged, feed: Arc::clone(&feed) };
        tasks.spawn_until_stopped("migration", follower.follow(watchers))?;
        Ok(Box::new(ServiceWatcher::new(feed.reader(Arc::new(tasks)))))
    }

    /// The services of all sides that can tell theirs.
    async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
        let mut names = BTreeSet::new();
        let mut unsupported = None;
        for side in &self.sides {
            match side.resolver.services(namespace).await {
                Ok(found) => names.extend(found),
                Err(error @ Error::Unsupported { .. }) => unsupported = Some(error),
                Err(error) => return Err(error),
            }
        }
        match unsupported {
            Some(error) if names.is_empty() => Err(error),
            _ => Ok(names.into_iter().collect()),
        }
    }
}

/// Merges what the watchers of all sides tell.
struct Follower {
    migration: Migration,
    merged: Snapshot,
    feed: Arc<Publisher<Snapshot>>,
}

impl Follower {
    async fn follow(mut self, mut watchers: Vec<Box<dyn Watcher>>) {
        let mut latest: Vec<Option<Change>> = vec![None; watchers.len()];
        loop {
            let each = watchers
                .iter_mut()
                .enumerate()
                .map(|(side, watcher)| async move { (side, watcher.next().await) }.boxed());
            // The others lose nothing: a `next` that is dropped returns the same the next time.
            let (side, next) = tokio::select! {
                (next, _, _) = select_all(each) => next,
                () = tokio::time::sleep(LOOK) => {
                    self.prove(&latest);
                    continue;
                }
            };
            match next {
                Ok(change) => latest[side] = Some(change),
                Err(Error::Closed) => return self.feed.close(),
                Err(error) => {
                    self.feed.refuse(error);
                    continue;
                }
            }
            // Half of the picture is none.
            if let Some(all) = latest.iter().map(Option::as_ref).collect::<Option<Vec<&Change>>>() {
                self.publish(&all);
            }
        }
    }

    fn publish(&mut self, all: &[&Change]) {
        let snapshots: Vec<Snapshot> = all.iter().map(|change| change.snapshot.clone()).collect();
        self.migration.merge(&mut self.merged, &snapshots);
        let proven = proven(all.iter().copied());
        let stale = all.iter().find_map(|change| match &change.freshness {
            Freshness::Stale { cause, .. } => Some(cause.clone()),
            _ => None,
        });
        match stale {
            Some(cause) => self.feed.publish_stale(self.merged.clone(), proven, cause),
            None => self.feed.publish(self.merged.clone(), proven),
        }
    }

    /// The sides prove what they told without telling it again.
    fn prove(&self, latest: &[Option<Change>]) {
        let all = latest.iter().flatten();
        if all.clone().count() == latest.len() && all.clone().all(|change| change.freshness.is_live()) {
            self.feed.prove(proven(all));
        }
    }
}

/// The oldest proof of all.
fn proven<'a>(all: impl Iterator<Item = &'a Change>) -> Moment {
    let oldest = all.map(|change| &change.freshness).max_by_key(|freshness| freshness.age());
    oldest.map_or_else(Moment::now, Freshness::proven)
}

#[async_trait]
impl Registry for Migration {
    async fn register(
        &self,
        service: &ServiceRef,
        instance: Instance,
        options: RegisterOptions,
    ) -> Result<Registration, Error> {
        self.check_writing()?;
        let own = self.own_default();
        let (mut sides, mut held) = (Vec::new(), Vec::new());
        for side in self.writing() {
            let theirs = (side.options)(options.clone()).start(Start::Background);
            let registering = side.registry.register(service, side.written(&instance, own), theirs);
            // Whoever was registered before is dropped, and withdrawn, if one refuses.
            held.push(registering.await?);
            sides.push(side.clone());
        }
        let tasks = Arc::new(TaskOwner::new());
        let (outer, driver) = registration(service.clone(), instance, Arc::clone(&tasks) as _);
        let checks: Vec<_> = sides.iter().cloned().zip(held.iter().map(Registration::checker)).collect();
        driver.accept_only(move |instance| {
            checks.iter().try_for_each(|(side, check)| check(&side.written(instance, own)))
        });
        let publisher = SidePublisher { driver, sides, held, own };
        tasks.spawn_until_stopped("migration", publisher.run())?;
        outer.started(&options).await
    }

    async fn publish(&self, service: &ServiceRef, instance: Instance) -> Result<Revision, Error> {
        self.check_writing()?;
        let own = self.own_default();
        let publishing = self.writing().map(|side| side.registry.publish(service, side.written(&instance, own)));
        let revisions = try_join_all(publishing).await?;
        Ok(revisions.into_iter().min().unwrap_or_default())
    }

    /// Removes it everywhere; what the first side held is returned. It need not be in all of them.
    async fn remove(&self, service: &ServiceRef, id: &InstanceId) -> Result<Entry, Error> {
        self.check_writing()?;
        let mut removed = Err(Error::NotRegistered { service: service.clone(), id: id.clone() });
        for side in self.writing() {
            match side.registry.remove(service, id).await {
                Err(Error::NotRegistered { .. }) => {}
                outcome => {
                    let entry = outcome?;
                    removed = removed.or(Ok(entry));
                }
            }
        }
        removed
    }

    /// Evicts it everywhere; what the first side held is returned. It need not be in all of them. Revisions of
    /// different sides do not compare, so with more than one a `modified` is [`Error::Unsupported`].
    async fn evict(&self, service: &ServiceRef, id: &InstanceId, modified: Option<Revision>) -> Result<Evicted, Error> {
        self.check_writing()?;
        if modified.is_some() && self.sides.len() > 1 {
            return Err(Error::Unsupported { what: "evicting from several sides at one revision".to_owned() });
        }
        let mut evicted = Err(Error::NotRegistered { service: service.clone(), id: id.clone() });
        for side in self.writing() {
            match side.registry.evict(service, id, modified).await {
                Err(Error::NotRegistered { .. }) => {}
                outcome => {
                    let side = outcome?;
                    evicted = evicted.or(Ok(side));
                }
            }
        }
        evicted
    }

    /// A lease is one of one store.
    async fn grant_lease(&self, _: Duration) -> Result<Lease, Error> {
        Err(Error::Unsupported { what: "granting a lease in several registries".to_owned() })
    }
}

/// The task behind a registration in several sides.
struct SidePublisher {
    driver: RegistrationDriver,
    sides: Vec<Side>,
    held: Vec<Registration>,
    own: u32,
}

/// What the sides make of an update: the generation and what each said.
type Updating = BoxFuture<'static, (u64, Result<Vec<Revision>, Error>)>;

impl SidePublisher {
    async fn run(mut self) {
        let mut states: Vec<_> = self.held.iter().map(Registration::states).collect();
        let mut wanted = self.driver.desired();
        // What was registered is the first generation. A later update takes an earlier one along.
        let mut updating = Some(self.update(wanted.generation));
        let mut news = true;
        loop {
            match wanted.goal {
                Goal::Present => {}
                Goal::Absent => return self.leave().await,
                // Each side is dropped as well.
                Goal::Dropped => return self.driver.report_end(Ok(Deregistered::LeftBehind)),
                Goal::Abandoned => return self.abandon(),
            }
            let state = worst(self.held.iter().map(Registration::state));
            if matches!(state, RegistrationState::Ended) {
                // One was evicted, or given up: the others are not left behind.
                return self.leave().await;
            }
            if news {
                self.report_lease();
                self.driver.report(state);
            }
            let changed = select_all(states.iter_mut().map(|states| states.next().boxed()));
            news = false;
            tokio::select! {
                () = self.driver.changed() => {
                    wanted = self.driver.desired();
                    updating = Some(self.update(wanted.generation));
                }
                _ = changed => news = true,
                (generation, stored) = finished(updating.as_mut()) => {
                    updating = None;
                    match stored {
                        Ok(revisions) => {
                            self.report_lease();
                            self.driver.report_stored(generation, revisions.into_iter().min().unwrap_or_default());
                        }
                        // That one has ended or was superseded shows in its state.
                        Err(Error::Closed | Error::NotOwner { .. }) => {}
                        Err(cause) => self.driver.report_refused(generation, cause),
                    }
                }
            }
        }
    }

    /// Reports the lease that the first side which is written uses.
    fn report_lease(&self) {
        if let Some(lease) = self.held.first().and_then(Registration::lease) {
            self.driver.report_lease(lease);
        }
    }

    /// Brings all sides to what is desired.
    fn update(&mut self, generation: u64) -> Updating {
        let Desired { instance, shown, .. } = self.driver.desired();
        let each = self.sides.iter().zip(&self.held).map(|(side, held)| {
            let mut target = side.written(&instance, self.own);
            let mut shown = shown;
            if shown == Shown::Withdrawn {
                // A side that can says it instead.
                let unwell = side.written(&(*instance).clone().with_health(Health::NotServing), self.own);
                if unwell.health() == Health::NotServing && held.checker()(&unwell).is_ok() {
                    (target, shown) = (unwell, Shown::Yes);
                }
            }
            held.show(shown);
            held.update(move |draft| draft.make_equal(&target))
        });
        let each = try_join_all(each);
        async move { (generation, each.await) }.boxed()
    }

    async fn leave(self) {
        let outcomes = join_all(self.held.into_iter().map(Registration::deregister)).await;
        let mut all = Ok(Deregistered::AlreadyGone);
        for outcome in outcomes {
            all = match (all, outcome) {
                (Err(error), _) | (_, Err(error)) => Err(error),
                (Ok(Deregistered::LeftBehind), _) | (_, Ok(Deregistered::LeftBehind)) => Ok(Deregistered::LeftBehind),
                (Ok(Deregistered::Removed), _) | (_, Ok(Deregistered::Removed)) => Ok(Deregistered::Removed),
                _ => Ok(Deregistered::AlreadyGone),
            };
        }
        self.driver.report_end(all);
    }

    fn abandon(self) {
        self.held.into_iter().for_each(Registration::abandon);
        self.driver.report_end(Ok(Deregistered::LeftBehind));
    }
}

async fn finished(updating: Option<&mut Updating>) -> (u64, Result<Vec<Revision>, Error>) {
    match updating {
        Some(updating) => updating.await,
        None => std::future::pending().await,
    }
}

/// The state of all: as bad as the worst of them.
fn worst(states: impl Iterator<Item = RegistrationState>) -> RegistrationState {
    let badness = |state: &RegistrationState| match state {
        RegistrationState::Registered { .. } => 0,
        RegistrationState::Suspect { .. } => 1,
        RegistrationState::Withdrawn => 2,
        RegistrationState::Registering { .. } => 3,
        RegistrationState::Reregistering { .. } => 4,
        RegistrationState::Superseded { .. } => 5,
        RegistrationState::Refused { .. } => 6,
        RegistrationState::Ended => 7,
    };
    states.max_by_key(badness).unwrap_or(RegistrationState::Ended)
}
