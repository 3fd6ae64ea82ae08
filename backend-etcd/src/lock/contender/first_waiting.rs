//! The first waiting entry of a semaphore: it watches the holders and the number of permits, and takes its permits.
//!
//! One write takes them: it marks the own entry as granted, guarded by the creation of the entry and by the last change
//! of the number. It needs no read of the queue in the same transaction. Only the entries before the own one count, and
//! once the own entry exists, those can only be granted or disappear, because a new entry has a larger creation
//! revision. So a read at the revision of the creation, or a later one, that shows enough free permits remains right
//! until the number changes, and then the write is refused. An outdated read, which some releases of etcd return, can
//! show an entry that is gone, and lacks none. The guard is a revision, not the number itself, so a write that arrives
//! late is refused as well.

use std::sync::Arc;

use enlist::{
    Error, FencingToken, Revision,
    backend::{PermitEntry, PermitPosition, PermitState, Subscriber, contender::Turn, permit_position},
    escape::escaped,
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::{
    Contender,
    queued::{PermitRequest, Queued},
    wait::{lease_lost, replaced},
};
use crate::{
    client::requests::{
        guarded_write::Guard,
        kv::WriteOutcome,
        queue_requests::{OwnEntry, PermitGrant},
    },
    error::{Failure, text_cause},
    watch::{range_watch::RangeWatches, record::Record, replica::Replica, watch_task::Begin},
};

/// Everything that the turn of the first waiting entry depends on, as last known.
pub(super) struct FirstWaiting {
    /// All entries before it. Each of them holds its permits.
    pub(super) holders: Vec<(PermitEntry, Record)>,
    /// Number of permits; `None` if none is stored.
    pub(super) number: Option<Record>,
    /// Revision of the read.
    pub(super) at: Revision,
}

impl FirstWaiting {
    fn admits(&self, mine: PermitEntry, permits: u32) -> bool {
        let queue = self.holders.iter().map(|(entry, _)| *entry).chain([mine]);
        permit_position(queue, permits, mine.token) == PermitPosition::Admissible
    }
}

/// Change that can give the first waiting entry its turn.
enum Change {
    /// The entry created at this revision is gone.
    HolderGone(Revision),
    /// The number of permits was stored or deleted.
    Number(Option<Record>),
}

/// Watches of the holders and of the number of permits. Each starts at the current revision and is followed by a read.
struct Watches {
    holders: FuturesUnordered<BoxFuture<'static, Revision>>,
    number: Subscriber<Replica>,
}

impl Watches {
    fn open(range_watches: &Arc<RangeWatches>, first: &FirstWaiting, number_key: &[u8]) -> Result<Self, Error> {
        let holders = FuturesUnordered::new();
        for (_, record) in &first.holders {
            let followed = range_watches.follow_key(&record.key, Some(record.clone()), first.at, Begin::Now)?;
            let created = record.created;
            holders.push(replaced(followed, created).map(move |()| created).boxed());
        }
        let number = range_watches.follow_key(number_key, first.number.clone(), first.at, Begin::Now)?;
        Ok(Self { holders, number })
    }

    /// Waits for the next change.
    ///
    /// Dropping the future loses nothing.
    async fn next(&mut self) -> Change {
        loop {
            tokio::select! {
                Some(created) = self.holders.next() => return Change::HolderGone(created),
                update = self.number.next() => match update {
                    Ok(update) => return Change::Number(update.value.records().next().cloned()),
                    // This task ends with the session.
                    Err(Error::Closed) => return std::future::pending().await,
                    Err(_) => {}
                },
            }
        }
    }
}

impl Contender {
    /// Takes the permits once they are free, as the first waiting entry.
    pub(super) async fn take_permits(
        &self,
        entry: &mut Queued,
        token: Revision,
        mut first: FirstWaiting,
        request: &PermitRequest,
    ) -> Result<Turn, Error> {
        let permits = request.options.permits;
        let mine = PermitEntry { token: FencingToken::new(token.get()), permits, state: PermitState::Waiting };
        let mut watches = None;
        loop {
            if let (None, Some(default)) = (&first.number, request.options.permits_if_unset) {
                first.number = Some(self.store_default(entry, default, request).await?);
            }
            if let Some(number) = first.number.clone().filter(|number| first.admits(mine, self.number(number))) {
                match self.until_answered(|| self.grant_permits(entry, token, number.modified, request)).await? {
                    PermitGrant::Done(modified) => return Ok(granted(entry, modified)),
                    PermitGrant::Refused { entry: Some(own), number } if own.created == token => {
                        // An earlier attempt without an answer was applied.
                        if self.permit_entry(&own).is_some_and(|own| own.state == PermitState::Granted) {
                            return Ok(granted(entry, own.modified));
                        }
                        first.number = number;
                    }
                    PermitGrant::Refused { .. } => return Err(Error::LeaseLost),
                }
                continue;
            }
            if !self.acquisition.wanted.waits() {
                return Ok(Turn::NotGranted);
            }
            let watches = match &mut watches {
                Some(watches) => watches,
                none @ None => none.insert(Watches::open(&self.context.range_watches, &first, &request.number_key)?),
            };
            let mut lease = entry.lease.state();
            let change = tokio::select! {
                change = watches.next() => change,
                () = self.key_deleted(entry) => return Err(Error::LeaseLost),
                () = lease_lost(&mut lease) => return Err(Error::LeaseLost),
            };
            match change {
                Change::HolderGone(created) => first.holders.retain(|(_, record)| record.created != created),
                Change::Number(number) => first.number = number,
            }
        }
    }

    /// Marks the entry as granted, if the number of permits was changed last at `number`.
    async fn grant_permits(
        &self,
        entry: &Queued,
        token: Revision,
        number: Revision,
        request: &PermitRequest,
    ) -> Result<PermitGrant, Failure> {
        let own = OwnEntry { token, value: request.granted_value.clone(), ..self.own_entry(entry) };
        self.context.client.grant_permits(&own, &request.number_key, number).await
    }

    /// Stores the number of permits of a semaphore without one. Returns the stored number.
    pub(super) async fn store_number(&self, permits: u32, request: &PermitRequest) -> Result<Record, Failure> {
        let encoded = self.context.lock_layout.of_semaphores(|layout| layout.encode_permits(permits, None));
        let (key, value) = (Arc::from(&request.number_key[..]), encoded.map_err(Failure::Final)?);
        match self.context.client.put_in_time(&key, Guard::Absent, &value, None).await? {
            WriteOutcome::Done(at) => Ok(Record { key, value, created: at, modified: at, lease: None }),
            WriteOutcome::Refused(Some(stored)) => Ok(stored),
            WriteOutcome::Refused(None) => {
                Err(Failure::Lost(text_cause("the number of permits was deleted meanwhile")))
            }
        }
    }

    /// Decodes a number of permits. One that cannot be read admits nothing.
    fn number(&self, record: &Record) -> u32 {
        let read = self.context.lock_layout.of_semaphores(|layout| Ok(layout.decode_permits(&record.value)));
        read.ok().flatten().unwrap_or_else(|| {
            tracing::warn!(semaphore = %escaped(&self.acquisition.name), "the number of permits cannot be read");
            0
        })
    }
}

/// Records that the entry was marked as granted at `modified`.
fn granted(entry: &mut Queued, modified: Revision) -> Turn {
    entry.modified = modified;
    // The next entry of this session waits for the grant of this one, and not for its end.
    entry.membership = None;
    Turn::Granted
}
