//! A held lock. Its other half, which belongs to the backend, is [`GuardDriver`](crate::backend::GuardDriver).

use std::{future::Future, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backend::{discovery::publisher::OwnerHandle, lock::lock_validity::LockValidity},
    error::Error,
    lock::loss::{Loss, Released},
    model::{name::LockName, revision::FencingToken},
};

/// A held lock.
///
/// [`release`](Self::release) is the orderly end. Dropping the guard requests the same without waiting, also after a
/// panic. If the session ends first, the lease expires after its TTL.
#[derive(Debug)]
#[must_use = "dropping it releases the lock"]
pub struct LockGuard {
    pub(crate) state: Arc<GuardState>,
    pub(crate) source: OwnerHandle,
}

impl LockGuard {
    /// The lock's name.
    pub fn name(&self) -> &LockName {
        &self.state.name
    }

    /// Token larger than that of every earlier holder, as long as the store's revision never goes back. Pass it to the
    /// guarded resource, which has to refuse a smaller one than it has seen.
    pub fn fencing_token(&self) -> FencingToken {
        self.state.token
    }

    /// Returns `true` while the lock is known to be held, without a request to the store. It becomes `false` before the
    /// store can grant the lock to another holder by expiry, and stays `false`. It is cheap enough for a check before
    /// every write.
    ///
    /// If another client revokes the lease or deletes the key, it becomes `false` within a second. While the connection
    /// or the watch of the key is disturbed, that takes longer: after a revocation up to the TTL, after a deletion
    /// until the watch continues. The store may grant the lock to another holder before, and only the fencing token
    /// protects the resource then.
    pub fn is_held(&self) -> bool {
        self.state.validity.is_held()
    }

    /// Remaining time for which the lock is known to be held if no other renewal is acknowledged; zero once it is lost.
    pub fn remaining(&self) -> Duration {
        if self.is_held() { self.state.validity.remaining() } else { Duration::ZERO }
    }

    /// Waits for the loss of the lock.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn lost(&self) -> Loss {
        self.state.validity.lost().await
    }

    /// Runs `work` and aborts it at its next await once the lock is lost.
    ///
    /// # Errors
    ///
    /// The [`Loss`], if it came before the end of the work.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the work; the lock stays held.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Loss> {
        tokio::select! {
            // The loss is polled first: work that is ready must not run after it.
            biased;
            loss = self.lost() => Err(loss),
            output = work => Ok(output),
        }
    }

    /// Releases the lock. Guarded: an entry that another client holds by now is left alone.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], with the last failure as its cause, if the store has not answered within a few seconds. The
    /// release goes on in the background, and the lease expires at the latest. [`Error::Closed`] if the session ended
    /// first.
    ///
    /// # Cancel safety
    ///
    /// The release goes on in the background.
    pub async fn release(self) -> Result<Released, Error> {
        let was_held = self.is_held();
        self.state.validity.lose(Loss::Released);
        self.state.release.cancel();
        let mut released = self.state.released.subscribe();
        let outcome = released.wait_for(Option::is_some).await.map_err(|_| Error::Closed)?;
        match outcome.clone().unwrap_or(Err(Error::Closed)) {
            Ok(_) if !was_held => Ok(Released::AlreadyLost),
            outcome => outcome,
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.state.validity.lose(Loss::Released);
        self.state.release.cancel();
    }
}

/// State that a guard shares with its driver.
#[derive(Debug)]
pub(crate) struct GuardState {
    pub(crate) name: LockName,
    pub(crate) token: FencingToken,
    pub(crate) validity: LockValidity,
    pub(crate) release: CancellationToken,
    pub(crate) released: watch::Sender<Option<Result<Released, Error>>>,
}
