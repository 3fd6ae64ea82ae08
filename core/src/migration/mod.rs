//! Migration of a fleet from one registry to another, one program at a time, while programs on both sides see each
//! other. Begin with `side.rs`, then `merge.rs`.

mod merge;
mod merge_task;
mod registration_task;
pub(crate) mod side;

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::future::try_join_all;

use self::{
    merge::{merge_services, merge_snapshots},
    merge_task::MergeTask,
    registration_task::SideRegistrations,
    side::Side,
};
use crate::{
    backend::{
        discovery::{
            publisher::{Publisher, ServiceWatcher},
            service_lists::services_watcher,
        },
        registration::registration_driver::{registration, wait_for_start},
    },
    discovery::{
        resolver::{Resolver, Watcher},
        service_list::{ServiceList, ServicesWatcher},
        snapshot::Snapshot,
    },
    error::Error,
    model::{
        instance::{Entry, Instance},
        name::{InstanceId, Namespace, ServiceName, ServiceRef},
        revision::Revision,
    },
    registration::{
        handle::Registration,
        lease::Lease,
        options::{RegisterOptions, Start},
        registry::{Evicted, Registry},
    },
    runtime::task::TaskOwner,
};

/// Combines several registries: reads all of them, and registers in one or more.
///
/// The first side is the own side: its weights are used unchanged, and of two instances with one id or one address the
/// first side's is shown. A fleet migrates in three steps, each of any duration. In the first step, every program gets
/// a migration that writes to the old registry and reads both. In the second step it writes to both, in the third to
/// the new one only. At each step, programs of the steps before and after see each other.
///
/// The cost is that of all sides together, and each change of a watched service is merged in time proportional to all
/// its instances. Revisions of different sides cannot be compared: a snapshot has the smallest of them.
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

    fn default_weights(&self) -> Vec<u32> {
        self.sides.iter().map(|side| side.default_weight).collect()
    }

    /// Asks all sides in turn. Returns the answers of those that support the request; there has to be one.
    async fn ask_sides<'a, T, F>(&'a self, ask: impl Fn(&'a dyn Resolver) -> F) -> Result<Vec<T>, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (mut answers, mut unsupported) = (Vec::new(), None);
        for side in &self.sides {
            match ask(&*side.resolver).await {
                Ok(answer) => answers.push(answer),
                Err(error @ Error::Unsupported { .. }) => unsupported = Some(error),
                Err(error) => return Err(error),
            }
        }
        unsupported.filter(|_| answers.is_empty()).map_or(Ok(answers), Err)
    }

    fn check_writing(&self) -> Result<(), Error> {
        match self.writing().next() {
            Some(_) => Ok(()),
            None => Err(Error::invalid_config("migration", "all of its sides are only read")),
        }
    }
}

#[async_trait]
impl Resolver for Migration {
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
        let resolving = self.sides.iter().map(|side| side.resolver.resolve(service));
        let snapshots = try_join_all(resolving).await?;
        Ok(merge_snapshots(&self.default_weights(), None, &snapshots))
    }

    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        let watching = self.sides.iter().map(|side| side.resolver.watch(service));
        let watchers = try_join_all(watching).await?;
        let publisher = Arc::new(Publisher::new());
        let tasks = TaskOwner::new();
        let default_weights = self.default_weights();
        let merge = move |before, snapshots: &[Snapshot]| merge_snapshots(&default_weights, before, snapshots);
        let task = MergeTask { merge: Box::new(merge), publisher: Arc::clone(&publisher) };
        tasks.spawn_until_stopped("migration", task.run(watchers))?;
        Ok(Box::new(ServiceWatcher::new(publisher.reader(Arc::new(tasks)))))
    }

    /// The services of all sides that can list theirs.
    async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
        let names = self.ask_sides(|side| side.services(namespace)).await?;
        Ok(names.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// Watches the services of all sides that can list theirs.
    async fn watch_services(&self, namespace: &Namespace) -> Result<Box<dyn ServicesWatcher>, Error> {
        let watchers = self.ask_sides(|side| side.watch_services(namespace)).await?;
        let (publisher, tasks) = (Arc::new(Publisher::new()), TaskOwner::new());
        let task = MergeTask { merge: Box::new(merge_services), publisher: Arc::clone(&publisher) };
        tasks.spawn_until_stopped("migration", task.run(watchers))?;
        Ok(services_watcher(publisher.reader(Arc::new(tasks)), |_, list: &ServiceList| list.clone()))
    }

    /// The namespaces of all sides that can list theirs.
    async fn namespaces(&self) -> Result<Vec<Namespace>, Error> {
        let namespaces = self.ask_sides(Resolver::namespaces).await?;
        Ok(namespaces.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect())
    }
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
            // If one side refuses, the earlier registrations are dropped, which withdraws them.
            held.push(registering.await?);
            sides.push(side.clone());
        }
        let tasks = Arc::new(TaskOwner::new());
        let (outer, driver) = registration(service.clone(), instance, &options, Arc::clone(&tasks) as _)?;
        let checks: Vec<_> = sides.iter().cloned().zip(held.iter().map(Registration::checker)).collect();
        driver.accept_only(move |instance| {
            checks.iter().try_for_each(|(side, check)| check(&side.written(instance, own)))
        });
        let task = SideRegistrations { driver, sides, held, own };
        tasks.spawn_until_stopped("migration", task.run())?;
        wait_for_start(outer, &options).await
    }

    async fn publish(&self, service: &ServiceRef, instance: Instance) -> Result<Revision, Error> {
        self.check_writing()?;
        let own = self.own_default();
        let publishing = self.writing().map(|side| side.registry.publish(service, side.written(&instance, own)));
        let revisions = try_join_all(publishing).await?;
        Ok(revisions.into_iter().min().unwrap_or_default())
    }

    /// Removes the instance from all written sides, and returns the entry of the first that had it. Not all of them
    /// need to have it.
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

    /// Evicts the instance from all written sides, and returns the entry of the first that had it. Not all of them need
    /// to have it. Revisions of different sides cannot be compared, so a `modified` is [`Error::Unsupported`] if there
    /// is more than one side.
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

    /// Always fails, because a lease belongs to one store.
    async fn grant_lease(&self, _: Duration) -> Result<Lease, Error> {
        Err(Error::Unsupported { what: "granting a lease in several registries".to_owned() })
    }
}
