//! Times of the runs after changes. Pure.
//!
//! The first change is handled at once. Later ones wait until the interval since the last handling has passed and no
//! run is in progress; several that wait together are handled once.

use std::time::Duration;

use tokio::time::Instant;

/// Changes that wait, and the last run.
#[derive(Debug)]
pub(crate) struct Reruns {
    interval: Duration,
    waiting: Waiting,
    run: LastRun,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Nothing,
    Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastRun {
    Never,
    InProgress { begun: Instant },
    Ended { begun: Instant },
}

impl Reruns {
    /// Handles changes at most every `interval`.
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, waiting: Waiting::Nothing, run: LastRun::Never }
    }

    /// Notes a change.
    pub(crate) fn changed(&mut self) {
        self.waiting = Waiting::Change;
    }

    /// Returns the time at which the next run is due; `None` if nothing has changed since the last run began, or while
    /// it is in progress.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        match (self.waiting, self.run) {
            (Waiting::Nothing, _) | (_, LastRun::InProgress { .. }) => None,
            (Waiting::Change, LastRun::Never) => Some(now),
            (Waiting::Change, LastRun::Ended { begun }) => Some((begun + self.interval).max(now)),
        }
    }

    /// Notes that the changes so far are being handled: a run has begun, or needs none.
    pub(crate) fn begun(&mut self, now: Instant) {
        self.waiting = Waiting::Nothing;
        self.run = LastRun::InProgress { begun: now };
    }

    /// Notes that the run has ended.
    pub(crate) fn ended(&mut self) {
        if let LastRun::InProgress { begun } = self.run {
            self.run = LastRun::Ended { begun };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(50);

    #[test]
    fn a_burst_is_handled_twice() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut reruns = Reruns::new(INTERVAL);
        assert_eq!(reruns.due(start), None);
        reruns.changed();
        assert_eq!(reruns.due(start), Some(start));
        reruns.begun(start);
        // It takes 10 ms, and changes arrive meanwhile and afterwards.
        for _ in 0..3 {
            reruns.changed();
            assert_eq!(reruns.due(after(5)), None);
        }
        reruns.ended();
        reruns.changed();
        assert_eq!(reruns.due(after(10)), Some(after(50)));
        reruns.begun(after(50));
        reruns.ended();
        assert_eq!(reruns.due(after(60)), None);
    }

    #[test]
    fn a_change_during_a_long_run_causes_one_more() {
        let start = Instant::now();
        let late = start + INTERVAL * 10;
        let mut reruns = Reruns::new(INTERVAL);
        reruns.changed();
        reruns.begun(start);
        reruns.changed();
        reruns.changed();
        assert_eq!(reruns.due(late), None);
        reruns.ended();
        assert_eq!(reruns.due(late), Some(late));
        reruns.begun(late);
        reruns.ended();
        assert_eq!(reruns.due(late + INTERVAL), None);
    }

    #[test]
    fn a_change_after_a_pause_is_handled_at_once() {
        let start = Instant::now();
        let mut reruns = Reruns::new(INTERVAL);
        reruns.changed();
        reruns.begun(start);
        reruns.ended();
        reruns.changed();
        let later = start + INTERVAL * 2;
        assert_eq!(reruns.due(later), Some(later));
    }
}
