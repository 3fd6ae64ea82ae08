//! The lock of ChenLong-dev's gobase: one key, the lock's name, with the value `占用`. The client that creates it holds
//! the lock.
//!
//! gobase's `etcd.Lock` tries once and renews for as long as its process lives. It has no queue, no notification of a
//! loss, and no release except a deletion of the key by name. So waiting contenders have no order here, and there are
//! no shared mode, no `lock_delay` and no elections. Go only checks that the key exists, so any value counts as held.

use enlist::{Error, LeaseId, LockMode, LockName, Namespace};

use super::{LeaseScope, LockLayout, LockOrder, QueueEntryValue, QueueKind};
use crate::watch::record::KeyRange;

/// Value that gobase writes: "occupied".
const HELD: &str = "占用";

/// The layout of gobase's lock, `etcd.Lock(lockKey, ttl)`: the unchanged name of the lock is the key, in the namespace
/// `default`.
#[derive(Clone, Copy, Debug, Default)]
pub struct GobaseLock;

fn key(kind: QueueKind, name: &LockName) -> Result<Vec<u8>, Error> {
    let what = match kind {
        QueueKind::Election => "elections in the layout gobase",
        QueueKind::Semaphore => "semaphores in the layout gobase",
        QueueKind::Lock if *name.namespace() != Namespace::default() => {
            "a namespace other than `default` in the layout of gobase's lock"
        }
        QueueKind::Lock => return Ok(name.name().as_bytes().to_vec()),
    };
    Err(Error::Unsupported { what: what.to_owned() })
}

impl LockLayout for GobaseLock {
    fn name(&self) -> &'static str {
        "gobase"
    }

    fn order(&self) -> LockOrder {
        LockOrder::FirstToCreate
    }

    fn lease_scope(&self) -> LeaseScope {
        LeaseScope::PerKey
    }

    fn carries_modes(&self) -> bool {
        false
    }

    fn queue(&self, kind: QueueKind, name: &LockName) -> Result<KeyRange, Error> {
        Ok(KeyRange::key(key(kind, name)?))
    }

    fn entry(&self, kind: QueueKind, name: &LockName, _: LeaseId, _: u64) -> Result<Vec<u8>, Error> {
        key(kind, name)
    }

    fn encode(&self, _: QueueKind, _: &QueueEntryValue) -> Vec<u8> {
        HELD.as_bytes().to_vec()
    }

    fn decode(&self, kind: QueueKind, name: &LockName, key: &[u8], value: &[u8]) -> Option<QueueEntryValue> {
        let own = self::key(kind, name).is_ok_and(|own| own == key);
        own.then(|| QueueEntryValue { mode: LockMode::Exclusive, text: String::from_utf8_lossy(value).into_owned() })
    }
}
