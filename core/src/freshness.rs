//! How old a picture of the store is, told honestly.

use std::time::Duration;

use crate::{clock::Moment, error::Error};

/// Whether a picture of the store is being kept up to date, and since when it is known to have been right.
///
/// The age counts from the last *proof*: the sending of a list that succeeded, an ordered progress notice, or an event.
/// A sign of life alone is not a proof.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Freshness {
    /// Changes arrive as they happen.
    Live {
        /// When the picture was last proven right.
        proven: Moment,
    },
    /// Changes do not arrive; the picture is the last known one.
    Stale {
        /// When the picture was last proven right.
        proven: Moment,
        /// Why changes do not arrive.
        cause: Error,
    },
}

impl Freshness {
    /// The time since the last proof.
    pub fn age(&self) -> Duration {
        self.proven().elapsed()
    }

    /// When the picture was last proven right.
    pub fn proven(&self) -> Moment {
        match self {
            Self::Live { proven } | Self::Stale { proven, .. } => *proven,
        }
    }

    /// Says whether changes arrive.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live { .. })
    }
}
