//! A resolver with fixed instances.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Change, Endpoint, Entry, Epoch, Error, Freshness, Instance, InstanceId, Moment, Namespace, Resolver, Revision,
    ServiceName, ServiceRef, Snapshot, Watcher,
    backend::{ProofWriter, SnapshotBuilder},
};

/// Interval at which the fixed list renews the proof of its freshness.
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

/// A resolver with the same endpoints for every service, each as an instance whose id is the endpoint's text.
#[derive(Clone, Debug)]
pub struct Fixed {
    entries: Vec<Arc<Entry>>,
}

impl Fixed {
    /// A resolver with these endpoints.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] for an endpoint whose text is no id: above 255 bytes.
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Result<Self, Error> {
        let first = Revision::new(1);
        let entry = |endpoint: Endpoint| {
            let id = InstanceId::parse(endpoint.to_string())?;
            Ok(Arc::new(Entry::new(Instance::new(id, [endpoint])?, first, first)))
        };
        Ok(Self { entries: endpoints.into_iter().map(entry).collect::<Result<_, Error>>()? })
    }

    fn snapshot(&self, service: &ServiceRef) -> Snapshot {
        let mut snapshot = SnapshotBuilder::new(service.clone(), Revision::new(1), Epoch::default());
        snapshot.patch(self.entries.iter().cloned());
        snapshot.build()
    }
}

#[async_trait]
impl Resolver for Fixed {
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
        Ok(self.snapshot(service))
    }

    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        Ok(Box::new(FixedWatcher { delivered: None, snapshot: self.snapshot(service) }))
    }

    async fn services(&self, _: &Namespace) -> Result<Vec<ServiceName>, Error> {
        Err(Error::Unsupported { what: "listing the services of a fixed list".to_owned() })
    }
}

#[derive(Debug)]
struct FixedWatcher {
    delivered: Option<ProofWriter>,
    snapshot: Snapshot,
}

#[async_trait]
impl Watcher for FixedWatcher {
    async fn next(&mut self) -> Result<Change, Error> {
        if let Some(writer) = &self.delivered {
            loop {
                tokio::time::sleep(PROOF_INTERVAL).await;
                writer.renew(Moment::now());
            }
        }
        let proof = self.delivered.insert(ProofWriter::new(Moment::now())).proof();
        let snapshot = self.snapshot.clone();
        Ok(Change { events: snapshot.as_added(), snapshot, freshness: Freshness::Live { proof } })
    }
}
