//! Transitions of the renewal of one lease: state, report and next delay after each reply. Plain data, no I/O.

use std::time::Duration;

use crate::{
    backend::{retries::permanent_error_delay, session::lease_pool::LeaseState},
    error::Error,
    runtime::{
        backoff::{Backoff, BackoffPolicy},
        clock::{LONGEST, Moment},
    },
};

/// Outcome of one renewal.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a renewal is acknowledged, refused, or not answered")]
pub enum RenewalReply {
    /// The store has acknowledged it.
    Acknowledged,
    /// The store does not know the lease.
    LeaseNotFound,
    /// The renewal was not answered. The lease may still be alive.
    Failed(Error),
}

/// State of the renewals of a lease.
#[derive(Clone, Debug)]
enum State {
    /// The last renewal was acknowledged. It was sent at `sent`.
    Renewed { sent: Moment },
    /// Renewals have failed since the one that was sent at `sent`.
    Failing { sent: Moment, backoff: Backoff, failures: FailureKind },
    /// The store does not know the lease. There are no further renewals.
    Lost,
}

/// Kind of the last failures.
#[derive(Clone, Copy, Debug)]
enum FailureKind {
    /// The store may answer soon.
    Transient,
    /// An operator has to repair it. All failures since this time were of this kind.
    Permanent { since: Moment },
}

impl FailureKind {
    /// Returns the kind after a failure at `now`.
    fn after(self, cause: &Error, now: Moment) -> Self {
        match self {
            _ if cause.is_retryable() => Self::Transient,
            Self::Transient => Self::Permanent { since: now },
            permanent @ Self::Permanent { .. } => permanent,
        }
    }
}

/// Renewals of one lease. A backend sends a renewal after each [`delay`](Self::delay) and reports its outcome to
/// [`transition`](Self::transition).
///
/// Failed renewals are repeated for ever: after a restart etcd gives an old lease its full TTL again. If they are
/// refused permanently for a whole TTL, the lease has expired, and they slow down.
#[derive(Debug)]
pub struct Renewal {
    state: State,
    ttl: Duration,
    retry: BackoffPolicy,
}

/// Returns the state after the reply to a renewal that was sent at `sent`. `retry`: the delays after failures.
fn next(state: State, sent: Moment, reply: &RenewalReply, retry: BackoffPolicy) -> State {
    match (state, reply) {
        (State::Lost, _) | (_, RenewalReply::LeaseNotFound) => State::Lost,
        (_, RenewalReply::Acknowledged) => State::Renewed { sent },
        (State::Renewed { sent: renewed }, RenewalReply::Failed(cause)) => {
            let failures = FailureKind::Transient.after(cause, sent);
            State::Failing { sent: renewed, backoff: retry.start(), failures }
        }
        (State::Failing { sent: renewed, backoff, failures }, RenewalReply::Failed(cause)) => {
            State::Failing { sent: renewed, backoff, failures: failures.after(cause, sent) }
        }
    }
}

impl Renewal {
    /// Renewals of a lease with this TTL whose grant was sent at `granted`. `retry`: the delays after failures.
    pub fn new(granted: Moment, ttl: Duration, retry: BackoffPolicy) -> Self {
        Self { state: State::Renewed { sent: granted }, ttl, retry }
    }

    /// Applies the reply to a renewal that was sent at `sent`, and returns the state to report.
    pub fn transition(&mut self, sent: Moment, reply: RenewalReply) -> LeaseState {
        let state = std::mem::replace(&mut self.state, State::Lost);
        self.state = next(state, sent, &reply, self.retry);
        match (&self.state, reply) {
            (State::Renewed { sent }, _) => LeaseState::Alive { sent: *sent },
            (State::Failing { sent, .. }, RenewalReply::Failed(cause)) => LeaseState::Suspect { sent: *sent, cause },
            (State::Failing { .. } | State::Lost, _) => LeaseState::Lost,
        }
    }

    /// Returns the delay before the next renewal: `interval`, or after a failure a growing delay, which after permanent
    /// refusals for a whole TTL is at least that of every other request.
    pub fn delay(&mut self, interval: Duration) -> Duration {
        match &mut self.state {
            State::Renewed { .. } => interval,
            State::Failing { backoff, failures: FailureKind::Permanent { since }, .. }
                if since.elapsed() >= self.ttl =>
            {
                backoff.next_delay().max(permanent_error_delay())
            }
            State::Failing { backoff, .. } => backoff.next_delay(),
            State::Lost => LONGEST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::retries::PERMANENT_ERROR_RETRY;

    const INTERVAL: Duration = Duration::from_secs(5);

    const TTL: Duration = Duration::from_secs(15);

    fn failed() -> RenewalReply {
        RenewalReply::Failed(Error::unavailable("no answer"))
    }

    fn renewal() -> (Renewal, Moment) {
        let granted = Moment::now();
        let retry = BackoffPolicy::new(Duration::from_millis(100), Duration::from_secs(1)).unwrap();
        (Renewal::new(granted, TTL, retry), granted)
    }

    #[tokio::test(start_paused = true)]
    async fn failures_keep_the_time_of_the_last_acknowledged_renewal() {
        let (mut renewal, granted) = renewal();
        assert_eq!(renewal.delay(INTERVAL), INTERVAL);
        for _ in 0..3 {
            tokio::time::advance(INTERVAL).await;
            let state = renewal.transition(Moment::now(), failed());
            assert!(matches!(state, LeaseState::Suspect { sent, .. } if sent.since(granted).is_zero()), "{state:?}");
            assert!(renewal.delay(INTERVAL) <= Duration::from_secs(1));
        }
        tokio::time::advance(INTERVAL).await;
        let state = renewal.transition(Moment::now(), RenewalReply::Acknowledged);
        assert!(matches!(state, LeaseState::Alive { sent } if sent.since(granted) == INTERVAL * 4), "{state:?}");
        assert_eq!(renewal.delay(INTERVAL), INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn delays_begin_anew_after_an_acknowledged_renewal() {
        let (mut renewal, _) = renewal();
        for _ in 0..20 {
            renewal.transition(Moment::now(), failed());
            renewal.delay(INTERVAL);
        }
        renewal.transition(Moment::now(), RenewalReply::Acknowledged);
        renewal.transition(Moment::now(), failed());
        assert!(renewal.delay(INTERVAL) <= Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn permanent_refusals_slow_down_after_a_ttl() {
        let (mut renewal, _) = renewal();
        let mut after = async |pause: Duration, reply: RenewalReply| {
            tokio::time::advance(pause).await;
            renewal.transition(Moment::now(), reply);
            renewal.delay(INTERVAL) >= PERMANENT_ERROR_RETRY
        };
        let refused = || RenewalReply::Failed(Error::PermissionDenied { what: "lease renewal".into() });
        assert!(!after(INTERVAL, refused()).await);
        assert!(!after(INTERVAL * 2, refused()).await, "the lease may still be renewed in time");
        assert!(after(INTERVAL, refused()).await);
        assert!(!after(INTERVAL, failed()).await, "the store does not answer");
        assert!(!after(TTL * 2, refused()).await, "a store that is back may have revived the lease");
        assert!(after(TTL, refused()).await);
        assert!(!after(INTERVAL, RenewalReply::Acknowledged).await);
        assert!(!after(INTERVAL, refused()).await, "the TTL begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn permanent_refusals_speed_nothing_up() {
        let retry = BackoffPolicy::new(PERMANENT_ERROR_RETRY * 10, PERMANENT_ERROR_RETRY * 10).unwrap();
        let mut renewal = Renewal::new(Moment::now(), TTL, retry);
        for _ in 0..2 {
            renewal.transition(Moment::now(), RenewalReply::Failed(Error::PermissionDenied { what: "x".into() }));
            tokio::time::advance(TTL).await;
        }
        assert!(renewal.delay(INTERVAL) > PERMANENT_ERROR_RETRY * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_stays_lost() {
        let (mut renewal, _) = renewal();
        for reply in [RenewalReply::LeaseNotFound, RenewalReply::Acknowledged, failed()] {
            assert!(matches!(renewal.transition(Moment::now(), reply), LeaseState::Lost));
        }
        assert_eq!(renewal.delay(INTERVAL), LONGEST);
    }
}
