//! enlist's own layout, version 1. It carries all parts of an instance.
//!
//! ```text
//! enlist/services/{namespace}/{service}/{id}
//! {"v":1,"id":"greeter-1","endpoints":["grpc://10.0.0.1:8080"],"weight":100,…}
//!
//! enlist/locks/{namespace}/{name}/{lease, 16 hex}-{number, 16 hex}
//! {"v":1,"mode":"exclusive","holder":"host:pid"}
//!
//! enlist/elections/{namespace}/{name}/{lease, 16 hex}-{number, 16 hex}
//! {"v":1,"value":"…"}
//!
//! enlist/config/{namespace}/{path}
//! (the bytes of the user)
//!
//! enlist/semaphores/{namespace}/{name}/{lease, 16 hex}-{number, 16 hex}
//! {"v":1,"permits":2,"granted":true,"holder":"host:pid"}
//!
//! enlist/semaphore-permits/{namespace}/{name}
//! {"v":1,"permits":5}
//! ```
//!
//! A holder or leader with a `lock_delay` has a key without a lease next to its queue entry, with the same suffix and
//! the same value: under `enlist/lock-marks/{namespace}/{name}/` and `enlist/election-marks/{namespace}/{name}/`.
//!
//! Segments are percent-encoded, so `/`, `%` and control characters never appear raw. Every range ends in `/`, so no
//! name is a prefix of another's range. Absent fields take their defaults; unknown fields are kept.

mod config;
mod locks;
mod semaphores;
mod value;

use std::borrow::Cow;

use enlist::{Error, Health, Instance, InstanceId, LeaseId, MAX_INSTANCE_BYTES, Namespace, ServiceName, ServiceRef};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;

use self::value::{DecodedInstance, EncodedInstance, Extended, KNOWN, saturating};
use super::{
    Decoded, Identity, Layout, LeaseScope, MAX_VALUE_BYTES, MAX_WRITTEN_BYTES, Part, Skip, Writing, accepts_written,
    object::Object,
};
use crate::watch::record::KeyRange;

/// Version of the values that this code writes.
const VERSION: u64 = 1;

/// Default prefix of all keys.
const DEFAULT_PREFIX: &str = "enlist";

/// Usual number of bytes of a key.
const KEY_BYTES: usize = 96;

/// Usual number of bytes of a value.
const VALUE_BYTES: usize = 256;

/// Maximum bytes of a value without the texts of the instance and the owner token: field names, numbers, the health.
const FIELDS_BYTES: usize = 1024;

/// Maximum bytes of an owner token that fits into every value: JSON makes at most six bytes of one.
const MAX_SHORT_OWNER: usize = (MAX_WRITTEN_BYTES - MAX_INSTANCE_BYTES - FIELDS_BYTES) / 6;

/// Characters that are escaped within a segment. `.` and `..` are harmless: etcd's keys have no paths.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'/').add(b'%');

/// enlist's own layout.
#[derive(Clone, Debug)]
pub struct Native {
    prefix: String,
}

impl Default for Native {
    fn default() -> Self {
        Self { prefix: DEFAULT_PREFIX.to_owned() }
    }
}

impl Native {
    /// Returns the layout with another prefix. Leading and trailing slashes are ignored.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for an empty prefix, which would be the root of the whole store.
    pub fn with_prefix(prefix: &str) -> Result<Self, Error> {
        let prefix = prefix.trim_matches('/');
        if prefix.is_empty() || prefix.contains("//") || prefix.chars().any(char::is_control) {
            return Err(Error::invalid_config("prefix", "it must be non-empty, without `//` and control characters"));
        }
        Ok(Self { prefix: prefix.to_owned() })
    }

    fn namespaces(&self) -> String {
        let mut key = String::with_capacity(KEY_BYTES);
        key.extend([&self.prefix, "/services/"]);
        key
    }

    fn services(&self, namespace: &Namespace) -> String {
        let mut key = self.namespaces();
        escape(&mut key, namespace.as_str());
        key.push('/');
        key
    }

    fn service(&self, service: &ServiceRef) -> String {
        let mut key = self.services(service.namespace());
        escape(&mut key, service.name().as_str());
        key.push('/');
        key
    }

    /// Returns the rest of `key` after the prefix of a service. Copies nothing, because each of many keys is decoded.
    fn strip_service<'a>(&self, key: &'a [u8], service: &ServiceRef) -> Option<&'a [u8]> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?.strip_prefix(b"/services/")?;
        let rest = strip(rest, service.namespace().as_str())?.strip_prefix(b"/")?;
        strip(rest, service.name().as_str())?.strip_prefix(b"/")
    }

    /// Reads an instance. `like` is one that was read before, if there is one.
    fn read(&self, like: Option<&Instance>, service: &ServiceRef, key: &[u8], value: &[u8]) -> Result<Decoded, Skip> {
        let segment = self.strip_service(key, service).ok_or(Skip::Foreign)?;
        let id = unescape(segment).and_then(|id| InstanceId::parse(id).ok()).ok_or(Skip::Foreign)?;
        let malformed = |reason: String| Skip::Malformed(reason);
        if value.len() > MAX_VALUE_BYTES {
            return Err(malformed(format!("{} bytes", value.len())));
        }
        // The error's text can quote the value, which must not be logged; the position is enough.
        let text = str::from_utf8(value).map_err(|_| malformed("no text".to_owned()))?;
        let Object(wire) = serde_json::from_str::<Object<DecodedInstance<'_>>>(text).map_err(|error| {
            malformed(format!("no instance: {:?} error at column {}", error.classify(), error.column()))
        })?;
        if wire.id != id.as_str() {
            return Err(malformed("the id in the value is not the one in the key".to_owned()));
        }
        let health = match wire.health {
            None => Health::Serving,
            // A word of a later version: known not to mean serving.
            Some(word) => Health::from_word(&word.0).unwrap_or(Health::NotServing),
        };
        let instance = match like {
            Some(like) => like.sibling(id, wire.endpoints),
            None => Instance::new(id, wire.endpoints),
        };
        let metadata = wire.metadata.map_or(Vec::new(), |pairs| pairs.0);
        let instance = instance
            .map_err(|_| malformed("there is no endpoint".to_owned()))?
            .with_weight(wire.weight)
            .with_version(wire.version.map_or(Cow::default(), |text| text.0))
            .with_zone(wire.zone.map_or(Cow::default(), |text| text.0))
            .with_all_metadata(metadata.into_iter().map(|(key, value)| (key.0, value.0)))
            .with_health(health);
        Ok(Decoded { instance, owner: wire.owner })
    }
}

/// Returns `true` if a segment needs no escapes. Nearly all segments need none, so this is checked first.
fn is_plain(segment: &[u8]) -> bool {
    segment.iter().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'/' | b'%'))
}

/// Appends a segment.
fn escape(key: &mut String, segment: &str) {
    if is_plain(segment.as_bytes()) {
        key.push_str(segment);
    } else {
        key.extend(utf8_percent_encode(segment, ESCAPED));
    }
}

/// Returns the text of a segment, if `escape` could have written it.
fn unescape(segment: &[u8]) -> Option<Cow<'_, str>> {
    if is_plain(segment) {
        return str::from_utf8(segment).ok().map(Cow::Borrowed);
    }
    let text = percent_decode(segment).decode_utf8().ok()?;
    let is_canonical = strip(segment, &text).is_some_and(<[u8]>::is_empty);
    is_canonical.then_some(text)
}

/// Returns the rest of `key` after the escaped `segment`; `None` if the key begins otherwise.
fn strip<'a>(key: &'a [u8], segment: &str) -> Option<&'a [u8]> {
    if is_plain(segment.as_bytes()) {
        return key.strip_prefix(segment.as_bytes());
    }
    utf8_percent_encode(segment, ESCAPED).try_fold(key, |key, part| key.strip_prefix(part.as_bytes()))
}

impl Layout for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn carries(&self) -> &'static [Part] {
        use Part as P;
        &[P::Id, P::Owner, P::Namespace, P::Endpoints, P::Weight, P::Version, P::Zone, P::Health, P::Metadata]
    }

    fn identity(&self) -> Identity {
        Identity::Id
    }

    fn lease_scope(&self) -> LeaseScope {
        LeaseScope::Shared
    }

    fn key(&self, service: &ServiceRef, id: &InstanceId, _: Option<LeaseId>) -> Result<Vec<u8>, Error> {
        let mut key = self.service(service);
        escape(&mut key, id.as_str());
        Ok(key.into_bytes())
    }

    fn service_range(&self, service: &ServiceRef) -> Result<KeyRange, Error> {
        Ok(KeyRange::prefix(self.service(service)))
    }

    fn services_range(&self, namespace: &Namespace) -> Option<KeyRange> {
        Some(KeyRange::prefix(self.services(namespace)))
    }

    fn instance_of(&self, namespace: &Namespace, key: &[u8]) -> Option<(ServiceName, InstanceId)> {
        let rest = key.strip_prefix(self.services(namespace).as_bytes())?;
        let (service, id) = rest.split_at(rest.iter().position(|byte| *byte == b'/')?);
        let id = InstanceId::parse(unescape(&id[1..])?).ok()?;
        Some((ServiceName::parse(unescape(service)?).ok()?, id))
    }

    fn namespaces_range(&self) -> Option<KeyRange> {
        Some(KeyRange::prefix(self.namespaces()))
    }

    fn namespace_of(&self, key: &[u8]) -> Option<Namespace> {
        let rest = key.strip_prefix(self.namespaces().as_bytes())?;
        let namespace = unescape(&rest[..rest.iter().position(|byte| *byte == b'/')?])?;
        let namespace = Namespace::parse(namespace).ok()?;
        self.instance_of(&namespace, key).map(|_| namespace)
    }

    fn encode(
        &self,
        _: &ServiceRef,
        instance: &Instance,
        &Writing { owner, previous, term, .. }: &Writing<'_>,
    ) -> Result<Vec<u8>, Error> {
        let mut unknown: serde_json::Map<_, _> =
            previous.and_then(|value| serde_json::from_slice(value).ok()).unwrap_or_default();
        if let Some(newer) = unknown.get("v").and_then(Value::as_u64).filter(|version| *version > VERSION) {
            let what = format!("writing over a value of version {newer} (this is version {VERSION})");
            return Err(Error::Unsupported { what });
        }
        unknown.retain(|field, _| !KNOWN.contains(&field.as_str()));
        let written = EncodedInstance {
            v: VERSION,
            id: instance.id().as_str(),
            endpoints: instance.endpoints(),
            weight: instance.weight(),
            version: instance.version(),
            zone: instance.zone(),
            health: instance.health().as_str(),
            metadata: instance.metadata(),
            owner,
            term,
        };
        let refused = |error: serde_json::Error| Error::Unsupported { what: format!("this instance ({error})") };
        let mut value = Vec::with_capacity(VALUE_BYTES);
        let result = if unknown.is_empty() {
            serde_json::to_writer(&mut value, &written)
        } else {
            serde_json::to_writer(&mut value, &Extended { written, unknown })
        };
        result.map_err(refused)?;
        Ok(value)
    }

    /// All parts are carried, and the texts of an instance are within their checked limits: only a long owner token can
    /// be too much.
    fn accepts(&self, service: &ServiceRef, instance: &Instance, owner: Option<&str>) -> Result<(), Error> {
        let short = owner.is_none_or(|owner| owner.len() <= MAX_SHORT_OWNER);
        if short { Ok(()) } else { accepts_written(self, service, instance, owner) }
    }

    fn decode(&self, service: &ServiceRef, key: &[u8], value: &[u8]) -> Result<Decoded, Skip> {
        self.read(None, service, key, value)
    }

    fn decode_like(&self, like: &Instance, service: &ServiceRef, key: &[u8], value: &[u8]) -> Result<Decoded, Skip> {
        self.read(Some(like), service, key, value)
    }

    fn term(&self, value: &[u8]) -> Option<u64> {
        #[derive(Deserialize)]
        struct OfTerm {
            #[serde(default)]
            term: Value,
        }
        let term = serde_json::from_slice(value).map_or(Value::Null, |Object(OfTerm { term })| term);
        Some(saturating(&term))
    }
}

#[cfg(test)]
mod tests {
    use enlist::{Endpoint, LockMode, LockName};
    use proptest::prelude::*;

    use super::*;
    use crate::layout::{LockLayout, QueueEntryValue, QueueKind};

    fn service() -> ServiceRef {
        ServiceRef::parse("greeter").unwrap()
    }

    fn instance() -> Instance {
        Instance::new(InstanceId::parse("g 1/%").unwrap(), [Endpoint::parse("grpc://10.0.0.1:8080").unwrap()]).unwrap()
    }

    #[test]
    fn keys_and_values_are_as_documented() {
        let layout = Native::default();
        let key = Layout::key(&layout, &service(), instance().id(), None).unwrap();
        assert_eq!(String::from_utf8(key).unwrap(), "enlist/services/default/greeter/g 1%2F%25");
        let full = instance().with_version("1.4.2").with_zone("eu-1a").with_metadata("team", "blue");
        let value = Layout::encode(
            &layout,
            &service(),
            &full,
            &Writing { owner: Some("me"), term: 1_795_000_000_000, ..Writing::default() },
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(value).unwrap(),
            concat!(
                r#"{"v":1,"id":"g 1/%","endpoints":["grpc://10.0.0.1:8080"],"weight":100,"version":"1.4.2","#,
                r#""zone":"eu-1a","health":"serving","metadata":{"team":"blue"},"owner":"me","term":1795000000000}"#,
            )
        );
        let lock = LockName::parse("a/b").unwrap();
        let entry = layout.entry(QueueKind::Lock, &lock, LeaseId::new(0x1f), 0xabc).unwrap();
        assert_eq!(String::from_utf8(entry).unwrap(), "enlist/locks/default/a%2Fb/000000000000001f-0000000000000abc");
    }

    #[test]
    fn a_term_is_read_whatever_lies_in_its_place() {
        let read = |term: &str| Native::default().term(format!(r#"{{"v":1,"id":"a"{term}}}"#).as_bytes());
        for (written, term) in [
            ("", 0),
            (r#","term":7"#, 7),
            (r#","term":18446744073709551615"#, u64::MAX),
            (r#","term":1e30"#, u64::MAX),
            (r#","term":-5"#, 0),
            (r#","term":"7""#, 0),
            (r#","term":null"#, 0),
        ] {
            assert_eq!(read(written), Some(term), "{written}");
        }
        assert_eq!(Native::default().term(b"[7]"), Some(0), "an array has no fields");
        assert_eq!(Native::default().term(b"garbage"), Some(0));
    }

    fn decode(value: &str) -> Result<Decoded, Skip> {
        let layout = Native::default();
        let key = Layout::key(&layout, &service(), instance().id(), None).unwrap();
        Layout::decode(&layout, &service(), &key, value.as_bytes())
    }

    fn over(previous: &str) -> Writing<'_> {
        Writing { previous: Some(previous.as_bytes()), ..Writing::default() }
    }

    #[test]
    fn absent_fields_take_their_defaults_and_unknown_ones_survive_an_update() {
        let minimal = r#"{"new":{"x":[1]},"endpoints":["grpc://10.0.0.1:8080"],"id":"g 1/%","v":1}"#;
        assert_eq!(decode(minimal).unwrap().instance, instance());
        let updated = Layout::encode(&Native::default(), &service(), &instance().with_weight(5), &over(minimal));
        let updated = updated.unwrap();
        let expected = concat!(
            r#"{"v":1,"id":"g 1/%","endpoints":["grpc://10.0.0.1:8080"],"weight":5,"#,
            r#""health":"serving","new":{"x":[1]}}"#,
        );
        assert_eq!(String::from_utf8_lossy(&updated), expected);
        let updated: Value = serde_json::from_slice(&updated).unwrap();
        assert_eq!((&updated["new"]["x"][0], &updated["weight"]), (&Value::from(1), &Value::from(5)));
    }

    #[test]
    fn a_newer_version_is_read_and_never_overwritten() {
        let newer = r#"{"v":2,"id":"g 1/%","endpoints":["grpc://10.0.0.1:8080"],"health":"sleepy"}"#;
        assert_eq!(decode(newer).unwrap().instance.health(), Health::NotServing);
        let refused = Layout::encode(&Native::default(), &service(), &instance(), &over(newer));
        assert!(matches!(refused, Err(Error::Unsupported { .. })));
    }

    #[test]
    fn malformed_garbage_is_not_shown() {
        for garbage in ["", "{", "null", "[]", "{\"v\":1}", r#"{"v":1,"id":"secret","endpoints":["h:1"]}"#] {
            match decode(garbage) {
                Err(Skip::Malformed(reason)) => assert!(!reason.contains("secret"), "{reason}"),
                other => panic!("{garbage}: {other:?}"),
            }
        }
        let no_port = r#"{"v":1,"id":"g 1/%","endpoints":["10.0.0.1"]}"#;
        assert!(matches!(decode(no_port), Err(Skip::Malformed(_))));
        let deep = format!(r#"{{"v":1,"id":"g 1/%","endpoints":["h:1"],"x":{}}}"#, "[".repeat(100_000));
        assert!(matches!(decode(&deep), Err(Skip::Malformed(_))));
    }

    #[test]
    fn deeper_keys_and_keys_that_are_escaped_otherwise_are_foreign() {
        let layout = Native::default();
        for key in [
            "enlist/services/default/greeter/a/b",
            "enlist/services/default/greeter/",
            "enlist/x",
            "enlist/services/default/greeter/%2f",
            "enlist/services/default/greeter2/a",
        ] {
            assert_eq!(Layout::decode(&layout, &service(), key.as_bytes(), b"{}"), Err(Skip::Foreign), "{key}");
        }
    }

    /// Names with all allowed characters: separators, escapes, dots, other scripts.
    fn names() -> impl Strategy<Value = String> {
        proptest::string::string_regex("[a-z/%.\\-_ ~äß世🚀]{1,12}").expect("a valid expression")
    }

    proptest! {
        #[test]
        fn every_instance_comes_back_as_it_was_and_only_in_its_own_service(
            namespace in names(), service in names(), other in names(), id in names(),
            weight in any::<u32>(), text in "\\PC{0,20}",
        ) {
            let layout = Native::default();
            let namespace = Namespace::parse(&namespace).unwrap();
            let service_named = |name: &str| ServiceRef::new(namespace.clone(), ServiceName::parse(name).unwrap());
            let instance = Instance::new(InstanceId::parse(&id).unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap()
                .with_weight(weight).with_version(&text).with_metadata(&text, &text);
            let key = Layout::key(&layout, &service_named(&service), instance.id(), None).unwrap();
            let writing = Writing { owner: Some(&text), ..Writing::default() };
            let value = Layout::encode(&layout, &service_named(&service), &instance, &writing).unwrap();
            let decoded = Layout::decode(&layout, &service_named(&service), &key, &value).unwrap();
            let other_words = self::instance().with_zone(&text).with_metadata(&text, "x").with_health(Health::Draining);
            for like in [&instance, &other_words] {
                let read_like = layout.decode_like(like, &service_named(&service), &key, &value);
                prop_assert_eq!(read_like.as_ref(), Ok(&decoded));
            }
            prop_assert_eq!(decoded, Decoded { instance, owner: Some(text) });
            let named = (service_named(&service).name().clone(), InstanceId::parse(&id).unwrap());
            prop_assert_eq!(layout.instance_of(&namespace, &key), Some(named));
            if other != service {
                prop_assert_eq!(Layout::decode(&layout, &service_named(&other), &key, &value), Err(Skip::Foreign));
                let range = layout.service_range(&service_named(&other)).unwrap();
                let (start, end) = range.bounds();
                prop_assert!(key.as_slice() < start || key.as_slice() >= end.unwrap(), "outside the other's range");
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            segment in proptest::collection::vec(any::<u8>(), 0..20),
            value in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let (layout, lock) = (Native::default(), LockName::parse("l").unwrap());
            let key = [b"enlist/services/default/greeter/", &segment[..]].concat();
            let _ = Layout::decode(&layout, &service(), &key, &value);
            let _ = layout.service_of(&Namespace::default(), &key);
            let entry = [b"enlist/locks/default/l/", &segment[..]].concat();
            let _ = LockLayout::decode(&layout, QueueKind::Lock, &lock, &entry, &value);
        }
    }

    #[test]
    fn an_empty_prefix_is_refused() {
        for prefix in ["", "/", "//", "a//b"] {
            assert!(Native::with_prefix(prefix).is_err(), "{prefix}");
        }
        assert!(Native::with_prefix("/team/enlist/").is_ok());
    }

    #[test]
    fn foreign_keys_are_no_queue_entries_and_broken_values_of_our_shape_are() {
        let layout = Native::default();
        let lock = LockName::parse("l").unwrap();
        let entry = layout.entry(QueueKind::Lock, &lock, LeaseId::new(1), 2).unwrap();
        let exclusive = Some(QueueEntryValue { mode: LockMode::Exclusive, text: String::new() });
        assert_eq!(LockLayout::decode(&layout, QueueKind::Lock, &lock, &entry, b"garbage"), exclusive);
        let array = br#"[1,"shared","host:1"]"#;
        assert_eq!(LockLayout::decode(&layout, QueueKind::Lock, &lock, &entry, array), exclusive);
        assert_eq!(layout.process(array), None);
        let candidate = layout.entry(QueueKind::Election, &lock, LeaseId::new(1), 2).unwrap();
        assert_eq!(LockLayout::decode(&layout, QueueKind::Election, &lock, &candidate, br#"[1,"x"]"#), exclusive);
        for key in ["enlist/locks/default/l/x", "enlist/locks/default/l/0000000000000001-000000000000000g"] {
            assert_eq!(LockLayout::decode(&layout, QueueKind::Lock, &lock, key.as_bytes(), b""), None, "{key}");
        }
    }

    #[test]
    fn marks_are_outside_of_their_queue_and_contain_the_mode_of_the_lock() {
        let layout = Native::default();
        let lock = LockName::parse("l").unwrap();
        for (kind, folder) in [(QueueKind::Lock, "lock-marks"), (QueueKind::Election, "election-marks")] {
            let mark = layout.mark(kind, &lock, LeaseId::new(1), 2).unwrap();
            let key = format!("enlist/{folder}/default/l/0000000000000001-0000000000000002");
            assert_eq!(String::from_utf8(mark.clone()).unwrap(), key);
            let (marks, queue) = (layout.marks(kind, &lock).unwrap(), layout.queue(kind, &lock).unwrap());
            let within = |range: &KeyRange| {
                let (start, end) = range.bounds();
                &mark[..] >= start && end.is_some_and(|end| &mark[..] < end)
            };
            assert!(within(&marks) && !within(&queue));
            assert_eq!(layout.decode_mark(kind, &lock, &mark, b"garbage"), Some(LockMode::Exclusive));
            assert_eq!(LockLayout::decode(&layout, kind, &lock, &mark, b""), None);
        }
        let shared = QueueEntryValue { mode: LockMode::Shared, text: String::new() };
        let mark = layout.mark(QueueKind::Lock, &lock, LeaseId::new(1), 2).unwrap();
        let value = LockLayout::encode(&layout, QueueKind::Lock, &shared);
        assert_eq!(layout.decode_mark(QueueKind::Lock, &lock, &mark, &value), Some(LockMode::Shared));
        let other = LockName::parse("other").unwrap();
        assert_eq!(layout.decode_mark(QueueKind::Lock, &other, &mark, &value), None);
    }
}
