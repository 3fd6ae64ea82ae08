//! Discovery of the instances of a service, once or continuously.

use std::fmt;

use async_trait::async_trait;

use crate::{
    discovery::{
        freshness::Freshness,
        service_list::ServicesWatcher,
        snapshot::{Event, Snapshot},
    },
    error::Error,
    model::name::{Namespace, ServiceName, ServiceRef},
};

/// Finds the instances of services. Implemented by the backends; users hold an `Arc<dyn Resolver>`.
#[async_trait]
pub trait Resolver: fmt::Debug + Send + Sync + 'static {
    /// Reads all instances of `service` at one revision, with one linearizable read.
    ///
    /// Signature: `async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] or [`Error::Timeout`] if the store does not answer, [`Error::PermissionDenied`],
    /// [`Error::AuthFailed`], [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error>;

    /// Watches `service`. Returns at once; the first [`Watcher::next`] waits for the first list.
    ///
    /// Signature: `async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] if the layout does not support the name, [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the watch.
    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error>;

    /// The services of `namespace` that have at least one instance, in order. An instance whose value cannot be decoded
    /// counts.
    ///
    /// Signature: `async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the layout cannot list services; else as [`resolve`](Self::resolve).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error>;

    /// Watches the list of [`services`](Self::services). Returns at once; the first [`ServicesWatcher::next`] waits for
    /// the first list. Default: [`Error::Unsupported`].
    ///
    /// Signature: `async fn watch_services(&self, namespace: &Namespace) -> Result<Box<dyn ServicesWatcher>, Error>`.
    ///
    /// A backend may keep a copy of all instances of the namespace meanwhile. Watches of one namespace share it.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the layout cannot list services, [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the watch.
    async fn watch_services(&self, _namespace: &Namespace) -> Result<Box<dyn ServicesWatcher>, Error> {
        Err(Error::Unsupported { what: "watching the list of services".to_owned() })
    }

    /// The namespaces that have at least one service, in order. A layout without namespaces has only `default`.
    /// Default: [`Error::Unsupported`].
    ///
    /// Signature: `async fn namespaces(&self) -> Result<Vec<Namespace>, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the layout cannot list namespaces; else as [`resolve`](Self::resolve).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn namespaces(&self) -> Result<Vec<Namespace>, Error> {
        Err(Error::Unsupported { what: "listing namespaces".to_owned() })
    }
}

/// A running watch. Dropping it ends the watch. [`ViewChanges`](crate::ViewChanges),
/// [`LeaderWatcher`](crate::LeaderWatcher) and [`RegistrationStates`](crate::RegistrationStates) work in the same way:
/// the current state comes first, then its changes.
#[async_trait]
pub trait Watcher: fmt::Debug + Send + 'static {
    /// Returns the next change. The first is the whole snapshot. After that there is one change per wake-up: the latest
    /// snapshot and the exact difference to the one that this watcher returned before. A change of freshness alone has
    /// no events.
    ///
    /// Signature: `async fn next(&mut self) -> Result<Change, Error>`.
    ///
    /// Gap-free: compaction, a lost connection or a rollback of the store never skip a net change and never show an
    /// empty or partial list. Instances are removed only if the store reports it, never because of an outage.
    ///
    /// # Errors
    ///
    /// Before the first snapshot: an error that will not pass by itself, such as [`Error::PermissionDenied`]. The watch
    /// goes on trying, so the call may be repeated. Afterwards only [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// A change that was not returned is returned by the next call.
    async fn next(&mut self) -> Result<Change, Error>;
}

/// Change that a watcher returns.
#[derive(Clone, Debug)]
pub struct Change {
    /// The latest snapshot.
    pub snapshot: Snapshot,
    /// The difference to the snapshot that this watcher returned before.
    pub events: Vec<Event>,
    /// Freshness of the snapshot.
    pub freshness: Freshness,
}
