//! Pure decisions about another attempt of a call. Calls that provably never left are always repeated, and calls that
//! the server refused are repeated once. All others are repeated by policy, as the gRPC retry specification describes
//! (gRFC A6).

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use enlist::{Backoff, BackoffPolicy};
use http::HeaderMap;
use tonic::Code;
use tower::retry::budget::{Budget as _, TpsBudget};

use crate::retry::failure::Reach;

/// Header with which a server sets the delay of the next attempt, or forbids it.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Maximum number of attempts by gRFC A6.
const MAX_ATTEMPTS: u32 = 5;

/// Maximum number of times that a call that never left is sent to another instance.
const MAX_MOVES: u32 = 8;

/// Retries of a method after an error status, or after a call that may have been executed. Only for methods that can be
/// repeated.
#[derive(Clone, Debug)]
#[must_use]
pub struct RetryPolicy {
    attempts: u32,
    backoff: BackoffPolicy,
    codes: Vec<Code>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl RetryPolicy {
    /// Three attempts after `UNAVAILABLE`, with delays of 50 ms growing to 1 s. A connection lost during a call counts
    /// as `UNAVAILABLE`. A stream that was reset has the code that gRPC's specification assigns to the reason.
    pub fn new() -> Self {
        let backoff = BackoffPolicy::new(Duration::from_millis(50), Duration::from_secs(1)).unwrap_or_default();
        Self { attempts: 3, backoff, codes: vec![Code::Unavailable] }
    }

    /// Sets the total number of attempts: from 1 to 5, by gRFC A6.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.clamp(1, MAX_ATTEMPTS);
        self
    }

    /// Sets the delays between attempts. A server can set another one with `grpc-retry-pushback-ms`.
    pub fn backoff(mut self, backoff: BackoffPolicy) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets the codes after which there is another attempt.
    pub fn codes(mut self, codes: impl IntoIterator<Item = Code>) -> Self {
        self.codes = codes.into_iter().collect();
        self
    }
}

/// Retry policies by method, and the budget of all retries.
#[derive(Default)]
pub(crate) struct Retries {
    policies: HashMap<String, Arc<RetryPolicy>>,
    budget: TpsBudget,
}

impl fmt::Debug for Retries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retries").field("policies", &self.policies).finish_non_exhaustive()
    }
}

impl Retries {
    pub(crate) fn new(policies: HashMap<String, RetryPolicy>, budget: TpsBudget) -> Self {
        let policies = policies.into_iter().map(|(method, policy)| (method, Arc::new(policy))).collect();
        Self { policies, budget }
    }

    /// The policy of the method at `path`: its own, else that of its service (`/package.Service/`), else that of all
    /// (empty).
    pub(crate) fn policy(&self, path: &str) -> Option<Arc<RetryPolicy>> {
        if self.policies.is_empty() {
            return None;
        }
        let service = path.rfind('/').map(|slash| &path[..=slash]);
        [Some(path), service, Some("")].into_iter().flatten().find_map(|name| self.policies.get(name)).cloned()
    }

    /// Adds a call to the budget, as a share of a later retry.
    pub(crate) fn deposit(&self) {
        self.budget.deposit();
    }

    /// Takes one retry out of the budget.
    pub(crate) fn take_retry(&self) -> TakenRetry {
        if self.budget.withdraw() { TakenRetry::Granted } else { TakenRetry::Exhausted }
    }
}

/// Outcome of taking a retry out of the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TakenRetry {
    Granted,
    /// No retry is left: too many calls were repeated lately.
    Exhausted,
}

/// Outcome of an attempt that could be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// There was no response, which counts as `code`.
    Failed { reach: Reach, code: Code },
    /// The response was a status and nothing else.
    Responded { code: Code, pushback: Pushback },
}

/// Request of the server about the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushback {
    None,
    After(Duration),
    Never,
}

impl Pushback {
    /// Reads the header. By gRFC A6, a value that is no number of milliseconds of 32 bits with a sign, or is negative,
    /// means never.
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(PUSHBACK) else {
            return Self::None;
        };
        let milliseconds = value.to_str().ok().and_then(|text| text.parse::<i32>().ok());
        let milliseconds = milliseconds.and_then(|milliseconds| u64::try_from(milliseconds).ok());
        milliseconds.map_or(Self::Never, |milliseconds| Self::After(Duration::from_millis(milliseconds)))
    }
}

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct Attempts {
    policy: Option<Arc<RetryPolicy>>,
    backoff: Option<Backoff>,
    /// Attempts that were sent.
    sent: u32,
    /// Attempts that were not sent.
    moved: u32,
    /// A server refused an attempt: gRFC A6 repeats it once without a policy, since each one costs time on the wire.
    refused: bool,
}

impl Attempts {
    pub(crate) fn new(policy: Option<Arc<RetryPolicy>>) -> Self {
        Self { policy, backoff: None, sent: 0, moved: 0, refused: false }
    }

    /// Number of attempts that were sent; the next one states it to the server.
    pub(crate) fn sent(&self) -> u32 {
        self.sent
    }

    /// Returns the delay before another attempt; `None` if there is none.
    pub(crate) fn again(&mut self, ended: Ended) -> Option<Duration> {
        let (code, pushback) = match ended {
            Ended::Failed { reach: Reach::NeverSent, .. } => {
                self.moved += 1;
                return (self.moved <= MAX_MOVES).then_some(Duration::ZERO);
            }
            Ended::Failed { reach: Reach::Refused, .. } if !self.refused => {
                self.refused = true;
                return Some(Duration::ZERO);
            }
            Ended::Failed { reach: Reach::OutOfTime, .. } => return None,
            Ended::Failed { reach: Reach::Refused | Reach::Unknown, code } => (code, Pushback::None),
            Ended::Responded { code, pushback } => (code, pushback),
        };
        self.sent += 1;
        let policy = self.policy.as_ref()?;
        if self.sent >= policy.attempts || !policy.codes.contains(&code) {
            return None;
        }
        match pushback {
            Pushback::None => Some(self.backoff.get_or_insert_with(|| policy.backoff.start()).next_delay()),
            Pushback::After(delay) => {
                // The delays after a pushback start over, as in grpc-go.
                self.backoff = None;
                Some(delay)
            }
            Pushback::Never => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST: Ended = failed(Reach::Unknown, Code::Unavailable);

    const fn failed(reach: Reach, code: Code) -> Ended {
        Ended::Failed { reach, code }
    }

    fn responded(code: Code, pushback: Pushback) -> Ended {
        Ended::Responded { code, pushback }
    }

    #[test]
    fn options_leave_each_other_unchanged() {
        let policy = RetryPolicy::new().attempts(5).backoff(BackoffPolicy::default()).codes([Code::Aborted]);
        assert_eq!((policy.attempts, policy.codes), (5, vec![Code::Aborted]));
        let policy = RetryPolicy::new().codes([Code::Aborted]).backoff(BackoffPolicy::default()).attempts(5);
        assert_eq!((policy.attempts, policy.codes), (5, vec![Code::Aborted]));
    }

    #[test]
    fn retries_are_a_share_of_the_calls() {
        let retries = Retries::new(HashMap::new(), TpsBudget::new(Duration::from_secs(10), 0, 0.5));
        assert_eq!(retries.take_retry(), TakenRetry::Exhausted);
        retries.deposit();
        retries.deposit();
        assert_eq!([retries.take_retry(), retries.take_retry()], [TakenRetry::Granted, TakenRetry::Exhausted]);
    }

    #[test]
    fn unsent_calls_go_elsewhere_a_few_times() {
        let mut attempts = Attempts::new(None);
        let never_sent = failed(Reach::NeverSent, Code::Unavailable);
        assert!((0..MAX_MOVES).all(|_| attempts.again(never_sent) == Some(Duration::ZERO)));
        assert_eq!(attempts.again(never_sent), None);
    }

    #[test]
    fn executed_calls_are_repeated_only_by_policy() {
        assert_eq!(Attempts::new(None).again(LOST), None);
        let policy = Arc::new(RetryPolicy::new());
        let mut attempts = Attempts::new(Some(Arc::clone(&policy)));
        assert!(attempts.again(LOST).is_some_and(|delay| delay > Duration::ZERO));
        assert_eq!(attempts.sent(), 1);
        assert!(attempts.again(LOST).is_some_and(|delay| delay > Duration::ZERO));
        assert_eq!(attempts.again(LOST), None, "three attempts in all");
        assert_eq!(Attempts::new(Some(Arc::clone(&policy))).again(failed(Reach::OutOfTime, Code::Unavailable)), None);
    }

    #[test]
    fn responses_are_repeated_by_code() {
        let policy = Arc::new(RetryPolicy::new().attempts(9));
        let again = |code, pushback| Attempts::new(Some(Arc::clone(&policy))).again(responded(code, pushback));
        assert!(again(Code::Unavailable, Pushback::None).is_some_and(|delay| delay > Duration::ZERO));
        assert_eq!(again(Code::Internal, Pushback::None), None);
    }

    #[test]
    fn there_are_five_attempts_at_most() {
        let mut attempts = Attempts::new(Some(Arc::new(RetryPolicy::new().attempts(9))));
        let made = (1..).take_while(|_| attempts.again(responded(Code::Unavailable, Pushback::None)).is_some());
        assert_eq!(made.count(), 4, "after the first one");
    }

    #[test]
    fn a_pushback_determines_the_next_attempt() {
        let policy = Arc::new(RetryPolicy::new().attempts(9));
        let again = |code, pushback| Attempts::new(Some(Arc::clone(&policy))).again(responded(code, pushback));
        assert_eq!(again(Code::Unavailable, Pushback::Never), None);
        let second = Duration::from_secs(1);
        assert_eq!(again(Code::Unavailable, Pushback::After(second)), Some(second));
        assert_eq!(again(Code::Internal, Pushback::After(second)), None, "by the code, there is none");
    }

    #[test]
    fn a_pushback_that_is_no_number_means_never() {
        let read = |value: &'static str| {
            Pushback::read(&HeaderMap::from_iter([(PUSHBACK.parse().unwrap(), value.parse().unwrap())]))
        };
        assert_eq!(read("25"), Pushback::After(Duration::from_millis(25)));
        assert_eq!((read("-1"), read("soon")), (Pushback::Never, Pushback::Never));
        assert_eq!(read("2147483647"), Pushback::After(Duration::from_millis(2_147_483_647)));
        assert_eq!(read("2147483648"), Pushback::Never);
        assert_eq!(Pushback::read(&HeaderMap::new()), Pushback::None);
    }

    #[test]
    fn a_method_has_the_closest_policy() {
        let policies = [("", 2), ("/p.S/", 3), ("/p.S/M", 4)];
        let policies = policies.map(|(name, attempts)| (name.to_owned(), RetryPolicy::new().attempts(attempts)));
        let retries = Retries::new(HashMap::from(policies), TpsBudget::default());
        let attempts = |path| retries.policy(path).map(|policy| policy.attempts);
        assert_eq!([attempts("/p.S/M"), attempts("/p.S/N"), attempts("/p.T/M")], [Some(4), Some(3), Some(2)]);
        assert!(Retries::default().policy("/p.S/M").is_none());
    }

    #[test]
    fn reset_calls_are_repeated_by_code() {
        let again = |code| Attempts::new(Some(Arc::new(RetryPolicy::new()))).again(failed(Reach::Unknown, code));
        assert!(again(Code::Unavailable).is_some());
        assert_eq!([Code::Internal, Code::Cancelled, Code::ResourceExhausted].map(again), [None; 3]);
    }

    #[test]
    fn a_refused_call_is_sent_once_more() {
        let refused = failed(Reach::Refused, Code::Unavailable);
        let mut attempts = Attempts::new(None);
        assert_eq!((attempts.again(refused), attempts.sent()), (Some(Duration::ZERO), 0));
        assert_eq!(attempts.again(refused), None);
        let mut attempts = Attempts::new(Some(Arc::new(RetryPolicy::new())));
        assert_eq!(attempts.again(refused), Some(Duration::ZERO));
        let made = (1..).take_while(|_| attempts.again(refused).is_some());
        assert_eq!(made.count(), 2, "three attempts in all");
    }

    #[test]
    fn a_pushback_starts_the_backoff_anew() {
        let policy = Arc::new(RetryPolicy::new().attempts(5));
        let mut attempts = Attempts::new(Some(policy));
        let mut again = |pushback| attempts.again(responded(Code::Unavailable, pushback)).unwrap();
        again(Pushback::None);
        again(Pushback::None);
        again(Pushback::After(Duration::from_secs(1)));
        let delay = again(Pushback::None);
        assert!(delay <= Duration::from_millis(50), "{delay:?}");
    }
}
