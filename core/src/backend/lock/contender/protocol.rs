//! The steps of a contender that depend on the store.

use std::{future::Future, time::Duration};

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::acquisition::Acquired;
use crate::{
    backend::{discovery::publisher::OwnerHandle, lock::proclamation::Proclamation},
    error::Error,
    lock::loss::{Loss, Released},
    model::revision::{FencingToken, Revision},
    runtime::clock::Moment,
};

/// The queue of a store, as one contender uses it.
///
/// # Cancel safety
///
/// All futures are dropped when the session ends, [`wait`](Self::wait) also if the caller is gone, and
/// [`holder_event`](Self::holder_event) at any time.
pub trait QueueProtocol: Send + 'static {
    /// A queue entry that is, or may be, in the store.
    type Entry: Send;

    /// Creates the entry. If the caller waits, repeats this until the store answers or the caller is gone.
    ///
    /// # Errors
    ///
    /// The outcome for the caller, and the entry if it may be in the store all the same.
    fn join(
        &mut self,
        caller: &mut Caller,
    ) -> impl Future<Output = Result<Self::Entry, JoinFailure<Self::Entry>>> + Send;

    /// Removes a possible leftover of a failed [`join`](Self::join). After an error it has no time limit, because the
    /// caller has its answer. Any other outcome, which the store has confirmed, is answered afterwards: nothing may be
    /// left then of which the removal takes long.
    fn clean_up(&mut self, entry: Self::Entry) -> impl Future<Output = ()> + Send;

    /// Waits for the turn of the entry. It is called once for each entry.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] if the entry is lost; every other error ends the acquisition.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped only if the caller is gone, and the entry is removed then ([`LeaveReason::CallerGone`]). A
    /// request that was sent may still be applied, so [`leave`](Self::leave) also removes what it wrote, for instance a
    /// mark of a `lock_delay`.
    fn wait(&mut self, entry: &mut Self::Entry) -> impl Future<Output = Result<Turn, Error>> + Send;

    /// Returns the terms for the holder; `None` if the lease is not alive any more.
    fn grant(&mut self, entry: &mut Self::Entry) -> Option<Grant>;

    /// Waits for the next event of the held lock.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    fn holder_event(&mut self, entry: &mut Self::Entry) -> impl Future<Output = HolderEvent> + Send;

    /// Writes a new value of the leader and answers it. Returns the revision of the last known change of the entry, for
    /// [`proclaimed`](Self::proclaimed).
    fn proclaim(&mut self, entry: &Self::Entry, proclamation: Proclamation) -> BoxFuture<'static, Option<Revision>>;

    /// Records the revision of the last known change of the entry.
    fn proclaimed(&mut self, entry: &mut Self::Entry, modified: Option<Revision>);

    /// Removes the entry until the store confirms it or the lease is gone.
    fn leave(&mut self, entry: &mut Self::Entry, reason: LeaveReason) -> impl Future<Output = Released> + Send;

    /// Records that the entry is gone, after [`leave`](Self::leave).
    fn entry_removed(&mut self, entry: Self::Entry);

    /// Returns the time since the entry was chosen.
    fn age(&self, entry: &Self::Entry) -> Duration;

    /// Records the loss of a held lock.
    fn lock_lost(&mut self) {}

    /// Returns `false` if a lost lock is kept until it is released: a deliberate defect, for tests of tests.
    fn gives_up_lost_lock(&self) -> bool {
        true
    }
}

/// Position of an entry after the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is no third case")]
pub enum Turn {
    /// It is the contender's turn.
    Granted,
    /// It is not, and the caller does not wait.
    NotGranted,
}

/// Reason for which an entry is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a backend has to handle each of them")]
pub enum LeaveReason {
    /// The holder released the lock.
    Released,
    /// The holder lost the lock. It may not have noticed yet, so a mark of a `lock_delay` stays.
    LockLost,
    /// The entry was lost before its turn. The contender joins the queue again.
    EntryLost,
    /// The wait failed with an error.
    Failed,
    /// It is not the contender's turn, and the caller does not wait.
    NotGranted,
    /// The caller no longer waits for an outcome.
    CallerGone,
}

/// Terms under which a contender becomes the holder.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "built by each backend")]
pub struct Grant {
    /// Time at which the last acknowledged renewal of the lease was sent.
    pub sent: Moment,
    /// Granted TTL of the lease.
    pub ttl: Duration,
    /// Creation of the entry.
    pub token: FencingToken,
    /// The part of the backend that the guard keeps alive.
    pub source: OwnerHandle,
}

/// Event that concerns a held lock.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a holder is renewed or it is not")]
pub enum HolderEvent {
    /// The lease was renewed by a request that was sent at this time.
    Renewed(Moment),
    /// The lease or the key is gone.
    Lost(Loss),
}

/// Failure to join the queue.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "built by each backend")]
pub struct JoinFailure<E> {
    /// Answer to the caller.
    pub outcome: Result<Acquired, Error>,
    /// Entry that may be in the store all the same.
    pub entry: Option<E>,
}

impl<E> From<Error> for JoinFailure<E> {
    fn from(error: Error) -> Self {
        Self { outcome: Err(error), entry: None }
    }
}

/// The caller of an acquisition, which waits for its outcome.
#[derive(Debug)]
pub struct Caller(pub(super) oneshot::Sender<Result<Acquired, Error>>);

impl Caller {
    /// Waits until the caller no longer waits for an outcome.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn gone(&mut self) {
        self.0.closed().await;
    }

    pub(super) fn answer(self, outcome: Result<Acquired, Error>) {
        // For a caller that is gone the guard is dropped here, which requests the release.
        drop(self.0.send(outcome));
    }
}
