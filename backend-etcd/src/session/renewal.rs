//! Renewals of one lease. The transitions after each reply are in [`enlist::backend::Renewal`].
//!
//! Each renewal is a separate stream with one request. Its reply has a deadline, after which the next renewal is sent
//! to another member at once. A long-lived stream can be stuck behind a frozen leader for the whole life of the lease.

use std::{sync::Arc, time::Duration};

use enlist::{
    BackoffPolicy, Counter, Counters, LeaseId, Moment,
    backend::{LeaseState, Renewal, RenewalReply, Timer, count, measured},
    with_causes,
};

use crate::{
    client::{connection::request_channel::Clients, store_client::StoreClient},
    deliberate_defects::DeliberateDefect,
    error::Failure,
    session::lease::{LeaseReports, LeaseSignals},
};

/// Maximum time for which a renewal waits for its reply.
const MAX_RENEWAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Renews one lease.
pub(crate) struct LeaseRenewer {
    pub(crate) client: Arc<StoreClient>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) id: LeaseId,
    pub(crate) ttl: Duration,
    /// Time from one renewal to the next.
    pub(crate) interval: Duration,
    /// Time at which the grant was sent.
    pub(crate) granted: Moment,
    pub(crate) signals: Arc<LeaseSignals>,
}

/// Returns the time for which a renewal waits for its reply: short against the TTL, so that several fit before the
/// lease runs out.
fn renewal_timeout(ttl: Duration) -> Duration {
    (ttl / 6).min(MAX_RENEWAL_TIMEOUT)
}

/// Returns the time between two successful renewals: `interval` with 10 % jitter.
fn jittered(interval: Duration) -> Duration {
    if let Some(late) = DeliberateDefect::late_renewal(interval) {
        return late;
    }
    interval.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// Returns the delays after failures: short against the TTL, and no longer than the interval.
fn retry_delays(ttl: Duration, interval: Duration) -> BackoffPolicy {
    let longest = (ttl / 6).min(interval);
    let first = (ttl / 50).max(Duration::from_millis(20)).min(longest);
    BackoffPolicy::new(first, longest).unwrap_or_default()
}

impl LeaseRenewer {
    /// Renews until the store does not know the lease any more.
    pub(crate) async fn run(&self, reports: &LeaseReports) {
        let mut renewal = Renewal::new(self.granted, self.ttl, retry_delays(self.ttl, self.interval));
        loop {
            let delay = renewal.delay(jittered(self.interval));
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.signals.renewal_wanted.notified() => {}
            }
            let sent = Moment::now();
            let reply = self.renew(sent).await;
            let state = renewal.transition(sent, reply);
            let lost = matches!(state, LeaseState::Lost);
            reports.report(state);
            if lost {
                return;
            }
        }
    }

    async fn renew(&self, sent: Moment) -> RenewalReply {
        let id = self.id.get();
        let renew = |mut clients: Clients| async move { clients.lease.keep_alive(id).await };
        match self.client.control.ask_within("lease renewal", renewal_timeout(self.ttl), renew).await {
            Ok(_) => {
                count(&self.counters, Counter::Renewals);
                measured(Timer::Renewal, sent.elapsed());
                RenewalReply::Acknowledged
            }
            Err(Failure::LeaseNotFound) => {
                tracing::warn!(lease = id, "lease lost");
                count(&self.counters, Counter::LeaseLosses);
                RenewalReply::LeaseNotFound
            }
            Err(failure) => {
                let cause = failure.into_error("lease renewal");
                tracing::debug!(lease = id, cause = %with_causes(&cause), "lease not renewed");
                RenewalReply::Failed(cause)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use enlist::backend::LeaseTerms;

    use super::*;

    #[test]
    fn several_renewals_fit_into_a_ttl_even_if_each_goes_unanswered() {
        for seconds in [2, 5, 15, 60] {
            let ttl = Duration::from_secs(seconds);
            let interval = LeaseTerms::new(ttl, None).renewal_interval(ttl);
            assert!(jittered(interval) + renewal_timeout(ttl) * 2 < ttl);
            assert!(renewal_timeout(ttl) <= MAX_RENEWAL_TIMEOUT);
        }
    }

    #[test]
    fn a_failed_renewal_is_repeated_no_later_than_the_next_one_is_due() {
        for seconds in [2, 15, 3600] {
            let ttl = Duration::from_secs(seconds);
            for interval in [Duration::from_millis(500), ttl / 3] {
                let mut backoff = retry_delays(ttl, interval).start();
                assert!((0..20).all(|_| backoff.next_delay() <= interval), "{ttl:?}, {interval:?}");
            }
        }
    }

    #[test]
    fn a_renewal_waits_for_a_sixth_of_the_ttl_at_most() {
        let waits = [6, 12, 60].map(|seconds| renewal_timeout(Duration::from_secs(seconds)).as_secs());
        assert_eq!(waits, [1, 2, 2]);
    }

    #[test]
    fn renewals_are_spread_around_their_interval() {
        let interval = Duration::from_secs(10);
        let times: Vec<_> = (0..100).map(|_| jittered(interval)).collect();
        assert!(
            times.iter().all(|time| (Duration::from_secs(9)..=Duration::from_secs(11)).contains(time)),
            "{times:?}"
        );
        assert!(times.iter().any(|time| *time < interval) && times.iter().any(|time| *time > interval));
    }

    #[test]
    fn failed_renewals_are_repeated_at_growing_delays() {
        let (ttl, interval) = (Duration::from_secs(15), Duration::from_secs(5));
        for _ in 0..100 {
            let mut backoff = retry_delays(ttl, interval).start();
            assert!(backoff.next_delay() <= ttl / 50);
            let delays: Vec<_> = (0..20).map(|_| backoff.next_delay()).collect();
            assert!(delays.iter().all(|delay| *delay <= ttl / 6) && delays[19] >= ttl / 12, "{delays:?}");
        }
    }
}
