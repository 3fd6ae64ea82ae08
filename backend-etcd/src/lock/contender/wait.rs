//! Wait of an entry for its turn: for a hand-over within the session, or for the deletion of the preceding key.

use enlist::{
    Backoff, BackoffPolicy, Error, Revision,
    backend::{LeaseState, Subscriber, contender::Turn, lease_changed},
};
use tokio::sync::watch;

use super::{
    Contender,
    queued::{KnownPosition, Position, Queued},
};
use crate::{
    deliberate_defects::DeliberateDefect,
    error::Failure,
    watch::{record::Record, replica::Replica, watch_task::Begin},
};

/// Way in which the lock became free for the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Predecessor {
    /// The predecessor released, or there was none.
    Released,
    /// The lease of the predecessor expired without a release.
    LeaseExpired,
}

impl Contender {
    pub(super) async fn wait_for_turn(&self, entry: &mut Queued) -> Result<Turn, Error> {
        let Some(known) = entry.known_position.take() else { return Err(Error::LeaseLost) };
        let KnownPosition { token, modified, mut position, mut behind_waiting, mut marks } = known;
        entry.modified = modified;
        let mut predecessor = Predecessor::Released;
        let mut backoff = BackoffPolicy::default().start();
        loop {
            let (before, at) = match position {
                Position::Holder => return self.take_over(entry, token, &marks, predecessor).await,
                Position::Absent => return Err(Error::LeaseLost),
                Position::Behind { .. } if !self.acquisition.wanted.waits() => return Ok(Turn::NotGranted),
                Position::Behind { before, at } => (before, at),
            };
            match self.predecessor_gone(entry, &before, at).await? {
                // A hand-over reads no marks.
                Some(modified) if self.marks.is_none() => {
                    entry.modified = modified;
                    return Ok(Turn::Granted);
                }
                Some(_) => predecessor = Predecessor::Released,
                None => predecessor = self.end_of(&before).await,
            }
            if DeliberateDefect::TurnUnconfirmed.is_on() {
                return Ok(Turn::Granted);
            }
            if behind_waiting && self.marks.is_none() {
                match self.handed_over(entry, token).await {
                    Ok(Some(modified)) => {
                        self.acquisition.trouble.clear();
                        entry.modified = modified;
                        return Ok(Turn::Granted);
                    }
                    Ok(None) => {}
                    Err(failure) => self.acquisition.trouble.note(self.failed(failure)),
                }
            }
            let known = self.confirm_until_answered(entry, token, &mut backoff).await?;
            (entry.modified, position, marks) = (known.modified, known.position, known.marks);
            behind_waiting = known.behind_waiting;
        }
    }

    /// Waits until the entry `before` is gone. Returns the revision of its hand-over to this entry, if there was one.
    async fn predecessor_gone(
        &self,
        entry: &mut Queued,
        before: &Record,
        at: Revision,
    ) -> Result<Option<Revision>, Error> {
        let mut lease = entry.lease.state();
        let ticket = self.context.local_queue.wait(before, entry.as_next());
        let gone = async {
            if let Some(ticket) = ticket {
                return Ok(ticket.confirmed().await);
            }
            let followed = self.context.range_watches.follow_key(&before.key, Some(before.clone()), at, Begin::Now)?;
            replaced(followed, before.created).await;
            Ok(None)
        };
        tokio::select! {
            handed_over = gone => handed_over,
            () = self.key_deleted(entry) => Err(Error::LeaseLost),
            () = lease_lost(&mut lease) => Err(Error::LeaseLost),
        }
    }

    /// Confirms the entry until etcd answers. A lost answer is harmless: the next confirmation has the same result.
    async fn confirm_until_answered(
        &self,
        entry: &Queued,
        token: Revision,
        backoff: &mut Backoff,
    ) -> Result<KnownPosition, Error> {
        loop {
            match self.confirm(entry, token).await {
                Ok(known) => {
                    self.acquisition.trouble.clear();
                    return Ok(known);
                }
                Err(Failure::LeaseNotFound) => return Err(Error::LeaseLost),
                Err(failure) => {
                    let error = self.failed(failure);
                    if !error.is_retryable() {
                        return Err(error);
                    }
                    self.acquisition.trouble.note(error);
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Returns the way in which the entry `before` ended. Reads its lease only with a `lock_delay`.
    async fn end_of(&self, before: &Record) -> Predecessor {
        let Some(lease) = before.lease.filter(|_| !self.acquisition.options.lock_delay.is_zero()) else {
            return Predecessor::Released;
        };
        match self.context.client.time_to_live(lease).await {
            Ok(Some((remaining, _))) if !remaining.is_zero() => Predecessor::Released,
            // Without an answer the delay applies, which is the safe side.
            _ => Predecessor::LeaseExpired,
        }
    }
}

/// Waits until the key that `reader` follows is no longer the one created at `created`. A refused watch is opened
/// again, so only the end of the session ends this wait.
pub(super) async fn replaced(mut reader: Subscriber<Replica>, created: Revision) {
    loop {
        match reader.next().await {
            Ok(update) if update.value.records().all(|record| record.created != created) => return,
            // This task ends with the session.
            Err(Error::Closed) => return std::future::pending().await,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Waits until the lease is lost.
pub(super) async fn lease_lost(state: &mut watch::Receiver<LeaseState>) {
    while !matches!(lease_changed(state).await, LeaseState::Lost) {}
}
