//! Progress of one call through a pool: its attempts, its deadline, and the step after a failure.

use std::time::Duration;

use super::{
    error::{FailedAttempt, PoolError, was_tried},
    retry::{Repeat, Retry},
};
use crate::{
    model::name::InstanceId,
    runtime::{backoff::Backoff, clock::Moment},
};

/// Readiness of the instances during a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// An instance could be picked at each attempt.
    Immediate,
    /// The call has waited for an instance.
    Waited,
}

/// Progress of one call.
pub(super) struct CallProgress<'a, E> {
    pub(super) retry: &'a Retry<E>,
    begun: Moment,
    backoff: Backoff,
    /// The attempts that failed.
    pub(super) previous: Vec<FailedAttempt<E>>,
    pub(super) readiness: Readiness,
}

impl<'a, E> CallProgress<'a, E> {
    /// A call that begins now.
    pub(super) fn new(retry: &'a Retry<E>) -> Self {
        let (begun, backoff) = (Moment::now(), retry.backoff.start());
        Self { retry, begun, backoff, previous: Vec::new(), readiness: Readiness::Immediate }
    }

    /// Time until the deadline; zero once it has passed.
    pub(super) fn remaining(&self) -> Duration {
        self.begun.remaining(self.retry.deadline)
    }

    /// Number of attempts, including the current one.
    fn attempts(&self) -> u32 {
        u32::try_from(self.previous.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// Error of a call whose deadline passed before the attempt at `id` began.
    pub(super) fn ended_before_attempt(mut self, id: InstanceId) -> PoolError<E> {
        let attempts = self.attempts() - 1;
        match self.previous.pop() {
            Some(FailedAttempt { id, cause }) => PoolError::Failed { attempts, id, cause, previous: self.previous },
            None => PoolError::Deadline { attempts, id, previous: self.previous },
        }
    }

    /// Error of a call whose deadline passed during the attempt at `id`.
    pub(super) fn ended_during_attempt(self, id: InstanceId) -> PoolError<E> {
        PoolError::Deadline { attempts: self.attempts(), id, previous: self.previous }
    }

    /// Returns the progress after the attempt at `id` failed, and the delay before the next attempt.
    ///
    /// # Errors
    ///
    /// [`PoolError::Failed`] if there is no further attempt.
    pub(super) fn after_failure(
        mut self,
        id: InstanceId,
        cause: E,
        repeat: Repeat,
    ) -> Result<(Self, Duration), PoolError<E>> {
        let attempts = self.attempts();
        // The delays begin with the second failure of one instance.
        let delay = if was_tried(&self.previous, &id) { self.backoff.next_delay() } else { Duration::ZERO };
        if repeat == Repeat::Refused || attempts >= self.retry.attempts || self.remaining() <= delay {
            return Err(PoolError::Failed { attempts, id, cause, previous: self.previous });
        }
        self.previous.push(FailedAttempt { id, cause });
        Ok((self, delay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> InstanceId {
        InstanceId::parse(name).unwrap()
    }

    fn retry() -> Retry<&'static str> {
        Retry::new(|_| true).attempts(3).deadline(Duration::from_secs(5))
    }

    fn attempts_of(outcome: Result<(CallProgress<'_, &str>, Duration), PoolError<&str>>) -> u32 {
        match outcome.err() {
            Some(PoolError::Failed { attempts, .. }) => attempts,
            other => panic!("unexpected: {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_second_failure_of_an_instance_is_followed_by_a_delay() {
        let retry = retry();
        let (progress, delay) = CallProgress::new(&retry).after_failure(id("a"), "x", Repeat::Accepted).ok().unwrap();
        assert_eq!((delay, progress.previous.len()), (Duration::ZERO, 1));
        let (_, delay) = progress.after_failure(id("a"), "x", Repeat::Accepted).ok().unwrap();
        assert!(!delay.is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_and_the_last_attempt_end_the_call() {
        let retry = retry();
        assert_eq!(attempts_of(CallProgress::new(&retry).after_failure(id("a"), "x", Repeat::Refused)), 1);
        let (progress, _) = CallProgress::new(&retry).after_failure(id("a"), "x", Repeat::Accepted).ok().unwrap();
        let (progress, _) = progress.after_failure(id("b"), "x", Repeat::Accepted).ok().unwrap();
        assert_eq!(attempts_of(progress.after_failure(id("c"), "x", Repeat::Accepted)), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_before_an_attempt_reports_the_attempt_before() {
        let retry = retry();
        let (progress, _) = CallProgress::new(&retry).after_failure(id("a"), "x", Repeat::Accepted).ok().unwrap();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(progress.remaining().is_zero());
        let error = progress.ended_before_attempt(id("b"));
        assert!(matches!(&error, PoolError::Failed { attempts: 1, id: at, .. } if *at == id("a")), "{error:?}");
        let error = CallProgress::new(&retry).ended_before_attempt(id("b"));
        assert!(matches!(&error, PoolError::Deadline { attempts: 0, id: at, .. } if *at == id("b")), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_at_the_deadline_ends_the_call() {
        let (retry, begun) = (retry(), Moment::now());
        let progress = CallProgress { begun, ..CallProgress::new(&retry) };
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(attempts_of(progress.after_failure(id("a"), "x", Repeat::Accepted)), 1);
    }
}
