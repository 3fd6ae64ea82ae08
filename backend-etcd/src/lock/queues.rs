//! [`Queues`] of an etcd client: the queues of locks and elections, for operators. This code takes no part in a queue.

use std::collections::BTreeMap;

use async_trait::async_trait;
use enlist::{
    ElectionQueue, Error, FencingToken, LockMode, LockName, LockQueue, Namespace, QueuedCandidate, QueuedContender,
    Queues, Revision,
    backend::{election_queue, lock_queue},
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    error::Failure,
    etcd::Etcd,
    layout::{LockLayout, QueueKind},
    watch::record::{KeyRange, Record},
};

/// Maximum number of concurrent reads of marks, in a layout without a range for those of a namespace.
const CONCURRENT_READS: usize = 16;

#[async_trait]
impl Queues for Etcd {
    async fn lock_queue(&self, name: &LockName) -> Result<LockQueue, Error> {
        let (entries, at) = self.queue_entries(QueueKind::Lock, name, contender).await?;
        Ok(lock_queue(name.clone(), entries, &self.delays_of(QueueKind::Lock, name, at).await?))
    }

    async fn lock_queues(&self, namespace: &Namespace) -> Result<Vec<LockQueue>, Error> {
        let queues = self.all_queues(QueueKind::Lock, namespace, contender).await?;
        let queues = queues.into_iter().map(|(name, entries, delays)| lock_queue(name, entries, &delays));
        Ok(queues.collect())
    }

    async fn election_queue(&self, name: &LockName) -> Result<ElectionQueue, Error> {
        let (entries, at) = self.queue_entries(QueueKind::Election, name, candidate).await?;
        Ok(election_queue(name.clone(), entries, &self.delays_of(QueueKind::Election, name, at).await?))
    }

    async fn election_queues(&self, namespace: &Namespace) -> Result<Vec<ElectionQueue>, Error> {
        let queues = self.all_queues(QueueKind::Election, namespace, candidate).await?;
        let queues = queues.into_iter().map(|(name, entries, delays)| election_queue(name, entries, &delays));
        Ok(queues.collect())
    }
}

/// Reads an entry of a queue; `None` if the key is not one.
type Decode<E> = fn(&dyn LockLayout, &LockName, &Record) -> Option<E>;

impl Etcd {
    /// Reads the entries of a queue, with the revision of the read.
    async fn queue_entries<E>(
        &self,
        kind: QueueKind,
        name: &LockName,
        decode: Decode<E>,
    ) -> Result<(Vec<E>, Revision), Error> {
        self.session.check_open()?;
        let layout = &*self.session.lock.lock_layout;
        let range = layout.queue(kind, name)?;
        let listed = self.session.client.list(&range).await;
        let (records, at) = listed.map_err(|failure| failure.into_error(&range.describe()))?;
        Ok((records.iter().filter_map(|record| decode(layout, name, record)).collect(), at))
    }

    /// Reads all queues of a namespace, in the order of their names, with the delays that are running.
    async fn all_queues<E: Send>(
        &self,
        kind: QueueKind,
        namespace: &Namespace,
        decode: Decode<E>,
    ) -> Result<Vec<(LockName, Vec<E>, Vec<LockMode>)>, Error> {
        self.session.check_open()?;
        let layout = &*self.session.lock.lock_layout;
        let range = layout.queues(kind, namespace).ok_or_else(|| {
            let kinds = if kind == QueueKind::Lock { "locks" } else { "elections" };
            Error::Unsupported { what: format!("listing {kinds} in the layout {}", layout.name()) }
        })?;
        let listed = self.session.client.list(&range).await;
        let (records, at) = listed.map_err(|failure| failure.into_error(&range.describe()))?;
        let mut queues: BTreeMap<LockName, Vec<E>> = BTreeMap::new();
        for record in &records {
            let Some(name) = layout.lock_of(kind, namespace, &record.key) else { continue };
            if let Some(entry) = decode(layout, &name, record) {
                queues.entry(name).or_default().push(entry);
            }
        }
        if queues.is_empty() {
            return Ok(Vec::new());
        }
        let ranges = match layout.all_marks(kind, namespace) {
            Some(all) => vec![all],
            None => queues.keys().filter_map(|name| layout.marks(kind, name)).collect(),
        };
        let marks = self.marks(ranges, at).await?;
        let with_delays = queues.into_iter().map(|(name, entries)| {
            let delays = delays(layout, kind, &name, &marks);
            (name, entries, delays)
        });
        Ok(with_delays.collect())
    }

    /// Reads the modes of the holders that left a mark with a running delay, at the revision `at` of the entries.
    async fn delays_of(&self, kind: QueueKind, name: &LockName, at: Revision) -> Result<Vec<LockMode>, Error> {
        let layout = &*self.session.lock.lock_layout;
        let ranges: Vec<_> = layout.marks(kind, name).into_iter().collect();
        Ok(delays(layout, kind, name, &self.marks(ranges, at).await?))
    }

    /// Reads the marks in these ranges, in the order of their keys. A role that is older than the introduction of marks
    /// has no permission for them: then a warning is logged, and no delay is known.
    async fn marks(&self, ranges: Vec<KeyRange>, at: Revision) -> Result<Vec<Record>, Error> {
        let reads = ranges.into_iter().map(|range| async move {
            match self.session.client.list_at(&range, at).await {
                Ok(marks) => Ok(Some(marks)),
                Err(Failure::Denied) => Ok(None),
                Err(failure) => Err(failure.into_error(&range.describe())),
            }
        });
        let read: Vec<Option<Vec<Record>>> = stream::iter(reads).buffered(CONCURRENT_READS).try_collect().await?;
        if read.iter().any(Option::is_none) {
            tracing::warn!("no permission to read the marks of locks, queues are shown without their delays");
        }
        let mut marks: Vec<Record> = read.into_iter().flatten().flatten().collect();
        marks.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        Ok(marks)
    }
}

/// Returns the modes of the holders of `name` that left a mark with a running delay. Such a mark is under a lease, see
/// `contender/lock_delay.rs`. The contender that has waited for the delay removes the mark when it takes the lock.
/// `marks`: those of this queue, and maybe of others, in the order of their keys.
fn delays(layout: &dyn LockLayout, kind: QueueKind, name: &LockName, marks: &[Record]) -> Vec<LockMode> {
    let Some(range) = layout.marks(kind, name) else { return Vec::new() };
    let first = marks.partition_point(|mark| &*mark.key < range.bounds().0);
    let own = marks[first..].iter().take_while(|mark| range.contains(&mark.key));
    let running = own.filter(|mark| mark.lease.is_some());
    running.filter_map(|mark| layout.decode_mark(kind, name, &mark.key, &mark.value)).collect()
}

fn contender(layout: &dyn LockLayout, name: &LockName, record: &Record) -> Option<QueuedContender> {
    let value = layout.decode(QueueKind::Lock, name, &record.key, &record.value)?;
    let (token, process) = (FencingToken::new(record.created.get()), layout.process(&record.value));
    Some(QueuedContender { token, mode: value.mode, process, created: record.created })
}

fn candidate(layout: &dyn LockLayout, name: &LockName, record: &Record) -> Option<QueuedCandidate> {
    let value = layout.decode(QueueKind::Election, name, &record.key, &record.value)?.text;
    let Record { created, modified, .. } = *record;
    Some(QueuedCandidate { token: FencingToken::new(created.get()), value, created, modified })
}
