//! The layout of etcd's own `client/v3/concurrency`, `etcdctl lock` and `etcdctl elect`: `{name}/{lease id, hex}`,
//! empty for a mutex and the candidate's value for an election. Contenders of both sides queue behind each other.
//!
//! It has no namespaces and no modes. An election and a lock of one name share a queue, and a lock named `a/b` is in
//! the queue of `a`, because Go counts every key below `a/`. Each entry has a lease of its own, which ends with it.
//! Other clients write no marks, so a `lock_delay` is refused.

use enlist::{Error, LeaseId, LockMode, LockName, Namespace};

use super::{LeaseScope, LockLayout, QueueEntryValue, QueueKind};
use crate::watch::record::KeyRange;

/// The layout of etcd's own locks and elections.
#[derive(Clone, Copy, Debug, Default)]
pub struct EtcdConcurrency;

fn prefix(name: &LockName) -> Result<String, Error> {
    if *name.namespace() != Namespace::default() {
        let what = "a namespace other than `default` in the layout etcd-concurrency".to_owned();
        return Err(Error::Unsupported { what });
    }
    Ok(format!("{}/", name.name()))
}

impl LockLayout for EtcdConcurrency {
    fn name(&self) -> &'static str {
        "etcd-concurrency"
    }

    fn lease_scope(&self) -> LeaseScope {
        LeaseScope::PerKey
    }

    fn carries_modes(&self) -> bool {
        false
    }

    fn queue(&self, _: QueueKind, name: &LockName) -> Result<KeyRange, Error> {
        Ok(KeyRange::prefix(prefix(name)?))
    }

    fn entry(&self, _: QueueKind, name: &LockName, lease: LeaseId, _: u64) -> Result<Vec<u8>, Error> {
        Ok(format!("{}{:x}", prefix(name)?, lease.get()).into_bytes())
    }

    fn encode(&self, kind: QueueKind, value: &QueueEntryValue) -> Vec<u8> {
        match kind {
            QueueKind::Lock | QueueKind::Semaphore => Vec::new(),
            QueueKind::Election => value.text.clone().into_bytes(),
        }
    }

    fn decode(&self, _: QueueKind, name: &LockName, key: &[u8], value: &[u8]) -> Option<QueueEntryValue> {
        // Go counts every key below the prefix, whatever its shape. All contenders of a queue have to agree.
        let segment = key.strip_prefix(prefix(name).ok()?.as_bytes())?;
        if segment.is_empty() {
            return None;
        }
        Some(QueueEntryValue { mode: LockMode::Exclusive, text: String::from_utf8_lossy(value).into_owned() })
    }
}
