//! Task of one lease: renews it, and revokes it at the end. Compare `enlist-etcd`'s file of the same name, which also
//! grants the lease and revokes retired leases. The two tasks stay separate, because writes of unknown outcome do not
//! occur here.

use std::time::Duration;

use enlist::{
    BackoffPolicy, LeaseId, Moment,
    backend::{LeaseState, Renewal, RenewalReply},
};
use tokio::sync::watch;

use crate::{
    session::lease::LeaseSignals,
    watch::shared_store::{Link, up},
};

/// Task of one lease.
pub(crate) struct LeaseTask {
    pub(crate) link: Link,
    pub(crate) id: LeaseId,
    pub(crate) ttl: Duration,
    /// Time from one renewal to the next.
    pub(crate) interval: Duration,
    /// Time at which the grant was sent.
    pub(crate) granted: Moment,
    pub(crate) reports: watch::Sender<LeaseState>,
    pub(crate) signals: LeaseSignals,
}

impl LeaseTask {
    /// Renews the lease until its end, and revokes it if its last use was dropped.
    pub(crate) async fn run(self) {
        tokio::select! {
            biased;
            () = self.signals.abandoned.cancelled() => {}
            () = self.signals.unused.cancelled() => self.revoke().await,
            () = self.renew() => {}
        }
    }

    /// Renews until the store does not know the lease any more.
    async fn renew(&self) {
        let retry = BackoffPolicy::new(self.interval / 10, self.interval).unwrap_or_default();
        let mut renewal = Renewal::new(self.granted, self.ttl, retry);
        loop {
            tokio::time::sleep(renewal.delay(self.interval)).await;
            let sent = Moment::now();
            let reply = match self.link.ask(|store, now| store.keep_alive(self.id, now)).await {
                Ok(Some(_)) => RenewalReply::Acknowledged,
                Ok(None) => RenewalReply::LeaseNotFound,
                Err(cause) => RenewalReply::Failed(cause),
            };
            let state = renewal.transition(sent, reply);
            let lost = matches!(state, LeaseState::Lost);
            self.reports.send_replace(state);
            if lost {
                return;
            }
        }
    }

    /// Revokes the lease once the store answers. After its TTL the lease has expired without a revocation.
    async fn revoke(&self) {
        let mut link = self.link.watch();
        let revoking = async {
            while self.link.ask(|store, _| store.revoke(self.id)).await.is_err() {
                up(&mut link).await;
            }
        };
        let _ = tokio::time::timeout(self.ttl, revoking).await;
    }
}
