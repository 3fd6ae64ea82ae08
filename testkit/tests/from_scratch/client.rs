//! 2. to 4. A client, which is what one process has: its link, finding instances, and leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use enlist::{
    Entry, Epoch, Error, LeaseChoice, LeaseId, Moment, Namespace, RegisterOptions, Resolver, Revision, ServiceName,
    ServiceRef, Snapshot, TaskOwner, Watcher,
    backend::{Departures, KeyClaims, LeaseHandle, LeaseTerms, Observations, Publisher, ServiceWatcher},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::store::{Data, Granted, Key, Record, Store};

pub(crate) struct Link {
    pub(crate) store: Arc<Store>,
    pub(crate) cut: watch::Sender<bool>,
}

impl Link {
    /// Asks the store. A store in another process would be asked with a deadline, and its errors be mapped in one place.
    pub(crate) fn ask<T>(&self, act: impl FnOnce(&mut Data) -> T) -> Result<T, Error> {
        if *self.cut.borrow() {
            return Err(Error::unavailable("the link is cut"));
        }
        Ok(self.store.with(act))
    }
}

#[derive(Clone)]
pub(crate) struct Scratch(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) link: Arc<Link>,
    /// Ends with the client: whatever is under way, leases that are renewed.
    pub(crate) tasks: TaskOwner,
    pub(crate) key_claims: KeyClaims<Key>,
    pub(crate) observations: Observations<Key>,
    /// Registrations on leases of somebody else's.
    pub(crate) departures: Departures,
    pub(crate) shared: Mutex<BTreeMap<LeaseTerms, Arc<Lease>>>,
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

impl Scratch {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        let link = Arc::new(Link { store, cut: watch::Sender::new(false) });
        let (tasks, key_claims, observations) = (TaskOwner::new(), KeyClaims::default(), Observations::default());
        let departures = Departures::default();
        Self(Arc::new(Inner { link, tasks, key_claims, observations, departures, shared: Mutex::default() }))
    }

    /// Asks the store, unless the client is closed.
    pub(crate) fn ask<T>(&self, act: impl FnOnce(&mut Data) -> T) -> Result<T, Error> {
        self.check_open()?;
        self.0.link.ask(act)
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.0.tasks.stop_signal().is_cancelled() { Err(Error::Closed) } else { Ok(()) }
    }
}

/// Lists `service` into `snapshot`, of which what did not change stays shared.
fn list(data: &Data, service: &ServiceRef, snapshot: &mut Snapshot) {
    let before = snapshot.clone();
    for (_, id) in data.departed.iter().filter(|(of, id)| of == service && before.get(id).is_some()) {
        snapshot.leave(id);
    }
    let entry =
        |(_, record): (_, &Record)| Entry::new((*record.value.instance).clone(), record.created, record.modified);
    snapshot.patch(data.of(service).map(entry).map(Arc::new));
    let went_back = snapshot.epoch() != Epoch::new(data.epoch);
    // A change of another service is no news here: nobody is to be woken.
    if went_back || !snapshot.diff(&before).is_empty() {
        snapshot.advance(Revision::new(data.revision), Epoch::new(data.epoch));
    }
}

fn nothing(data: &Data, service: &ServiceRef) -> Snapshot {
    Snapshot::empty(service.clone(), Revision::new(data.revision), Epoch::new(data.epoch))
}

/// Keeps `feed` up to date, for ever. A feed does the rest: it skips for slow readers and tells each the exact difference.
async fn follow(link: Arc<Link>, service: ServiceRef, feed: Arc<Publisher<Snapshot>>) {
    let mut snapshot = None;
    let (mut changes, mut cut) = (link.store.changes.subscribe(), link.cut.subscribe());
    loop {
        let asked = Moment::now();
        let listed = link.ask(|data| {
            let snapshot = snapshot.get_or_insert_with(|| nothing(data, &service));
            list(data, &service, snapshot);
            snapshot.clone()
        });
        match listed {
            Ok(snapshot) => feed.publish(snapshot, asked),
            Err(cause) => feed.stale(cause),
        }
        tokio::select! {
            () = link.store.changed(&mut changes) => {}
            _ = cut.changed() => {}
            // A list proves that the picture is right, also if nothing changed.
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

#[async_trait]
impl Resolver for Scratch {
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
        self.ask(|data| {
            let mut snapshot = nothing(data, service);
            list(data, service, &mut snapshot);
            snapshot
        })
    }

    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        self.check_open()?;
        let (feed, tasks) = (Arc::new(Publisher::new()), TaskOwner::new());
        let (written, closed) = (Arc::clone(&feed), self.0.tasks.stop_signal());
        let follow = follow(Arc::clone(&self.0.link), service.clone(), Arc::clone(&feed));
        tasks.spawn_until_stopped("watch", async move {
            tokio::select! {
                () = closed.cancelled() => written.close(),
                () = follow => {}
            }
        })?;
        // The reader keeps the task, and the client, for as long as it lives.
        Ok(Box::new(ServiceWatcher::new(feed.reader(Arc::new((tasks, self.clone()))))))
    }

    async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
        let names: BTreeSet<_> = self.ask(|data| {
            let services = data.records.keys().map(|(service, _)| service);
            services.filter(|service| service.namespace() == namespace).map(|service| service.name().clone()).collect()
        })?;
        Ok(names.into_iter().collect())
    }
}

pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    /// Ends the renewals when it is dropped. The lease runs out then, unless it is somebody else's.
    _end: Option<DropGuard>,
}

impl Inner {
    pub(crate) fn grant(&self, terms: LeaseTerms) -> Result<Arc<Lease>, Error> {
        let ttl = terms.ttl();
        let id = self.link.ask(|data| {
            data.last_lease += 1;
            let id = LeaseId::new(data.last_lease);
            data.leases.insert(id, Granted { ttl, deadline: Instant::now() + ttl });
            id
        })?;
        let (end, link) = (CancellationToken::new(), Arc::clone(&self.link));
        let renew = async move {
            loop {
                tokio::time::sleep(terms.renewal_interval(ttl)).await;
                let renew = |data: &mut Data| data.leases.get_mut(&id).map(|one| one.deadline = Instant::now() + ttl);
                if let Ok(None) = link.ask(renew) {
                    return;
                }
            }
        };
        let ended = end.clone();
        self.tasks.spawn_until_stopped("lease", async move { _ = ended.run_until_cancelled(renew).await })?;
        Ok(Arc::new(Lease { id, _end: Some(end.drop_guard()) }))
    }

    pub(crate) fn lease(&self, options: &RegisterOptions) -> Result<Arc<Lease>, Error> {
        match options.lease {
            LeaseChoice::Own => self.grant(options.lease_terms()),
            LeaseChoice::Given(id) => Ok(Arc::new(Lease { id, _end: None })),
            _ => {
                let mut shared = self.shared.lock().unwrap();
                if let Some(lease) = shared.get(&options.lease_terms()) {
                    return Ok(Arc::clone(lease));
                }
                let lease = self.grant(options.lease_terms())?;
                shared.insert(options.lease_terms(), Arc::clone(&lease));
                Ok(lease)
            }
        }
    }
}

/// A lease that a user holds.
pub(crate) struct GrantedLease {
    pub(crate) lease: Arc<Lease>,
    pub(crate) ttl: Duration,
    pub(crate) client: Scratch,
    /// It is revoked at the end, instead of running out.
    pub(crate) ends: bool,
}

impl fmt::Debug for GrantedLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GrantedLease").field(&self.lease.id).finish()
    }
}

impl GrantedLease {
    fn is_granted(&self) -> Result<bool, Error> {
        self.client.ask(|data| data.leases.contains_key(&self.lease.id))
    }
}

impl Drop for GrantedLease {
    fn drop(&mut self) {
        if self.ends {
            // Without an answer it runs out. A store in another process would be asked by a task.
            let _ = self.client.0.link.ask(|data| data.revoke(self.lease.id));
        }
    }
}

#[async_trait]
impl LeaseHandle for GrantedLease {
    fn id(&self) -> LeaseId {
        self.lease.id
    }

    fn ttl(&self) -> Duration {
        self.ttl
    }

    fn is_alive(&self) -> bool {
        // Without an answer nobody knows that it is over.
        !matches!(self.is_granted(), Ok(false) | Err(Error::Closed))
    }

    async fn lost(&self) {
        let (store, stopped) = (&self.client.0.link.store, self.client.0.tasks.stop_signal());
        let (mut changes, mut cut) = (store.changes.subscribe(), self.client.0.link.cut.subscribe());
        while self.is_alive() {
            tokio::select! {
                () = store.changed(&mut changes) => {}
                _ = cut.changed() => {}
                () = stopped.cancelled() => {}
            }
        }
    }

    async fn revoke(self: Box<Self>) -> Result<(), Error> {
        self.client.ask(|data| data.revoke(self.lease.id)).map(drop)
    }

    fn abandon(mut self: Box<Self>) {
        self.ends = false;
    }
}
