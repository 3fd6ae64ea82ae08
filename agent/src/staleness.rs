//! Staleness of what the agent follows, for its operators: one summary for each server, whatever its clients follow.

use std::time::Duration;

use enlist::Freshness;

/// Summary of followed views.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Staleness {
    /// Number of views.
    pub(crate) followed: usize,
    /// Views whose changes do not arrive. They show the last known state.
    pub(crate) stale: usize,
    /// Views that are not known yet.
    pub(crate) unknown: usize,
    /// Age of the oldest known view.
    pub(crate) oldest: Duration,
}

impl Staleness {
    /// Adds a view that is not known yet.
    pub(crate) fn add_unknown(&mut self) {
        self.followed += 1;
        self.unknown += 1;
    }

    /// Adds a view with the freshness of its parts.
    pub(crate) fn add(&mut self, parts: impl Iterator<Item = Freshness>) {
        let mut is_live = true;
        for part in parts {
            is_live &= part.is_live();
            self.oldest = self.oldest.max(part.age());
        }
        self.followed += 1;
        self.stale += usize::from(!is_live);
    }
}

#[cfg(test)]
mod tests {
    use enlist::{Error, Moment, backend::ProofWriter};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_view_is_stale_if_a_part_is() {
        let now = Moment::now();
        let live = Freshness::Live { proof: ProofWriter::new(now).proof() };
        let stale = Freshness::Stale { proven: now, cause: Error::unavailable("cut") };
        tokio::time::advance(Duration::from_secs(7)).await;
        let mut staleness = Staleness::default();
        staleness.add_unknown();
        staleness.add([live.clone()].into_iter());
        staleness.add([live, stale].into_iter());
        staleness.add(std::iter::empty());
        let expected = Staleness { followed: 4, stale: 1, unknown: 1, oldest: Duration::from_secs(7) };
        assert_eq!(staleness, expected);
    }
}
