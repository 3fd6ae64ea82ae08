//! Deadlines of a program that runs under a lock. It ends before another contender can hold the lock, also if this
//! process is frozen meanwhile.

use std::time::Duration;

use enlist::{LockGuard, Loss, backend::safe_validity};

use crate::reaper::ReaperTime;

/// Interval of the deadlines that the reaper gets for the program.
pub(crate) const DEADLINE_INTERVAL: Duration = Duration::from_millis(100);

/// Deadline of the program whose `last` one is known, while the lock is held. The clock is read first, so that a freeze
/// of this process before the reaper learns the deadline does not extend it.
pub(crate) fn while_held(guard: &LockGuard, ttl: Duration, last: ReaperTime) -> ReaperTime {
    let now = ReaperTime::now();
    from_validity(guard.remaining(), ttl, now, last)
}

/// Decides the deadline by the remaining lock validity. The end of the validity may be noticed late, as after a
/// suspension of the machine, so it moves no deadline.
fn from_validity(remaining: Duration, ttl: Duration, now: ReaperTime, last: ReaperTime) -> ReaperTime {
    if remaining.is_zero() { last } else { now.after(allowed(remaining, ttl)) }
}

/// End of a program after a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProgramEnd {
    /// Time between SIGTERM and SIGKILL.
    pub(crate) grace: Duration,
    /// Time at which the reaper ends the program.
    pub(crate) deadline: ReaperTime,
}

/// Decides the end of a program whose `last` deadline is known, with at most `grace` after SIGTERM.
///
/// An expiry is known before another contender can acquire the lock, and the program has to end before that as well, so
/// its deadline stays. After any other loss, another contender may hold the lock already.
pub(crate) fn after_loss(loss: Loss, ttl: Duration, grace: Duration, now: ReaperTime, last: ReaperTime) -> ProgramEnd {
    if loss == Loss::Expired {
        ProgramEnd { grace: grace.min(margin(ttl) / 2).min(last.since(now)), deadline: last }
    } else {
        ProgramEnd { grace, deadline: now.after(grace).after(DEADLINE_INTERVAL) }
    }
}

/// Maximum lifetime of the program without further messages of this process: longer than the lock validity, at whose
/// end this process acts, and shorter than the lease.
fn allowed(remaining: Duration, ttl: Duration) -> Duration {
    remaining.saturating_add(margin(ttl) * 3 / 4)
}

/// Time between the end of the lock validity and the earliest expiry of the lease.
fn margin(ttl: Duration) -> Duration {
    ttl.saturating_sub(safe_validity(ttl))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// This process is frozen for a while after the lock validity.
    #[test]
    fn a_program_ends_before_another_holder_starts() {
        for ttl in [2, 5, 15, 600].map(Duration::from_secs) {
            let acquired = ReaperTime::now();
            let last = acquired.after(allowed(safe_validity(ttl), ttl));
            let expiry = acquired.after(ttl);
            assert!(last < expiry);
            for frozen in (0..=8).map(|part| margin(ttl) * part / 8) {
                let now = acquired.after(safe_validity(ttl)).after(frozen);
                let end = after_loss(Loss::Expired, ttl, HOUR, now, last);
                assert!(end.deadline < expiry, "{ttl:?}, frozen for {frozen:?}");
                assert!(now >= last || now.after(end.grace) < expiry, "{ttl:?}, frozen for {frozen:?}");
            }
        }
    }

    #[test]
    fn a_validity_that_is_over_moves_no_deadline() {
        let (ttl, last) = (Duration::from_secs(15), ReaperTime::now());
        let now = last.after(HOUR);
        assert_eq!(from_validity(Duration::ZERO, ttl, now, last), last);
        let held = from_validity(safe_validity(ttl), ttl, now, last);
        assert!(held > now.after(safe_validity(ttl)) && held < now.after(ttl));
    }

    #[test]
    fn this_process_acts_before_the_reaper() {
        for ttl in [2, 5, 15, 600].map(Duration::from_secs) {
            let now = ReaperTime::now();
            let end = after_loss(Loss::Expired, ttl, HOUR, now, now.after(allowed(Duration::ZERO, ttl)));
            assert!(now.after(end.grace) < end.deadline && !end.grace.is_zero());
            let end = after_loss(Loss::LeaseGone, ttl, HOUR, now, now);
            assert!(end.grace == HOUR && now.after(HOUR) < end.deadline);
        }
    }
}
