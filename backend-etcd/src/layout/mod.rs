//! Keys and values of instances and locks in etcd. Only layouts join or split keys, and only they read or write values.
//!
//! A layout is the format of one ecosystem. It may carry less than an [`Instance`] contains, see [`Layout::carries`]. A
//! layout never returns another service's instance, and refuses a name that it cannot represent. The layouts themselves
//! are at the root of the crate. This module contains the parts for authors of layouts. Read `native.rs` first.
//!
//! # Adding a layout
//!
//! `docs/architecture.md` lists the places ("Where to add", "A layout").

mod address;
pub(crate) mod config;
pub(crate) mod dubbo;
pub(crate) mod etcd_concurrency;
pub(crate) mod etcd_naming;
pub(crate) mod fireflycore;
mod go_json;
pub(crate) mod go_kit;
pub(crate) mod go_micro;
pub(crate) mod go_zero;
pub(crate) mod gobase;
pub(crate) mod gobase_lock;
mod guarded;
pub(crate) mod kitex;
pub(crate) mod kratos;
pub(crate) mod named;
pub(crate) mod native;
mod object;
mod parts;
mod segments;
pub(crate) mod semaphore;
mod tree;
mod typed;

use std::fmt;

use enlist::{
    DEFAULT_WEIGHT, Error, Instance, InstanceId, LeaseId, LockMode, LockName, MAX_INSTANCE_BYTES, Namespace,
    ServiceName, ServiceRef, escape::Hidden,
};

pub(crate) use self::guarded::{Guarded, GuardedLocks};
pub use self::named::{LAYOUTS, LOCK_LAYOUTS, LayoutOptions, NamedLayout, NamedLockLayout};
pub use self::semaphore::{PermitEntryValue, SemaphoreLayout};
use crate::watch::record::KeyRange;

/// Maximum bytes of a value that is read: escapes can make JSON six times as long as its content.
const MAX_VALUE_BYTES: usize = 6 * MAX_INSTANCE_BYTES + 65_536;

/// Maximum bytes of a value that a layout accepts for an instance. etcd refuses requests above 1.5 MiB, unless its
/// operator configured another limit. The rest is for keys and guards, and for the mark of a departure.
pub const MAX_WRITTEN_BYTES: usize = (3 << 19) - 65_536;

/// Part of an instance that a layout can carry. The conformance suite has its own list (`LayoutFeature` of
/// `enlist-testkit`), because it depends on no backend and its cases also need locks, raw values and configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Part {
    /// The id given to `register`; without it the layout chooses the id.
    Id,
    /// The owner token.
    Owner,
    /// Namespaces.
    Namespace,
    /// Protocols, several endpoints, Unix sockets.
    Endpoints,
    /// The weight.
    Weight,
    /// The version.
    Version,
    /// The zone.
    Zone,
    /// The health.
    Health,
    /// The metadata.
    Metadata,
}

/// Identity of instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Identity {
    /// Its id, which is in the key.
    Id,
    /// The lease, which is part of the key: a re-registration creates a new key, and for a while there are two. Entries
    /// with the same endpoints are one instance, and the newest counts.
    Lease,
}

/// The leases that a layout can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseScope {
    /// Many keys may share one, and the key does not depend on it.
    Shared,
    /// Each key needs its own lease.
    PerKey,
}

/// Input of an encoding, besides the instance. `Debug` shows neither the owner token nor the replaced value.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "tests of layouts outside this crate build it")]
pub struct Writing<'a> {
    /// The owner token.
    pub owner: Option<&'a str>,
    /// The replaced value. Its unknown fields are kept.
    pub previous: Option<&'a [u8]>,
    /// The lease of the key; `None` for fixed instances.
    pub lease: Option<LeaseId>,
    /// The term of the registration, if the layout carries it; 0 for fixed instances.
    pub term: u64,
}

impl fmt::Debug for Writing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, previous, lease, term } = self;
        f.debug_struct("Writing")
            .field("owner", &owner.map(|_| Hidden))
            .field("previous", &previous.map(|_| Hidden))
            .field("lease", lease)
            .field("term", term)
            .finish()
    }
}

/// Content of a key and its value, as read by a layout. `Debug` does not show the owner token.
#[derive(Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "layouts outside this crate build it")]
pub struct Decoded {
    /// The instance.
    pub instance: Instance,
    /// The owner token.
    pub owner: Option<String>,
}

impl fmt::Debug for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, owner } = self;
        f.debug_struct("Decoded").field("instance", instance).field("owner", &owner.as_ref().map(|_| Hidden)).finish()
    }
}

/// Reason for which a key is no instance of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a key is foreign or malformed")]
pub enum Skip {
    /// The key is foreign: neither an instance nor an error.
    Foreign,
    /// The key belongs to the service, but no instance can be read from it, for this reason.
    Malformed(String),
}

impl Skip {
    fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed(reason.into())
    }
}

/// Layout of instances in etcd.
pub trait Layout: fmt::Debug + Send + Sync + 'static {
    /// Returns its name, for options and messages.
    fn name(&self) -> &'static str;

    /// Returns the carried parts.
    fn carries(&self) -> &'static [Part];

    /// Returns the default weight, for an instance without a weight in its value.
    fn default_weight(&self) -> u32 {
        DEFAULT_WEIGHT
    }

    /// Returns the identity of instances.
    fn identity(&self) -> Identity;

    /// Returns the leases that the layout can use.
    fn lease_scope(&self) -> LeaseScope;

    /// Returns the key of an instance under `lease`; fixed instances have no lease.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] for names it cannot carry, [`Error::Unsupported`] for a namespace in a layout without
    /// namespaces, and for a fixed instance it cannot hold.
    fn key(&self, service: &ServiceRef, id: &InstanceId, lease: Option<LeaseId>) -> Result<Vec<u8>, Error>;

    /// Returns the range of all instances of `service`, with as few other keys as possible.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] for names it cannot carry, [`Error::Unsupported`] for a namespace in a layout without
    /// namespaces.
    fn service_range(&self, service: &ServiceRef) -> Result<KeyRange, Error>;

    /// Returns the range of all services of `namespace`; `None` if there is none.
    fn services_range(&self, namespace: &Namespace) -> Option<KeyRange>;

    /// Returns the service and the id in a key of an instance in `namespace`; `None` if the key does not have this
    /// layout's shape. If keys contain the lease, the lease is the id.
    fn instance_of(&self, namespace: &Namespace, key: &[u8]) -> Option<(ServiceName, InstanceId)>;

    /// Returns the service in a key of [`services_range`](Self::services_range). Default: that of
    /// [`instance_of`](Self::instance_of).
    fn service_of(&self, namespace: &Namespace, key: &[u8]) -> Option<ServiceName> {
        self.instance_of(namespace, key).map(|(service, _)| service)
    }

    /// Returns the range of all namespaces; `None` if other keys cannot be excluded. Default: a layout that does not
    /// carry namespaces has only `default`.
    fn namespaces_range(&self) -> Option<KeyRange> {
        let is_only_default = !self.carries().contains(&Part::Namespace);
        is_only_default.then(|| self.services_range(&Namespace::default())).flatten()
    }

    /// Returns the namespace of an instance with this key of [`namespaces_range`](Self::namespaces_range); `None` if
    /// the key does not have this layout's shape. Default: `default`.
    fn namespace_of(&self, key: &[u8]) -> Option<Namespace> {
        let namespace = Namespace::default();
        self.service_of(&namespace, key).map(|_| namespace)
    }

    /// Returns the value of an instance of `service`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if parts would be lost that the layout does not carry, or if the replaced value has a
    /// newer version.
    fn encode(&self, service: &ServiceRef, instance: &Instance, writing: &Writing<'_>) -> Result<Vec<u8>, Error>;

    /// Checks that the layout can carry an instance of `service`, under any lease and term. [`Instance::check`] has
    /// checked the instance itself before. Without an error here, the registration of an instance that cannot be stored
    /// is repeated without end. Default: the instance is encoded, and the bytes are counted.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode); [`Error::TooLarge`] if the value has more than [`MAX_WRITTEN_BYTES`].
    fn accepts(&self, service: &ServiceRef, instance: &Instance, owner: Option<&str>) -> Result<(), Error> {
        accepts_written(self, service, instance, owner)
    }

    /// Reads an instance of `service`. The key is checked before the value.
    ///
    /// # Errors
    ///
    /// [`Skip`], which distinguishes foreign from malformed keys.
    fn decode(&self, service: &ServiceRef, key: &[u8], value: &[u8]) -> Result<Decoded, Skip>;

    /// As [`decode`](Self::decode), with the same result. The result may share parts with `like`, an instance that was
    /// read before ([`Instance::sibling`]), which is faster. Default: as `decode`.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode).
    fn decode_like(&self, _like: &Instance, service: &ServiceRef, key: &[u8], value: &[u8]) -> Result<Decoded, Skip> {
        self.decode(service, key, value)
    }

    /// Returns the term in a value: 0 if it has none, `None` if the layout carries no terms. Of two registrations with
    /// the same owner the one with the larger term is kept; without terms the last writer. Default: `None`.
    fn term(&self, _value: &[u8]) -> Option<u64> {
        None
    }

    /// Returns the content of a value as text, also if it is no instance; `None` if it is no text.
    fn text(&self, value: &[u8]) -> Option<String> {
        String::from_utf8(value.to_vec()).ok()
    }
}

/// Encodes an instance to check that `layout` can carry it, and checks the size.
fn accepts_written(
    layout: &(impl Layout + ?Sized),
    service: &ServiceRef,
    instance: &Instance,
    owner: Option<&str>,
) -> Result<(), Error> {
    // The longest lease and term.
    let writing = Writing { owner, lease: Some(LeaseId::new(i64::MAX)), term: u64::MAX, previous: None };
    let size = layout.encode(service, instance, &writing)?.len();
    if size > MAX_WRITTEN_BYTES {
        return Err(Error::TooLarge { what: "the value of the instance", size, limit: MAX_WRITTEN_BYTES });
    }
    Ok(())
}

/// Kind of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "these are the kinds that the traits know")]
pub enum QueueKind {
    /// Contenders of a lock.
    Lock,
    /// Candidates of an election.
    Election,
    /// Contenders of a semaphore. Only for layouts with [`semaphores`](LockLayout::semaphores).
    Semaphore,
}

/// Value of a queue entry.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "layouts outside this crate build it")]
pub struct QueueEntryValue {
    /// Exclusive, or shared with other entries.
    pub mode: LockMode,
    /// Value that a candidate publishes; empty for locks.
    pub text: String,
}

/// Rule by which a contender gets a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockOrder {
    /// Contenders queue, each with its own key: the first created key holds the lock.
    #[default]
    Queue,
    /// There is one key, and the contender that creates it holds the lock. Waiting contenders have no key and no order:
    /// each tries to create the key once it is gone. Each contender needs its own lease, which distinguishes its key
    /// from another contender's ([`LeaseScope::PerKey`]).
    FirstToCreate,
}

/// Layout of locks and elections in etcd. The entry with the lowest creation revision in a queue is first.
pub trait LockLayout: fmt::Debug + Send + Sync + 'static {
    /// Returns its name, for options and messages.
    fn name(&self) -> &'static str;

    /// Returns the rule by which a contender gets a lock. Default: contenders queue.
    fn order(&self) -> LockOrder {
        LockOrder::Queue
    }

    /// Returns the leases that the layout can use.
    fn lease_scope(&self) -> LeaseScope;

    /// Returns `true` if shared and exclusive entries can be distinguished.
    fn carries_modes(&self) -> bool;

    /// Returns the range of a queue.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] or [`Error::Unsupported`] for names it cannot carry.
    fn queue(&self, kind: QueueKind, name: &LockName) -> Result<KeyRange, Error>;

    /// Returns the key of a queue entry. `nonce` distinguishes entries under one lease, if they can share one.
    ///
    /// # Errors
    ///
    /// As [`queue`](Self::queue).
    fn entry(&self, kind: QueueKind, name: &LockName, lease: LeaseId, nonce: u64) -> Result<Vec<u8>, Error>;

    /// Returns the range of all entries in a queue under one lease, and no others, if there is one. A session watches
    /// its own entries through it. Default: none.
    fn entries_of_lease(&self, _kind: QueueKind, _name: &LockName, _lease: LeaseId) -> Option<KeyRange> {
        None
    }

    /// Returns the range of all queues of a namespace; `None` if other keys cannot be excluded. Default: `None`.
    fn queues(&self, _kind: QueueKind, _namespace: &Namespace) -> Option<KeyRange> {
        None
    }

    /// Returns the name of the lock with this key of [`queues`](Self::queues) in its queue. Default: `None`.
    fn lock_of(&self, _kind: QueueKind, _namespace: &Namespace, _key: &[u8]) -> Option<LockName> {
        None
    }

    /// Returns the name of the process that wrote a queue entry of a lock. Default: `None`.
    fn process(&self, _value: &[u8]) -> Option<String> {
        None
    }

    /// Returns the range of the marks of a queue, outside of the queue. A holder with a `lock_delay` has a mark there,
    /// without a lease, which its release removes. `None`: the layout has no marks, and a `lock_delay` is refused.
    /// Default: `None`.
    fn marks(&self, _kind: QueueKind, _name: &LockName) -> Option<KeyRange> {
        None
    }

    /// Returns the range of the [marks](Self::marks) of all queues of a namespace, so that a list of queues reads them
    /// together. It contains each of those ranges; other keys in it are ignored. `None`: the marks of each queue are
    /// read for themselves. Default: `None`.
    fn all_marks(&self, _kind: QueueKind, _namespace: &Namespace) -> Option<KeyRange> {
        None
    }

    /// Returns the key of the mark that belongs to the entry with this lease and nonce. Its value is that of the entry.
    /// Default: none.
    fn mark(&self, _kind: QueueKind, _name: &LockName, _lease: LeaseId, _nonce: u64) -> Option<Vec<u8>> {
        None
    }

    /// Reads a mark, and returns the mode in which the lock was held. `None` if the key does not have this layout's
    /// shape. Default: `None`.
    fn decode_mark(&self, _kind: QueueKind, _name: &LockName, _key: &[u8], _value: &[u8]) -> Option<LockMode> {
        None
    }

    /// Returns the layout of semaphores. `None`: the layout has no semaphores. Default: `None`.
    fn semaphores(&self) -> Option<&dyn SemaphoreLayout> {
        None
    }

    /// Returns the value of a queue entry of a lock or election.
    fn encode(&self, kind: QueueKind, value: &QueueEntryValue) -> Vec<u8>;

    /// Reads an entry in the queue of `name`; `None` if the key does not have this layout's shape.
    fn decode(&self, kind: QueueKind, name: &LockName, key: &[u8], value: &[u8]) -> Option<QueueEntryValue>;
}

/// Returns a key in `range` that is neither an instance nor a queue entry in any layout, for trying permissions.
pub(crate) fn trial_key(range: &KeyRange, nonce: u64) -> Vec<u8> {
    [range.bounds().0, format!(".doctor-{nonce:016x}").as_bytes()].concat()
}

/// Returns the error for a name that the layout cannot carry because of `character`.
fn not_carried(field: &'static str, character: char) -> Error {
    Error::InvalidName { field, fault: enlist::NameFault::NotCarried { character } }
}

#[cfg(test)]
mod tests {
    use super::{native::Native, *};
    use enlist::{Endpoint, InstanceId};

    #[test]
    fn the_key_of_a_trial_is_no_instance() {
        let (namespace, native) = (Namespace::default(), Native::default());
        for range in [native.services_range(&namespace).unwrap(), KeyRange::prefix("enlist-doctor/")] {
            let key = trial_key(&range, 255);
            assert!(key.starts_with(range.bounds().0) && key.ends_with(b".doctor-00000000000000ff"));
            assert_eq!(native.instance_of(&namespace, &key), None);
        }
    }

    #[test]
    fn a_layout_without_weights_has_the_usual_one() {
        assert_eq!(Native::default().default_weight(), DEFAULT_WEIGHT);
    }

    #[test]
    fn the_largest_instance_is_read_with_every_character_escaped() {
        let (layout, service): (&dyn Layout, _) = (&Native::default(), ServiceRef::parse("s").unwrap());
        let key = b"enlist/services/default/s/a";
        let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
        let room = MAX_INSTANCE_BYTES - 100;
        let largest = instance.with_metadata("m", "x".repeat(room));
        largest.check().unwrap();
        let escaped = "\\u0078".repeat(room);
        let value = format!(r#"{{"v":1,"id":"a","endpoints":["h:1"],"metadata":{{"m":"{escaped}"}}}}"#);
        assert_eq!(layout.decode(&service, key, value.as_bytes()).unwrap().instance, largest);
        let padding = " ".repeat(MAX_VALUE_BYTES - value.len());
        let longest = value + &padding;
        assert_eq!(layout.decode(&service, key, longest.as_bytes()).unwrap().instance, largest);
        let beyond = longest + " ";
        let skipped = layout.decode(&service, key, beyond.as_bytes());
        assert_eq!(skipped, Err(Skip::malformed(format!("{} bytes", beyond.len()))));
    }

    #[test]
    fn an_owner_token_that_is_too_long_for_the_largest_instance_is_refused() {
        let (layout, service): (&dyn Layout, _) = (&Native::default(), ServiceRef::parse("s").unwrap());
        let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
        let largest = instance.with_metadata("m", "x".repeat(MAX_INSTANCE_BYTES - 100));
        // JSON makes six bytes of a control character.
        let owner = "\u{1}".repeat((MAX_WRITTEN_BYTES - MAX_INSTANCE_BYTES) / 6 + 1);
        let refused = layout.accepts(&service, &largest, Some(&owner));
        assert!(matches!(refused, Err(Error::TooLarge { limit: MAX_WRITTEN_BYTES, .. })), "{refused:?}");
        layout.accepts(&service, &largest, Some(&owner[..owner.len() - 300])).unwrap();
        layout.accepts(&service, &largest, Some("short")).unwrap();
    }

    #[test]
    fn what_is_written_fits_into_a_request() {
        let request = 3 * 512 * 1024;
        assert!((MAX_INSTANCE_BYTES..request).contains(&MAX_WRITTEN_BYTES), "{MAX_WRITTEN_BYTES}");
    }

    #[test]
    fn owner_tokens_are_not_shown() {
        let previous = br#"{"owner":"s3cret"}"#;
        let writing = Writing { owner: Some("s3cret"), previous: Some(previous), ..Writing::default() };
        let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
        let decoded = Decoded { instance, owner: Some("s3cret".into()) };
        let shown = format!("{writing:?} {decoded:?}");
        let bytes = format!("{:?}", "s3cret".as_bytes());
        assert!(!shown.contains("s3cret") && !shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
        assert_eq!(shown.matches("owner: Some").count(), 2, "{shown}");
    }
}
