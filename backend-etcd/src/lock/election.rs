//! [`Election`] of an etcd client: the holder of the queue is the leader, and its entry has a value.

use std::sync::Arc;

use async_trait::async_trait;
use enlist::{
    Election, Error, FencingToken, Freshness, Leader, LeaderWatcher, Leadership, LockName, LockOptions, TaskOwner,
    backend::{Publisher, contender::Wanted, leader_watcher},
};

use crate::{
    etcd::Etcd,
    layout::{LockLayout, QueueKind},
    watch::{record::Record, replica::Replica},
};

#[async_trait]
impl Election for Etcd {
    async fn campaign(&self, name: &LockName, value: &str, options: LockOptions) -> Result<Leadership, Error> {
        self.contend(name, Wanted::Leadership(value.to_owned()), options).await?.into_leadership()
    }

    async fn leader(&self, name: &LockName) -> Result<Option<Leader>, Error> {
        self.session.check_open()?;
        let layout = &*self.session.lock.lock_layout;
        let range = layout.queue(QueueKind::Election, name)?;
        let listed = self.session.client.list(&range).await;
        let (records, _) = listed.map_err(|failure| failure.into_error(&range.describe()))?;
        Ok(first(layout, name, records.iter()))
    }

    async fn observe(&self, name: &LockName) -> Result<LeaderWatcher, Error> {
        self.session.check_open()?;
        let layout = Arc::clone(&self.session.lock.lock_layout);
        let range = layout.queue(QueueKind::Election, name)?;
        let mut reader = self.session.lock.range_watches.view(&range)?;
        // Its age is the age of the followed watch, also while the leader stays the same.
        let publisher = Arc::new(Publisher::proven_by(reader.proof()));
        let tasks = TaskOwner::on(self.session.lifecycle.runtime());
        let (leaders, name) = (Arc::clone(&publisher), name.clone());
        let follow = async move {
            loop {
                match reader.next().await {
                    Ok(update) => {
                        let leader = leader_of(&*layout, &name, &update.value);
                        match update.freshness {
                            Freshness::Stale { proven, cause } => leaders.publish_stale(leader, proven, cause),
                            freshness => leaders.publish(leader, freshness.proven()),
                        }
                    }
                    Err(Error::Closed) => return leaders.close(),
                    Err(error) => leaders.refuse(error),
                }
            }
        };
        tasks.spawn_until_stopped("observe", follow)?;
        Ok(leader_watcher(publisher.reader(Arc::new((tasks, Arc::clone(&self.session))))))
    }
}

fn leader_of(layout: &dyn LockLayout, name: &LockName, replica: &Replica) -> Option<Leader> {
    first(layout, name, replica.records())
}

/// Returns the leader: the entry with the smallest creation revision.
fn first<'a>(layout: &dyn LockLayout, name: &LockName, records: impl Iterator<Item = &'a Record>) -> Option<Leader> {
    let candidates = records.filter_map(|record| {
        let value = layout.decode(QueueKind::Election, name, &record.key, &record.value)?;
        Some((record, value))
    });
    let (record, value) = candidates.min_by_key(|(record, _)| record.created)?;
    Some(Leader { value: value.text, token: FencingToken::new(record.created.get()), modified: record.modified })
}
