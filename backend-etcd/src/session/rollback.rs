//! Confirms that the store was restored to an earlier state.

use std::sync::Arc;

use enlist::{BackoffPolicy, Revision};

use crate::session::{lease_requests::revision_by_a_write, leases::Leases};

/// Investigates a read that was answered at a lower revision than `seen`, and reports a rollback to `leases` once it is confirmed.
///
/// Some releases answer stale reads under stress (etcd-io/etcd#20418), so only a write shows that the store went back. `noted`: the
/// [rollbacks](Leases::rollbacks) at the time of what showed this one.
pub(crate) fn may_have_gone_back(leases: &Arc<Leases>, seen: Revision, noted: u64) {
    let (conn, weak) = (Arc::clone(leases.connection()), Arc::downgrade(leases));
    let confirm = async move {
        let mut backoff = BackoffPolicy::default().start();
        loop {
            match revision_by_a_write(&conn).await {
                Ok(now) if now < seen => break,
                Ok(_) => return,
                Err(failure) => tracing::debug!(cause = %failure, "not known yet whether the store went back"),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
        if let Some(leases) = weak.upgrade() {
            leases.store_went_back(noted);
        }
    };
    // After the end of the session its leases are revoked anyway.
    let _ = leases.lifecycle().tasks.spawn_until_stopped("rollback", confirm);
}
