//! Position of an entry in its queue, read in the transaction that writes the entry.

use enlist::{
    FencingToken, LockMode, Revision,
    backend::{QueueEntry, QueuePosition, queue_position},
};
use etcd_client::{GetOptions, SortOrder, SortTarget};

use super::{
    Contender,
    queued::{KnownPosition, Position, Queued},
};
use crate::{
    client::requests::{
        queue_requests::{OwnEntry, QueueFound, QueueRead, QueueWrite},
        response::signed,
    },
    deliberate_defects::DeliberateDefect,
    error::{Failure, text_cause},
    layout::LockLayout,
    watch::record::Record,
};

impl Contender {
    pub(super) fn read(&self, options: GetOptions) -> QueueRead<'_> {
        QueueRead { queue: &self.queue, options, marks: self.marks.as_ref() }
    }

    /// Reads only the last two entries of the queue.
    pub(super) fn last_two(&self) -> GetOptions {
        self.queue_options().with_sort(SortTarget::Create, SortOrder::Descend).with_limit(2)
    }

    pub(super) fn queue_options(&self) -> GetOptions {
        match &self.queue.end {
            Some(end) => GetOptions::new().with_range(end.clone()),
            None => GetOptions::new(),
        }
    }

    /// Proves by a write that the entry created at `token` still exists, and reads its position. The creation revision
    /// does not change.
    pub(super) async fn confirm(&self, entry: &Queued, token: Revision) -> Result<KnownPosition, Failure> {
        let until_here = self.last_two().with_max_create_revision(signed(token));
        let own = OwnEntry { token, ..self.own_entry(entry) };
        match self.context.client.confirm_entry(&own, self.read(until_here)).await? {
            QueueWrite::Done(QueueFound { at, entries, marks }) => {
                let position = self.position(entry, token, at, entries).await?;
                Ok(KnownPosition { token, modified: at, position, marks })
            }
            QueueWrite::Refused(_) => Ok(KnownPosition {
                token,
                modified: Revision::default(),
                position: Position::Absent,
                marks: Vec::new(),
            }),
        }
    }

    /// Returns the position of the entry. `entries` contains the entry and the one right before it, which usually
    /// decides.
    pub(super) async fn position(
        &self,
        entry: &Queued,
        token: Revision,
        at: Revision,
        entries: Vec<Record>,
    ) -> Result<Position, Failure> {
        let own = entries.first().is_some_and(|own| *own.key == *entry.key);
        let mode = self.acquisition.options.mode;
        if own
            && (DeliberateDefect::QueueIgnored.is_on()
                || DeliberateDefect::ReadersIgnoreWriters.is_on() && mode == LockMode::Shared)
        {
            return Ok(Position::Holder);
        }
        match entries.into_iter().nth(1) {
            None if own => return Ok(Position::Holder),
            // An exclusive entry depends only on the entry right before it.
            Some(before) if own && mode == LockMode::Exclusive && self.queue_entry(&before).is_some() => {
                return Ok(Position::Behind { before, at });
            }
            _ => {}
        }
        // A foreign key precedes it, or a shared entry needs the last exclusive entry before it.
        let before = self.queue_options().with_max_create_revision(signed(token));
        let (records, now) = self.context.client.range(&self.queue.start, &before).await?;
        if now < at {
            // Some releases of etcd answer stale reads under stress (etcd-io/etcd#20418). This one is older than the
            // write.
            return Err(Failure::Lost(text_cause("the queue was read from a member that lags")));
        }
        Ok(self.position_among(&records, token, now))
    }

    /// Returns the position of the entry created at `token` among all records read at `now`.
    fn position_among(&self, records: &[Record], token: Revision, now: Revision) -> Position {
        let entries = records.iter().filter_map(|record| Some((record, self.queue_entry(record)?)));
        let entries: Vec<(&Record, QueueEntry)> = entries.collect();
        match queue_position(entries.iter().map(|(_, entry)| *entry), FencingToken::new(token.get())) {
            QueuePosition::Holder => Position::Holder,
            QueuePosition::Absent => Position::Absent,
            QueuePosition::Behind(other) => match entries.iter().find(|(_, entry)| entry.token == other) {
                Some((record, _)) => Position::Behind { before: (*record).clone(), at: now },
                None => Position::Absent,
            },
        }
    }

    /// Decodes an entry of the queue; `None` for a foreign key.
    fn queue_entry(&self, record: &Record) -> Option<QueueEntry> {
        let layout = &self.context.lock_layout;
        let value = layout.decode(self.kind, &self.acquisition.name, &record.key, &record.value)?;
        Some(QueueEntry { token: FencingToken::new(record.created.get()), mode: value.mode })
    }
}
