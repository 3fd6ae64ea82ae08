//! Leadership: the queue of a lock whose holder proclaims a value.

use std::{fmt, ops::Deref};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use crate::{
    backend::{
        discovery::publisher::{Subscriber, Update},
        lock::proclamation::Proclamation,
    },
    discovery::freshness::Freshness,
    error::Error,
    lock::{guard::LockGuard, loss::Released, options::LockOptions},
    model::{
        name::LockName,
        revision::{FencingToken, Revision},
    },
};

/// Elects leaders. Implemented by the backends; users hold an `Arc<dyn Election>`. An election and a lock with the same
/// name are independent.
#[async_trait]
pub trait Election: fmt::Debug + Send + Sync + 'static {
    /// Waits until this caller leads `name`, and proclaims `value`. The guarantees are those of
    /// [`Lock::acquire`](crate::Lock::acquire) in exclusive mode.
    ///
    /// Signature: `async fn campaign(&self, name: &LockName, value: &str, options: LockOptions) ->
    /// Result<Leadership, Error>`.
    ///
    /// # Errors
    ///
    /// As [`Lock::acquire`](crate::Lock::acquire), and [`Error::InvalidConfig`] for shared mode.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the queue. A queue entry that reached the store is removed in the background.
    async fn campaign(&self, name: &LockName, value: &str, options: LockOptions) -> Result<Leadership, Error>;

    /// Returns the current leader of `name`, by one linearizable read.
    ///
    /// Signature: `async fn leader(&self, name: &LockName) -> Result<Option<Leader>, Error>`.
    ///
    /// # Errors
    ///
    /// As [`Resolver::resolve`](crate::Resolver::resolve).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn leader(&self, name: &LockName) -> Result<Option<Leader>, Error>;

    /// Watches the leader of `name`, with the freshness rules of a [`Watcher`](crate::Watcher).
    ///
    /// Signature: `async fn observe(&self, name: &LockName) -> Result<LeaderWatcher, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] if the layout does not support the name, [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the watch.
    async fn observe(&self, name: &LockName) -> Result<LeaderWatcher, Error>;
}

/// Leader of an election.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "third-party backends build it")]
pub struct Leader {
    /// Value that the leader proclaims, for instance an address.
    pub value: String,
    /// Its fencing token.
    pub token: FencingToken,
    /// Revision of the last proclamation.
    pub modified: Revision,
}

/// A running observation of an election. Dropping it ends the watch.
#[derive(Debug)]
pub struct LeaderWatcher {
    pub(crate) reader: Subscriber<Option<Leader>>,
}

/// Change that an observer returns.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LeaderChange {
    /// The leader, if there is one.
    pub leader: Option<Leader>,
    /// Freshness of the leader.
    pub freshness: Freshness,
}

impl LeaderWatcher {
    /// Returns the next change. The first is the current leader. A slow caller skips intermediate leaders.
    ///
    /// # Errors
    ///
    /// As [`Watcher::next`](crate::Watcher::next).
    ///
    /// # Cancel safety
    ///
    /// A change that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<LeaderChange, Error> {
        let Update { value, freshness, .. } = self.reader.next().await?;
        Ok(LeaderChange { leader: value, freshness })
    }
}

/// Leadership won in an election: a [`LockGuard`] that can [`proclaim`](Self::proclaim) a value.
#[derive(Debug)]
#[must_use = "dropping it resigns"]
pub struct Leadership {
    pub(crate) guard: LockGuard,
    pub(crate) proclaim: mpsc::Sender<Proclamation>,
}

impl Leadership {
    /// Changes the proclaimed value. Guarded: after a loss nothing is written.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] if leadership was lost; [`Error::Unavailable`] or [`Error::Timeout`] without an answer.
    ///
    /// # Cancel safety
    ///
    /// The value may or may not have been changed.
    pub async fn proclaim(&self, value: impl Into<String>) -> Result<Revision, Error> {
        if !self.guard.is_held() {
            return Err(Error::LeaseLost);
        }
        let (reply, answer) = oneshot::channel();
        self.proclaim.send(Proclamation { value: value.into(), reply }).await.map_err(|_| Error::LeaseLost)?;
        answer.await.map_err(|_| Error::LeaseLost)?
    }

    /// Gives up leadership, like [`LockGuard::release`].
    ///
    /// # Errors
    ///
    /// As [`LockGuard::release`].
    ///
    /// # Cancel safety
    ///
    /// The resignation goes on in the background.
    pub async fn resign(self) -> Result<Released, Error> {
        self.guard.release().await
    }
}

impl Deref for Leadership {
    type Target = LockGuard;

    fn deref(&self) -> &LockGuard {
        &self.guard
    }
}
