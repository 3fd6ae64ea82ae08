//! Freshness: the age of a view, counted from its last proof.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::{error::Error, runtime::clock::Moment};

/// Time at which local state was last known to match the store. Clones share it: all of them see a later proof.
#[derive(Clone)]
pub struct Proof {
    latest: Arc<ArcSwap<Moment>>,
    limit: Option<ProofLimit>,
}

impl Proof {
    /// A proof that held at `moment`.
    pub(crate) fn new(moment: Moment) -> Self {
        Self { latest: Arc::new(ArcSwap::from_pointee(moment)), limit: None }
    }

    /// Time of the latest proof.
    pub fn moment(&self) -> Moment {
        let latest = **self.latest.load();
        let limit = self.limit.as_ref().and_then(|limit| limit.0.load().as_deref().copied());
        limit.filter(|limit| !latest.since(*limit).is_zero()).unwrap_or(latest)
    }

    /// Records a proof that held at `moment`, unless a later one is known. There is one writer.
    pub(crate) fn renew(&self, moment: Moment) {
        if !moment.since(**self.latest.load()).is_zero() {
            self.latest.store(Arc::new(moment));
        }
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.moment().fmt(f)
    }
}

/// Limit of the proofs of a reported state, for a reader that knows a later state and cannot report it yet. Later
/// proofs are about the later state.
#[derive(Clone, Debug, Default)]
pub struct ProofLimit(Arc<ArcSwapOption<Moment>>);

impl ProofLimit {
    /// Returns `freshness` with this limit.
    pub fn of(&self, freshness: Freshness) -> Freshness {
        match freshness {
            Freshness::Live { proof } => Freshness::Live { proof: Proof { limit: Some(self.clone()), ..proof } },
            stale @ Freshness::Stale { .. } => stale,
        }
    }

    /// Ignores proofs after `moment`, the last one of the reported state.
    pub fn set(&self, moment: Moment) {
        self.0.store(Some(Arc::new(moment)));
    }

    /// Ends the limit, because the later state is the reported one.
    pub fn clear(&self) {
        self.0.store(None);
    }
}

/// Freshness of a local copy of the store: whether changes arrive, and the time of its last proof.
///
/// The age counts from the last *proof*: the sending of the newest linearizable request (a list, a probe, an audit)
/// whose revision the copy has reached. Events and progress notices advance the copy to that revision. They are no
/// proof themselves, because one that arrives now may be a minute old. In a healthy store the age is ten seconds at
/// most. The proofs are those of the latest state: a reader that has not taken the changes that have arrived since has
/// an older one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Freshness {
    /// Changes arrive as they happen.
    Live {
        /// Latest proof of the copy; it is renewed continuously, until the watcher knows a later state that it cannot
        /// report yet.
        proof: Proof,
    },
    /// Changes do not arrive; the copy is the last known one.
    Stale {
        /// Time of the last proof.
        proven: Moment,
        /// Reason for which changes do not arrive.
        cause: Error,
    },
}

impl Freshness {
    /// The time since the last proof.
    pub fn age(&self) -> Duration {
        self.proven().elapsed()
    }

    /// Time of the last proof.
    pub fn proven(&self) -> Moment {
        match self {
            Self::Live { proof } => proof.moment(),
            Self::Stale { proven, .. } => *proven,
        }
    }

    /// Returns `true` if changes arrive.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live { .. })
    }
}
