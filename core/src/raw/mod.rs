//! Keys and values as their users chose them, beside the layouts: listed and watched by prefix, kept by a registration.
//! Snapshots and watches of a subtree are the same for whatever else stores bytes by key. Compare [`crate::Snapshot`],
//! which holds instances.

pub(crate) mod snapshot;

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;

pub use self::snapshot::{RawEntry, RawEvent, RawSnapshot};
use crate::runtime::sync::MutexExt as _;
use crate::{
    backend::publisher::{Subscriber, Update},
    discovery::freshness::Freshness,
    error::Error,
    model::{
        endpoint::Endpoint,
        instance::Instance,
        name::{InstanceId, MAX_NAME_BYTES, Namespace, ServiceName, ServiceRef},
        revision::{LeaseId, Revision},
    },
    registration::{
        handle::Registration,
        options::RegisterOptions,
        state::{Deregistered, RegistrationState},
        state_stream::RegistrationStates,
    },
};

/// The most bytes of a key and its value together. etcd refuses requests above 1.5 MiB, unless its operator set another
/// limit; the rest is for guards.
pub const MAX_RAW_BYTES: usize = (3 << 19) - 65_536;

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

impl RawChange {
    /// For backends: the change that leads to `snapshot` from what was returned `before`; `None` if that was nothing.
    pub fn new(before: Option<&RawSnapshot>, snapshot: RawSnapshot, freshness: Freshness) -> Self {
        let events = before.map_or_else(|| snapshot.as_added(), |before| snapshot.diff(before));
        Self { snapshot, events, freshness }
    }
}

/// For backends: a [`RawWatcher`] over a feed of snapshots.
#[derive(Debug)]
pub struct PrefixWatcher {
    reader: Subscriber<RawSnapshot>,
}

impl PrefixWatcher {
    /// A watcher that reads from `reader`.
    pub fn new(reader: Subscriber<RawSnapshot>) -> Self {
        Self { reader }
    }
}

#[async_trait]
impl RawWatcher for PrefixWatcher {
    async fn next(&mut self) -> Result<RawChange, Error> {
        let Update { value, before, freshness } = self.reader.next().await?;
        Ok(RawChange::new(before.as_ref(), value, freshness))
    }
}

/// For backends: the value that a raw registration is to store. Clones share it.
#[derive(Clone)]
pub struct RawCell(Arc<Mutex<Arc<[u8]>>>);

impl RawCell {
    /// A cell that holds `value`.
    pub fn new(value: impl Into<Arc<[u8]>>) -> Self {
        Self(Arc::new(Mutex::new(value.into())))
    }

    /// The value as it should be. A write takes it as late as it can: its generation says that it is at least as new.
    pub fn get(&self) -> Arc<[u8]> {
        Arc::clone(&self.0.locked())
    }

    fn set(&self, value: Arc<[u8]>) {
        *self.0.locked() = value;
    }
}

impl fmt::Debug for RawCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawCell").field("bytes", &self.get().len()).finish()
    }
}

/// A value that is kept under a key. It ends as a [`Registration`] does.
#[derive(Debug)]
#[must_use = "dropping it removes the key"]
pub struct RawRegistration {
    registration: Registration,
    key: Arc<[u8]>,
    cell: RawCell,
}

impl RawRegistration {
    /// For backends: a registration that writes what `cell` holds under `key`.
    pub fn new(registration: Registration, key: impl Into<Arc<[u8]>>, cell: RawCell) -> Self {
        Self { registration, key: key.into(), cell }
    }

    /// The key.
    pub fn key(&self) -> &[u8] {
        &self.key
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
        let value = value.into();
        let changed = check_size(&self.key, &value).map(|()| {
            // Before the generation that tells of it.
            self.cell.set(value);
            self.registration.update(|_| {})
        });
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

/// For backends: refuses a prefix that would be the whole store.
///
/// # Errors
///
/// [`Error::InvalidConfig`] for an empty one.
pub fn check_prefix(prefix: &[u8]) -> Result<(), Error> {
    if prefix.is_empty() {
        return Err(Error::invalid_config("prefix", "it must not be empty, which would be the whole store"));
    }
    Ok(())
}

/// For backends: refuses what cannot be registered under a key. Backends call this before they send anything.
///
/// # Errors
///
/// [`Error::InvalidConfig`] for an empty key and for the options, [`Error::Unsupported`] for an owner,
/// [`Error::TooLarge`] for more than [`MAX_RAW_BYTES`].
pub fn check_value(key: &[u8], value: &[u8], options: &RegisterOptions) -> Result<(), Error> {
    options.check()?;
    if key.is_empty() {
        return Err(Error::invalid_config("key", "it must not be empty"));
    }
    if options.owner.is_some() {
        return Err(Error::Unsupported { what: "an owner token of a raw value".to_owned() });
    }
    check_size(key, value)
}

fn check_size(key: &[u8], value: &[u8]) -> Result<(), Error> {
    let size = key.len() + value.len();
    if size > MAX_RAW_BYTES {
        return Err(Error::TooLarge { what: "the key and its value", size, limit: MAX_RAW_BYTES });
    }
    Ok(())
}

/// For backends: the names by which errors and logs tell of a key, the part before its last `/` and the part behind it,
/// in an instance that stands for the value in a [`registration`](crate::backend::registration()). They need not be
/// different for different keys.
#[expect(clippy::missing_panics_doc, reason = "its names are made to be accepted")]
pub fn stand_in(key: &[u8]) -> (ServiceRef, Instance) {
    let at = key.iter().rposition(|byte| *byte == b'/');
    let (directory, last) = at.map_or((&b""[..], key), |at| (&key[..at], &key[at + 1..]));
    let service = ServiceName::parse(name(directory)).expect("it is short and printable, and not empty");
    let id = InstanceId::parse(name(last)).expect("it is short and printable, and not empty");
    let endpoint = Endpoint::new("raw", 1).expect("a host and a port");
    let instance = Instance::new(id, [endpoint]).expect("it has an endpoint");
    (ServiceRef::new(Namespace::default(), service), instance)
}

/// Printable text of bytes, as long as a name may be; `/` for none.
fn name(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).replace(char::is_control, "\u{fffd}");
    while text.len() > MAX_NAME_BYTES {
        text.pop();
    }
    if text.is_empty() { "/".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_key_has_names(key in proptest::collection::vec(any::<u8>(), 0..600)) {
            stand_in(&key);
        }
    }

    #[test]
    fn a_key_is_named_by_its_parts() {
        let named = |key: &[u8]| {
            let (service, instance) = stand_in(key);
            format!("{} {}", service.name(), instance.id())
        };
        assert_eq!(named(b"/services/svc/10.0.0.1:80"), "/services/svc 10.0.0.1:80");
        assert_eq!((named(b"a"), named(b"/a"), named(b"a/")), ("/ a".into(), "/ a".into(), "a /".into()));
        assert_eq!(named(b"x/\n\xff"), "x \u{fffd}\u{fffd}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_is_there_before_the_generation_that_tells_of_it() {
        let (service, instance) = stand_in(b"k");
        let (registration, mut driver) =
            crate::backend::registration(service, instance, &RegisterOptions::new(), Arc::new(())).unwrap();
        let cell = RawCell::new(*b"one");
        let raw = RawRegistration::new(registration, *b"k", cell.clone());
        let large = raw.set(vec![0; MAX_RAW_BYTES]).await;
        assert!(matches!(large, Err(Error::TooLarge { size, .. }) if size == MAX_RAW_BYTES + 1), "{large:?}");
        assert_eq!((driver.desired().generation, &*cell.get()), (1, &b"one"[..]));
        let stored = raw.set(*b"two");
        assert_eq!((driver.desired().generation, &*cell.get()), (2, &b"two"[..]));
        driver.report_stored(2, Revision::new(9));
        assert_eq!(stored.await.unwrap(), Revision::new(9));
    }
}
