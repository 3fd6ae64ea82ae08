//! Reads of the queues of locks and elections, for operators. They take no part in a queue. `backend/lock/queues.rs`
//! has the constructors.

use std::fmt;

use async_trait::async_trait;

use crate::{
    error::Error,
    lock::options::LockMode,
    model::{
        name::{LockName, Namespace},
        revision::{FencingToken, Revision},
    },
};

/// Reads the queues of locks and elections. Implemented by the backends; users hold an `Arc<dyn Queues>`.
///
/// The entries and the delay of a queue, and those of all queues of a list, are from one revision. A result may be
/// outdated when it is returned, so it cannot replace a lock. All methods return [`Error::Unsupported`] by default.
#[async_trait]
pub trait Queues: fmt::Debug + Send + Sync + 'static {
    /// Reads the queue of a lock. Without contenders it has no entries.
    ///
    /// Signature: `async fn lock_queue(&self, name: &LockName) -> Result<LockQueue, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] or [`Error::InvalidName`] for a name that the layout of locks cannot carry; else as
    /// [`Resolver::resolve`](crate::Resolver::resolve).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn lock_queue(&self, _name: &LockName) -> Result<LockQueue, Error> {
        unsupported("reading the queue of a lock")
    }

    /// Reads the queues of all locks of `namespace` that have a contender, in the order of their names.
    ///
    /// Signature: `async fn lock_queues(&self, namespace: &Namespace) -> Result<Vec<LockQueue>, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the layout of locks cannot list them; else as [`lock_queue`](Self::lock_queue).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn lock_queues(&self, _namespace: &Namespace) -> Result<Vec<LockQueue>, Error> {
        unsupported("listing locks")
    }

    /// Reads the queue of an election. Without candidates it has no entries.
    ///
    /// Signature: `async fn election_queue(&self, name: &LockName) -> Result<ElectionQueue, Error>`.
    ///
    /// # Errors
    ///
    /// As [`lock_queue`](Self::lock_queue).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn election_queue(&self, _name: &LockName) -> Result<ElectionQueue, Error> {
        unsupported("reading the queue of an election")
    }

    /// Reads the queues of all elections of `namespace` that have a candidate, in the order of their names.
    ///
    /// Signature: `async fn election_queues(&self, namespace: &Namespace) -> Result<Vec<ElectionQueue>, Error>`.
    ///
    /// # Errors
    ///
    /// As [`lock_queues`](Self::lock_queues).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    async fn election_queues(&self, _namespace: &Namespace) -> Result<Vec<ElectionQueue>, Error> {
        unsupported("listing elections")
    }
}

fn unsupported<T>(what: &str) -> Result<T, Error> {
    Err(Error::Unsupported { what: what.to_owned() })
}

/// One contender in the queue of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "third-party backends build it")]
pub struct QueuedContender {
    /// Fencing token. It also orders the queue: smaller tokens come first.
    pub token: FencingToken,
    /// Requested mode.
    pub mode: LockMode,
    /// Name of the process, as given by itself; `None` if the layout has no field for it. Each client of the store can
    /// write any text here: show it [escaped](crate::escape).
    pub process: Option<String>,
    /// Revision at which the entry was created. The stores record no time of it.
    pub created: Revision,
}

/// The queue of a lock at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockQueue {
    /// The lock.
    pub name: LockName,
    /// Its holders and waiting contenders, in order.
    pub entries: Vec<QueuedContender>,
    /// `true` while the [`lock_delay`](crate::LockOptions::lock_delay) of a holder that did not release is running: the
    /// lock has no holder and is not free. Known once the first contender, or a
    /// [`try_acquire`](crate::Lock::try_acquire), has started the delay.
    pub delayed: bool,
}

impl LockQueue {
    /// The holders: none while the lock is [delayed](Self::delayed), else the first entry. If that is shared, the
    /// shared entries right behind it are holders, too.
    pub fn holders(&self) -> &[QueuedContender] {
        if self.delayed {
            return &[];
        }
        let sharing = self.entries.iter().take_while(|entry| entry.mode == LockMode::Shared).count();
        &self.entries[..sharing.max(1).min(self.entries.len())]
    }

    /// The waiting contenders, in order.
    pub fn waiting(&self) -> &[QueuedContender] {
        &self.entries[self.holders().len()..]
    }
}

/// One candidate in the queue of an election.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "third-party backends build it")]
pub struct QueuedCandidate {
    /// Fencing token. It also orders the queue: smaller tokens come first.
    pub token: FencingToken,
    /// Value that the candidate proclaims as the leader. Each client of the store can write any text here: show it
    /// [escaped](crate::escape).
    pub value: String,
    /// Revision at which the entry was created. The stores record no time of it.
    pub created: Revision,
    /// Revision of the last proclamation.
    pub modified: Revision,
}

/// The queue of an election at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ElectionQueue {
    /// The election.
    pub name: LockName,
    /// Its leader and waiting candidates, in order.
    pub entries: Vec<QueuedCandidate>,
    /// `true` while the delay of a leader that did not resign is running, see [`LockQueue::delayed`].
    pub delayed: bool,
}

impl ElectionQueue {
    /// The leader: none while the election is [delayed](Self::delayed), else the first entry.
    pub fn leader(&self) -> Option<&QueuedCandidate> {
        self.entries.first().filter(|_| !self.delayed)
    }

    /// The waiting candidates, in order.
    pub fn waiting(&self) -> &[QueuedCandidate] {
        &self.entries[usize::from(self.leader().is_some())..]
    }
}
