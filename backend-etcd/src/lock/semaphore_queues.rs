//! Queues of semaphores, for operators. This code takes no part in a queue. See `queues.rs` for those of locks.

use std::collections::BTreeMap;

use enlist::{Error, FencingToken, LockName, Namespace, backend::PermitState};

use crate::{
    etcd::Etcd,
    layout::{LockLayout, PermitEntryValue, QueueKind},
    watch::record::{KeyRange, Record},
};

/// One contender in the queue of a semaphore.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PermitContender {
    /// Fencing token. It also orders the queue: smaller tokens come first.
    pub token: FencingToken,
    /// Requested permits.
    pub permits: u32,
    /// State of its queue entry.
    pub state: PermitState,
    /// Name of the process, as given by itself; `None` if the layout has no field for it. Each client of etcd can write
    /// any text here: show it [escaped](enlist::escape).
    pub process: Option<String>,
}

/// A semaphore and its queue.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SemaphoreQueue {
    /// The semaphore.
    pub name: LockName,
    /// Number of permits; `None` if none is stored, or the stored value cannot be read.
    pub permits: Option<u32>,
    /// Its holders and waiting contenders, in order.
    pub entries: Vec<PermitContender>,
}

impl SemaphoreQueue {
    /// Returns the contenders that hold permits.
    pub fn holders(&self) -> impl Iterator<Item = &PermitContender> {
        self.entries.iter().filter(|entry| entry.state == PermitState::Granted)
    }

    /// Returns the waiting contenders.
    pub fn waiting(&self) -> impl Iterator<Item = &PermitContender> {
        self.entries.iter().filter(|entry| entry.state == PermitState::Waiting)
    }
}

impl Etcd {
    /// Reads a semaphore and its queue.
    ///
    /// # Errors
    ///
    /// Those of [`Semaphore::permits`](enlist::Semaphore::permits).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn semaphore_queue(&self, name: &LockName) -> Result<SemaphoreQueue, Error> {
        self.session.check_open()?;
        let layout = &self.session.lock.lock_layout;
        let number = KeyRange::key(layout.of_semaphores(|layout| layout.permits_key(name))?);
        let queue = layout.queue(QueueKind::Semaphore, name)?;
        let mut read = SemaphoreQueue { name: name.clone(), permits: None, entries: Vec::new() };
        for record in self.read(&number).await? {
            read.permits = self.number(&record)?;
        }
        read.entries.extend(self.read(&queue).await?.iter().filter_map(|record| self.permit_contender(name, record)));
        read.entries.sort_unstable_by_key(|entry| entry.token);
        Ok(read)
    }

    /// Reads all semaphores of a namespace that have a number of permits or a contender, in the order of their names.
    ///
    /// # Errors
    ///
    /// Those of [`semaphore_queue`](Self::semaphore_queue).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn semaphore_queues(&self, namespace: &Namespace) -> Result<Vec<SemaphoreQueue>, Error> {
        self.session.check_open()?;
        let layout = &self.session.lock.lock_layout;
        let numbers = layout.of_semaphores(|layout| layout.permits_range(namespace))?;
        let queues = layout.queues(QueueKind::Semaphore, namespace);
        let queues = queues.ok_or_else(|| Error::Unsupported {
            what: format!("listing semaphores in the layout {}", layout.name()),
        })?;
        let mut found: BTreeMap<LockName, SemaphoreQueue> = BTreeMap::new();
        let empty = |name: &LockName| SemaphoreQueue { name: name.clone(), permits: None, entries: Vec::new() };
        for record in self.read(&numbers).await? {
            let name = layout.of_semaphores(|layout| Ok(layout.semaphore_of(namespace, &record.key)))?;
            let Some(name) = name else { continue };
            found.entry(name).or_insert_with_key(empty).permits = self.number(&record)?;
        }
        for record in self.read(&queues).await? {
            let Some(name) = layout.lock_of(QueueKind::Semaphore, namespace, &record.key) else { continue };
            let Some(entry) = self.permit_contender(&name, &record) else { continue };
            found.entry(name).or_insert_with_key(empty).entries.push(entry);
        }
        let mut found: Vec<SemaphoreQueue> = found.into_values().collect();
        for queue in &mut found {
            queue.entries.sort_unstable_by_key(|entry| entry.token);
        }
        Ok(found)
    }

    async fn read(&self, range: &KeyRange) -> Result<Vec<Record>, Error> {
        let listed = self.session.client.list(range).await;
        listed.map(|(records, _)| records).map_err(|failure| failure.into_error(&range.describe()))
    }

    fn number(&self, record: &Record) -> Result<Option<u32>, Error> {
        self.session.lock.lock_layout.of_semaphores(|layout| Ok(layout.decode_permits(&record.value)))
    }

    fn permit_contender(&self, name: &LockName, record: &Record) -> Option<PermitContender> {
        let layout = &self.session.lock.lock_layout;
        let PermitEntryValue { permits, state } = layout.permit_entry(name, &record.key, &record.value)?;
        let (token, process) = (FencingToken::new(record.created.get()), layout.process(&record.value));
        Some(PermitContender { token, permits, state, process })
    }
}
