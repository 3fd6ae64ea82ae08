//! Locks and elections in the native layout.

use std::{process, sync::OnceLock};

use enlist::{Error, LeaseId, LockMode, LockName, Namespace, backend::PermitState};
use serde::{Deserialize, Serialize};

use super::{KEY_BYTES, Native, VERSION, escape, unescape};
use crate::{
    layout::{LeaseScope, LockLayout, PermitEntryValue, QueueEntryValue, QueueKind, SemaphoreLayout, object::Object},
    watch::record::KeyRange,
};

impl Native {
    fn queues_prefix(&self, kind: QueueKind, namespace: &Namespace) -> String {
        let folder = match kind {
            QueueKind::Lock => "locks",
            QueueKind::Election => "elections",
            QueueKind::Semaphore => "semaphores",
        };
        self.namespace_prefix(folder, namespace)
    }

    fn queue_prefix(&self, kind: QueueKind, name: &LockName) -> String {
        name_prefix(self.queues_prefix(kind, name.namespace()), name)
    }

    /// Returns the prefix of the marks of a namespace; `None` for semaphores, which have no `lock_delay`.
    fn all_marks_prefix(&self, kind: QueueKind, namespace: &Namespace) -> Option<String> {
        let folder = match kind {
            QueueKind::Lock => "lock-marks",
            QueueKind::Election => "election-marks",
            QueueKind::Semaphore => return None,
        };
        Some(self.namespace_prefix(folder, namespace))
    }

    fn marks_prefix(&self, kind: QueueKind, name: &LockName) -> Option<String> {
        Some(name_prefix(self.all_marks_prefix(kind, name.namespace())?, name))
    }

    pub(super) fn namespace_prefix(&self, kind: &str, namespace: &Namespace) -> String {
        let mut key = String::with_capacity(KEY_BYTES);
        key.extend([&self.prefix, "/", kind, "/"]);
        escape(&mut key, namespace.as_str());
        key.push('/');
        key
    }
}

/// Appends the name of a lock to the prefix of its namespace.
fn name_prefix(mut key: String, name: &LockName) -> String {
    escape(&mut key, name.name());
    key.push('/');
    key
}

#[derive(Serialize, Deserialize)]
struct LockWire {
    v: u64,
    #[serde(default)]
    mode: String,
    #[serde(default)]
    holder: String,
}

#[derive(Serialize, Deserialize)]
struct ElectionWire {
    v: u64,
    #[serde(default)]
    value: String,
}

impl LockLayout for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn lease_scope(&self) -> LeaseScope {
        LeaseScope::Shared
    }

    fn carries_modes(&self) -> bool {
        true
    }

    fn queue(&self, kind: QueueKind, name: &LockName) -> Result<KeyRange, Error> {
        Ok(KeyRange::prefix(self.queue_prefix(kind, name)))
    }

    fn entry(&self, kind: QueueKind, name: &LockName, lease: LeaseId, nonce: u64) -> Result<Vec<u8>, Error> {
        Ok(format!("{}{:016x}-{nonce:016x}", self.queue_prefix(kind, name), lease.get()).into_bytes())
    }

    fn entries_of_lease(&self, kind: QueueKind, name: &LockName, lease: LeaseId) -> Option<KeyRange> {
        Some(KeyRange::prefix(format!("{}{:016x}-", self.queue_prefix(kind, name), lease.get())))
    }

    fn queues(&self, kind: QueueKind, namespace: &Namespace) -> Option<KeyRange> {
        Some(KeyRange::prefix(self.queues_prefix(kind, namespace)))
    }

    fn lock_of(&self, kind: QueueKind, namespace: &Namespace, key: &[u8]) -> Option<LockName> {
        let rest = key.strip_prefix(self.queues_prefix(kind, namespace).as_bytes())?;
        let name = unescape(&rest[..rest.iter().position(|byte| *byte == b'/')?])?;
        Some(LockName::parse(name).ok()?.within(namespace.clone()))
    }

    fn process(&self, value: &[u8]) -> Option<String> {
        let Object(wire) = serde_json::from_slice::<Object<LockWire>>(value).ok()?;
        Some(wire.holder).filter(|process| !process.is_empty())
    }

    fn marks(&self, kind: QueueKind, name: &LockName) -> Option<KeyRange> {
        self.marks_prefix(kind, name).map(KeyRange::prefix)
    }

    fn all_marks(&self, kind: QueueKind, namespace: &Namespace) -> Option<KeyRange> {
        self.all_marks_prefix(kind, namespace).map(KeyRange::prefix)
    }

    fn mark(&self, kind: QueueKind, name: &LockName, lease: LeaseId, nonce: u64) -> Option<Vec<u8>> {
        Some(format!("{}{:016x}-{nonce:016x}", self.marks_prefix(kind, name)?, lease.get()).into_bytes())
    }

    fn decode_mark(&self, kind: QueueKind, name: &LockName, key: &[u8], value: &[u8]) -> Option<LockMode> {
        let segment = key.strip_prefix(self.marks_prefix(kind, name)?.as_bytes())?;
        read_entry(kind, segment, value).map(|entry| entry.mode)
    }

    fn semaphores(&self) -> Option<&dyn SemaphoreLayout> {
        Some(self)
    }

    fn encode(&self, kind: QueueKind, value: &QueueEntryValue) -> Vec<u8> {
        let encoded = match kind {
            QueueKind::Lock => {
                let mode = match value.mode {
                    LockMode::Exclusive => "exclusive",
                    LockMode::Shared => "shared",
                };
                serde_json::to_vec(&LockWire { v: VERSION, mode: mode.to_owned(), holder: holder() })
            }
            QueueKind::Election => serde_json::to_vec(&ElectionWire { v: VERSION, value: value.text.clone() }),
            QueueKind::Semaphore => {
                return self.encode_permit_entry(PermitEntryValue { permits: 1, state: PermitState::Waiting });
            }
        };
        encoded.expect("structs of numbers and strings always have a JSON form")
    }

    fn decode(&self, kind: QueueKind, name: &LockName, key: &[u8], value: &[u8]) -> Option<QueueEntryValue> {
        read_entry(kind, key.strip_prefix(self.queue_prefix(kind, name).as_bytes())?, value)
    }
}

/// Reads a queue entry or a mark, from the last segment of its key and its value.
fn read_entry(kind: QueueKind, segment: &[u8], value: &[u8]) -> Option<QueueEntryValue> {
    let hex = |part: &[u8]| part.len() == 16 && part.iter().all(u8::is_ascii_hexdigit);
    if segment.len() != 33 || segment[16] != b'-' || !hex(&segment[..16]) || !hex(&segment[17..]) {
        return None;
    }
    // A key of this shape is a queue entry, whatever its value. If it were ignored, a lock could be granted twice.
    Some(match kind {
        QueueKind::Lock => {
            let shared =
                serde_json::from_slice::<Object<LockWire>>(value).is_ok_and(|Object(wire)| wire.mode == "shared");
            let mode = if shared { LockMode::Shared } else { LockMode::Exclusive };
            QueueEntryValue { mode, text: String::new() }
        }
        QueueKind::Election => {
            let read = serde_json::from_slice::<Object<ElectionWire>>(value);
            let text = read.map(|Object(wire)| wire.value).unwrap_or_default();
            QueueEntryValue { mode: LockMode::Exclusive, text }
        }
        QueueKind::Semaphore => QueueEntryValue { mode: LockMode::Exclusive, text: String::new() },
    })
}

/// Returns the name of the holder, for operators who read the store.
pub(super) fn holder() -> String {
    static HOLDER: OnceLock<String> = OnceLock::new();
    HOLDER.get_or_init(this_process).clone()
}

fn this_process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => std::env::var("HOSTNAME").unwrap_or_else(|_| "unknown".to_owned()),
        host => host.to_owned(),
    };
    format!("{host}:{}", process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [QueueKind; 3] = [QueueKind::Lock, QueueKind::Election, QueueKind::Semaphore];

    fn lock() -> LockName {
        LockName::parse("a/b").unwrap()
    }

    fn entry(kind: QueueKind, lease: i64) -> Vec<u8> {
        Native::default().entry(kind, &lock(), LeaseId::new(lease), 2).unwrap()
    }

    #[test]
    fn the_layout_says_what_it_carries() {
        let layout = Native::default();
        assert_eq!((LockLayout::name(&layout), layout.carries_modes()), ("native", true));
        assert!(layout.semaphores().is_some());
    }

    #[test]
    fn all_queues_of_a_namespace_are_a_range() {
        let (layout, namespace) = (Native::default(), Namespace::default());
        for kind in KINDS {
            let queues = layout.queues(kind, &namespace).unwrap();
            assert!(queues.contains(&entry(kind, 1)) && !queues.contains(&entry(other(kind), 1)), "{kind:?}");
            assert_eq!(layout.lock_of(kind, &namespace, &entry(kind, 1)), Some(lock()));
            assert_eq!(layout.lock_of(kind, &namespace, &entry(other(kind), 1)), None);
        }
        for key in ["enlist/locks/default/", "enlist/locks/default/a%2fb/x", "enlist/locks/other/a%2Fb/x"] {
            assert_eq!(layout.lock_of(QueueKind::Lock, &namespace, key.as_bytes()), None, "{key}");
        }
    }

    fn other(kind: QueueKind) -> QueueKind {
        if kind == QueueKind::Lock { QueueKind::Election } else { QueueKind::Lock }
    }

    #[test]
    fn the_entries_under_a_lease_are_a_range() {
        for kind in KINDS {
            let range = Native::default().entries_of_lease(kind, &lock(), LeaseId::new(1)).unwrap();
            assert!(range.contains(&entry(kind, 1)) && !range.contains(&entry(kind, 2)), "{kind:?}");
        }
    }

    #[test]
    fn all_marks_of_a_namespace_are_a_range() {
        let (layout, namespace) = (Native::default(), Namespace::default());
        for kind in [QueueKind::Lock, QueueKind::Election] {
            let mark = layout.mark(kind, &lock(), LeaseId::new(1), 2).unwrap();
            let marks = layout.all_marks(kind, &namespace).unwrap();
            assert!(marks.contains(&mark) && !marks.contains(&entry(kind, 1)), "{kind:?}");
        }
        assert_eq!(layout.all_marks(QueueKind::Semaphore, &namespace), None);
    }

    #[test]
    fn a_lock_names_its_process() {
        let layout = Native::default();
        let value = QueueEntryValue { mode: LockMode::Shared, text: String::new() };
        let process = layout.process(&LockLayout::encode(&layout, QueueKind::Lock, &value)).unwrap();
        let (host, id) = process.rsplit_once(':').unwrap();
        assert!(!host.is_empty() && id == process::id().to_string(), "{process}");
        assert_eq!(layout.process(br#"{"v":1,"mode":"exclusive"}"#), None);
    }

    #[test]
    fn keys_of_another_shape_are_no_entries() {
        let layout = Native::default();
        let read = |last: &str| {
            let key = format!("enlist/locks/default/a%2Fb/{last}");
            LockLayout::decode(&layout, QueueKind::Lock, &lock(), key.as_bytes(), b"")
        };
        assert!(read("0000000000000001-0000000000000002").is_some());
        for last in [
            "0000000000000001-00000000000000021",
            "0000000000000001_0000000000000002",
            "000000000000000g-0000000000000002",
            "0000000000000001-000000000000000g",
        ] {
            assert_eq!(read(last), None, "{last}");
        }
    }
}
