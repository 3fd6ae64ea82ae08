//! The mark that a holder with a `lock_delay` leaves behind if it does not release, and its successor's wait.
//!
//! Such a holder has a mark beside the line, without a lease, and a release removes it with the place. So a mark whose holder has no
//! place any more tells a crash, a lost lease or a deleted key from a release, also to a contender that comes later. Whoever finds
//! one when it is its turn waits, and removes it when it marks its own place. Meanwhile the mark is under a lease that nobody
//! renews: the delay goes on if the contender gives up.

use enlist::{BackoffPolicy, Error, LockMode, Revision, backend::rounded};

use super::{Contender, Queued, lost};
use crate::{error::Failure, layout::LockLayout, session::lease_requests::grant_unrenewed, watch::record::Record};

/// The marks of holders that did not release, as a contender sees them whose turn it is and whose place was created at `token`.
/// Exclusive holders are in the way of everybody, shared ones of those that want the lock alone. A mark under the contender's own
/// key is of an earlier place, unless it is newer than this one.
fn left_behind<'a>(
    marks: impl IntoIterator<Item = (&'a Record, LockMode)>,
    (own, token): (&[u8], Revision),
    mode: LockMode,
) -> Vec<Record> {
    let marks = marks.into_iter();
    let marks = marks.filter(|(mark, _)| *mark.key != *own || mark.modified < token);
    marks.filter(|(_, held)| held.excludes(mode)).map(|(mark, _)| mark.clone()).collect()
}

impl Contender {
    /// Takes the lock whose turn it is. With a `lock_delay`, waits for what holders before left behind, or for the one before that
    /// `lease_expired`, and marks the place. `false`: that takes time, and the caller does not want to wait.
    pub(super) async fn take_over(
        &self,
        held: &mut Queued,
        token: Revision,
        marks: &[Record],
        lease_expired: bool,
    ) -> Result<bool, Error> {
        let Some(mark) = held.mark.clone() else {
            return Ok(true);
        };
        let layout = &self.context.lock_layout;
        let known = marks.iter().filter_map(|record| {
            let mode = layout.decode_mark(self.want.line, &self.name, &record.key, &record.value)?;
            Some((record, mode))
        });
        let left = left_behind(known, (&mark, token), self.options.mode);
        if !left.is_empty() || lease_expired {
            tracing::info!(delay = %rounded(self.options.lock_delay), "a holder did not release");
            if !self.want.wait {
                self.count_down(&left).await;
                return Ok(false);
            }
            let mut lease = held.lease.state();
            tokio::select! {
                _ = async { tokio::join!(self.count_down(&left), tokio::time::sleep(self.options.lock_delay)) } => {}
                () = self.key_deleted(held, token) => return Err(Error::LeaseLost),
                () = lost(&mut lease) => return Err(Error::LeaseLost),
            }
        }
        let own = self.own_place(held, token);
        let mut backoff = BackoffPolicy::default().start();
        let mut unknown = false;
        loop {
            // From here on it may be there, unless etcd says that it is not.
            held.marked = true;
            match self.context.conn.mark(&own, &mark, &left).await {
                Ok(true) => return Ok(true),
                Ok(false) => return Err(Error::LeaseLost),
                Err(failure) => {
                    unknown |= failure.is_ambiguous();
                    held.marked = unknown;
                    let error = self.failed(failure);
                    if !error.is_retryable() || !self.want.wait {
                        return Err(error);
                    }
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Puts what was left behind under a lease that ends once the delay has passed, unless that was done before: whoever comes after
    /// this contender has waited with it. Without an answer the next one waits anew, which is the careful side.
    async fn count_down(&self, left: &[Record]) {
        let left: Vec<&Record> = left.iter().filter(|mark| mark.lease.is_none()).collect();
        if left.is_empty() {
            return;
        }
        let counted = async {
            let lease = grant_unrenewed(&self.context.conn, self.options.lock_delay).await?;
            self.context.conn.attach(&left, lease).await
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
    fn what_is_in_the_way_was_left_by_another_holder_or_an_earlier_one_of_the_same_key() {
        let mark = |key: &str, modified: u64| Record {
            key: key.as_bytes().into(),
            value: Vec::new(),
            created: Revision::new(modified),
            modified: Revision::new(modified),
            lease: None,
        };
        let (own, stale, reader, writer) = (mark("own", 8), mark("own", 6), mark("reader", 3), mark("writer", 4));
        let left = |marks: &[(&Record, LockMode)], mode| {
            let left = left_behind(marks.iter().copied(), (b"own", Revision::new(7)), mode);
            left.iter().map(|mark| mark.modified.get()).collect::<Vec<_>>()
        };
        assert_eq!(left(&[], Exclusive), [0; 0]);
        let all = [(&own, Exclusive), (&reader, Shared), (&writer, Exclusive)];
        assert_eq!(left(&all, Exclusive), [3, 4]);
        assert_eq!(left(&all, Shared), [4], "readers are not in the way of each other");
        assert_eq!(left(&[(&stale, Exclusive)], Exclusive), [6]);
    }
}
