//! Reading, watching and writing configuration.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::{
    config::{
        path::{ConfigPath, ConfigScope},
        snapshot::{ConfigEntry, ConfigEvent, ConfigSnapshot, ConfigVersion},
        write::{ConfigWrite, Expect},
    },
    discovery::freshness::Freshness,
    error::Error,
    model::{name::Namespace, revision::Revision},
};

/// Access to configuration: bytes by path under a namespace. Implemented by the backends; users hold an
/// `Arc<dyn Config>`.
///
/// Values have no lease: they stay until they are deleted. They are separate from services, locks and, except in etcd,
/// from [raw values](crate::RawValues).
#[async_trait]
pub trait Config: fmt::Debug + Send + Sync + 'static {
    /// Reads the values of `scope` at one revision, with linearizable reads.
    ///
    /// Signature: `async fn list(&self, namespace: &Namespace, scope: &ConfigScope) -> Result<ConfigSnapshot, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] if the layout does not support the namespace or the path; else as
    /// [`Resolver::resolve`](crate::Resolver::resolve).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn list(&self, namespace: &Namespace, scope: &ConfigScope) -> Result<ConfigSnapshot, Error>;

    /// Watches the values of `scope`, with the guarantees of a [`Watcher`](crate::Watcher). Returns at once; the first
    /// [`ConfigWatcher::next`] waits for the first list.
    ///
    /// Signature: `async fn watch(&self, namespace: &Namespace, scope: &ConfigScope) -> Result<Box<dyn ConfigWatcher>,
    /// Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] if the layout does not support the namespace or the path, [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the watch.
    async fn watch(&self, namespace: &Namespace, scope: &ConfigScope) -> Result<Box<dyn ConfigWatcher>, Error>;

    /// Writes values, all of them in one transaction at one revision, or none. The transaction is refused unless the
    /// condition of each write holds.
    ///
    /// Returns the revision of the transaction. Each write of a value is a change, even of equal bytes. A transaction
    /// that changes nothing (only deletions of absent values, or no writes) returns a revision at which this was so.
    ///
    /// Signature: `async fn write(&self, namespace: &Namespace, writes: Vec<ConfigWrite>) -> Result<Revision, Error>`.
    ///
    /// # Errors
    ///
    /// - [`Error::Conflict`] with the path of the first write whose condition does not hold, and the revision of the
    ///   last change of its value, 0 if it is absent. Nothing was written.
    /// - [`Error::InvalidConfig`] for more than [`MAX_CONFIG_WRITES`](crate::MAX_CONFIG_WRITES) writes, or two of one
    ///   path; [`Error::TooLarge`] for more than [`MAX_CONFIG_BYTES`](crate::MAX_CONFIG_BYTES) in total;
    ///   [`Error::StorageFull`]. Nothing was written.
    /// - [`Error::Unavailable`] or [`Error::Timeout`]: the transaction may have been applied, or may still be. If a
    ///   reply is lost and the store answers again, the outcome is read back, and this error remains only if the store
    ///   does not show it. An equal transaction of another client counts as this one. A repeated transaction is applied
    ///   at most once if one of its conditions is on a revision other than 0.
    /// - Else as [`list`](Self::list).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the transaction may have been applied, or may still be.
    async fn write(&self, namespace: &Namespace, writes: Vec<ConfigWrite>) -> Result<Revision, Error>;

    /// States of one value, the newest first, at most `limit`, as far as the store keeps them. The first is the present
    /// one; if the value is absent, that is its deletion, if it is listed.
    ///
    /// The list ends without an error at the oldest state that the store can show, in etcd at the last compaction.
    /// Deletions, and the states before them, are listed by stores that can prove them: etcd can from 3.4.25 and 3.5.8
    /// on. With others the list ends at the creation of the value. Default: not supported.
    ///
    /// Signature: `async fn history(&self, namespace: &Namespace, path: &ConfigPath, limit: usize) ->
    /// Result<Vec<ConfigVersion>, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the store keeps no history; else as [`list`](Self::list).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn history(
        &self,
        _namespace: &Namespace,
        _path: &ConfigPath,
        _limit: usize,
    ) -> Result<Vec<ConfigVersion>, Error> {
        Err(Error::Unsupported { what: "the history of configuration".to_owned() })
    }

    /// Reads one value; `None` if it is absent.
    ///
    /// Signature: `async fn get(&self, namespace: &Namespace, path: &ConfigPath) -> Result<Option<Arc<ConfigEntry>>,
    /// Error>`.
    ///
    /// # Errors
    ///
    /// As [`list`](Self::list).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn get(&self, namespace: &Namespace, path: &ConfigPath) -> Result<Option<Arc<ConfigEntry>>, Error> {
        let snapshot = self.list(namespace, &ConfigScope::Path(path.clone())).await?;
        Ok(snapshot.entries().next().cloned())
    }

    /// Writes one value, see [`write`](Self::write).
    ///
    /// Signature: `async fn put(&self, namespace: &Namespace, path: &ConfigPath, value: Vec<u8>, expect: Expect) ->
    /// Result<Revision, Error>`.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    ///
    /// # Cancel safety
    ///
    /// As [`write`](Self::write).
    async fn put(
        &self,
        namespace: &Namespace,
        path: &ConfigPath,
        value: Vec<u8>,
        expect: Expect,
    ) -> Result<Revision, Error> {
        self.write(namespace, vec![ConfigWrite::put(path.clone(), value, expect)]).await
    }

    /// Deletes one value, see [`write`](Self::write). Deleting an absent one under [`Expect::Any`] changes nothing.
    ///
    /// Signature: `async fn delete(&self, namespace: &Namespace, path: &ConfigPath, expect: Expect) -> Result<Revision,
    /// Error>`.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    ///
    /// # Cancel safety
    ///
    /// As [`write`](Self::write).
    async fn delete(&self, namespace: &Namespace, path: &ConfigPath, expect: Expect) -> Result<Revision, Error> {
        self.write(namespace, vec![ConfigWrite::delete(path.clone(), expect)]).await
    }
}

/// A running watch of a scope. Dropping it ends the watch. See [`Watcher`](crate::Watcher).
#[async_trait]
pub trait ConfigWatcher: fmt::Debug + Send + 'static {
    /// Returns the next change. The first is the whole snapshot. After that there is one change per wake-up: the latest
    /// snapshot and the exact difference to the one that this watcher returned before, see
    /// [`Watcher::next`](crate::Watcher::next). Each snapshot is the content of the scope at its revision.
    ///
    /// Signature: `async fn next(&mut self) -> Result<ConfigChange, Error>`.
    ///
    /// # Errors
    ///
    /// As [`Watcher::next`](crate::Watcher::next).
    ///
    /// # Cancel safety
    ///
    /// A change that was not returned is returned by the next call.
    async fn next(&mut self) -> Result<ConfigChange, Error>;
}

/// The result of a [`ConfigWatcher`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConfigChange {
    /// The latest snapshot.
    pub snapshot: ConfigSnapshot,
    /// The difference to the snapshot that this watcher returned before.
    pub events: Vec<ConfigEvent>,
    /// Freshness of the snapshot.
    pub freshness: Freshness,
}

impl ConfigChange {
    /// The change that leads to `snapshot` from the snapshot returned `before`, if there was one.
    pub(crate) fn since(before: Option<&ConfigSnapshot>, snapshot: ConfigSnapshot, freshness: Freshness) -> Self {
        let events = before.map_or_else(|| snapshot.as_added(), |before| snapshot.diff(before));
        Self { snapshot, events, freshness }
    }
}
