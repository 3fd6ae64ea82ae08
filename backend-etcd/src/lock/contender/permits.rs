//! Wait of an entry for permits of a semaphore, up to its turn.
//!
//! An entry waits behind its predecessor until that is granted or gone. Then it is the first waiting entry, and only
//! that one watches the holders and the number of permits (`first_waiting.rs`). So a grant costs a constant number of
//! requests, and one watch per holder. The mark of a granted entry is an event for its successor, which watches it.

use std::future::Future;

use enlist::{
    BackoffPolicy, Error, FencingToken, Revision,
    backend::{PermitEntry, PermitPosition, PermitState, contender::Turn, permit_position},
};

use super::{
    Contender,
    first_waiting::FirstWaiting,
    queued::{KnownPosition, PermitRequest, Position, Queued},
    wait::lease_lost,
};
use crate::{
    client::requests::{queue_requests::QueueFound, response::signed},
    error::{Failure, text_cause},
    layout::PermitEntryValue,
    watch::{record::Record, replica::Replica, watch_task::Begin},
};

/// Position of an entry in the queue of a semaphore.
enum SemaphorePosition {
    /// Its own key is gone.
    Absent,
    /// The entry waits for the entry `before`, in its last known state.
    Behind { before: Record, at: Revision },
    /// The entry right before this one holds its permits, so no entry before this one waits.
    BehindHolder,
    /// No entry before this one waits.
    First(FirstWaiting),
}

impl Contender {
    /// Waits until the entry holds its permits.
    pub(super) async fn wait_for_permits(&self, entry: &mut Queued, request: &PermitRequest) -> Result<Turn, Error> {
        let Some(mut known) = entry.known_position.take() else {
            return Err(Error::LeaseLost);
        };
        entry.modified = known.modified;
        let token = known.token;
        // From any position in the queue: the contenders before this one may have no number to store. An entry that is
        // gone has no use for it.
        let is_queued = !matches!(known.position, Position::Absent);
        if let (true, true, Some(default)) = (is_queued, known.marks.is_empty(), request.options.permits_if_unset) {
            known.marks.push(self.store_default(entry, default, request).await?);
        }
        let mut position = self.semaphore_position(known);
        loop {
            position = match position {
                SemaphorePosition::Absent => return Err(Error::LeaseLost),
                SemaphorePosition::Behind { .. } if !self.acquisition.wanted.waits() => return Ok(Turn::NotGranted),
                SemaphorePosition::Behind { before, at } => {
                    self.predecessor_granted(entry, &before, at).await?;
                    self.until_answered(|| self.read_position(entry, token)).await?
                }
                SemaphorePosition::BehindHolder => self.until_answered(|| self.read_holders(entry, token)).await?,
                SemaphorePosition::First(first) => return self.take_permits(entry, token, first, request).await,
            }
        }
    }

    /// Stores the default number of permits, while the entry exists. Returns the stored number.
    pub(super) async fn store_default(
        &self,
        entry: &mut Queued,
        default: u32,
        request: &PermitRequest,
    ) -> Result<Record, Error> {
        let mut lease = entry.lease.state();
        tokio::select! {
            stored = self.until_answered(|| self.store_number(default, request)) => stored,
            () = self.key_deleted(entry) => Err(Error::LeaseLost),
            () = lease_lost(&mut lease) => Err(Error::LeaseLost),
        }
    }

    fn semaphore_position(&self, known: KnownPosition) -> SemaphorePosition {
        let number = known.marks.into_iter().next();
        match known.position {
            Position::Absent => SemaphorePosition::Absent,
            Position::Holder => {
                SemaphorePosition::First(FirstWaiting { holders: Vec::new(), number, at: known.modified })
            }
            Position::Behind { before, at } => match self.permit_entry(&before).map(|entry| entry.state) {
                Some(PermitState::Granted) => SemaphorePosition::BehindHolder,
                _ => SemaphorePosition::Behind { before, at },
            },
        }
    }

    /// Reads the position of the entry created at `token`.
    async fn read_position(&self, entry: &Queued, token: Revision) -> Result<SemaphorePosition, Failure> {
        let until_here = self.last(2).with_max_create_revision(signed(token));
        let found = self.context.client.read_queue(&entry.key, self.read(until_here)).await?;
        if found.at < token {
            return self.position_after_outdated_read(entry, token).await;
        }
        Ok(self.semaphore_position(self.known_position(entry, token, found).await?))
    }

    /// Reads all entries up to the one created at `token`, whose predecessor holds its permits: the others are holders
    /// as well, so they are few.
    async fn read_holders(&self, entry: &Queued, token: Revision) -> Result<SemaphorePosition, Failure> {
        let until_here = self.queue_options().with_max_create_revision(signed(token));
        let found = self.context.client.read_queue(&entry.key, self.read(until_here)).await?;
        if found.at < token {
            return self.position_after_outdated_read(entry, token).await;
        }
        let QueueFound { at, entries, marks } = found;
        let entries = entries.into_iter().filter_map(|record| Some((self.permit_entry(&record)?, record)));
        let entries: Vec<(PermitEntry, Record)> = entries.collect();
        let me = FencingToken::new(token.get());
        // Any number of permits gives the same predecessor.
        Ok(match permit_position(entries.iter().map(|(entry, _)| *entry), 0, me) {
            PermitPosition::Absent => SemaphorePosition::Absent,
            PermitPosition::Behind(other) => match entries.into_iter().find(|(entry, _)| entry.token == other) {
                Some((_, before)) => SemaphorePosition::Behind { before, at },
                None => SemaphorePosition::Absent,
            },
            PermitPosition::Holder | PermitPosition::Admissible | PermitPosition::First => {
                let holders = entries.into_iter().filter(|(entry, _)| entry.token < me).collect();
                SemaphorePosition::First(FirstWaiting { holders, number: marks.into_iter().next(), at })
            }
        })
    }

    /// Returns the position after a read from before the creation of the own entry at `token`, which can lack earlier
    /// entries. Either a member lags (etcd-io/etcd#20418), or the store went back. A write distinguishes them.
    async fn position_after_outdated_read(
        &self,
        entry: &Queued,
        token: Revision,
    ) -> Result<SemaphorePosition, Failure> {
        match self.confirm(entry, token).await?.position {
            Position::Absent => Ok(SemaphorePosition::Absent),
            Position::Holder | Position::Behind { .. } => {
                Err(Failure::Lost(text_cause("the queue was read from a member that lags")))
            }
        }
    }

    /// Waits until the entry `before` is granted or gone.
    async fn predecessor_granted(&self, entry: &mut Queued, before: &Record, at: Revision) -> Result<(), Error> {
        let mut lease = entry.lease.state();
        // A granted entry of this session is not managed any more, which ends the ticket.
        let ticket = self.context.local_queue.wait(before, entry.as_next());
        let granted = async {
            if let Some(ticket) = ticket {
                ticket.confirmed().await;
                return Ok(());
            }
            let mut followed =
                self.context.range_watches.follow_key(&before.key, Some(before.clone()), at, Begin::Now)?;
            loop {
                match followed.next().await {
                    Ok(update) if !self.still_waits(&update.value, before.created) => return Ok(()),
                    // This task ends with the session.
                    Err(Error::Closed) => return std::future::pending().await,
                    Ok(_) | Err(_) => {}
                }
            }
        };
        tokio::select! {
            granted = granted => granted,
            () = self.key_deleted(entry) => Err(Error::LeaseLost),
            () = lease_lost(&mut lease) => Err(Error::LeaseLost),
        }
    }

    /// Returns `true` if the entry created at `created` waits for its permits.
    fn still_waits(&self, replica: &Replica, created: Revision) -> bool {
        let same = |record: &&Record| record.created == created;
        replica.records().filter(same).filter_map(|record| self.permit_entry(record)).any(is_waiting)
    }

    /// Repeats a request until etcd answers. Without a caller that waits, it is sent once.
    pub(super) async fn until_answered<T, F>(&self, mut request: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut backoff = BackoffPolicy::default().start();
        loop {
            let error = match request().await {
                Ok(answer) => {
                    self.acquisition.trouble.clear();
                    return Ok(answer);
                }
                Err(Failure::LeaseNotFound) => return Err(Error::LeaseLost),
                Err(failure) => self.failed(failure),
            };
            if !error.is_retryable() || !self.acquisition.wanted.waits() {
                return Err(error);
            }
            self.acquisition.trouble.note(error);
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Decodes an entry of the queue; `None` for a foreign key.
    pub(super) fn permit_entry(&self, record: &Record) -> Option<PermitEntry> {
        let read = self.context.lock_layout.permit_entry(&self.acquisition.name, &record.key, &record.value);
        let PermitEntryValue { permits, state } = read?;
        Some(PermitEntry { token: FencingToken::new(record.created.get()), permits, state })
    }
}

fn is_waiting(entry: PermitEntry) -> bool {
    entry.state == PermitState::Waiting
}
