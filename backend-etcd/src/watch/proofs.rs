//! Proofs of freshness: the newest probe that the replica of a range has reached. Plain data, no I/O.

use std::collections::VecDeque;

use enlist::{Moment, Revision};

use crate::{client::store_revision::Seen, deliberate_defects::DeliberateDefect, watch::probe::Probe};

/// Maximum number of probes that wait for the watch to reach them. Beyond it, the reported age is too large until the
/// watch has caught up.
const MAX_PENDING: usize = 64;

/// Consequence of a probe for a replica.
#[derive(Debug)]
pub(crate) enum ProbeVerdict {
    /// The replica contains every change from before this moment, when the probe was sent.
    Proven(Moment),
    /// The watch has to reach the revision of the probe first.
    Ahead,
    /// The member that answered lags, or the store went back.
    Behind,
}

/// Probes ahead of the replica of one range.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    /// In the order of both their sending and their revisions.
    pending: VecDeque<Probe>,
    /// Store's revision as the client knew it when the range was found to have gone back. Until a write proves the
    /// restore, the client keeps it, although the store is at a lower one.
    lost: Option<Seen>,
}

impl Proofs {
    /// Starts over with a list.
    pub(crate) fn start_over(&mut self) {
        self.pending.clear();
    }

    /// Records that the range has gone back, when the client knew this revision of the store.
    pub(crate) fn went_back(&mut self, store: Seen) {
        self.lost = Some(store);
    }

    /// Takes a probe for a replica at `revision`, whose watch was requested in state `opened`.
    pub(crate) fn take(&mut self, probe: Probe, revision: Revision, opened: Seen) -> ProbeVerdict {
        let lags = probe.store.excludes(probe.revision) && self.lost != Some(probe.store);
        if lags || !probe.store.is_of_same_history(opened) {
            return ProbeVerdict::Behind;
        }
        if probe.revision <= revision || DeliberateDefect::ProbesProveAtOnce.is_on() {
            self.pending.clear();
            return ProbeVerdict::Proven(probe.sent);
        }
        if self.pending.len() < MAX_PENDING {
            self.pending.push_back(probe);
        }
        ProbeVerdict::Ahead
    }

    /// Records that the replica is at `revision`. Returns the time of sending of the newest probe reached with that.
    pub(crate) fn reach(&mut self, revision: Revision) -> Option<Moment> {
        let count = self.pending.partition_point(|probe| probe.revision <= revision);
        self.pending.drain(..count).next_back().map(|probe| probe.sent)
    }

    /// Returns `true` if there is a probe that the replica has not reached.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOW: Seen = Seen::new(Revision::new(10), 1);

    async fn probe(revision: u64) -> Probe {
        tokio::time::advance(Duration::from_secs(5)).await;
        Probe { sent: Moment::now(), store: NOW, revision: Revision::new(revision) }
    }

    fn seconds(moment: Option<Moment>) -> Option<u64> {
        moment.map(|moment| moment.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_proves_once_the_replica_has_reached_it() {
        let mut proofs = Proofs::default();
        assert!(
            matches!(proofs.take(probe(10).await, Revision::new(10), NOW), ProbeVerdict::Proven(_)),
            "nothing has changed"
        );
        for revision in [12, 14, 16] {
            assert!(matches!(proofs.take(probe(revision).await, Revision::new(11), NOW), ProbeVerdict::Ahead));
        }
        assert_eq!(seconds(proofs.reach(Revision::new(11))), None);
        assert_eq!(seconds(proofs.reach(Revision::new(15))), Some(5), "the newest that was reached");
        assert!(proofs.is_waiting());
        assert_eq!(seconds(proofs.reach(Revision::new(16))), Some(0));
        assert!(!proofs.is_waiting());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_lags_or_is_of_another_history_proves_nothing() {
        let mut proofs = Proofs::default();
        for (revision, opened) in
            [(9, NOW), (11, Seen::new(Revision::new(10), 0)), (11, Seen::new(Revision::new(10), 2))]
        {
            let verdict = proofs.take(probe(revision).await, Revision::new(20), opened);
            assert!(matches!(verdict, ProbeVerdict::Behind), "{revision} {opened:?}");
        }
        // The replica has advanced since the probe was sent.
        assert!(matches!(proofs.take(probe(10).await, Revision::new(20), NOW), ProbeVerdict::Proven(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_range_that_went_back_needs_no_revision_of_the_lost_history() {
        let mut proofs = Proofs::default();
        proofs.went_back(NOW);
        assert!(matches!(proofs.take(probe(5).await, Revision::new(5), NOW), ProbeVerdict::Proven(_)));
        let later = Probe { store: Seen::new(Revision::new(11), 1), ..probe(10).await };
        assert!(matches!(proofs.take(later, Revision::new(20), NOW), ProbeVerdict::Behind));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_lags_for_long_keeps_a_bounded_number() {
        let mut proofs = Proofs::default();
        for revision in 12..1000 {
            proofs.take(probe(revision).await, Revision::new(11), NOW);
        }
        assert_eq!(proofs.pending.len(), MAX_PENDING);
    }
}
