//! The shared store: a mutex, a notification for waiting tasks, and the links of the clients.
//!
//! No task drives the store. Leases expire when the store is accessed, so a task that waits for a change also waits for
//! the next expiry.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{Error, backend::MutexExt as _};
use tokio::{sync::watch, time::Instant};

use crate::{deliberate_defects::DeliberateDefect, store::Store};

/// The store that all clients share.
#[derive(Debug)]
pub(crate) struct SharedStore {
    store: Mutex<Store>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
    pub(crate) defect: Option<DeliberateDefect>,
}

impl SharedStore {
    pub(crate) fn new(defect: Option<DeliberateDefect>) -> Arc<Self> {
        Arc::new(Self { store: Mutex::default(), changes: watch::Sender::new(0), defect })
    }

    /// Runs `act` on the present store, with due leases expired, and wakes waiting tasks if the store changed.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Store, Instant) -> T) -> T {
        let mut store = self.store.locked();
        let before = (store.incarnation(), store.revision());
        let now = Instant::now();
        store.expire(now);
        let result = act(&mut store, now);
        let after = (store.incarnation(), store.revision());
        drop(store);
        if before != after {
            self.changes.send_modify(|count| *count += 1);
        }
        result
    }

    pub(crate) fn has(&self, defect: DeliberateDefect) -> bool {
        self.defect == Some(defect)
    }

    pub(crate) fn changes(self: &Arc<Self>) -> Changes {
        Changes { store: Arc::clone(self), seen: self.changes.subscribe() }
    }
}

/// Waits for changes of the store.
#[derive(Debug)]
pub(crate) struct Changes {
    store: Arc<SharedStore>,
    seen: watch::Receiver<u64>,
}

impl Changes {
    /// Waits until the store has changed since the last call, or a lease has expired.
    pub(crate) async fn next(&mut self) {
        loop {
            let expiry = self.store.with(|store, _| store.next_expiry());
            tokio::select! {
                // The sender lives in the shared store, so waiting cannot fail.
                _ = self.seen.changed() => return,
                () = at(expiry) => self.store.with(|_, _| ()),
            }
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Connectivity of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Connectivity {
    #[default]
    Up,
    /// No request arrives.
    Cut,
}

/// State of the link of one client.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LinkState {
    connectivity: Connectivity,
    delay: Duration,
}

/// Link of one client to the store, which a test can cut or delay.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    store: Arc<SharedStore>,
    state: Arc<watch::Sender<LinkState>>,
}

impl Link {
    pub(crate) fn new(store: Arc<SharedStore>) -> Self {
        Self { store, state: Arc::default() }
    }

    pub(crate) fn store(&self) -> &Arc<SharedStore> {
        &self.store
    }

    pub(crate) fn set_connectivity(&self, connectivity: Connectivity) {
        self.state.send_modify(|state| state.connectivity = connectivity);
    }

    pub(crate) fn set_delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Sends a request to the store over this link.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] while the link is cut.
    pub(crate) async fn ask<T>(&self, act: impl FnOnce(&mut Store, Instant) -> T) -> Result<T, Error> {
        let delay = self.state.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.check()?;
        Ok(self.store.with(act))
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.state.borrow().connectivity {
            Connectivity::Up => Ok(()),
            Connectivity::Cut => Err(Error::unavailable("the link to the store is cut")),
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }
}

/// Waits until the link is up.
pub(crate) async fn up(link: &mut watch::Receiver<LinkState>) {
    // The state of a link without a client does not change.
    if link.wait_for(|state| state.connectivity == Connectivity::Up).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until the link is down.
pub(crate) async fn down(link: &mut watch::Receiver<LinkState>) {
    if link.wait_for(|state| state.connectivity == Connectivity::Cut).await.is_err() {
        std::future::pending::<()>().await;
    }
}
