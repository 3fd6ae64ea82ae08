//! Task of one lease: requests its grant, renews it, and revokes it at the end. Compare `enlist-memory`'s file of the
//! same name, which neither grants the lease nor retires it.
//!
//! ```text
//! waiting for a permit ─► granting ─► renewing ─► unused ────► revoked
//!                                              ├► abandoned ─► runs out
//!                                              └► lost
//! ```

use std::{
    sync::{Arc, Mutex, Weak, atomic::Ordering},
    time::Duration,
};

use enlist::{
    Counters, LeaseId, Moment,
    backend::{LeasePoolKey, LeaseTerms, MutexExt as _},
};
use etcd_client::LeaseGrantOptions;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::{
    client::{connection::request_channel::Clients, store_client::StoreClient},
    deliberate_defects::DeliberateDefect,
    error::Failure,
    session::{
        issued_leases::IssuedLeases,
        lease::{KeptLease, Lease, LeaseReports, LeaseSignals},
        lease_requests::{revoke, revoke_for_good, revoke_within},
        renewal::LeaseRenewer,
        shared_leases::{GrantOutcome, SharedLeases},
    },
};

/// Receiver of a lease that is to be granted.
pub(crate) enum Recipient {
    /// A caller that does not share the lease.
    Caller(oneshot::Sender<Result<Arc<Lease>, Failure>>),
    /// All callers that wait for a lease of a pool.
    Pool(LeasePoolKey, watch::Sender<GrantOutcome>),
}

impl Recipient {
    /// Returns `true` while at least one caller waits for the lease.
    fn is_waiting(&self) -> bool {
        match self {
            Self::Caller(caller) => !caller.is_closed(),
            // The pool itself holds one receiver.
            Self::Pool(_, waiting) => waiting.receiver_count() > 1,
        }
    }

    /// Delivers the lease, or the failure. A lease that no caller accepts is dropped, which revokes it.
    fn deliver(self, outcome: Result<Arc<KeptLease>, Failure>, shared: &Weak<Mutex<SharedLeases>>) {
        match self {
            // The caller may be gone.
            Self::Caller(caller) => drop(caller.send(outcome.map(|kept| Arc::new(Lease::unshared(kept))))),
            Self::Pool(key, waiting) => {
                if let Some(shared) = shared.upgrade() {
                    let granted = outcome.as_ref().ok().cloned();
                    shared.locked().finish_grant(key, granted);
                }
                waiting.send_replace(Some(outcome.map(drop)));
            }
        }
    }
}

/// Reason for the end of the renewals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RenewalEnd {
    /// The last use was dropped.
    Unused,
    /// The lease is left to run out.
    Abandoned,
    /// The store does not know the lease any more.
    Lost,
}

/// Request to send once the renewals have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Revocation {
    /// None: the lease is gone, or runs out.
    None,
    /// Repeated within its TTL, unless it is refused. By then the lease has run out, and its end is not awaited.
    WithinTtl,
    /// Repeated until it is acknowledged: only a write through the log proves that no later write under the lease is
    /// applied.
    UntilAcknowledged,
}

/// Returns the revocation that follows the end of the renewals of a lease that `is_retired`.
fn revocation(end: RenewalEnd, is_retired: Retirement) -> Revocation {
    match (end, is_retired) {
        (RenewalEnd::Abandoned, _) | (RenewalEnd::Lost, Retirement::InUse) => Revocation::None,
        (RenewalEnd::Unused | RenewalEnd::Lost, Retirement::Retired) => Revocation::UntilAcknowledged,
        (RenewalEnd::Unused, Retirement::InUse) => Revocation::WithinTtl,
    }
}

/// Use of a lease for new keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retirement {
    /// New keys may be created under it.
    InUse,
    /// A write of unknown outcome may yet create a key under it.
    Retired,
}

/// Task of a lease that is to be granted.
pub(crate) struct LeaseTask {
    pub(crate) client: Arc<StoreClient>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) issued: Arc<IssuedLeases>,
    /// Not the pools themselves: they end with the session.
    pub(crate) shared: Weak<Mutex<SharedLeases>>,
    /// Limits the number of concurrent grants of leases that are not shared.
    pub(crate) grants: Arc<Semaphore>,
    pub(crate) terms: LeaseTerms,
    pub(crate) recipient: Recipient,
}

/// A granted lease that is kept.
struct Granted {
    renewer: LeaseRenewer,
    reports: LeaseReports,
    issued: Arc<IssuedLeases>,
}

impl LeaseTask {
    pub(crate) async fn run(self) {
        if let Some(granted) = self.get_granted().await {
            granted.keep().await;
        }
    }

    /// Requests the grant and delivers the lease. `None`: there is no lease to keep.
    async fn get_granted(mut self) -> Option<Granted> {
        let grants = Arc::clone(&self.grants);
        let permit = match &mut self.recipient {
            Recipient::Pool(..) => None,
            Recipient::Caller(caller) => tokio::select! {
                permit = grants.acquire_owned() => permit.ok(),
                // Nothing was sent for it.
                () = caller.closed() => return None,
            },
        };
        let sent = Moment::now();
        let granted = self.grant().await;
        drop(permit);
        let Self { client, counters, issued, shared, terms, recipient, .. } = self;
        let (id, ttl) = match granted {
            Ok(granted) => granted,
            Err(failure) => {
                recipient.deliver(Err(failure), &shared);
                return None;
            }
        };
        if ttl != terms.ttl() {
            tracing::warn!(lease = id.get(), asked = ?terms.ttl(), granted = ?ttl, "lease granted with another TTL");
        }
        let (reports, signals) = (LeaseReports::new(sent), Arc::<LeaseSignals>::default());
        let lease = KeptLease::new(id, ttl, &reports, &signals, Arc::downgrade(&issued));
        issued.add(id);
        recipient.deliver(Ok(lease), &shared);
        let interval = terms.renewal_interval(ttl);
        let renewer = LeaseRenewer { client, counters, id, ttl, interval, granted: sent, signals };
        Some(Granted { renewer, reports, issued })
    }

    /// Grants a lease under an id chosen here, so that a grant without an answer can be repeated without creating a
    /// second lease. A grant is not repeated once no caller waits for it; a lease that may have been granted is then
    /// revoked.
    async fn grant(&self) -> Result<(LeaseId, Duration), Failure> {
        let seconds = i64::try_from(self.terms.ttl().as_secs()).unwrap_or(i64::MAX);
        let id = LeaseId::new(fastrand::i64(1..));
        let grant = |mut clients: Clients| async move {
            clients.lease.grant(seconds, Some(LeaseGrantOptions::new().with_id(id.get()))).await
        };
        let mut repeated = false;
        loop {
            match self.client.control.call("lease grant", grant).await {
                Ok(granted) => return Ok((id, Duration::from_secs(granted.ttl().unsigned_abs()))),
                Err(failure) if failure.is_ambiguous() && !self.recipient.is_waiting() => {
                    revoke(&self.client, id).await;
                    return Err(failure);
                }
                Err(failure) if failure.is_ambiguous() && !repeated => repeated = true,
                Err(Failure::LeaseExists) if repeated => {
                    let (_, ttl) = self.client.time_to_live(id).await?.ok_or(Failure::LeaseNotFound)?;
                    return Ok((id, ttl));
                }
                Err(failure) => return Err(failure),
            }
        }
    }
}

impl Granted {
    /// Renews the lease until its end, and revokes it if necessary.
    async fn keep(self) {
        let Self { renewer, reports, issued } = self;
        let LeaseSignals { unused, abandoned, retired, .. } = &*renewer.signals;
        let end = tokio::select! {
            biased;
            () = abandoned.cancelled() => RenewalEnd::Abandoned,
            () = unused.cancelled() => RenewalEnd::Unused,
            () = renewer.run(&reports) => RenewalEnd::Lost,
        };
        if end == RenewalEnd::Lost {
            // Its holders may still retire it.
            unused.cancelled().await;
        }
        let retirement = if retired.load(Ordering::Acquire) { Retirement::Retired } else { Retirement::InUse };
        match revocation(end, retirement) {
            Revocation::None => {}
            Revocation::WithinTtl if DeliberateDefect::LeasesLeaked.is_on() => {}
            Revocation::WithinTtl => revoke_within(&renewer.client, renewer.id, renewer.ttl).await,
            Revocation::UntilAcknowledged => {
                revoke_for_good(&renewer.client, renewer.id).await;
                reports.revoked.send_replace(true);
            }
        }
        issued.remove(renewer.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_lease_is_revoked_until_acknowledged_even_if_it_is_lost() {
        for end in [RenewalEnd::Unused, RenewalEnd::Lost] {
            assert_eq!(revocation(end, Retirement::Retired), Revocation::UntilAcknowledged);
        }
    }

    #[test]
    fn an_abandoned_lease_is_left_to_run_out() {
        for retirement in [Retirement::InUse, Retirement::Retired] {
            assert_eq!(revocation(RenewalEnd::Abandoned, retirement), Revocation::None);
        }
    }

    #[test]
    fn an_unused_lease_is_revoked_within_its_ttl() {
        assert_eq!(revocation(RenewalEnd::Unused, Retirement::InUse), Revocation::WithinTtl);
        assert_eq!(revocation(RenewalEnd::Lost, Retirement::InUse), Revocation::None);
    }
}
