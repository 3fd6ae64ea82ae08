//! Keys and values as their users chose them, beside the layouts: listed and watched by prefix, kept by a registration.
//! Snapshots and watches of a subtree are the same for whatever else stores bytes by key. Compare [`crate::Snapshot`],
//! which holds instances.

pub(crate) mod limit;
pub(crate) mod snapshot;

use std::{fmt, future::Future, sync::Arc};

use async_trait::async_trait;

pub use self::{
    limit::MAX_RAW_BYTES,
    snapshot::{RawEntry, RawEvent, RawSnapshot},
};
use crate::{
    backend::raw_cell::RawCell,
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

/// Keys and values as their users chose them. Implemented by the backends; users hold an `Arc<dyn RawValues>`.
///
/// In etcd these are the keys as they lie there, those of layouts and locks included. In memory they are apart from
/// instances and locks.
#[async_trait]
pub trait RawValues: fmt::Debug + Send + Sync + 'static {
    /// Reads all keys that begin with `prefix`, however deep, at one revision, with linearizable reads. The prefix is
    /// taken as it is: `svc` is also that of `svc2/a`.
    ///
    /// Signature: `async fn list_prefix(&self, prefix: &[u8]) -> Result<RawSnapshot, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for an empty prefix, which would be the whole store; else as
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
    /// [`Registry::register`](crate::Registry::register): it comes back after any loss, and nothing it does overwrites
    /// or deletes what another one wrote. There is no owner in a raw value, so a process that restarts observes the
    /// lease of its predecessor first.
    ///
    /// Up to 8 keys of a directory, which is the part of the key up to its last `/`, are watched one by one in etcd.
    /// From the 9th on, or once the session has 64 watches of own keys, the watch is one of the directory, and mirrors
    /// the whole prefix in memory: also what others keep below it, and below its subdirectories. A key without a
    /// directory, or in `/`, is always watched by itself.
    ///
    /// Signature: `async fn register_value(&self, key: &[u8], value: Vec<u8>, options: RegisterOptions) ->
    /// Result<RawRegistration, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for an empty key, and for the options; [`Error::Unsupported`] for an `owner`;
    /// [`Error::TooLarge`] for more than [`MAX_RAW_BYTES`]; else as [`Registry::register`](crate::Registry::register).
    /// In errors the part of the key behind its last `/` is the instance, and the part before that the service.
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
    /// First the whole snapshot, then one change per wake-up: the latest snapshot and the exact difference to what this
    /// watcher returned before, see [`Watcher::next`](crate::Watcher::next).
    ///
    /// Signature: `async fn next(&mut self) -> Result<RawChange, Error>`.
    ///
    /// # Errors
    ///
    /// As [`Watcher::next`](crate::Watcher::next).
    ///
    /// # Cancel safety
    ///
    /// What was not returned is returned by the next call.
    async fn next(&mut self) -> Result<RawChange, Error>;
}

/// The result of a [`RawWatcher`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RawChange {
    /// The latest snapshot.
    pub snapshot: RawSnapshot,
    /// The difference to what this watcher returned before.
    pub events: Vec<RawEvent>,
    /// Freshness of the snapshot.
    pub freshness: Freshness,
}

/// A value that is kept under a key. It ends as a [`Registration`] does.
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

    /// The value as it should be; the store follows.
    pub fn value(&self) -> Arc<[u8]> {
        self.cell.get()
    }

    /// Changes the value in place: the key keeps its lease and its creation. It is changed at once, also if the
    /// returned future is dropped; the future waits until it is stored. A later change overtakes it.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], and nothing changes; else those of
    /// [`InstanceHandle::update`](crate::InstanceHandle::update).
    ///
    /// # Cancel safety
    ///
    /// The change is made even if the future is never polled.
    pub fn set(&self, value: impl Into<Arc<[u8]>>) -> impl Future<Output = Result<Revision, Error>> + Send + 'static {
        // The value is set before the generation that announces it.
        let changed = self.cell.set(value.into()).map(|()| self.registration.update(|_| {}));
        async move { changed?.await }
    }

    /// Its state.
    pub fn state(&self) -> RegistrationState {
        self.registration.state()
    }

    /// The states, for a task of its own: the one as it is now comes first.
    pub fn states(&self) -> RegistrationStates {
        self.registration.states()
    }

    /// The lease that keeps it, see [`Registration::lease`].
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

    /// Leaves the key to run out, see [`Registration::abandon`].
    pub fn abandon(self) {
        self.registration.abandon();
    }
}
