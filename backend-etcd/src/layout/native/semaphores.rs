//! Semaphores in the native layout.

use enlist::{Error, LockName, Namespace, backend::PermitState};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Native, VERSION, escape, locks::holder, unescape};
use crate::{
    layout::{LockLayout, PermitEntryValue, QueueKind, SemaphoreLayout, object::Object},
    watch::record::KeyRange,
};

#[derive(Serialize, Deserialize)]
struct EntryWire {
    v: u64,
    permits: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    granted: bool,
    #[serde(default)]
    holder: String,
}

#[derive(Serialize)]
struct NumberWire {
    v: u64,
    permits: u32,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

impl SemaphoreLayout for Native {
    fn permits_key(&self, name: &LockName) -> Result<Vec<u8>, Error> {
        let mut key = self.namespace_prefix("semaphore-permits", name.namespace());
        escape(&mut key, name.name());
        Ok(key.into_bytes())
    }

    fn permits_range(&self, namespace: &Namespace) -> Result<KeyRange, Error> {
        Ok(KeyRange::prefix(self.namespace_prefix("semaphore-permits", namespace)))
    }

    fn semaphore_of(&self, namespace: &Namespace, key: &[u8]) -> Option<LockName> {
        let name = key.strip_prefix(self.namespace_prefix("semaphore-permits", namespace).as_bytes())?;
        Some(LockName::parse(unescape(name)?).ok()?.within(namespace.clone()))
    }

    fn encode_permits(&self, permits: u32, previous: Option<&[u8]>) -> Result<Vec<u8>, Error> {
        let unknown = previous.and_then(|value| serde_json::from_slice(value).ok());
        let mut unknown: Map<String, Value> = unknown.unwrap_or_default();
        if let Some(newer) = unknown.get("v").and_then(Value::as_u64).filter(|version| *version > VERSION) {
            let what = format!("writing over a number of permits of version {newer} (this is version {VERSION})");
            return Err(Error::Unsupported { what });
        }
        unknown.retain(|field, _| field != "v" && field != "permits");
        let wire = NumberWire { v: VERSION, permits, unknown };
        Ok(serde_json::to_vec(&wire).expect("numbers and JSON values always have a JSON form"))
    }

    fn decode_permits(&self, value: &[u8]) -> Option<u32> {
        let fields: Map<String, Value> = serde_json::from_slice(value).ok()?;
        u32::try_from(fields.get("permits")?.as_u64()?).ok()
    }

    fn encode_permit_entry(&self, PermitEntryValue { permits, state }: PermitEntryValue) -> Vec<u8> {
        let wire = EntryWire { v: VERSION, permits, granted: state == PermitState::Granted, holder: holder() };
        serde_json::to_vec(&wire).expect("a struct of numbers and strings always has a JSON form")
    }

    fn decode_permit_entry(&self, name: &LockName, key: &[u8], value: &[u8]) -> Option<PermitEntryValue> {
        // A key of this shape is a queue entry, whatever its value.
        LockLayout::decode(self, QueueKind::Semaphore, name, key, value)?;
        Some(match serde_json::from_slice::<Object<EntryWire>>(value) {
            Ok(Object(EntryWire { permits, granted, .. })) => {
                PermitEntryValue { permits, state: if granted { PermitState::Granted } else { PermitState::Waiting } }
            }
            Err(_) => PermitEntryValue::UNREADABLE,
        })
    }
}

#[cfg(test)]
mod tests {
    use enlist::LeaseId;

    use super::*;

    fn name() -> LockName {
        LockName::parse("a/b").unwrap()
    }

    #[test]
    fn keys_and_values_are_as_documented() {
        let layout = Native::default();
        let key = layout.permits_key(&name()).unwrap();
        assert_eq!(String::from_utf8(key).unwrap(), "enlist/semaphore-permits/default/a%2Fb");
        let key = layout.permits_key(&name()).unwrap();
        assert_eq!(layout.semaphore_of(name().namespace(), &key), Some(name()));
        assert_eq!(layout.encode_permits(5, None).unwrap(), br#"{"v":1,"permits":5}"#);
        let key = layout.entry(QueueKind::Semaphore, &name(), LeaseId::new(0x1f), 0xabc).unwrap();
        let expected = "enlist/semaphores/default/a%2Fb/000000000000001f-0000000000000abc";
        assert_eq!(String::from_utf8(key.clone()).unwrap(), expected);
        for (state, fields) in [(PermitState::Waiting, ""), (PermitState::Granted, r#","granted":true"#)] {
            let entry = PermitEntryValue { permits: 2, state };
            let value = layout.encode_permit_entry(entry);
            let text = String::from_utf8(value.clone()).unwrap();
            assert!(text.starts_with(&format!(r#"{{"v":1,"permits":2{fields},"holder":""#)), "{text}");
            assert_eq!(layout.decode_permit_entry(&name(), &key, &value), Some(entry));
        }
    }

    #[test]
    fn values_that_cannot_be_read_grant_nothing() {
        let layout = Native::default();
        let key = layout.entry(QueueKind::Semaphore, &name(), LeaseId::new(1), 2).unwrap();
        for value in [r#"{"v":"#, "[1,2,true]", "", r#"{"v":1,"permits":-1}"#, r#"{"v":1,"granted":true}"#] {
            let read = layout.decode_permit_entry(&name(), &key, value.as_bytes());
            assert_eq!(read, Some(PermitEntryValue::UNREADABLE), "{value}");
            assert_eq!(layout.decode_permits(value.as_bytes()), None, "{value}");
        }
        assert_eq!(layout.decode_permit_entry(&name(), b"enlist/semaphores/default/a%2Fb/x", b""), None);
    }

    #[test]
    fn a_newer_version_is_read_and_never_overwritten() {
        let layout = Native::default();
        let newer = br#"{"v":2,"permits":7,"new":[1]}"#;
        assert_eq!(layout.decode_permits(newer), Some(7));
        assert!(matches!(layout.encode_permits(5, Some(newer)), Err(Error::Unsupported { .. })));
        let extended = br#"{"v":1,"permits":7,"new":[1]}"#;
        let written = layout.encode_permits(5, Some(extended)).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), r#"{"v":1,"permits":5,"new":[1]}"#);
        let key = layout.entry(QueueKind::Semaphore, &name(), LeaseId::new(1), 2).unwrap();
        let entry = layout.decode_permit_entry(&name(), &key, br#"{"v":2,"permits":3,"granted":true,"new":1}"#);
        assert_eq!(entry, Some(PermitEntryValue { permits: 3, state: PermitState::Granted }));
    }
}
