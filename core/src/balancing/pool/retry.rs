//! Rule for repeating a call through a pool.

use std::{fmt, time::Duration};

use crate::runtime::backoff::BackoffPolicy;

/// Rule for repeating a call, with its limits. The decision is the caller's, because only the caller knows whether a
/// failed call may have been executed.
pub struct Retry<E> {
    accepts: Judge<E>,
    /// Errors that count against the instance; `None` for those that are tried again.
    against: Option<Judge<E>>,
    pub(super) attempts: u32,
    pub(super) deadline: Duration,
    pub(super) backoff: BackoffPolicy,
    pub(super) no_instance: NoInstance,
}

/// Behaviour of a call while no instance can be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoInstance {
    /// The call fails at once.
    Fail,
    /// The call waits within its deadline.
    Wait,
}

/// Decision about another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// The error allows another attempt.
    Accepted,
    /// The error is final.
    Refused,
}

/// Cause of a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// The error counts against the instance.
    Instance,
    /// The error is one of the call; the instance works.
    Call,
}

/// Judgement of a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) repeat: Repeat,
    pub(super) blame: Blame,
}

/// Predicate of the user over an error.
type Judge<E> = Box<dyn Fn(&E) -> bool + Send + Sync>;

impl<E> Retry<E> {
    /// Tries again, on another instance where there is one, after errors that `retry_if` accepts: at most 3 attempts
    /// within 10 s, with delays of 200 ms growing to 10 s.
    pub fn new(retry_if: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        Self {
            accepts: Box::new(retry_if),
            against: None,
            attempts: 3,
            deadline: Duration::from_secs(10),
            backoff: BackoffPolicy::default(),
            no_instance: NoInstance::Fail,
        }
    }

    /// Never tries again.
    pub fn never() -> Self {
        Self::new(|_| false)
    }

    /// Sets the errors that count against the instance that returned them, see
    /// [`PoolOptions::ejection`](crate::PoolOptions::ejection). An attempt that the deadline cut short always counts,
    /// unless the call had waited for an instance, see [`wait_for_ready`](Self::wait_for_ready). Default: the errors
    /// that are tried again.
    #[must_use]
    pub fn against(mut self, against: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        self.against = Some(Box::new(against));
        self
    }

    /// Sets the maximum number of attempts. Zero counts as one.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Sets the maximum duration of all attempts together.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the delays between attempts. An attempt at an instance that was not tried yet has no delay.
    #[must_use]
    pub fn backoff(mut self, backoff: BackoffPolicy) -> Self {
        self.backoff = backoff;
        self
    }

    /// Lets a call wait within its deadline while no instance can be picked, because the service is not known yet,
    /// empty, or too old. The wait does not count as an attempt. It ends early once the directory is closed. Default:
    /// such a call fails at once.
    #[must_use]
    pub fn wait_for_ready(mut self) -> Self {
        self.no_instance = NoInstance::Wait;
        self
    }

    /// Judges the error of an attempt.
    pub(super) fn judge(&self, cause: &E) -> Judgement {
        let accepted = (self.accepts)(cause);
        let against = self.against.as_ref().map_or(accepted, |against| against(cause));
        Judgement {
            repeat: if accepted { Repeat::Accepted } else { Repeat::Refused },
            blame: if against { Blame::Instance } else { Blame::Call },
        }
    }
}

impl<E> fmt::Debug for Retry<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepts: _, against: _, attempts, deadline, backoff, no_instance } = self;
        let mut shown = f.debug_struct("Retry");
        shown.field("attempts", attempts).field("deadline", deadline).field("backoff", backoff);
        shown.field("no_instance", no_instance).finish_non_exhaustive()
    }
}
