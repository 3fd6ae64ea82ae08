//! Requests for leases that no task keeps: grants without renewal, and revocations.

use std::time::Duration;

use enlist::{BackoffPolicy, LeaseId, Revision, backend::whole_seconds};

use crate::{
    client::{connection::Connection, request_channel::Clients, response::header_revision},
    error::Failure,
};

/// TTL of a lease that is granted only to learn the revision of the store. It is revoked at once, if the reply arrives.
const PROOF_TTL: Duration = Duration::from_secs(5);

/// Grants a lease that is never renewed: keys under it end once `ttl` has passed.
pub(crate) async fn grant_unrenewed(conn: &Connection, ttl: Duration) -> Result<LeaseId, Failure> {
    let seconds = i64::try_from(whole_seconds(ttl).as_secs()).unwrap_or(i64::MAX);
    let grant = |mut clients: Clients| async move { clients.lease.grant(seconds, None).await };
    Ok(LeaseId::new(conn.fast.call("lease grant", grant).await?.id()))
}

/// Returns the revision of the store as a write finds it. Unlike a read, a write is never stale. The write is the grant
/// of a lease, which is revoked again.
pub(crate) async fn revision_by_a_write(conn: &Connection) -> Result<Revision, Failure> {
    let seconds = i64::try_from(PROOF_TTL.as_secs()).unwrap_or(i64::MAX);
    let grant = |mut clients: Clients| async move { clients.lease.grant(seconds, None).await };
    let granted = conn.fast.call("lease grant", grant).await?;
    revoke(conn, LeaseId::new(granted.id())).await;
    Ok(header_revision(granted.header()))
}

/// Revokes a lease. If the store does not answer, the lease runs out.
pub(crate) async fn revoke(conn: &Connection, id: LeaseId) {
    let revoke = |mut clients: Clients| async move { clients.lease.revoke(id.get()).await };
    match conn.fast.ask("lease revoke", revoke).await {
        Ok(_) | Err(Failure::LeaseNotFound) => {}
        Err(failure) => tracing::debug!(lease = id.get(), cause = %failure, "lease not revoked, it runs out"),
    }
}

/// Revokes a lease until the store has acknowledged that it is gone, or does not know it.
pub(crate) async fn revoke_for_good(conn: &Connection, id: LeaseId) {
    let revoke = |mut clients: Clients| async move { clients.lease.revoke(id.get()).await };
    let mut backoff = BackoffPolicy::default().start();
    loop {
        match conn.fast.call("lease revoke", revoke).await {
            Ok(_) | Err(Failure::LeaseNotFound) => return,
            Err(failure) => tracing::debug!(lease = id.get(), cause = %failure, "lease not revoked yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = conn.fast.recovered() => {}
        }
    }
}
