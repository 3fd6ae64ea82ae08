//! Step 2. A client stands for one process: its connection to the store, its tasks, and what its registrations share.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use enlist::{
    Error, TaskOwner,
    backend::{Departures, KeyClaims, LeaseTerms, Observations},
};
use tokio::sync::watch;

use crate::{
    lease::Lease,
    store::{Data, Key, Store},
};

/// Connection of a client to the store, which a test can cut.
pub(crate) struct Link {
    pub(crate) store: Arc<Store>,
    pub(crate) cut: watch::Sender<bool>,
}

impl Link {
    /// Runs a request. Over a network, each request has a deadline, and one place maps the errors of the store's
    /// client.
    pub(crate) fn ask<T>(&self, act: impl FnOnce(&mut Data) -> T) -> Result<T, Error> {
        if *self.cut.borrow() {
            return Err(Error::unavailable("the link is cut"));
        }
        Ok(self.store.with(act))
    }
}

/// A client of the store. Clones are the same client.
#[derive(Clone)]
pub(crate) struct MapClient(pub(crate) Arc<Inner>);

/// State of a client that its registrations share.
pub(crate) struct Inner {
    pub(crate) link: Arc<Link>,
    /// Everything that runs until the client ends: watches, renewals, registrations.
    pub(crate) tasks: TaskOwner,
    /// Order of the registrations of this process that want one key.
    pub(crate) key_claims: KeyClaims<Key>,
    /// Progress of observing the leases of other clients.
    pub(crate) observations: Observations<Key>,
    /// Registrations on leases that the client did not grant and therefore does not revoke.
    pub(crate) departures: Departures,
    /// Leases that registrations share.
    pub(crate) shared: Mutex<BTreeMap<LeaseTerms, Arc<Lease>>>,
}

impl fmt::Debug for MapClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapClient").finish_non_exhaustive()
    }
}

impl MapClient {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        let link = Arc::new(Link { store, cut: watch::Sender::new(false) });
        let (tasks, key_claims, observations) = (TaskOwner::new(), KeyClaims::default(), Observations::default());
        let departures = Departures::default();
        Self(Arc::new(Inner { link, tasks, key_claims, observations, departures, shared: Mutex::default() }))
    }

    /// Runs a request, unless the client is closed.
    pub(crate) fn ask<T>(&self, act: impl FnOnce(&mut Data) -> T) -> Result<T, Error> {
        self.check_open()?;
        self.0.link.ask(act)
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.0.tasks.stop_signal().is_cancelled() { Err(Error::Closed) } else { Ok(()) }
    }
}
