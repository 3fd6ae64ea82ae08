//! Watching: one task per watch, which publishes the store's changes to its reader.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Entry, Epoch, Error, Moment, Namespace, Resolver, Revision, ServiceName, ServiceRef, Snapshot, TaskOwner, Watcher,
    backend::{Publisher, ServiceWatcher, SnapshotBuilder},
};

use crate::{
    client::MemoryClient,
    defect::Defect,
    store::{Group, KeyChange, Kind, Record, Store},
    watch::hub::{Link, down, up},
};

/// Interval at which a watch without changes proves that its state is current.
const PROOF: Duration = Duration::from_secs(1);

#[async_trait]
impl Resolver for MemoryClient {
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
        self.inner.check_open()?;
        let mut state = self.service_state(service);
        self.inner.link.ask(|store, _| state.relist(store, Epoch::default())).await
    }

    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        Ok(Box::new(ServiceWatcher::new(self.follow(self.service_state(service))?)))
    }

    async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
        self.inner.check_open()?;
        let names = self.inner.link.ask(|store, _| store.names(Kind::Instance, namespace)).await?;
        names.iter().map(ServiceName::parse).collect()
    }
}

/// Returns the entries of a service. With [`Defect::PrefixLeaks`], also returns those of services with its name as a
/// prefix.
fn entries(store: &Store, group: &Group, defect: Option<Defect>) -> Vec<Arc<Entry>> {
    let mut groups = vec![group.clone()];
    if defect == Some(Defect::PrefixLeaks) {
        let names = store.names(Kind::Instance, &group.namespace).into_iter();
        let alike = names.filter(|name| name.starts_with(&*group.name) && *name != group.name);
        groups.extend(alike.map(|name| Group { name, ..group.clone() }));
    }
    groups.iter().flat_map(|group| store.range(group)).filter_map(|(_, record)| record.entry()).map(Arc::new).collect()
}

/// State that a watch derives from the store.
pub(crate) trait WatchedState: Send + 'static {
    type Value: Clone + PartialEq + Send + Sync + 'static;

    /// Starts over from the content of the store.
    fn relist(&mut self, store: &Store, epoch: Epoch) -> Self::Value;

    /// Applies changes, oldest first.
    fn apply(&mut self, store: &Store, changes: &mut dyn Iterator<Item = &KeyChange>) -> Self::Value;
}

impl MemoryClient {
    fn service_state(&self, service: &ServiceRef) -> ServiceState {
        let leaks = self.inner.link.hub().has(Defect::PrefixLeaks);
        let defect = leaks.then_some(Defect::PrefixLeaks);
        ServiceState { service: service.clone(), group: Group::service(service), snapshot: None, defect }
    }

    /// Starts a watch and returns a reader that ends it when dropped.
    pub(crate) fn follow<S: WatchedState>(&self, state: S) -> Result<enlist::backend::Subscriber<S::Value>, Error> {
        self.inner.check_open()?;
        let feed = Arc::new(Publisher::new());
        let tasks = TaskOwner::new();
        let stop = tasks.stop_signal();
        let closed = self.inner.tasks.stop_signal();
        let follower = Follower { link: self.inner.link.clone(), feed: Arc::clone(&feed), state };
        tasks.spawn("watch", async move {
            let feed = Arc::clone(&follower.feed);
            tokio::select! {
                () = stop.cancelled() => {}
                () = closed.cancelled() => feed.close(),
                () = follower.run() => {}
            }
        })?;
        Ok(feed.reader(Arc::new((tasks, self.keep_alive()))))
    }
}

struct Follower<S: WatchedState> {
    link: Link,
    feed: Arc<Publisher<S::Value>>,
    state: S,
}

impl<S: WatchedState> Follower<S> {
    async fn run(mut self) {
        let mut changes = self.link.hub().changes();
        let mut link = self.link.watch();
        let mut seen: Option<(u64, Revision)> = None;
        let mut epoch = Epoch::default();
        let ages = self.link.hub().has(Defect::AgesWhileHealthy);
        loop {
            if let Err(cause) = self.link.check() {
                self.feed.stale(cause);
                if self.link.hub().has(Defect::OutageEmptiesTheView) {
                    self.feed.publish(self.state.relist(&Store::default(), epoch), Moment::now());
                }
                up(&mut link).await;
                continue;
            }
            let hub = Arc::clone(self.link.hub());
            let blind = hub.has(Defect::BlindToWipes);
            let now = Moment::now();
            hub.with(|store, _| {
                let incarnation = store.incarnation();
                let went_back = !blind && seen.is_some_and(|(before, _)| before != incarnation);
                if went_back {
                    epoch = epoch.next();
                }
                let after = seen.filter(|_| !went_back).map(|(_, revision)| revision);
                self.catch_up(store, after, epoch, now);
                seen = Some((
                    incarnation,
                    seen.filter(|_| blind).map_or(store.revision(), |(_, r)| r.max(store.revision())),
                ));
            });
            tokio::select! {
                () = changes.next() => {}
                () = down(&mut link) => {}
                () = tokio::time::sleep(PROOF), if !ages => {}
            }
        }
    }

    /// Publishes the state of the store, derived from the changes after `seen` if the history still contains them.
    fn catch_up(&mut self, store: &Store, seen: Option<Revision>, epoch: Epoch, now: Moment) {
        let skips = self.link.hub().has(Defect::SkipsOverCompaction);
        let value = match (seen, seen.and_then(|seen| store.changes_after(seen))) {
            (Some(_), Some(mut changes)) => self.state.apply(store, &mut changes),
            (Some(_), None) if skips => self.state.apply(store, &mut std::iter::empty()),
            _ => self.state.relist(store, epoch),
        };
        self.feed.publish(value, now);
    }
}

struct ServiceState {
    service: ServiceRef,
    group: Group,
    snapshot: Option<SnapshotBuilder>,
    defect: Option<Defect>,
}

impl WatchedState for ServiceState {
    type Value = Snapshot;

    fn relist(&mut self, store: &Store, epoch: Epoch) -> Snapshot {
        let empty = || SnapshotBuilder::new(self.service.clone(), store.revision(), epoch);
        let mut snapshot = self.snapshot.take().unwrap_or_else(empty);
        snapshot.patch(entries(store, &self.group, self.defect));
        snapshot.advance(store.revision(), epoch);
        self.snapshot.insert(snapshot).build()
    }

    fn apply(&mut self, store: &Store, changes: &mut dyn Iterator<Item = &KeyChange>) -> Snapshot {
        let empty = || SnapshotBuilder::new(self.service.clone(), store.revision(), Epoch::default());
        let mut snapshot = self.snapshot.take().unwrap_or_else(empty);
        let mut touched = false;
        for change in changes.filter(|change| change.key.group == self.group) {
            touched = true;
            match change.record.as_ref().and_then(Record::entry) {
                Some(entry) => snapshot.insert(Arc::new(entry)),
                None if change.departure.is_some() => snapshot.depart(&change.key.id()),
                None => snapshot.remove(&change.key.id()),
            }
        }
        // A change of another service is not reported: the snapshot keeps its revision, so no reader wakes.
        if touched {
            snapshot.advance(store.revision(), snapshot.snapshot().epoch());
        }
        self.snapshot.insert(snapshot).build()
    }
}
