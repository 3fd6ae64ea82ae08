//! Transitions of the renewal of one lease: state, report and next delay after each reply. Plain data, no I/O.

use std::time::Duration;

use crate::{
    backend::session::lease_pool::LeaseState,
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
    Failing { sent: Moment, backoff: Backoff },
    /// The store does not know the lease. There are no further renewals.
    Lost,
}

/// Renewals of one lease. A backend sends a renewal after each [`delay`](Self::delay) and reports its outcome to
/// [`transition`](Self::transition).
///
/// Failed renewals are repeated for ever: after a restart etcd gives an old lease its full TTL again.
#[derive(Debug)]
pub struct Renewal {
    state: State,
    retry: BackoffPolicy,
}

/// Returns the state after the reply to a renewal that was sent at `sent`. `retry`: the delays after failures.
fn next(state: State, sent: Moment, reply: &RenewalReply, retry: BackoffPolicy) -> State {
    match (state, reply) {
        (State::Lost, _) | (_, RenewalReply::LeaseNotFound) => State::Lost,
        (_, RenewalReply::Acknowledged) => State::Renewed { sent },
        (State::Renewed { sent }, RenewalReply::Failed(_)) => State::Failing { sent, backoff: retry.start() },
        (failing @ State::Failing { .. }, RenewalReply::Failed(_)) => failing,
    }
}

impl Renewal {
    /// Renewals of a lease whose grant was sent at `granted`. `retry`: the delays after failures.
    pub fn new(granted: Moment, retry: BackoffPolicy) -> Self {
        Self { state: State::Renewed { sent: granted }, retry }
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

    /// Returns the delay before the next renewal: `interval`, or after a failure a growing delay.
    pub fn delay(&mut self, interval: Duration) -> Duration {
        match &mut self.state {
            State::Renewed { .. } => interval,
            State::Failing { backoff, .. } => backoff.next_delay(),
            State::Lost => LONGEST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    fn failed() -> RenewalReply {
        RenewalReply::Failed(Error::LeaseLost)
    }

    fn renewal() -> (Renewal, Moment) {
        let granted = Moment::now();
        let retry = BackoffPolicy::new(Duration::from_millis(100), Duration::from_secs(1)).unwrap();
        (Renewal::new(granted, retry), granted)
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
    async fn a_lost_lease_stays_lost() {
        let (mut renewal, _) = renewal();
        for reply in [RenewalReply::LeaseNotFound, RenewalReply::Acknowledged, failed()] {
            assert!(matches!(renewal.transition(Moment::now(), reply), LeaseState::Lost));
        }
        assert_eq!(renewal.delay(INTERVAL), LONGEST);
    }
}
