//! Raw keys and values, independent of the layouts: listed and watched by prefix, and kept by a registration. Snapshots
//! and watches of a subtree work the same for any content. Compare [`crate::Snapshot`], which holds instances. Begin
//! with `snapshot.rs`.

pub(crate) mod limit;
pub(crate) mod snapshot;

use std::{fmt, future::Future, sync::Arc};

use async_trait::async_trait;

pub use self::{
    limit::MAX_RAW_BYTES,
    snapshot::{RawEntry, RawEvent, RawSnapshot},
};
use crate::{
    backend::registration::raw_cell::RawCell,
    discovery::freshness::Freshness,
    error::Error,
    model::revision::{LeaseId, Revision},
    registration::{
        handle::Registration,
        options::RegisterOptions,
        state::{Deregistered, RegistrationState},
        state_stream::RegistrationStates,
    },
};

/// Access to raw keys and values. Implemented by the backends; users hold an `Arc<dyn RawValues>`.
///
/// In etcd these are the stored keys themselves, including those of layouts and locks. In memory they are separate from
/// instances and locks.
#[async_trait]
pub trait RawValues: fmt::Debug + Send + Sync + 'static {
    /// Reads all keys that begin with `prefix`, at any depth, at one revision, with linearizable reads. The prefix is
    /// not extended by a separator: `svc` is also a prefix of `svc2/a`.
    ///
    /// Signature: `async fn list_prefix(&self, prefix: &[u8]) -> Result<RawSnapshot, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for an empty prefix, which would match the whole store; else as
    /// [`Resolver::resolve`](crate::Resolver::resolve).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn list_prefix(&self, prefix: &[u8]) -> Result<RawSnapshot, Error>;

    /// Watches all keys that begin with `prefix`, with the guarantees of a [`Watcher`](crate::Watcher). Returns at
    /// once; the first [`RawWatcher::next`] waits for the first list.
    ///
    /// Signature: `async fn watch_prefix(&self, prefix: &[u8]) -> Result<Box<dyn RawWatcher>, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for an empty prefix; [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the watch.
    async fn watch_prefix(&self, prefix: &[u8]) -> Result<Box<dyn RawWatcher>, Error>;

    /// Keeps `value` under `key` until the registration ends, with the guarantees of
    /// [`Registry::register`](crate::Registry::register): the key is restored after any loss, and nothing that another
    /// client wrote is overwritten or deleted. A raw value has no owner, so a process that restarts observes the lease
    /// of its predecessor first.
    ///
    /// The directory of a key is its part up to the last `/`. In etcd, up to 8 keys of a directory are watched one by
    /// one. From the 9th on, or once the session has 64 watches of its own keys, one watch covers the directory and
    /// keeps a copy of the whole prefix in memory. The copy includes the keys of other clients below the directory and
    /// its subdirectories. A key without a directory, or in `/`, is always watched individually.
    ///
    /// Signature: `async fn register_value(&self, key: &[u8], value: Vec<u8>, options: RegisterOptions) ->
    /// Result<RawRegistration, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for an empty key or invalid options; [`Error::Unsupported`] for an `owner`;
    /// [`Error::TooLarge`] for more than [`MAX_RAW_BYTES`]; else as [`Registry::register`](crate::Registry::register).
    /// Errors name the part of the key behind its last `/` as the instance, and the part before that as the service.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws the registration in the background.
    async fn register_value(
        &self,
        key: &[u8],
        value: Vec<u8>,
        options: RegisterOptions,
    ) -> Result<RawRegistration, Error>;
}

/// A running watch of a prefix. Dropping it ends the watch. See [`Watcher`](crate::Watcher).
#[async_trait]
pub trait RawWatcher: fmt::Debug + Send + 'static {
    /// Returns the next change. The first is the whole snapshot. After that there is one change per wake-up: the latest
    /// snapshot and the exact difference to the one that this watcher returned before, see
    /// [`Watcher::next`](crate::Watcher::next).
    ///
    /// Signature: `async fn next(&mut self) -> Result<RawChange, Error>`.
    ///
    /// # Errors
    ///
    /// As [`Watcher::next`](crate::Watcher::next).
    ///
    /// # Cancel safety
    ///
    /// A change that was not returned is returned by the next call.
    async fn next(&mut self) -> Result<RawChange, Error>;
}

/// The result of a [`RawWatcher`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RawChange {
    /// The latest snapshot.
    pub snapshot: RawSnapshot,
    /// The difference to the snapshot that this watcher returned before.
    pub events: Vec<RawEvent>,
    /// Freshness of the snapshot.
    pub freshness: Freshness,
}

/// A registered value. It ends as a [`Registration`] does.
#[derive(Debug)]
#[must_use = "dropping it removes the key"]
pub struct RawRegistration {
    pub(crate) registration: Registration,
    pub(crate) cell: RawCell,
}

impl RawRegistration {
    /// The key.
    pub fn key(&self) -> &[u8] {
        self.cell.key()
    }

    /// The desired value; the store follows.
    pub fn value(&self) -> Arc<[u8]> {
        self.cell.get()
    }

    /// Changes the value in place: the key keeps its lease and its creation revision. The desired value changes at
    /// once, even if the returned future is dropped; the future waits until it is stored. A later change replaces an
    /// earlier one.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], and nothing changes; else as [`InstanceHandle::update`](crate::InstanceHandle::update).
    ///
    /// # Cancel safety
    ///
    /// The change is made even if the future is never polled.
    pub fn set(&self, value: impl Into<Arc<[u8]>>) -> impl Future<Output = Result<Revision, Error>> + Send + 'static {
        // The value is set before the generation that announces it.
        let changed = self.cell.set(value.into()).map(|()| self.registration.update(|_| {}));
        async move { changed?.await }
    }

    /// State of the registration.
    pub fn state(&self) -> RegistrationState {
        self.registration.state()
    }

    /// States of the registration, for one task. The current state comes first.
    pub fn states(&self) -> RegistrationStates {
        self.registration.states()
    }

    /// The lease of the key, see [`Registration::lease`].
    pub fn lease(&self) -> Option<LeaseId> {
        self.registration.lease()
    }

    /// Removes the key and confirms it, see [`Registration::deregister`].
    ///
    /// # Errors
    ///
    /// Those of [`Registration::deregister`].
    ///
    /// # Cancel safety
    ///
    /// The removal goes on in the background.
    pub async fn deregister(self) -> Result<Deregistered, Error> {
        self.registration.deregister().await
    }

    /// Leaves the key until its lease expires, see [`Registration::abandon`].
    pub fn abandon(self) {
        self.registration.abandon();
    }
}
