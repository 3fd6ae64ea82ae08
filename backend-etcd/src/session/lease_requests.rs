//! Requests for leases without a task: grants without renewal, and revocations.

use std::{sync::Arc, time::Duration};

use enlist::{
    Backoff, BackoffPolicy, Error, LeaseId, Revision,
    backend::{permanent_error_delay, whole_seconds},
};

use crate::{
    client::{connection::request_channel::Clients, requests::response::header_revision, store_client::StoreClient},
    error::Failure,
};

/// TTL of a lease that is granted only to learn the revision of the store. It is revoked once the reply has arrived.
const PROOF_TTL: Duration = Duration::from_secs(5);

/// Grants a lease that is never renewed: keys under it end once `ttl` has passed.
pub(crate) async fn grant_unrenewed(client: &StoreClient, ttl: Duration) -> Result<LeaseId, Failure> {
    let seconds = i64::try_from(whole_seconds(ttl).as_secs()).unwrap_or(i64::MAX);
    let grant = |mut clients: Clients| async move { clients.lease.grant(seconds, None).await };
    Ok(LeaseId::new(client.control.call("lease grant", grant).await?.id()))
}

/// Returns the revision of the store, from a write that concurrent callers share. Unlike a read, a write is never
/// stale. The write is the grant of a lease, which is revoked in the background.
pub(crate) async fn revision_by_a_write(client: &Arc<StoreClient>) -> Result<Revision, Failure> {
    client.write_proofs.share(grant_for_its_revision(client)).await
}

async fn grant_for_its_revision(client: &Arc<StoreClient>) -> Result<Revision, Failure> {
    let seconds = i64::try_from(PROOF_TTL.as_secs()).unwrap_or(i64::MAX);
    let grant = |mut clients: Clients| async move { clients.lease.grant(seconds, None).await };
    let granted = client.control.call("lease grant", grant).await?;
    let (lease, revoking) = (LeaseId::new(granted.id()), Arc::clone(client));
    client.in_background("revoke", async move { revoke_within(&revoking, lease, PROOF_TTL).await });
    Ok(header_revision(granted.header()))
}

/// Revokes a lease. If the store does not answer, the lease runs out.
pub(crate) async fn revoke(client: &StoreClient, id: LeaseId) {
    let revoke = |mut clients: Clients| async move { clients.lease.revoke(id.get()).await };
    match client.control.ask("lease revoke", revoke).await {
        Ok(_) | Err(Failure::LeaseNotFound) => {}
        Err(failure) => tracing::debug!(lease = id.get(), cause = %failure, "lease not revoked, it runs out"),
    }
}

/// Reaction to a revocation that is refused until an operator intervenes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnRefusal {
    /// The lease runs out.
    GiveUp,
    /// It is repeated at a slow pace: its acknowledgement is the only proof.
    Repeat,
}

/// Returns the delay after a revocation that failed with `error`; `None` if it is not repeated.
fn delay_after(error: &Error, on_refusal: OnRefusal, backoff: &mut Backoff) -> Option<Duration> {
    match on_refusal {
        _ if error.is_retryable() => Some(backoff.next_delay()),
        OnRefusal::GiveUp => None,
        OnRefusal::Repeat => Some(permanent_error_delay()),
    }
}

/// Revokes a lease until the store acknowledges the revocation, or does not know the lease.
pub(crate) async fn revoke_for_good(client: &StoreClient, id: LeaseId) {
    revoke_until_answered(client, id, OnRefusal::Repeat).await;
}

/// Revokes a lease whose end is not awaited: until that is acknowledged or refused, or the lease has run out after
/// `ttl`.
pub(crate) async fn revoke_within(client: &StoreClient, id: LeaseId, ttl: Duration) {
    let revoking = revoke_until_answered(client, id, OnRefusal::GiveUp);
    if tokio::time::timeout(ttl, revoking).await.is_err() {
        tracing::debug!(lease = id.get(), "lease not revoked, it has run out");
    }
}

async fn revoke_until_answered(client: &StoreClient, id: LeaseId, on_refusal: OnRefusal) {
    let revoke = |mut clients: Clients| async move { clients.lease.revoke(id.get()).await };
    let mut backoff = BackoffPolicy::default().start();
    loop {
        let failure = match client.control.call("lease revoke", revoke).await {
            Ok(_) | Err(Failure::LeaseNotFound) => return,
            Err(failure) => failure,
        };
        tracing::debug!(lease = id.get(), cause = %failure, "lease not revoked yet");
        let Some(delay) = delay_after(&failure.into_error("lease revoke"), on_refusal, &mut backoff) else { return };
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = client.control.recovered() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::text_cause;

    #[test]
    fn a_refused_revocation_is_repeated_only_for_its_acknowledgement() {
        let mut backoff = BackoffPolicy::default().start();
        let denied = Failure::Denied.into_error("lease revoke");
        assert_eq!(delay_after(&denied, OnRefusal::GiveUp, &mut backoff), None);
        let slow = delay_after(&denied, OnRefusal::Repeat, &mut backoff);
        assert!(slow.is_some_and(|delay| delay >= Duration::from_secs(10)), "{slow:?}");
        let lost = Failure::Lost(text_cause("silent")).into_error("lease revoke");
        for on_refusal in [OnRefusal::GiveUp, OnRefusal::Repeat] {
            let soon = delay_after(&lost, on_refusal, &mut backoff);
            assert!(soon.is_some_and(|delay| delay < Duration::from_secs(10)), "{soon:?}");
        }
    }
}
