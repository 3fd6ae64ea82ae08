//! [`Election`] of a memory client: the holder of the queue is the leader, and its entry has a value.

use async_trait::async_trait;
use enlist::{
    Election, Error, Leader, LeaderWatcher, Leadership, LockName, LockOptions,
    backend::{contender::Wanted, leader_watcher},
};

use crate::{
    client::MemoryClient,
    discovery::watcher::WatchedState,
    lock::contender::token,
    store::{Group, KeyChange, Kind, Store, Value},
};

#[async_trait]
impl Election for MemoryClient {
    async fn campaign(&self, name: &LockName, value: &str, options: LockOptions) -> Result<Leadership, Error> {
        self.contend(name, Wanted::Leadership(value.to_owned()), options).await?.into_leadership()
    }

    async fn leader(&self, name: &LockName) -> Result<Option<Leader>, Error> {
        self.inner.check_open()?;
        let group = Group::queue(Kind::Election, name);
        self.inner.link.ask(|store, _| leader(store, &group)).await
    }

    async fn observe(&self, name: &LockName) -> Result<LeaderWatcher, Error> {
        let state = LeaderState { group: Group::queue(Kind::Election, name) };
        Ok(leader_watcher(self.follow(state)?))
    }
}

fn leader(store: &Store, group: &Group) -> Option<Leader> {
    let (_, record) = store.range(group).min_by_key(|(_, record)| record.created)?;
    let Value::QueueEntry { text, .. } = &record.value else {
        return None;
    };
    Some(Leader { value: text.clone(), token: token(record), modified: record.modified })
}

struct LeaderState {
    group: Group,
}

impl WatchedState for LeaderState {
    type Value = Option<Leader>;

    fn relist(&mut self, store: &Store, _: enlist::Epoch) -> Self::Value {
        leader(store, &self.group)
    }

    fn apply(&mut self, store: &Store, _: &mut dyn Iterator<Item = &KeyChange>) -> Self::Value {
        leader(store, &self.group)
    }
}
