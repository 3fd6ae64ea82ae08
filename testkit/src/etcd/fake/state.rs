//! State of the scripted etcd, which its services and its handle share.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use enlist::backend::MutexExt as _;
use etcd_client::proto::{PbTxnRequest, PbTxnResponse};
use tokio::{sync::watch, time::Instant};
use tonic::{Status, metadata::MetadataMap};

use super::{
    misbehavior::{Minority, Misbehaved, Misbehavior},
    store::{Content, Store},
};

/// Consistency of a request. A serializable one does not need a quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consistency {
    Serializable,
    Linearizable,
}

#[derive(Debug)]
pub(super) struct FakeState {
    pub(super) store: Mutex<Store>,
    /// Latest revision.
    pub(super) revision: watch::Sender<i64>,
    pub(super) frozen: watch::Sender<bool>,
    /// State without a quorum, if any.
    pub(super) minority: watch::Sender<Option<Minority>>,
    /// Renewals are not answered.
    pub(super) renewals_held: watch::Sender<bool>,
    /// Leases are not revoked.
    pub(super) revocations_held: watch::Sender<bool>,
    /// Requests for the remaining time of leases are not answered.
    pub(super) lease_queries_held: watch::Sender<bool>,
    /// Number of times that expired leases were looked for.
    pub(super) expiry_rounds: watch::Sender<u64>,
    /// Minimum time between messages of a watch.
    pub(super) pause: Mutex<Duration>,
}

impl FakeState {
    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.locked()
    }

    /// Replaces the content of the store.
    pub(super) fn replace(&self, content: Content) {
        let mut store = self.store();
        store.replace(content);
        let revision = store.revision;
        drop(store);
        self.revision.send_replace(revision);
    }

    /// Waits until the server is not frozen, with a request or a message.
    pub(super) async fn awake(&self) {
        self.released(&self.frozen).await;
    }

    /// Waits until renewals are answered.
    pub(super) async fn renewals_released(&self) {
        self.released(&self.renewals_held).await;
    }

    /// Waits until leases are revoked.
    pub(super) async fn revocations_released(&self) {
        self.released(&self.revocations_held).await;
    }

    /// Waits until requests for the remaining time of leases are answered.
    pub(super) async fn lease_queries_released(&self) {
        self.released(&self.lease_queries_held).await;
    }

    /// Waits until the server is not frozen, without a request that counts.
    pub(super) async fn thawed(&self) {
        wait_while(&self.frozen).await;
    }

    /// Waits while requests or messages are `held` back, and counts that.
    async fn released(&self, held: &watch::Sender<bool>) {
        if *held.borrow() {
            self.count_delay();
        }
        wait_while(held).await;
    }

    /// Counts a request or a message that is delayed.
    pub(super) fn count_delay(&self) {
        self.store().delays += 1;
    }

    /// Renews a lease. Returns its TTL in seconds, 0 if there is none: at once, or when it is revoked if it has
    /// expired.
    pub(super) async fn renew(&self, lease: i64) -> i64 {
        let (mut rounds, arrived) = (self.expiry_rounds.subscribe(), Instant::now());
        loop {
            if let Some(ttl) = self.store().renew(lease, arrived) {
                return ttl;
            }
            // `self` owns the sender, so waiting cannot fail.
            let _ = rounds.changed().await;
        }
    }

    /// Waits for the quorum, unless the request does not need one. Refuses the request if there is no leader.
    pub(super) async fn quorum(&self, metadata: &MetadataMap, consistency: Consistency) -> Result<(), Status> {
        let mut minority = self.minority.subscribe();
        let now = *minority.borrow_and_update();
        match now {
            Some(Minority::Leaderless)
                if metadata.contains_key("hasleader") || consistency == Consistency::Linearizable =>
            {
                Err(Status::unavailable("etcdserver: no leader"))
            }
            Some(Minority::Silent) if consistency == Consistency::Linearizable => {
                // `self` owns the sender, so waiting cannot fail.
                let _ = minority.wait_for(Option::is_none).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Runs `act` at one new revision.
    pub(super) fn change<T>(&self, act: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let (before, result) = store.at_next_revision(act);
        let now = store.revision;
        drop(store);
        if now != before {
            self.revision.send_replace(now);
        }
        result
    }

    pub(super) fn check_permission(&self) -> Result<(), Status> {
        let mut store = self.store();
        if !store.denies {
            return Ok(());
        }
        store.requests.denied += 1;
        Err(Status::permission_denied("etcdserver: permission denied"))
    }

    pub(super) fn txn(&self, request: PbTxnRequest) -> Result<PbTxnResponse, Status> {
        self.check_permission()?;
        {
            let mut store = self.store();
            store.requests.txns += 1;
            store.requests.txn_times.push(Instant::now());
        }
        if let Some(answer) = self.store().read_only_txn(&request) {
            return answer;
        }
        self.change(|store| store.txn(request))
    }

    /// Takes the next misbehavior, if it is one of `these`.
    pub(super) fn next_misbehavior(&self, these: impl Fn(&Misbehavior) -> bool) -> Option<Misbehavior> {
        let mut store = self.store();
        if !store.misbehavior.front().is_some_and(these) {
            return None;
        }
        let next = store.misbehavior.pop_front();
        store.misbehaved.extend(next.map(|misbehavior| Misbehaved { at: Instant::now(), misbehavior }));
        next
    }
}

/// Waits while something is `held`. The caller owns the sender, so waiting cannot fail.
async fn wait_while(held: &watch::Sender<bool>) {
    let _ = held.subscribe().wait_for(|held| !held).await;
}
