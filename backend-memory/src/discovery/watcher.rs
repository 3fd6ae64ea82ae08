//! Watching: one task per watch, which publishes the store's changes to its reader.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Entry, Epoch, Error, Moment, Namespace, Resolver, Revision, ServiceName, ServiceRef, ServicesWatcher, Snapshot,
    TaskOwner, Watcher,
    backend::{Publisher, ServiceWatcher, SnapshotBuilder},
};

use crate::{
    client::MemoryClient,
    deliberate_defects::DeliberateDefect,
    store::{Group, KeyChange, Kind, Record, Store},
    watch::shared_store::{Link, down, up},
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
        self.list_services(namespace).await
    }

    async fn watch_services(&self, namespace: &Namespace) -> Result<Box<dyn ServicesWatcher>, Error> {
        self.follow_services(namespace)
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>, Error> {
        self.list_namespaces().await
    }
}

/// Returns the entries of a service. With [`DeliberateDefect::PrefixLeaks`], also returns those of services with its
/// name as a prefix.
fn entries(store: &Store, group: &Group, defect: Option<DeliberateDefect>) -> Vec<Arc<Entry>> {
    let mut groups = vec![group.clone()];
    if defect == Some(DeliberateDefect::PrefixLeaks) {
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
        let leaks = self.inner.link.store().has(DeliberateDefect::PrefixLeaks);
        let defect = leaks.then_some(DeliberateDefect::PrefixLeaks);
        ServiceState { service: service.clone(), group: Group::service(service), snapshot: None, defect }
    }

    /// Starts a watch and returns a reader that ends it when dropped.
    pub(crate) fn follow<S: WatchedState>(&self, state: S) -> Result<enlist::backend::Subscriber<S::Value>, Error> {
        self.inner.check_open()?;
        let publisher = Arc::new(Publisher::new());
        let tasks = TaskOwner::new();
        let stop = tasks.stop_signal();
        let closed = self.inner.tasks.stop_signal();
        let follower = Follower {
            link: self.inner.link.clone(),
            publisher: Arc::clone(&publisher),
            state,
            epoch: Epoch::default(),
            progress: Progress::Unsynced,
        };
        tasks.spawn("watch", async move {
            let publisher = Arc::clone(&follower.publisher);
            tokio::select! {
                () = stop.cancelled() => {}
                () = closed.cancelled() => publisher.close(),
                () = follower.run() => {}
            }
        })?;
        Ok(publisher.reader(Arc::new((tasks, self.keep_alive()))))
    }
}

/// Task that follows the store and publishes a state of it.
struct Follower<S: WatchedState> {
    link: Link,
    publisher: Arc<Publisher<S::Value>>,
    state: S,
    epoch: Epoch,
    progress: Progress,
}

/// Progress of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Nothing was published.
    Unsynced,
    /// The state at `revision` of an incarnation of the store was published.
    Synced { incarnation: u64, revision: Revision },
}

/// Next step of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Publishes the content of the store for the first time.
    List,
    /// Publishes the content of a store that went back, under another epoch.
    Relist,
    /// Continues after this revision.
    Resume(Revision),
}

/// Returns the step from `progress` while the store has this incarnation.
fn next_step(progress: Progress, present: u64) -> Step {
    match progress {
        Progress::Unsynced => Step::List,
        Progress::Synced { incarnation, .. } if incarnation != present => Step::Relist,
        Progress::Synced { revision, .. } => Step::Resume(revision),
    }
}

impl<S: WatchedState> Follower<S> {
    async fn run(mut self) {
        let mut changes = self.link.store().changes();
        let mut link = self.link.watch();
        let ages = self.link.store().has(DeliberateDefect::AgesWhileHealthy);
        loop {
            if let Err(cause) = self.link.check() {
                self.publisher.stale(cause);
                if self.link.store().has(DeliberateDefect::OutageEmptiesTheView) {
                    self.publisher.publish(self.state.relist(&Store::default(), self.epoch), Moment::now());
                }
                up(&mut link).await;
                continue;
            }
            let shared = Arc::clone(self.link.store());
            let now = Moment::now();
            shared.with(|store, _| self.catch_up(store, now));
            tokio::select! {
                () = changes.next() => {}
                () = down(&mut link) => {}
                () = tokio::time::sleep(PROOF), if !ages => {}
            }
        }
    }

    /// Publishes the state of the store, derived from the changes since the last step if the history still contains
    /// them.
    fn catch_up(&mut self, store: &Store, now: Moment) {
        if let Progress::Synced { incarnation, .. } = &mut self.progress
            && self.link.store().has(DeliberateDefect::BlindToWipes)
        {
            *incarnation = store.incarnation();
        }
        let step = next_step(self.progress, store.incarnation());
        if step == Step::Relist {
            self.epoch = self.epoch.next();
        }
        let value = match step {
            Step::List | Step::Relist => self.state.relist(store, self.epoch),
            Step::Resume(after) => match store.changes_after(after) {
                Some(mut changes) => self.state.apply(store, &mut changes),
                None if self.link.store().has(DeliberateDefect::SkipsOverCompaction) => {
                    self.state.apply(store, &mut std::iter::empty())
                }
                None => self.state.relist(store, self.epoch),
            },
        };
        self.publisher.publish(value, now);
        let reached = match self.progress {
            // A store that was wiped has a lower revision.
            Progress::Synced { revision, .. } if self.link.store().has(DeliberateDefect::BlindToWipes) => {
                revision.max(store.revision())
            }
            Progress::Unsynced | Progress::Synced { .. } => store.revision(),
        };
        self.progress = Progress::Synced { incarnation: store.incarnation(), revision: reached };
    }
}

struct ServiceState {
    service: ServiceRef,
    group: Group,
    snapshot: Option<SnapshotBuilder>,
    defect: Option<DeliberateDefect>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_resumes_until_the_store_goes_back() {
        let synced = Progress::Synced { incarnation: 1, revision: Revision::new(5) };
        assert_eq!(next_step(Progress::Unsynced, 1), Step::List);
        assert_eq!(next_step(synced, 1), Step::Resume(Revision::new(5)));
        assert_eq!(next_step(synced, 2), Step::Relist);
    }
}
