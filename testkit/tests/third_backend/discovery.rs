//! Step 3. Finding instances: one list, and a task per watch that publishes lists.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Entry, Epoch, Error, Moment, Namespace, Resolver, Revision, ServiceName, ServiceRef, Snapshot, TaskOwner, Watcher,
    backend::{Publisher, ServiceWatcher, SnapshotBuilder},
};

use crate::{
    client::{Link, MapClient},
    store::{Data, Record},
};

/// Interval of lists without a change. Each proves that the view is still right.
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

/// Updates `snapshot` to the current list of `service`. Unchanged entries stay shared with earlier snapshots.
fn list(data: &Data, service: &ServiceRef, snapshot: &mut SnapshotBuilder) {
    let before = snapshot.build();
    for (_, id) in data.departed.iter().filter(|(of, id)| of == service && before.get(id).is_some()) {
        snapshot.depart(id);
    }
    let entry =
        |(_, record): (_, &Record)| Entry::new((*record.value.instance).clone(), record.created, record.modified);
    snapshot.patch(data.of(service).map(entry).map(Arc::new));
    let went_back = snapshot.snapshot().epoch() != Epoch::new(data.epoch);
    // A change of another service advances nothing, so that it wakes no reader.
    if went_back || !snapshot.snapshot().diff(&before).is_empty() {
        snapshot.advance(Revision::new(data.revision), Epoch::new(data.epoch));
    }
}

fn empty(data: &Data, service: &ServiceRef) -> SnapshotBuilder {
    SnapshotBuilder::new(service.clone(), Revision::new(data.revision), Epoch::new(data.epoch))
}

/// Publishes the list of `service` after each change, for ever. The publisher conflates for slow readers and computes
/// the difference that each reader gets.
async fn follow(link: Arc<Link>, service: ServiceRef, publisher: Arc<Publisher<Snapshot>>) {
    let mut snapshot = None;
    let (mut changes, mut cut) = (link.store.changes.subscribe(), link.cut.subscribe());
    loop {
        let asked = Moment::now();
        let listed = link.ask(|data| {
            let snapshot = snapshot.get_or_insert_with(|| empty(data, &service));
            list(data, &service, snapshot);
            snapshot.build()
        });
        match listed {
            Ok(snapshot) => publisher.publish(snapshot, asked),
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
        self.check_open()?;
        let (publisher, tasks) = (Arc::new(Publisher::new()), TaskOwner::new());
        let (closing, closed) = (Arc::clone(&publisher), self.0.tasks.stop_signal());
        let follow = follow(Arc::clone(&self.0.link), service.clone(), Arc::clone(&publisher));
        tasks.spawn_until_stopped("watch", async move {
            tokio::select! {
                () = closed.cancelled() => closing.close(),
                () = follow => {}
            }
        })?;
        // The reader keeps the task and the client alive.
        Ok(Box::new(ServiceWatcher::new(publisher.reader(Arc::new((tasks, self.clone()))))))
    }

    async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
        let names: BTreeSet<_> = self.ask(|data| {
            let services = data.records.keys().map(|(service, _)| service);
            services.filter(|service| service.namespace() == namespace).map(|service| service.name().clone()).collect()
        })?;
        Ok(names.into_iter().collect())
    }
}
