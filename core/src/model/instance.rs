//! Registered data: an instance, and the entry that a view holds for it.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    error::Error,
    model::{
        endpoint::Endpoint,
        name::InstanceId,
        revision::{Incarnation, Revision},
    },
};

mod json;

pub use json::JSON_SUFFIX;

static NO_METADATA: Metadata = BTreeMap::new();

/// Default weight of an instance.
pub const DEFAULT_WEIGHT: u32 = 100;

/// Maximum bytes of the texts of one instance (id, endpoints, version, zone, metadata) as JSON: 1 MiB. A quote, a
/// backslash or a line break takes two bytes, another control character six. etcd refuses requests above 1.5 MiB.
pub const MAX_INSTANCE_BYTES: usize = 1 << 20;

/// Maximum number of bytes that JSON makes of one byte of a text.
const MAX_ESCAPE: usize = r"\u0000".len();

/// Ability of an instance to take calls, according to the instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Health {
    /// The instance takes calls.
    #[default]
    Serving,
    /// The instance finishes its calls and is about to leave.
    Draining,
    /// The instance does not take calls for now.
    NotServing,
}

impl Health {
    /// The word used on the wire and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::NotServing => "not_serving",
        }
    }

    /// Reads the word used on the wire; `None` for any other.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Serving, Self::Draining, Self::NotServing].into_iter().find(|health| health.as_str() == word)
    }
}

/// One running process offering a service.
///
/// ```
/// # use enlist::{Instance, Endpoint, InstanceId};
/// let instance = Instance::new(InstanceId::parse("greeter-1")?, [Endpoint::parse("grpc://10.0.0.1:8080")?])?
///     .with_weight(50)
///     .with_zone("eu-1a")
///     .with_metadata("team", "blue");
/// assert_eq!(instance.weight(), 50);
/// # Ok::<(), enlist::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    id: InstanceId,
    endpoints: Box<[Endpoint]>,
    weight: u32,
    health: Health,
    // Most instances of a service have the same values here, and share them: see `backend/discovery/interner.rs`.
    pub(crate) version: Option<Arc<str>>,
    pub(crate) zone: Option<Arc<str>>,
    pub(crate) metadata: Option<Arc<Metadata>>,
}

pub(crate) type Metadata = BTreeMap<String, String>;

fn no_endpoint() -> Error {
    Error::InvalidAddress { input: String::new(), reason: "an instance needs an endpoint" }
}

/// Replaces a text; an empty one is none. An equal text stays, and stays shared.
fn set(text: &mut Option<Arc<str>>, new: &str) {
    if text.as_deref().unwrap_or_default() != new {
        *text = Some(new).filter(|new| !new.is_empty()).map(Arc::from);
    }
}

impl Instance {
    /// An instance with weight 100, serving, without version, zone and metadata.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidAddress`] if there is no endpoint.
    pub fn new(id: InstanceId, endpoints: impl IntoIterator<Item = Endpoint>) -> Result<Self, Error> {
        let endpoints: Box<[_]> = endpoints.into_iter().collect();
        if endpoints.is_empty() {
            return Err(no_endpoint());
        }
        Ok(Self {
            id,
            endpoints,
            weight: DEFAULT_WEIGHT,
            health: Health::default(),
            version: None,
            zone: None,
            metadata: None,
        })
    }

    /// An instance whose id is the authority (`host:port`) of its first endpoint, as layouts keyed by address expect
    /// it: etcd naming, kitex, go-kit, gobase. A program that removes an instance by its address finds it by that.
    ///
    /// The id does not change with the endpoints.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); [`Error::InvalidName`] for an authority of more than 255 bytes, such as a long path of a
    /// Unix socket.
    pub fn at(endpoints: impl IntoIterator<Item = Endpoint>) -> Result<Self, Error> {
        let endpoints: Vec<_> = endpoints.into_iter().collect();
        let first = endpoints.first().ok_or_else(no_endpoint)?;
        Self::new(InstanceId::parse(first.authority())?, endpoints)
    }

    /// Returns a copy with another id and other endpoints. It shares the version, the zone and the metadata with this
    /// instance; setting them to equal values keeps them shared.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn sibling(&self, id: InstanceId, endpoints: impl IntoIterator<Item = Endpoint>) -> Result<Self, Error> {
        let Self { id: _, endpoints: _, weight, health, version, zone, metadata } = self;
        let (version, zone, metadata) = (version.clone(), zone.clone(), metadata.clone());
        Ok(Self { weight: *weight, health: *health, version, zone, metadata, ..Self::new(id, endpoints)? })
    }

    /// Sets the weight; 0 means "not picked".
    #[must_use]
    pub fn with_weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the version; an empty one is none.
    #[must_use]
    pub fn with_version(mut self, version: impl AsRef<str>) -> Self {
        set(&mut self.version, version.as_ref());
        self
    }

    /// Sets the zone; an empty one is none.
    #[must_use]
    pub fn with_zone(mut self, zone: impl AsRef<str>) -> Self {
        set(&mut self.zone, zone.as_ref());
        self
    }

    /// Sets the health.
    #[must_use]
    pub fn with_health(mut self, health: Health) -> Self {
        self.health = health;
        self
    }

    /// Sets one entry of the metadata.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata_mut().insert(key.into(), value.into());
        self
    }

    /// Replaces the metadata.
    #[must_use]
    pub fn with_all_metadata<K, V>(mut self, metadata: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: AsRef<str> + Into<String>,
        V: AsRef<str> + Into<String>,
    {
        let (mut new, mut old) = (metadata.into_iter().fuse(), self.metadata().iter());
        // Nothing is copied while the new entries equal the old ones.
        let mut alike = 0;
        let differing = loop {
            let (known, given) = (old.next(), new.next());
            match (known, &given) {
                (None, None) => return self,
                (Some(known), Some(given)) if (&**known.0, &**known.1) == (given.0.as_ref(), given.1.as_ref()) => {
                    alike += 1;
                }
                _ => break given,
            }
        };
        let kept = self.metadata().iter().take(alike).map(|(key, value)| (key.clone(), value.clone()));
        let others = differing.into_iter().chain(new).map(|(key, value)| (key.into(), value.into()));
        self.metadata = Some(kept.chain(others).collect()).filter(|all: &Metadata| !all.is_empty()).map(Arc::new);
        self
    }

    fn metadata_mut(&mut self) -> &mut Metadata {
        Arc::make_mut(self.metadata.get_or_insert_default())
    }

    /// Id, unique within the service.
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// Addresses at which it accepts connections; empty only in an [`InstanceUpdate`], which is refused then.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Returns `true` if nothing but the id, and perhaps the health, differs.
    pub(crate) fn differs_only_by_id(&self, other: &Self) -> bool {
        let Self { id: _, endpoints, weight, health: _, version, zone, metadata } = self;
        (endpoints, weight, version) == (&other.endpoints, &other.weight, &other.version)
            && (zone, metadata) == (&other.zone, &other.metadata)
    }

    /// Returns `true` if the instance can be picked: it is [serving](Health::Serving), and its weight is above 0.
    pub fn takes_calls(&self) -> bool {
        self.health == Health::Serving && self.weight > 0
    }

    /// Share of the calls, relative to the other instances; 0 means "not picked".
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Version of the program.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Zone in which it runs.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// Ability of the instance to take calls.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Further properties, by name.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.metadata.as_deref().unwrap_or(&NO_METADATA)
    }

    /// Checks that stores can hold the instance, as registering, publishing and updating do before anything is sent.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidAddress`] without an endpoint; [`Error::TooLarge`] above [`MAX_INSTANCE_BYTES`].
    pub fn check(&self) -> Result<(), Error> {
        if self.endpoints.is_empty() {
            return Err(no_endpoint());
        }
        // Most instances are far below the limit, and need no check of each byte.
        if self.size(|text| text.len() * MAX_ESCAPE) <= MAX_INSTANCE_BYTES {
            return Ok(());
        }
        let size = self.size(json_len);
        if size > MAX_INSTANCE_BYTES {
            return Err(Error::TooLarge { what: "the instance", size, limit: MAX_INSTANCE_BYTES });
        }
        Ok(())
    }

    /// Bytes of its texts as JSON, with quotes and separators, if each text takes `len` bytes.
    fn size(&self, len: impl Fn(&str) -> usize) -> usize {
        let Self { id, endpoints, weight: _, health: _, version, zone, metadata } = self;
        let texts = [Some(id.as_str()), version.as_deref(), zone.as_deref()].into_iter().flatten().map(&len);
        let endpoints = endpoints.iter().map(|endpoint| len(endpoint.as_str()) + r#""","#.len());
        let entries = metadata.iter().flat_map(|all| all.iter());
        let metadata = entries.map(|(key, value)| len(key) + len(value) + r#""":"","#.len());
        texts.chain(endpoints).chain(metadata).sum()
    }
}

/// The bytes of a text as JSON, without the quotes around it.
fn json_len(text: &str) -> usize {
    let len = |byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | b'\x08' | b'\x0c' => 2,
        0..=0x1f => MAX_ESCAPE,
        _ => 1,
    };
    text.bytes().map(len).sum()
}

/// Changes of a registered instance: everything but its id.
#[derive(Debug)]
pub struct InstanceUpdate {
    instance: Instance,
}

impl InstanceUpdate {
    /// An update that starts from `instance`.
    pub(crate) fn new(instance: Instance) -> Self {
        Self { instance }
    }

    /// The updated instance.
    pub(crate) fn finish(self) -> Instance {
        self.instance
    }

    /// The instance with the changes so far.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Makes the instance equal to `target`, except for its id.
    pub(crate) fn make_equal(&mut self, target: &Instance) {
        let id = self.instance.id.clone();
        self.instance = Instance { id, ..target.clone() };
    }

    /// Replaces the endpoints. The update is refused if there is none.
    ///
    /// Clients finish their calls at the old endpoints and use the new ones from then on. If the id is the address
    /// ([`Instance::at`]), the id and the key keep the old address: a program that removes an instance by its new
    /// address does not find it.
    pub fn endpoints(&mut self, endpoints: impl IntoIterator<Item = Endpoint>) -> &mut Self {
        self.instance.endpoints = endpoints.into_iter().collect();
        self
    }

    /// Sets the weight; 0 means "not picked".
    pub fn weight(&mut self, weight: u32) -> &mut Self {
        self.instance.weight = weight;
        self
    }

    /// Sets the version; an empty one is none.
    pub fn version(&mut self, version: impl AsRef<str>) -> &mut Self {
        set(&mut self.instance.version, version.as_ref());
        self
    }

    /// Sets the zone; an empty one is none.
    pub fn zone(&mut self, zone: impl AsRef<str>) -> &mut Self {
        set(&mut self.instance.zone, zone.as_ref());
        self
    }

    /// Sets the health.
    pub fn health(&mut self, health: Health) -> &mut Self {
        self.instance.health = health;
        self
    }

    /// Sets one entry of the metadata.
    pub fn metadata(&mut self, key: impl Into<String>, value: impl Into<String>) -> &mut Self {
        self.instance.metadata_mut().insert(key.into(), value.into());
        self
    }

    /// Removes one entry of the metadata.
    pub fn remove_metadata(&mut self, key: &str) -> &mut Self {
        let metadata = self.instance.metadata_mut();
        metadata.remove(key);
        if metadata.is_empty() {
            self.instance.metadata = None;
        }
        self
    }
}

/// Presence of an entry in the store's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Presence {
    /// The store lists the entry.
    Live,
    /// The store does not list the entry, or not yet again. It is kept for a while because no instance of the view
    /// would take calls without it, or it was read from disk because the store does not answer.
    Held,
}

/// Entry of an instance in a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    instance: Instance,
    created: Revision,
    modified: Revision,
    incarnation: Incarnation,
    presence: Presence,
}

impl Entry {
    /// A live entry, created and last changed at these revisions. Its incarnation is unknown.
    pub fn new(instance: Instance, created: Revision, modified: Revision) -> Self {
        Self { instance, created, modified, incarnation: Incarnation::default(), presence: Presence::Live }
    }

    /// Sets the number of the registration that wrote it.
    #[must_use]
    pub fn with_incarnation(self, incarnation: Incarnation) -> Self {
        Self { incarnation, ..self }
    }

    /// Returns the same entry with another description of its instance.
    pub(crate) fn with_instance(&self, instance: Instance) -> Self {
        let &Self { created, modified, incarnation, presence, .. } = self;
        Self { instance, created, modified, incarnation, presence }
    }

    /// Returns the same entry as one that the store no longer lists.
    pub(crate) fn held(&self) -> Self {
        Self { presence: Presence::Held, ..self.clone() }
    }

    /// The instance.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Revision at which it was created. Another one under the same id means that the instance was registered again;
    /// [`is_restart_of`](Self::is_restart_of) also notices a registration that took the key over.
    pub fn created(&self) -> Revision {
        self.created
    }

    /// Returns `true` if the instance was registered again since `older`, an earlier entry of the same id: by another
    /// process, or after a loss. A change in place is none. A registration that takes over the key of its predecessor
    /// keeps [`created`](Self::created), so the number of the registration counts as well, where both are known.
    pub fn is_restart_of(&self, older: &Self) -> bool {
        let unknown = Incarnation::default();
        let is_known = self.incarnation != unknown && older.incarnation != unknown;
        self.created != older.created || is_known && self.incarnation != older.incarnation
    }

    /// Revision at which it was last changed.
    pub fn modified(&self) -> Revision {
        self.modified
    }

    /// Its presence in the store's list.
    pub fn presence(&self) -> Presence {
        self.presence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> Instance {
        Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap()
    }

    #[test]
    fn a_restart_has_another_creation_or_incarnation() {
        let entry = |created, modified, incarnation| {
            Entry::new(instance(), Revision::new(created), Revision::new(modified))
                .with_incarnation(Incarnation::new(incarnation))
        };
        let first = entry(1, 1, 7);
        for (later, is_restart) in [
            (first.held(), false),
            (entry(1, 2, 7), false),
            (entry(1, 2, 8), true),
            (entry(2, 2, 7), true),
            (entry(1, 2, 0), false),
            (entry(2, 2, 0), true),
        ] {
            assert_eq!(later.is_restart_of(&first), is_restart, "{later:?}");
        }
        assert!(!first.is_restart_of(&entry(1, 1, 0)), "the first of the two is unknown");
    }

    #[test]
    fn an_instance_without_an_endpoint_is_refused() {
        assert!(matches!(Instance::new(InstanceId::parse("a").unwrap(), []), Err(Error::InvalidAddress { .. })));
    }

    #[test]
    fn an_instance_by_its_address_has_that_of_its_first_endpoint_as_its_id() {
        for (endpoint, id) in [
            ("host:1", "host:1"),
            ("grpc://10.0.0.1:80", "10.0.0.1:80"),
            ("tcp://[2001:db8::1]:080", "[2001:db8::1]:80"),
            ("unix:///run/a.sock", "/run/a.sock"),
        ] {
            let endpoints = [endpoint, "other:2"].map(|text| Endpoint::parse(text).unwrap());
            let expected = Instance::new(InstanceId::parse(id).unwrap(), endpoints.clone()).unwrap();
            assert_eq!(Instance::at(endpoints).unwrap(), expected);
        }
        assert!(matches!(Instance::at([]), Err(Error::InvalidAddress { .. })));
        let long = Endpoint::unix(format!("/{}", "x".repeat(300))).unwrap();
        assert!(matches!(Instance::at([long]), Err(Error::InvalidName { .. })));
    }

    #[test]
    fn two_megabytes_of_metadata_are_too_large() {
        let large = instance().with_metadata("blob", "x".repeat(2 << 20));
        assert!(matches!(large.check(), Err(Error::TooLarge { limit: MAX_INSTANCE_BYTES, .. })));
        assert!(instance().check().is_ok());
    }

    #[test]
    fn what_an_instance_takes_as_json_is_counted() {
        let every_byte: String = ('\0'..='\u{ff}').chain("🚲\u{2028}".chars()).collect();
        assert_eq!(json_len(&every_byte) + 2, serde_json::to_string(&every_byte).unwrap().len());
        let entries = |count: usize| (0..count).map(|number| (format!("{number:06}"), String::new()));
        for (fits, too_large) in [
            (instance().with_metadata("k", "\"".repeat(520_000)), instance().with_metadata("k", "\"".repeat(530_000))),
            (instance().with_version("\0".repeat(170_000)), instance().with_version("\0".repeat(180_000))),
            (instance().with_all_metadata(entries(85_000)), instance().with_all_metadata(entries(90_000))),
        ] {
            fits.check().unwrap();
            assert!(matches!(too_large.check(), Err(Error::TooLarge { .. })));
        }
    }

    #[test]
    fn a_sibling_shares_equal_values_only() {
        let first =
            instance().with_version("1").with_zone("z").with_metadata("a", "1").with_metadata("b", "2").with_weight(7);
        let sibling = |pairs: &[(&str, &str)]| {
            let twin = first.sibling(InstanceId::parse("t").unwrap(), [Endpoint::parse("h:2").unwrap()]).unwrap();
            twin.with_version("1").with_zone("y").with_all_metadata(pairs.iter().copied())
        };
        let same = sibling(&[("a", "1"), ("b", "2")]);
        assert_eq!((same.id().as_str(), same.endpoints()[0].as_str(), same.weight()), ("t", "h:2", 7));
        assert!(std::ptr::eq(same.version().unwrap(), first.version().unwrap()));
        assert!(std::ptr::eq(same.metadata(), first.metadata()));
        assert_eq!((same.zone(), first.zone()), (Some("y"), Some("z")));
        for pairs in [
            &[][..],
            &[("a", "1")],
            &[("a", "1"), ("a", "1")],
            &[("a", "1"), ("a", "3")],
            &[("b", "2"), ("a", "1")],
            &[("a", "1"), ("b", "2"), ("c", "3")],
        ] {
            let expected: Metadata =
                pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            assert_eq!(*sibling(pairs).metadata(), expected, "{pairs:?}");
            assert_eq!(*instance().with_all_metadata(pairs.iter().copied()).metadata(), expected, "{pairs:?}");
        }
    }

    #[test]
    fn without_its_last_entry_metadata_is_as_if_there_never_was_one() {
        let mut update = InstanceUpdate::new(instance().with_metadata("a", "1"));
        update.remove_metadata("a").remove_metadata("b");
        assert_eq!(update.finish(), instance());
    }

    #[test]
    fn an_update_changes_only_what_it_names() {
        let mut update = InstanceUpdate::new(instance().with_metadata("a", "1"));
        update.weight(7).health(Health::Draining).metadata("b", "2").remove_metadata("a");
        let changed = update.finish();
        assert_eq!(changed, instance().with_weight(7).with_health(Health::Draining).with_metadata("b", "2"));
    }

    #[test]
    fn an_update_without_endpoints_is_refused() {
        let mut update = InstanceUpdate::new(instance());
        update.endpoints([Endpoint::parse("h:2").unwrap(), Endpoint::parse("h:3").unwrap()]).zone("z");
        let endpoints: Vec<_> = update.instance().endpoints().iter().map(Endpoint::as_str).collect();
        assert_eq!((endpoints, update.instance().zone()), (vec!["h:2", "h:3"], Some("z")));
        update.instance().check().unwrap();
        update.endpoints([]).zone("");
        assert!(matches!(update.instance().check(), Err(Error::InvalidAddress { .. })));
        assert_eq!(update.instance().zone(), None);
    }

    #[test]
    fn an_update_that_is_made_equal_keeps_its_id() {
        let mut update = InstanceUpdate::new(instance().with_metadata("a", "1").with_zone("z").with_version("1"));
        let endpoint = Endpoint::parse("h:2").unwrap();
        let target = Instance::new(InstanceId::parse("b").unwrap(), [endpoint.clone()]).unwrap().with_weight(7);
        update.make_equal(&target);
        assert_eq!(update.finish(), Instance::new(InstanceId::parse("a").unwrap(), [endpoint]).unwrap().with_weight(7));
    }
}
