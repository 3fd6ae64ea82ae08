//! Detects that etcd answers again, so that tasks that wait for their next attempt continue at once.
//!
//! A request channel notes whether its requests are answered. While they are not, one of the waiting tasks sends a
//! small request at a fixed interval. As soon as any request is answered, all of them continue.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use enlist::backend::jitter;
use tokio::sync::{Mutex, watch};

use crate::error::Failure;

/// Interval between two probes, with 50 % jitter.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// Maximum time that a probe waits for its answer; a healthy member needs milliseconds.
pub(crate) const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// State of a request channel: answered or not.
#[derive(Debug)]
pub(crate) struct Recovery {
    answered: watch::Sender<bool>,
    /// Number of times that requests were answered again.
    recoveries: AtomicU64,
    /// Held by the probing task.
    probing: Mutex<()>,
}

impl Default for Recovery {
    fn default() -> Self {
        Self { answered: watch::Sender::new(true), recoveries: AtomicU64::new(0), probing: Mutex::default() }
    }
}

/// Returns `true` if a member has answered. A refusal is an answer.
pub(crate) fn is_answer<T>(outcome: &Result<T, Failure>) -> bool {
    outcome.as_ref().err().is_none_or(|failure| !failure.is_outage())
}

impl Recovery {
    /// Notes the outcome of a request.
    pub(crate) fn note<T>(&self, outcome: &Result<T, Failure>) {
        let now = is_answer(outcome);
        self.answered.send_if_modified(|answered| {
            let changed = std::mem::replace(answered, now) != now;
            if changed && now {
                self.recoveries.fetch_add(1, Ordering::Relaxed);
            }
            changed
        });
    }

    /// Returns the number of recoveries so far. Read it before a request.
    pub(crate) fn recoveries(&self) -> u64 {
        self.recoveries.load(Ordering::Relaxed)
    }

    /// As [`recovered`](Self::recovered), for a request that was sent after `noted` recoveries. A recovery since then
    /// counts, after a short delay, even if it happened before the failure of that request was noticed.
    pub(crate) async fn recovered_since<F: Future>(&self, noted: u64, probe: impl Fn() -> F) {
        if *self.answered.borrow() && self.recoveries() != noted {
            // Not before one probe interval, in case requests alternately fail and succeed.
            return tokio::time::sleep(PROBE_INTERVAL / 2 + jitter(PROBE_INTERVAL)).await;
        }
        self.recovered(probe).await;
    }

    /// Waits until requests are answered again, and sends `probe` if there is no other request. Never returns if the
    /// latest request was answered, because etcd is available then.
    ///
    /// Dropping the future leaves the probing to the next waiting task.
    pub(crate) async fn recovered<F: Future>(&self, probe: impl Fn() -> F) {
        let mut answered = self.answered.subscribe();
        if *answered.borrow_and_update() {
            return std::future::pending().await;
        }
        let probing = async {
            let _turn = self.probing.lock().await;
            loop {
                tokio::time::sleep(PROBE_INTERVAL / 2 + jitter(PROBE_INTERVAL)).await;
                // Its request channel notes the outcome.
                probe().await;
            }
        };
        tokio::select! {
            // The sender lives as long as `self`.
            _ = answered.wait_for(|answered| *answered) => {}
            () = probing => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;

    use super::*;
    use crate::error::text_cause;

    fn lost() -> Result<(), Failure> {
        Err(Failure::Lost(text_cause("silent")))
    }

    #[tokio::test(start_paused = true)]
    async fn one_of_those_that_wait_probes_and_an_answer_wakes_all() {
        let recovery = Recovery::default();
        recovery.note(&lost());
        let probes = AtomicUsize::new(0);
        let probe = || async {
            let outcome = if probes.fetch_add(1, Ordering::Relaxed) < 9 { lost() } else { Ok(()) };
            recovery.note(&outcome);
        };
        let begun = tokio::time::Instant::now();
        futures::future::join_all((0..100).map(|_| recovery.recovered(probe))).await;
        assert_eq!(probes.load(Ordering::Relaxed), 10);
        assert!(begun.elapsed() < PROBE_INTERVAL * 15, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_prober_that_gives_up_is_succeeded() {
        let recovery = Recovery::default();
        recovery.note(&lost());
        let probe = || async { recovery.note(&Ok(())) };
        let mut first = Box::pin(recovery.recovered(probe));
        assert!(first.as_mut().now_or_never().is_none());
        let mut second = Box::pin(recovery.recovered(probe));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        second.await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_between_a_failure_and_the_wait_is_not_missed() {
        let recovery = Recovery::default();
        let noted = recovery.recoveries();
        recovery.note(&lost());
        recovery.note(&Ok(()));
        let (probe, begun) = (|| async { unreachable!("nothing is to be probed") }, tokio::time::Instant::now());
        recovery.recovered_since(noted, probe).await;
        assert!(begun.elapsed() >= PROBE_INTERVAL / 2 && begun.elapsed() < PROBE_INTERVAL * 2, "{:?}", begun.elapsed());
        let waits = recovery.recovered_since(recovery.recoveries(), probe);
        assert!(tokio::time::timeout(Duration::from_secs(60), waits).await.is_err(), "there was none since");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_waited_for_while_etcd_answers() {
        let recovery = Recovery::default();
        let refused: Result<(), _> = Err(Failure::Denied);
        for outcome in [Ok(()), refused] {
            recovery.note(&lost());
            recovery.note(&outcome);
            let waits = recovery.recovered(|| async { unreachable!("nothing is to be probed") });
            assert!(tokio::time::timeout(Duration::from_secs(60), waits).await.is_err());
        }
    }
}
