//! Leadership: the queue of a lock whose holder says something about itself.

use std::{fmt, ops::Deref};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use crate::{
    backend::{
        proclamation::Proclamation,
        publisher::{Subscriber, Update},
    },
    discovery::freshness::Freshness,
    error::Error,
    lock::{guard::LockGuard, loss::Released, options::LockOptions},
    model::{
        name::LockName,
        revision::{FencingToken, Revision},
    },
};

/// Elects leaders. Implemented by the backends; users hold an `Arc<dyn Election>`. Elections and locks of one name do
/// not see each other.
#[async_trait]
pub trait Election: fmt::Debug + Send + Sync + 'static {
    /// Waits until this caller leads `name`, announcing itself as `value`. The guarantees are those of
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
    /// Dropping the future gives up the candidacy; whatever reached the store is removed in the background.
    async fn campaign(&self, name: &LockName, value: &str, options: LockOptions) -> Result<Leadership, Error>;

    /// Returns the leader of `name` now, by one linearizable read.
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

    /// Watches who leads `name`, with the freshness rules of a [`Watcher`](crate::Watcher).
    ///
    /// Signature: `async fn observe(&self, name: &LockName) -> Result<LeaderWatcher, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] if the layout cannot carry the name, [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the watch.
    async fn observe(&self, name: &LockName) -> Result<LeaderWatcher, Error>;
}

/// The leader.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "third-party backends build it")]
pub struct Leader {
    /// Text of the leader about itself, an address for instance.
    pub value: String,
    /// Its fencing token.
    pub token: FencingToken,
    /// Revision at which it said so.
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
    /// Freshness of this.
    pub freshness: Freshness,
}

impl LeaderWatcher {
    /// First who leads now, then each change; a slow caller skips intermediate leaders.
    ///
    /// # Errors
    ///
    /// As [`Watcher::next`](crate::Watcher::next).
    ///
    /// # Cancel safety
    ///
    /// What was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<LeaderChange, Error> {
        let Update { value, freshness, .. } = self.reader.next().await?;
        Ok(LeaderChange { leader: value, freshness })
    }
}

/// Leadership won in an election: a [`LockGuard`] with a voice.
#[derive(Debug)]
#[must_use = "dropping it resigns"]
pub struct Leadership {
    pub(crate) guard: LockGuard,
    pub(crate) proclaim: mpsc::Sender<Proclamation>,
}

impl Leadership {
    /// Changes what the leader says about itself. Guarded: after a loss nothing is written.
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

    /// Gives leadership up; what [`LockGuard::release`] does.
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
