//! Rule for repeating a request to etcd.

use crate::error::Failure;

/// Maximum number of repetitions, within the deadline, of a request that was never sent.
const RESENDS: usize = 3;

/// Maximum number of members that are tried within the deadline of a request, because others did not serve it.
const MEMBERS: usize = 4;

/// Repeatability of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It only reads, or a repetition has the same effect.
    Harmless,
    /// It is repeated only if it was certainly not applied.
    Unsafe,
}

/// Connection of the next request, after one that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextConnection {
    Same,
    /// To another member.
    Another,
}

/// Repetitions of one request so far.
#[derive(Debug, Default)]
pub(super) struct Repetitions {
    /// Repetitions of the unsent request.
    resends: usize,
    /// Repetitions to another member.
    moves: usize,
    /// Repetitions with a new token.
    renewals: usize,
}

impl Repetitions {
    /// Returns `true` if the request is to be repeated after `failure`, and counts the repetition.
    pub(super) fn repeats(&mut self, failure: &Failure, next: NextConnection, repeat: Repeat) -> bool {
        let moves = next == NextConnection::Another && self.moves + 1 < MEMBERS;
        match failure {
            Failure::NeverSent(_) if self.resends < RESENDS => self.resends += 1,
            Failure::Unfit(_) if moves => self.moves += 1,
            Failure::Leaderless(_) if moves && repeat == Repeat::Harmless => self.moves += 1,
            _ => return false,
        }
        true
    }

    /// Returns `true` if the request is to be repeated with a new token, and counts the repetition.
    pub(super) fn renews_token(&mut self, failure: &Failure) -> bool {
        let renews = matches!(failure, Failure::StaleAuthToken(_) | Failure::NoUser(_)) && self.renewals == 0;
        self.renewals += usize::from(renews);
        renews
    }
}

#[cfg(test)]
mod tests {
    use NextConnection::{Another, Same};

    use super::*;
    use crate::error::text_cause;

    fn cause() -> enlist::Cause {
        text_cause("a test")
    }

    #[test]
    fn a_request_that_was_not_done_is_repeated_a_few_times() {
        let mut repetitions = Repetitions::default();
        let mut repeated =
            |failure: &Failure, next| (0..9).filter(|_| repetitions.repeats(failure, next, Repeat::Unsafe)).count();
        assert_eq!(repeated(&Failure::NeverSent(cause()), Same), RESENDS);
        assert_eq!(repeated(&Failure::Unfit(cause()), Same), 0, "there is no other member");
        assert_eq!(repeated(&Failure::Unfit(cause()), Another), MEMBERS - 1);
    }

    #[test]
    fn a_request_that_may_have_been_done_is_repeated_only_if_that_is_harmless() {
        let leaderless = Failure::Leaderless(cause());
        assert!(!Repetitions::default().repeats(&leaderless, Another, Repeat::Unsafe));
        let mut repetitions = Repetitions::default();
        let repeated = (0..9).filter(|_| repetitions.repeats(&leaderless, Another, Repeat::Harmless));
        assert_eq!(repeated.count(), MEMBERS - 1);
        for repeat in [Repeat::Unsafe, Repeat::Harmless] {
            assert!(!Repetitions::default().repeats(&Failure::Lost(cause()), Another, repeat));
        }
    }

    #[test]
    fn the_token_is_renewed_once() {
        let mut repetitions = Repetitions::default();
        assert!(!repetitions.renews_token(&Failure::Denied));
        assert!(repetitions.renews_token(&Failure::StaleAuthToken(cause())));
        assert!(!repetitions.renews_token(&Failure::NoUser(cause())));
    }
}
