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
        queue_requests::{NextEntry, OwnEntry, QueueRead, QueueWrite},
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

    /// Reads only this many of the last entries of the queue.
    pub(super) fn last(&self, count: i64) -> GetOptions {
        self.queue_options().with_sort(SortTarget::Create, SortOrder::Descend).with_limit(count)
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
        let until_here = self.last(2).with_max_create_revision(signed(token));
        let own = OwnEntry { token, ..self.own_entry(entry) };
        match self.context.client.confirm_entry(&own, self.read(until_here)).await? {
            QueueWrite::Done(found) => self.known_position(entry, token, found).await,
            QueueWrite::Refused(_) => Ok(KnownPosition {
                token,
                modified: Revision::default(),
                position: Position::Absent,
                behind_waiting: false,
                marks: Vec::new(),
            }),
        }
    }

    /// Returns the revision at which the predecessor confirmed the entry created at `token` in the transaction that
    /// removed its own one, if it did. Notes the entry right behind, for the same purpose.
    ///
    /// The entry is the first one then, and was written after its last known change. A stale read can only show an
    /// older state of the queue, in which the entry was the first one already. After a wipe another entry can have the
    /// same revision, but not the same key.
    pub(super) async fn handed_over(&self, entry: &mut Queued, token: Revision) -> Result<Option<Revision>, Failure> {
        let first_two = self.queue_options().with_sort(SortTarget::Create, SortOrder::Ascend).with_limit(2);
        let (entries, _) = self.context.client.range(&self.queue.start, &first_two).await?;
        let mut entries = entries.into_iter();
        let is_own = |first: &Record| *first.key == *entry.key && first.created == token;
        let Some(own) = entries.next().filter(is_own) else { return Ok(None) };
        let next = entries.next().filter(|next| {
            // A reader does not look whether it was handed over to.
            self.queue_entry(next).is_some_and(|next| next.mode == LockMode::Exclusive)
        });
        entry.next = next.and_then(|Record { key, created, lease, .. }| {
            Some(NextEntry { key: key.to_vec(), lease: lease?, token: created })
        });
        Ok(Some(own.modified).filter(|modified| *modified > entry.modified))
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
        let mode = self.acquisition.options.mode;
        if let Some(position) = by_last_two(entries, &entry.key, mode, at, |record| self.queue_entry(record)) {
            return Ok(position);
        }
        // A foreign key precedes it, or a shared entry needs the last exclusive entry before it.
        let before = self.queue_options().with_max_create_revision(signed(token));
        let (records, now) = self.context.client.range(&self.queue.start, &before).await?;
        if now < at {
            // Some releases of etcd answer stale reads under stress (etcd-io/etcd#20418). This one is older than the
            // write.
            return Err(Failure::Lost(text_cause("the queue was read from a member that lags")));
        }
        Ok(position_among(&records, token, now, |record| self.queue_entry(record)))
    }

    /// Decodes an entry of the queue; `None` for a foreign key.
    fn queue_entry(&self, record: &Record) -> Option<QueueEntry> {
        let layout = &self.context.lock_layout;
        let value = layout.decode(self.kind, &self.acquisition.name, &record.key, &record.value)?;
        Some(QueueEntry { token: FencingToken::new(record.created.get()), mode: value.mode })
    }
}

/// Returns the position of the entry `own`, if the last two entries that were read at `at` decide it: there is no other
/// one, or an exclusive entry, which depends only on the entry right before it.
fn by_last_two(
    entries: Vec<Record>,
    own: &[u8],
    mode: LockMode,
    at: Revision,
    decode: impl Fn(&Record) -> Option<QueueEntry>,
) -> Option<Position> {
    let mut entries = entries.into_iter();
    entries.next().filter(|last| *last.key == *own)?;
    if DeliberateDefect::ignores_queue(mode) {
        return Some(Position::Holder);
    }
    match entries.next() {
        None => Some(Position::Holder),
        Some(before) if mode == LockMode::Exclusive && decode(&before).is_some() => {
            Some(Position::Behind { before, at })
        }
        Some(_) => None,
    }
}

/// Returns the position of the entry created at `token` among all records read at `now`.
fn position_among(
    records: &[Record],
    token: Revision,
    now: Revision,
    decode: impl Fn(&Record) -> Option<QueueEntry>,
) -> Position {
    let entries = records.iter().filter_map(|record| Some((record, decode(record)?)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use LockMode::{Exclusive, Shared};

    const NOW: Revision = Revision::new(9);

    fn record(key: &str, created: u64) -> Record {
        let created = Revision::new(created);
        Record { key: key.as_bytes().into(), value: Vec::new(), created, modified: created, lease: None }
    }

    /// Decodes the entries of this test: readers begin with `r`, writers with `w`.
    fn decode(record: &Record) -> Option<QueueEntry> {
        let mode = match record.key.first()? {
            b'r' => Shared,
            b'w' => Exclusive,
            _ => return None,
        };
        Some(QueueEntry { token: FencingToken::new(record.created.get()), mode })
    }

    fn shown(position: Position) -> String {
        match position {
            Position::Holder => "holder".to_owned(),
            Position::Absent => "absent".to_owned(),
            Position::Behind { before, at } => format!("behind {} at {at}", before.key.escape_ascii()),
        }
    }

    #[test]
    fn the_last_two_entries_usually_decide() {
        let position = |entries: &[(&str, u64)], mode| {
            let entries = entries.iter().map(|(key, created)| record(key, *created)).collect();
            by_last_two(entries, b"own", mode, NOW, decode).map(shown)
        };
        for mode in [Exclusive, Shared] {
            assert_eq!(position(&[("own", 5)], mode).as_deref(), Some("holder"));
            assert_eq!(position(&[], mode), None);
            assert_eq!(position(&[("w1", 5)], mode), None, "it is not the last one");
            assert_eq!(position(&[("own", 5), ("foreign", 4)], mode), None);
        }
        assert_eq!(position(&[("own", 5), ("w1", 4)], Exclusive).as_deref(), Some("behind w1 at 9"));
        assert_eq!(position(&[("own", 5), ("r1", 4)], Exclusive).as_deref(), Some("behind r1 at 9"));
        assert_eq!(position(&[("own", 5), ("r1", 4)], Shared), None, "a writer may be before both");
    }

    #[test]
    fn all_entries_decide_for_readers_and_behind_foreign_keys() {
        let records = [record("w1", 2), record("foreign", 3), record("r1", 4), record("r2", 5), record("w2", 6)];
        let position = |token| shown(position_among(&records, Revision::new(token), NOW, decode));
        assert_eq!(position(2), "holder");
        assert_eq!([4, 5].map(position), ["behind w1 at 9", "behind w1 at 9"]);
        assert_eq!(position(6), "behind r2 at 9");
        assert_eq!([3, 7].map(position), ["absent", "absent"]);
    }
}
