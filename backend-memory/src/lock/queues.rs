//! [`Queues`] of a memory client: the queues of locks and elections, as they are in the store.

use async_trait::async_trait;
use enlist::{
    ElectionQueue, Error, LockMode, LockName, LockQueue, Namespace, QueuedCandidate, QueuedContender, Queues,
    backend::{election_queue, lock_queue},
};

use crate::{
    client::MemoryClient,
    lock::contender::token,
    store::{Group, Kind, Record, Store, Value},
};

#[async_trait]
impl Queues for MemoryClient {
    async fn lock_queue(&self, name: &LockName) -> Result<LockQueue, Error> {
        self.inner.check_open()?;
        self.inner.link.ask(|store, _| lock(store, name.clone())).await
    }

    async fn lock_queues(&self, namespace: &Namespace) -> Result<Vec<LockQueue>, Error> {
        self.inner.check_open()?;
        self.inner
            .link
            .ask(|store, _| names(store, Kind::Lock, namespace).map(|name| lock(store, name)).collect())
            .await
    }

    async fn election_queue(&self, name: &LockName) -> Result<ElectionQueue, Error> {
        self.inner.check_open()?;
        self.inner.link.ask(|store, _| election(store, name.clone())).await
    }

    async fn election_queues(&self, namespace: &Namespace) -> Result<Vec<ElectionQueue>, Error> {
        self.inner.check_open()?;
        let read = |store: &mut Store, _| {
            let names = names(store, Kind::Election, namespace);
            names.map(|name| election(store, name)).collect()
        };
        self.inner.link.ask(read).await
    }
}

/// Returns the names of locks or elections with a queue entry, in order.
fn names<'a>(store: &Store, kind: Kind, namespace: &'a Namespace) -> impl Iterator<Item = LockName> + use<'a> {
    let name = |name| LockName::parse(name).expect("groups of queue entries are named after locks");
    store.names(kind, namespace).into_iter().map(move |group| name(group).within(namespace.clone()))
}

fn lock(store: &Store, name: LockName) -> LockQueue {
    let contender = |record: &Record, mode, process: &str| QueuedContender {
        token: token(record),
        mode,
        process: Some(process.to_owned()),
        created: record.created,
    };
    let queue = Group::queue(Kind::Lock, &name);
    let entries = entries(store, &queue).map(|(record, mode, text)| contender(record, mode, text)).collect();
    let delays = delays(store, Kind::LockMark, &name);
    lock_queue(name, entries, &delays)
}

fn election(store: &Store, name: LockName) -> ElectionQueue {
    let candidate = |record: &Record, value: &str| QueuedCandidate {
        token: token(record),
        value: value.to_owned(),
        created: record.created,
        modified: record.modified,
    };
    let queue = Group::queue(Kind::Election, &name);
    let entries = entries(store, &queue).map(|(record, _, text)| candidate(record, text)).collect();
    let delays = delays(store, Kind::ElectionMark, &name);
    election_queue(name, entries, &delays)
}

fn entries<'a>(store: &'a Store, group: &'a Group) -> impl Iterator<Item = (&'a Record, LockMode, &'a str)> {
    store.range(group).filter_map(|(_, record)| match &record.value {
        Value::QueueEntry { mode, text } => Some((record, *mode, text.as_str())),
        Value::Instance { .. } | Value::PermitEntry { .. } | Value::Permits(_) | Value::Raw(_) => None,
    })
}

/// Returns the modes of the holders that left a mark with a running delay: such a mark is under a lease.
fn delays(store: &Store, kind: Kind, name: &LockName) -> Vec<LockMode> {
    let marks = Group::queue(kind, name);
    let running = entries(store, &marks).filter(|(record, ..)| record.lease.is_some());
    running.map(|(_, mode, _)| mode).collect()
}
