//! Proofs of freshness: which request the picture of a range has caught up with. Plain data, no I/O.

use std::collections::VecDeque;

use enlist::{Moment, Revision};

use crate::{defects::Defect, session::probe::Probe};

/// So many probes wait for the watch to reach them, at most. Beyond that the age is told too large until it has caught
/// up.
const MAX_PENDING: usize = 64;

/// The result of a probe for a picture.
#[derive(Debug)]
pub(crate) enum Said {
    /// The picture had all that there was when the probe was sent, at this moment.
    Proven(Moment),
    /// The watch has to get there first.
    Ahead,
    /// The store was at an earlier revision than one that the picture had before the probe was sent.
    Behind,
}

/// The probes that the picture of one range has not reached, and what tells a probe of another history.
#[derive(Debug)]
pub(crate) struct Proofs {
    /// The picture was at this revision then; a later read cannot be of an earlier one.
    floor: (Revision, Moment),
    /// In the order of both their sending and their revisions.
    pending: VecDeque<Probe>,
}

impl Proofs {
    /// For a picture that is at `revision` now, in a history of its own.
    pub(crate) fn new(revision: Revision) -> Self {
        Self { floor: (revision, Moment::now()), pending: VecDeque::new() }
    }

    /// Takes a probe for a picture that is at `revision`.
    pub(crate) fn take(&mut self, probe: Probe, revision: Revision) -> Said {
        let (floor, since) = self.floor;
        if probe.revision < floor && !probe.sent.since(since).is_zero() {
            return Said::Behind;
        }
        self.floor = (revision, Moment::now());
        if probe.revision <= revision || Defect::ProbesProveAtOnce.is_on() {
            self.pending.clear();
            return Said::Proven(probe.sent);
        }
        if self.pending.len() < MAX_PENDING {
            self.pending.push_back(probe);
        }
        Said::Ahead
    }

    /// Notes that the picture is at `revision`. Returns when the newest of the probes was sent that it has reached with
    /// that.
    pub(crate) fn reach(&mut self, revision: Revision) -> Option<Moment> {
        let count = self.pending.partition_point(|probe| probe.revision <= revision);
        self.pending.drain(..count).next_back().map(|probe| probe.sent)
    }

    /// Returns `true` if there is a probe that the picture has not reached.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn probe(revision: u64) -> Probe {
        tokio::time::advance(Duration::from_secs(5)).await;
        Probe { sent: Moment::now(), revision: Revision::new(revision) }
    }

    fn seconds(moment: Option<Moment>) -> Option<u64> {
        moment.map(|moment| moment.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_proves_once_the_picture_has_reached_it() {
        let mut proofs = Proofs::new(Revision::new(10));
        assert!(matches!(proofs.take(probe(10).await, Revision::new(10)), Said::Proven(_)), "nothing has changed");
        for revision in [12, 14, 16] {
            assert!(matches!(proofs.take(probe(revision).await, Revision::new(11)), Said::Ahead));
        }
        assert_eq!(seconds(proofs.reach(Revision::new(11))), None);
        assert_eq!(seconds(proofs.reach(Revision::new(15))), Some(5), "the newest that was reached");
        assert!(proofs.is_waiting());
        assert_eq!(seconds(proofs.reach(Revision::new(16))), Some(0));
        assert!(!proofs.is_waiting());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_of_another_history_proves_nothing() {
        let mut proofs = Proofs::new(Revision::new(1000));
        assert!(matches!(proofs.take(probe(6).await, Revision::new(1000)), Said::Behind));
        // One that was sent before the picture was there may be earlier all the same.
        let early = probe(990).await;
        assert!(matches!(proofs.take(probe(1001).await, Revision::new(1001)), Said::Proven(_)));
        assert!(matches!(proofs.take(early, Revision::new(1001)), Said::Proven(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_lags_for_long_keeps_a_bounded_number() {
        let mut proofs = Proofs::new(Revision::new(1));
        for revision in 2..1000 {
            proofs.take(probe(revision).await, Revision::new(1));
        }
        assert_eq!(proofs.pending.len(), MAX_PENDING);
    }
}
