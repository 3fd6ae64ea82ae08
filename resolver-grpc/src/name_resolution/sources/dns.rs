//! Instances from DNS: every address of a name, looked up at an interval.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Change, Endpoint, Entry, Epoch, Error, Freshness, Instance, InstanceId, Moment, Namespace, Resolver, Revision,
    ServiceName, ServiceRef, Snapshot, Watcher,
    backend::{LONGEST, ProofWriter, SnapshotBuilder},
};
use tokio::time::{Instant, timeout};

use super::{lookup::Lookup, system::System};
use crate::name_resolution::target::NO_PROTOCOL;

/// Default interval at which a name is looked up.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(5);

/// Maximum duration of a lookup.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// A resolver for which a service's name is `host:port`. Each address is an instance whose id is the address. Names are
/// looked up every 5 s. When a lookup fails, or finds nothing, the last known addresses stay and are stale. DNS has no
/// weights, health or draining.
#[derive(Clone, Debug)]
pub struct Dns {
    lookup: Arc<dyn Lookup>,
    every: Duration,
}

impl Default for Dns {
    fn default() -> Self {
        Self::new()
    }
}

impl Dns {
    /// A resolver over the system's, which does not expose the lifetime of answers. All resolvers of the process
    /// together block at most 32 threads, and one for each name: while a lookup hangs, the next one of the same name
    /// waits for it.
    pub fn new() -> Self {
        Self { lookup: System::of_process(), every: LOOKUP_INTERVAL }
    }

    /// Sets the lookup of names.
    #[must_use]
    pub fn with_lookup(mut self, lookup: Arc<dyn Lookup>) -> Self {
        self.lookup = lookup;
        self
    }

    /// Sets the interval at which names are looked up. Default: 5 s.
    #[must_use]
    pub fn every(mut self, every: Duration) -> Self {
        self.every = every.min(LONGEST);
        self
    }

    /// The service for `host` and `port`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] if the host is too long for a name.
    pub fn service(host: &str, port: u16) -> Result<ServiceRef, Error> {
        ServiceRef::parse(format!("{host}:{port}"))
    }

    async fn entries(&self, service: &ServiceRef, revision: Revision) -> Result<Vec<Arc<Entry>>, Error> {
        let named = Endpoint::parse(service.name().as_str())?;
        if named.protocol().is_some() {
            return Err(Error::InvalidAddress { input: service.name().to_string(), reason: NO_PROTOCOL });
        }
        let lookup = self.lookup.lookup(named.host(), named.port());
        let found = timeout(LOOKUP_TIMEOUT, lookup).await.map_err(|_| Error::Timeout {
            op: "looking a name up",
            limit: LOOKUP_TIMEOUT,
            cause: None,
        })?;
        let addresses = found.map_err(Error::unavailable)?;
        if addresses.is_empty() {
            return Err(Error::unavailable(format!("{} has no address", named.host())));
        }
        let entry = |address: SocketAddr| {
            let instance = Instance::new(InstanceId::parse(address.to_string())?, [Endpoint::try_from(address)?])?;
            Ok(Arc::new(Entry::new(instance, revision, revision)))
        };
        addresses.into_iter().map(entry).collect()
    }
}

#[async_trait]
impl Resolver for Dns {
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
        let first = Revision::new(1);
        let mut snapshot = SnapshotBuilder::new(service.clone(), first, Epoch::default());
        snapshot.patch(self.entries(service, first).await?);
        Ok(snapshot.build())
    }

    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        let proof = ProofWriter::new(Moment::now());
        Ok(Box::new(DnsWatcher {
            dns: self.clone(),
            service: service.clone(),
            delivered: None,
            live: true,
            proof,
            due: None,
        }))
    }

    async fn services(&self, _: &Namespace) -> Result<Vec<ServiceName>, Error> {
        Err(Error::Unsupported { what: "listing the services of DNS".to_owned() })
    }
}

#[derive(Debug)]
struct DnsWatcher {
    dns: Dns,
    service: ServiceRef,
    delivered: Option<Snapshot>,
    live: bool,
    proof: ProofWriter,
    due: Option<Instant>,
}

impl DnsWatcher {
    /// Applies a lookup. Returns the change, if any.
    fn take(&mut self, found: Result<Vec<Arc<Entry>>, Error>, asked: Moment) -> Option<Change> {
        let was_live = std::mem::replace(&mut self.live, found.is_ok());
        let entries = match found {
            Ok(entries) => entries,
            Err(cause) => {
                let snapshot = self.delivered.clone()?;
                let freshness = Freshness::Stale { proven: self.proof.proof().moment(), cause };
                return was_live.then_some(Change { snapshot, events: Vec::new(), freshness });
            }
        };
        self.proof.renew(asked);
        let freshness = Freshness::Live { proof: self.proof.proof() };
        let Some(delivered) = &self.delivered else {
            let mut snapshot = SnapshotBuilder::new(self.service.clone(), Revision::new(1), Epoch::default());
            snapshot.patch(entries);
            let snapshot = snapshot.build();
            self.delivered = Some(snapshot.clone());
            return Some(Change { events: snapshot.as_added(), snapshot, freshness });
        };
        let mut snapshot = SnapshotBuilder::from(delivered.clone());
        // An address that stays keeps its entry.
        snapshot.patch(entries.into_iter().map(|entry| known(delivered, &entry).unwrap_or(entry)));
        let events = snapshot.snapshot().diff(delivered);
        if events.is_empty() && was_live {
            return None;
        }
        if !events.is_empty() {
            snapshot.advance(next(delivered.revision()), Epoch::default());
        }
        let snapshot = snapshot.build();
        self.delivered = Some(snapshot.clone());
        Some(Change { snapshot, events, freshness })
    }
}

fn next(revision: Revision) -> Revision {
    Revision::new(revision.get() + 1)
}

fn known(delivered: &Snapshot, entry: &Entry) -> Option<Arc<Entry>> {
    delivered.get(entry.instance().id()).cloned().map(Arc::new)
}

#[async_trait]
impl Watcher for DnsWatcher {
    async fn next(&mut self) -> Result<Change, Error> {
        loop {
            if let Some(due) = self.due {
                tokio::time::sleep_until(due).await;
            }
            let (asked, revision) = (
                Moment::now(),
                self.delivered.as_ref().map_or(Revision::new(1), |delivered| next(delivered.revision())),
            );
            let found = self.dns.entries(&self.service, revision).await;
            self.due = Some(Instant::now() + self.dns.every);
            let refused = found.as_ref().err().filter(|error| !error.is_retryable()).cloned();
            if let Some(change) = self.take(found, asked) {
                return Ok(change);
            }
            if let (None, Some(error)) = (&self.delivered, refused) {
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist::Directory;
    use std::io;
    use std::sync::Mutex;

    /// A lookup with the addresses that were set last. Without any, it fails.
    #[derive(Debug, Default)]
    struct Answers(Mutex<Vec<SocketAddr>>);

    impl Answers {
        fn set(&self, addresses: &[&str]) {
            *self.0.lock().unwrap() = addresses.iter().map(|address| address.parse().unwrap()).collect();
        }
    }

    #[async_trait]
    impl Lookup for Answers {
        async fn lookup(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
            let addresses = self.0.lock().unwrap().clone();
            if addresses.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(addresses) }
        }
    }

    fn ids(snapshot: &Snapshot) -> Vec<String> {
        snapshot.entries().map(|entry| entry.instance().id().to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_keeps_its_last_addresses() {
        let answers = Arc::new(Answers::default());
        answers.set(&["10.0.0.1:80", "10.0.0.2:80"]);
        let dns = Dns::new().with_lookup(answers.clone());
        let mut watcher = dns.watch(&Dns::service("greeter.example", 80).unwrap()).await.unwrap();
        let first = watcher.next().await.unwrap();
        assert_eq!(ids(&first.snapshot), ["10.0.0.1:80", "10.0.0.2:80"]);

        answers.set(&["10.0.0.2:80", "10.0.0.3:80"]);
        let second = watcher.next().await.unwrap();
        assert_eq!((ids(&second.snapshot), second.events.len()), (vec!["10.0.0.2:80".into(), "10.0.0.3:80".into()], 2));
        assert!(second.snapshot.revision() > first.snapshot.revision());

        answers.set(&[]);
        let stale = watcher.next().await.unwrap();
        assert!(!stale.freshness.is_live() && stale.events.is_empty());
        assert_eq!(ids(&stale.snapshot), ids(&second.snapshot));

        answers.set(&["10.0.0.2:80", "10.0.0.3:80"]);
        let back = watcher.next().await.unwrap();
        assert!(back.freshness.is_live() && back.events.is_empty());
        assert!(back.freshness.age() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_never_looked_up_again_keeps_its_addresses() {
        let answers = Arc::new(Answers::default());
        answers.set(&["10.0.0.1:80"]);
        let dns = Dns::new().every(Duration::MAX).with_lookup(answers.clone());
        let mut watcher = dns.watch(&Dns::service("greeter.example", 80).unwrap()).await.unwrap();
        assert_eq!(ids(&watcher.next().await.unwrap().snapshot), ["10.0.0.1:80"]);
        assert!(timeout(Duration::from_secs(3600), watcher.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn late_names_are_found() {
        let answers = Arc::new(Answers::default());
        let directory = Directory::new(Arc::new(Dns::new().with_lookup(answers.clone())));
        let view = directory.view(&Dns::service("late.example", 80).unwrap());
        assert!(timeout(Duration::from_secs(60), view.ready()).await.is_err());
        answers.set(&["10.0.0.1:80"]);
        assert_eq!(view.ready().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn an_invalid_address_is_refused() {
        let directory = Directory::new(Arc::new(Dns::new().with_lookup(Arc::new(Answers::default()))));
        for no_name in ["no port", "grpcs://h:443"] {
            let service = ServiceRef::new(Namespace::default(), ServiceName::parse(no_name).unwrap());
            assert!(matches!(directory.view(&service).ready().await, Err(Error::InvalidAddress { .. })), "{no_name}");
        }
    }
}
