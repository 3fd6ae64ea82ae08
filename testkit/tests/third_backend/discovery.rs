//! Step 3. Finding instances: one list, and a task per watch that publishes lists.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Epoch, Error, Moment, Namespace, Resolver, Revision, ServiceList, ServiceName, ServiceRef, ServicesWatcher,
    Snapshot, TaskOwner, Watcher,
    backend::{Publisher, ServiceListBuilder, ServiceWatcher, SnapshotBuilder, Subscriber, services_watcher},
};

use crate::{
    client::{Link, MapClient},
    store::Data,
};

/// Interval of lists without a change. Each proves that the view is still right.
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

/// Updates `snapshot` to the current list of `service`. Unchanged entries stay shared with earlier snapshots.
fn list(data: &Data, service: &ServiceRef, snapshot: &mut SnapshotBuilder) {
    let before = snapshot.build();
    for (_, id) in data.departed.iter().filter(|(of, id)| of == service && before.get(id).is_some()) {
        snapshot.depart(id);
    }
    snapshot.patch(data.of(service).map(|(_, record)| Arc::new(record.entry())));
    let went_back = snapshot.snapshot().epoch() != Epoch::new(data.epoch);
    // A change of another service advances nothing, so that it wakes no reader.
    if went_back || !snapshot.snapshot().diff(&before).is_empty() {
        snapshot.advance(Revision::new(data.revision), Epoch::new(data.epoch));
    }
}

fn empty(data: &Data, service: &ServiceRef) -> SnapshotBuilder {
    SnapshotBuilder::new(service.clone(), Revision::new(data.revision), Epoch::new(data.epoch))
}

/// Returns the services of `namespace`.
fn names(data: &Data, namespace: &Namespace) -> BTreeSet<ServiceName> {
    let services = data.records.keys().map(|(service, _)| service);
    services.filter(|service| service.namespace() == namespace).map(|service| service.name().clone()).collect()
}

/// Publishes what `list` returns after each change, for ever. The publisher conflates for slow readers and remembers
/// what each of them saw.
async fn follow<T>(link: Arc<Link>, mut list: impl FnMut(&mut Data) -> T, publisher: Arc<Publisher<T>>)
where
    T: Clone + PartialEq,
{
    let (mut changes, mut cut) = (link.store.changes.subscribe(), link.cut.subscribe());
    loop {
        let asked = Moment::now();
        match link.ask(&mut list) {
            Ok(listed) => publisher.publish(listed, asked),
            Err(cause) => publisher.stale(cause),
        }
        tokio::select! {
            () = link.store.changed(&mut changes) => {}
            _ = cut.changed() => {}
            // A list proves that the view is right, also if nothing changed.
            () = tokio::time::sleep(PROOF_INTERVAL) => {}
        }
    }
}

impl MapClient {
    /// Starts a task that publishes what `list` returns, and returns a reader that keeps it and the client alive.
    fn publish_each<T>(&self, list: impl FnMut(&mut Data) -> T + Send + 'static) -> Result<Subscriber<T>, Error>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
    {
        self.check_open()?;
        let (publisher, tasks) = (Arc::new(Publisher::new()), TaskOwner::new());
        let (closing, closed) = (Arc::clone(&publisher), self.0.tasks.stop_signal());
        let follow = follow(Arc::clone(&self.0.link), list, Arc::clone(&publisher));
        tasks.spawn_until_stopped("watch", async move {
            tokio::select! {
                () = closed.cancelled() => closing.close(),
                () = follow => {}
            }
        })?;
        Ok(publisher.reader(Arc::new((tasks, self.clone()))))
    }
}

#[async_trait]
impl Resolver for MapClient {
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
        self.ask(|data| {
            let mut snapshot = empty(data, service);
            list(data, service, &mut snapshot);
            snapshot.build()
        })
    }

    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        let (service, mut snapshot) = (service.clone(), None);
        let reader = self.publish_each(move |data| {
            let snapshot = snapshot.get_or_insert_with(|| empty(data, &service));
            list(data, &service, snapshot);
            snapshot.build()
        })?;
        Ok(Box::new(ServiceWatcher::new(reader)))
    }

    async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
        Ok(self.ask(|data| names(data, namespace))?.into_iter().collect())
    }

    async fn watch_services(&self, namespace: &Namespace) -> Result<Box<dyn ServicesWatcher>, Error> {
        let mut list = None;
        let namespace = namespace.clone();
        let reader = self.publish_each(move |data| {
            let (revision, epoch) = (Revision::new(data.revision), Epoch::new(data.epoch));
            let list = list.get_or_insert_with(|| ServiceListBuilder::new(namespace.clone(), revision, epoch));
            list.patch(names(data, &namespace));
            list.advance(revision, epoch);
            list.build()
        })?;
        Ok(services_watcher(reader, |_, list: &ServiceList| list.clone()))
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>, Error> {
        let namespaces: BTreeSet<_> =
            self.ask(|data| data.records.keys().map(|(service, _)| service.namespace().clone()).collect())?;
        Ok(namespaces.into_iter().collect())
    }
}
