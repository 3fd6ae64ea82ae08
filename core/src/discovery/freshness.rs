//! How old a picture of the store is, told honestly.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;

use crate::{error::Error, runtime::clock::Moment};

/// Time at which a picture of the store was last known to be right. Clones share it: a later proof shows in all of
/// them.
#[derive(Clone)]
pub struct Proof(Arc<ArcSwap<Moment>>);

impl Proof {
    /// A proof that held at `moment`.
    pub(crate) fn new(moment: Moment) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(moment)))
    }

    /// Time at which it held last.
    pub fn moment(&self) -> Moment {
        **self.0.load()
    }

    /// Notes that it held at `moment`, unless a later one is known. There is one writer.
    pub(crate) fn renew(&self, moment: Moment) {
        if !moment.since(self.moment()).is_zero() {
            self.0.store(Arc::new(moment));
        }
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.moment().fmt(f)
    }
}

/// State of a picture of the store: kept up to date or not, and since when it is known to have been right.
///
/// The age counts from the last *proof*: the sending of the newest linearizable request (a list, a probe, an audit)
/// whose revision the picture has reached. Events and notices of progress are how it gets there. They are no proof,
/// because one that arrives now may be a minute old. In a healthy store the age is ten seconds at most.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Freshness {
    /// Changes arrive as they happen.
    Live {
        /// Latest proof of the picture; it goes on being renewed.
        proof: Proof,
    },
    /// Changes do not arrive; the picture is the last known one.
    Stale {
        /// Time at which the picture was last proven right.
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

    /// Time at which the picture was last proven right.
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
