//! Detection of a restore of the store to an earlier state. All signs of one lead to the same check, one at a time.
//!
//! A reply at a lower revision than before can come from a member that lags, and some releases answer stale reads under
//! stress (etcd-io/etcd#20418). So a read is only a reason for a write, which proves the revision. A restore is not
//! noticed if the store has reached its former revision again by the time of the check.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use enlist::{BackoffPolicy, Revision};

use crate::{
    client::store_client::StoreClient,
    error::Failure,
    session::{lease_requests::revision_by_a_write, leases::Leases},
};

/// Pause between two checks, which bounds the cost of a member that lags.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Checks the revision of the store whenever it may have gone back, until the session ends.
pub(crate) async fn notice_rollbacks(client: Arc<StoreClient>, leases: Weak<Leases>) {
    loop {
        client.store.suspected().await;
        let Some(noted) = leases.upgrade().map(|leases| leases.rollbacks()) else { return };
        let seen = client.store.highest();
        let now = revision(&client, seen).await;
        if now < seen {
            let Some(leases) = leases.upgrade() else { return };
            leases.store_went_back(noted, now);
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Returns the revision of the store: from a read if that is not below `seen`, else from a write.
async fn revision(client: &Arc<StoreClient>, seen: Revision) -> Revision {
    let mut backoff = BackoffPolicy::default().start();
    loop {
        let read = client.revision_by_a_read().await;
        let answer = match read {
            Ok(now) if now >= seen => return now,
            Ok(_) | Err(Failure::Denied) => revision_by_a_write(client).await,
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(now) => return now,
            Err(failure) => tracing::debug!(cause = %failure, "not known yet whether the store went back"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = client.control.recovered() => {}
        }
    }
}
