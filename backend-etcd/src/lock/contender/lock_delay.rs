//! The mark that a holder with a `lock_delay` leaves without a release, and the wait of the next holder.
//!
//! Such a holder has a mark next to the queue, without a lease. A release removes the mark together with the entry. A
//! mark without an entry reveals a crash, a lost lease or a deleted key, also to a contender that joins later. At its
//! turn a contender waits for the delay of such a mark, and removes it when it marks its own entry. Meanwhile the mark
//! is under a lease that is not renewed, so the delay continues if the contender gives up.
//!
//! Both backends implement it on purpose: in `enlist-memory` it is one synchronous step in the store, here a protocol.

use enlist::{
    BackoffPolicy, Error, LockMode, Revision,
    backend::{contender::Turn, rounded},
};

use super::{
    Contender,
    queued::{MarkState, Queued},
    wait::{Predecessor, lease_lost},
};
use crate::{
    client::requests::queue_requests::Marking, error::Failure, layout::LockLayout,
    session::lease_requests::grant_unrenewed, watch::record::Record,
};

/// Returns the marks of holders that did not release and that exclude the contender with the entry created at `token`.
/// Marks of exclusive holders exclude all contenders, those of shared holders only exclusive ones. A mark under the
/// contender's own key belongs to an earlier entry, unless it is newer than this one.
fn delaying_marks<'a>(
    marks: impl IntoIterator<Item = (&'a Record, LockMode)>,
    (own, token): (&[u8], Revision),
    mode: LockMode,
) -> Vec<Record> {
    let marks = marks.into_iter();
    let marks = marks.filter(|(mark, _)| *mark.key != *own || mark.modified < token);
    marks.filter(|(_, held)| held.excludes(mode)).map(|(mark, _)| mark.clone()).collect()
}

impl Contender {
    /// Takes the lock at the turn of the entry. With a `lock_delay`, first waits for the delay of earlier holders, or
    /// of a predecessor with an expired lease, and marks the entry.
    pub(super) async fn take_over(
        &self,
        entry: &mut Queued,
        token: Revision,
        marks: &[Record],
        predecessor: Predecessor,
    ) -> Result<Turn, Error> {
        let Some(mark) = entry.mark.clone() else {
            return Ok(Turn::Granted);
        };
        let layout = &self.context.lock_layout;
        let known = marks.iter().filter_map(|record| {
            let mode = layout.decode_mark(self.kind, &self.acquisition.name, &record.key, &record.value)?;
            Some((record, mode))
        });
        let delaying = delaying_marks(known, (&mark, token), self.acquisition.options.mode);
        if !delaying.is_empty() || predecessor == Predecessor::LeaseExpired {
            let delay = self.acquisition.options.lock_delay;
            tracing::info!(delay = %rounded(delay), "a holder did not release");
            if !self.acquisition.wanted.waits() {
                self.count_down(&delaying).await;
                return Ok(Turn::NotGranted);
            }
            let mut lease = entry.lease.state();
            tokio::select! {
                _ = async { tokio::join!(self.count_down(&delaying), tokio::time::sleep(delay)) } => {}
                () = self.key_deleted(entry) => return Err(Error::LeaseLost),
                () = lease_lost(&mut lease) => return Err(Error::LeaseLost),
            }
        }
        self.put_mark(entry, &mark, &delaying).await
    }

    /// Marks the entry as the holder's, and removes the marks `delaying` of earlier holders.
    async fn put_mark(&self, entry: &mut Queued, mark: &[u8], delaying: &[Record]) -> Result<Turn, Error> {
        let own = self.own_entry(entry);
        let mut backoff = BackoffPolicy::default().start();
        let mut unknown = false;
        loop {
            // From here on it may exist, unless etcd denies it.
            entry.mark_state = MarkState::Written;
            match self.context.client.put_mark(&own, mark, delaying).await {
                Ok(Marking::Done) => {
                    self.acquisition.trouble.clear();
                    return Ok(Turn::Granted);
                }
                Ok(Marking::EntryAbsent) => return Err(Error::LeaseLost),
                Err(failure) => {
                    unknown |= failure.is_ambiguous();
                    entry.mark_state = if unknown { MarkState::Written } else { MarkState::Absent };
                    let error = self.failed(failure);
                    if !error.is_retryable() || !self.acquisition.wanted.waits() {
                        return Err(error);
                    }
                    self.acquisition.trouble.note(error);
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Puts the marks `delaying` under a lease that ends with the delay, unless they are under one already. The delay
    /// then also covers later contenders. Without an answer the next contender waits for the whole delay, which is the
    /// safe side.
    async fn count_down(&self, delaying: &[Record]) {
        let delaying: Vec<&Record> = delaying.iter().filter(|mark| mark.lease.is_none()).collect();
        if delaying.is_empty() {
            return;
        }
        let counted = async {
            let lease = grant_unrenewed(&self.context.client, self.acquisition.options.lock_delay).await?;
            self.context.client.attach_marks(&delaying, lease).await
        };
        if let Err::<(), Failure>(failure) = counted.await {
            tracing::debug!(cause = %failure, "the delay is not counted down");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LockMode::{Exclusive, Shared};

    #[test]
    fn marks_of_other_holders_and_earlier_entries_exclude() {
        let mark = |key: &str, modified: u64| Record {
            key: key.as_bytes().into(),
            value: Vec::new(),
            created: Revision::new(modified),
            modified: Revision::new(modified),
            lease: None,
        };
        let (own, stale, reader, writer) = (mark("own", 8), mark("own", 6), mark("reader", 3), mark("writer", 4));
        let delaying = |marks: &[(&Record, LockMode)], mode| {
            let delaying = delaying_marks(marks.iter().copied(), (b"own", Revision::new(7)), mode);
            delaying.iter().map(|mark| mark.modified.get()).collect::<Vec<_>>()
        };
        assert_eq!(delaying(&[], Exclusive), [0; 0]);
        let all = [(&own, Exclusive), (&reader, Shared), (&writer, Exclusive)];
        assert_eq!(delaying(&all, Exclusive), [3, 4]);
        assert_eq!(delaying(&all, Shared), [4], "shared holders do not exclude each other");
        assert_eq!(delaying(&[(&stale, Exclusive)], Exclusive), [6]);
    }
}
