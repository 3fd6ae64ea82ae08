//! Elections: the line of a lock whose first says something about itself.

use std::sync::Arc;

use async_trait::async_trait;
use enlist::{
    Election, Error, FencingToken, Freshness, Leader, LeaderWatcher, Leadership, LockMode, LockName, LockOptions,
    TaskOwner, backend::Publisher,
};

use crate::{
    etcd::Etcd,
    layout::{LockLayout, QueueKind},
    lock::{Want, Won},
    watch::{record::Record, replica::Replica},
};

#[async_trait]
impl Election for Etcd {
    async fn campaign(&self, name: &LockName, value: &str, options: LockOptions) -> Result<Leadership, Error> {
        if options.mode == LockMode::Shared {
            return Err(Error::invalid_config("mode", "there is one leader: an election has no shared mode"));
        }
        let want = Want { line: QueueKind::Election, text: value.to_owned(), wait: true };
        match self.stand(name, want, options).await? {
            Won::Leadership(leadership) => Ok(leadership),
            Won::Lock(_) | Won::Nothing => Err(Error::Closed),
        }
    }

    async fn leader(&self, name: &LockName) -> Result<Option<Leader>, Error> {
        self.session.check_open()?;
        let layout = &*self.session.lock.lock_layout;
        let range = layout.queue(QueueKind::Election, name)?;
        let listed = self.session.conn.list(&range).await;
        let (records, _) = listed.map_err(|failure| failure.into_error(&range.describe()))?;
        Ok(first(layout, name, records.iter()))
    }

    async fn observe(&self, name: &LockName) -> Result<LeaderWatcher, Error> {
        self.session.check_open()?;
        let layout = Arc::clone(&self.session.lock.lock_layout);
        let range = layout.queue(QueueKind::Election, name)?;
        let mut reader = self.session.lock.hub.view(&range)?;
        // As old as the watch that it follows, also while nobody else is elected.
        let feed = Arc::new(Publisher::proven_by(reader.proof()));
        let tasks = TaskOwner::on(self.session.lifecycle.runtime());
        let (leaders, name) = (Arc::clone(&feed), name.clone());
        let follow = async move {
            loop {
                match reader.next().await {
                    Ok(reading) => {
                        let leader = leader_of(&*layout, &name, &reading.value);
                        match reading.freshness {
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
        Ok(LeaderWatcher::new(feed.reader(Arc::new((tasks, Arc::clone(&self.session))))))
    }
}

fn leader_of(layout: &dyn LockLayout, name: &LockName, mirror: &Replica) -> Option<Leader> {
    first(layout, name, mirror.records())
}

/// The first in line, by creation.
fn first<'a>(layout: &dyn LockLayout, name: &LockName, records: impl Iterator<Item = &'a Record>) -> Option<Leader> {
    let candidates = records.filter_map(|record| {
        let value = layout.decode(QueueKind::Election, name, &record.key, &record.value)?;
        Some((record, value))
    });
    let (record, value) = candidates.min_by_key(|(record, _)| record.created)?;
    Some(Leader { value: value.text, token: FencingToken::new(record.created.get()), modified: record.modified })
}
