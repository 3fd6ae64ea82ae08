//! Rule by which a pool repeats a call.

use std::{fmt, time::Duration};

use crate::runtime::backoff::BackoffPolicy;

/// Rule by which a call is tried again, and its limits. The decision is the caller's: only it knows whether a call that
/// failed may have been done.
pub struct Retry<E> {
    accepts: Judge<E>,
    /// The errors that speak against the instance, if not those that are tried again.
    against: Option<Judge<E>>,
    pub(super) attempts: u32,
    pub(super) deadline: Duration,
    pub(super) backoff: BackoffPolicy,
    pub(super) no_instance: NoInstance,
}

/// Reaction of a call to which no instance can be assigned.
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

/// Judgement of the user about an error.
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

    /// Sets which errors speak against the instance that answered with them, see
    /// [`PoolOptions::ejection`](crate::PoolOptions::ejection). An attempt that the deadline cut short always does,
    /// unless the call had waited for an instance, see [`wait_for_ready`](Self::wait_for_ready). Default: those that
    /// are tried again.
    #[must_use]
    pub fn against(mut self, against: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        self.against = Some(Box::new(against));
        self
    }

    /// Sets how many attempts there are in all. Zero counts as one.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Sets how long all attempts may take together.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the delays between attempts. An instance that was not tried yet is tried without one.
    #[must_use]
    pub fn backoff(mut self, backoff: BackoffPolicy) -> Self {
        self.backoff = backoff;
        self
    }

    /// Lets a call wait within its deadline while no instance can be picked: the service is not known yet, empty, or
    /// known from too long ago. The wait is no attempt. It ends early once the directory is closed. Default: such a
    /// call fails at once.
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
