//! Ejection of an instance that failed several calls in a row: the count of failures, and the ejection and readmission.

use std::{
    fmt,
    pin::pin,
    sync::atomic::{AtomicU32, Ordering},
};

use enlist::{
    Ejection,
    balance::{EjectionTimes, Ejections},
    escape::escaped,
};
use tokio::sync::Notify;

use crate::subchannel::connectivity::Event;

/// Failed calls in a row. Calls count them; the task waits for enough.
#[derive(Debug, Default)]
pub(crate) struct FailureCount {
    in_a_row: AtomicU32,
    /// Enough calls failed in a row.
    enough: Notify,
    /// Another process was registered in place of this one. It has not failed yet.
    restarted: Notify,
}

impl FailureCount {
    /// Counts a call that failed.
    pub(crate) fn failed(&self, ejection: &Ejection) {
        let failures = self.in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        if ejection.is_enough(failures) {
            self.enough.notify_one();
        }
    }

    /// Counts a call that succeeded.
    pub(crate) fn succeeded(&self) {
        // Usually the count is zero and nothing is written.
        if self.in_a_row.load(Ordering::Relaxed) > 0 {
            self.clear();
        }
    }

    /// Resets the count.
    pub(crate) fn clear(&self) {
        self.in_a_row.store(0, Ordering::Relaxed);
    }

    /// Resets the count after the process was replaced, and ends an ejection.
    pub(crate) fn restart(&self) {
        self.clear();
        self.restarted.notify_waiters();
    }

    /// Ejects the instance whenever it fails too often, without end. `apply` changes its state.
    pub(crate) async fn eject_on_failures(
        &self,
        ejection: &Ejection,
        ejections: &Ejections,
        instance: &impl fmt::Display,
        apply: impl Fn(Event),
    ) {
        let mut times = EjectionTimes::new(ejection);
        loop {
            // Created before the failures are read, so that a later restart ends the ejection at once.
            let mut restarted = pin!(self.restarted.notified());
            tokio::select! {
                () = self.enough.notified() => {}
                () = &mut restarted => {
                    times = EjectionTimes::new(ejection);
                    continue;
                }
            }
            if !ejection.is_enough(self.in_a_row.load(Ordering::Relaxed)) {
                // The failures of the ejection time were reset.
                continue;
            }
            let Some(_ejected) = ejections.begin(ejection) else {
                self.clear();
                continue;
            };
            let time = times.begin();
            tracing::warn!(instance = %escaped(instance), ?time, "instance ejected, it failed several calls in a row");
            apply(Event::Ejected);
            times.wait(time, restarted).await;
            self.clear();
            apply(Event::Readmitted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn failures(count: &FailureCount) -> u32 {
        count.in_a_row.load(Ordering::Relaxed)
    }

    fn failed_twice() -> FailureCount {
        let count = FailureCount::default();
        count.failed(&Ejection::default());
        count.failed(&Ejection::default());
        assert_eq!(failures(&count), 2);
        count
    }

    #[test]
    fn a_success_ends_a_row_of_failures() {
        let count = failed_twice();
        count.succeeded();
        assert_eq!(failures(&count), 0);
    }

    #[test]
    fn a_restart_ends_a_row_of_failures_and_an_ejection() {
        let count = failed_twice();
        let mut restarted = Box::pin(count.restarted.notified());
        restarted.as_mut().enable();
        count.restart();
        assert!(failures(&count) == 0 && restarted.now_or_never().is_some());
    }
}
