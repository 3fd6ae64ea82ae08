//! Queues of locks, for operators. This code takes no part in a queue.

use std::collections::BTreeMap;

use enlist::{Error, FencingToken, LockMode, LockName, Namespace};
use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    error::Failure,
    etcd::Etcd,
    layout::{LockLayout, QueueKind},
    watch::record::Record,
};

/// Maximum number of concurrent reads of locks' marks.
const CONCURRENT_READS: usize = 16;

/// One contender in the queue of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueuedContender {
    /// Fencing token. It also orders the queue: smaller tokens come first.
    pub token: FencingToken,
    /// Requested mode.
    pub mode: LockMode,
    /// Name of the process, as given by itself; `None` if the layout has no field for it. Each client of etcd can write
    /// any text here: show it [escaped](enlist::escape).
    pub process: Option<String>,
}

/// The queue of a lock at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockQueue {
    /// The lock.
    pub name: LockName,
    /// Its holders and waiting contenders, in order.
    pub entries: Vec<QueuedContender>,
    /// `true` while the [`lock_delay`](enlist::LockOptions::lock_delay) of a holder that did not release is running:
    /// the lock has no holder and is not free. Known once the first contender, or a
    /// [`try_acquire`](enlist::Lock::try_acquire), has started the delay.
    pub delayed: bool,
}

impl LockQueue {
    /// Creates the queue. `delays`: modes of the holders that left a mark with a running delay.
    fn new(name: LockName, mut entries: Vec<QueuedContender>, delays: &[LockMode]) -> Self {
        entries.sort_unstable_by_key(|entry| entry.token);
        let delayed = match entries.first() {
            Some(first) => delays.iter().any(|left| left.excludes(first.mode)),
            None => !delays.is_empty(),
        };
        Self { name, entries, delayed }
    }

    /// Returns the holders: none while the lock is [delayed](Self::delayed), else the first entry. If that is shared,
    /// the shared entries right behind it are holders, too.
    pub fn holders(&self) -> &[QueuedContender] {
        if self.delayed {
            return &[];
        }
        let sharing = self.entries.iter().take_while(|entry| entry.mode == LockMode::Shared).count();
        &self.entries[..sharing.max(1).min(self.entries.len())]
    }

    /// Returns the waiting contenders.
    pub fn waiting(&self) -> &[QueuedContender] {
        &self.entries[self.holders().len()..]
    }
}

impl Etcd {
    /// Reads the queue of a lock. Without contenders it has no entries.
    ///
    /// # Errors
    ///
    /// Those of [`Resolver::resolve`](enlist::Resolver::resolve), and of names that the layout of locks cannot carry.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn lock_queue(&self, name: &LockName) -> Result<LockQueue, Error> {
        self.session.check_open()?;
        let layout = &*self.session.lock.lock_layout;
        let range = layout.queue(QueueKind::Lock, name)?;
        let listed = self.session.conn.list(&range).await;
        let (records, _) = listed.map_err(|failure| failure.into_error(&range.describe()))?;
        let entries = records.iter().filter_map(|record| entry(layout, name, record)).collect();
        Ok(LockQueue::new(name.clone(), entries, &self.delays(name).await?))
    }

    /// Reads the modes of the holders that left a mark with a running delay. Such a mark is under a lease, see
    /// `contender/lock_delay.rs`. The contender that has waited for the delay removes the mark when it takes the lock.
    async fn delays(&self, name: &LockName) -> Result<Vec<LockMode>, Error> {
        let layout = &*self.session.lock.lock_layout;
        let Some(range) = layout.marks(QueueKind::Lock, name) else { return Ok(Vec::new()) };
        let marks = match self.session.conn.list(&range).await {
            Ok((marks, _)) => marks,
            // The role is older than the introduction of marks.
            Err(Failure::Denied) => return Ok(Vec::new()),
            Err(failure) => return Err(failure.into_error(&range.describe())),
        };
        let running = marks.iter().filter(|mark| mark.lease.is_some());
        Ok(running.filter_map(|mark| layout.decode_mark(QueueKind::Lock, name, &mark.key, &mark.value)).collect())
    }

    /// Reads the queues of all locks of a namespace that have a contender, in the order of their names.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the layout of locks cannot list them, else as [`lock_queue`](Self::lock_queue).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn lock_queues(&self, namespace: &Namespace) -> Result<Vec<LockQueue>, Error> {
        self.session.check_open()?;
        let layout = &*self.session.lock.lock_layout;
        let range = layout
            .queues(QueueKind::Lock, namespace)
            .ok_or_else(|| Error::Unsupported { what: format!("listing locks in the layout {}", layout.name()) })?;
        let listed = self.session.conn.list(&range).await;
        let (records, _) = listed.map_err(|failure| failure.into_error(&range.describe()))?;
        let mut queues: BTreeMap<LockName, Vec<QueuedContender>> = BTreeMap::new();
        for record in &records {
            let Some(name) = layout.lock_of(QueueKind::Lock, namespace, &record.key) else { continue };
            if let Some(entry) = entry(layout, &name, record) {
                queues.entry(name).or_default().push(entry);
            }
        }
        let read = queues.into_iter().map(|(name, entries)| async {
            let delays = self.delays(&name).await?;
            Ok(LockQueue::new(name, entries, &delays))
        });
        stream::iter(read).buffered(CONCURRENT_READS).try_collect().await
    }
}

fn entry(layout: &dyn LockLayout, name: &LockName, record: &Record) -> Option<QueuedContender> {
    let value = layout.decode(QueueKind::Lock, name, &record.key, &record.value)?;
    let token = FencingToken::new(record.created.get());
    Some(QueuedContender { token, mode: value.mode, process: layout.process(&record.value) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use LockMode::{Exclusive, Shared};

    #[test]
    fn the_first_holds_and_sharers_hold_together() {
        for (modes, holders) in [
            (vec![], 0),
            (vec![Exclusive], 1),
            (vec![Exclusive, Shared, Shared], 1),
            (vec![Shared, Shared, Exclusive, Shared], 2),
            (vec![Shared, Shared], 2),
        ] {
            let entry = |(token, mode)| QueuedContender { token: FencingToken::new(token), mode, process: None };
            let mut entries: Vec<_> = (1..).zip(modes.clone()).map(entry).collect();
            entries.reverse();
            let queue = LockQueue::new(LockName::parse("l").unwrap(), entries, &[]);
            assert_eq!((queue.holders().len(), queue.waiting().len()), (holders, modes.len() - holders), "{modes:?}");
        }
    }

    #[test]
    fn nobody_holds_what_is_delayed_for_the_first() {
        for (modes, delays, delayed) in [
            (vec![], vec![], false),
            (vec![], vec![Shared], true),
            (vec![Exclusive], vec![Shared], true),
            (vec![Shared, Exclusive], vec![Shared], false),
            (vec![Shared, Exclusive], vec![Shared, Exclusive], true),
        ] {
            let entry = |(token, mode)| QueuedContender { token: FencingToken::new(token), mode, process: None };
            let entries: Vec<_> = (1..).zip(modes.clone()).map(entry).collect();
            let queue = LockQueue::new(LockName::parse("l").unwrap(), entries, &delays);
            assert_eq!(queue.delayed, delayed, "{modes:?} {delays:?}");
            let holders = if delayed { 0 } else { modes.len().min(1) };
            assert_eq!((queue.holders().len(), queue.waiting().len()), (holders, modes.len() - holders), "{modes:?}");
        }
    }
}
