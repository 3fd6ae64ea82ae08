//! Ends of a held lock.

/// Reason for which a lock is no longer held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// No renewal was acknowledged in time.
    Expired,
    /// The lease is gone, according to the store.
    LeaseGone,
    /// The key was deleted or replaced.
    KeyGone,
    /// The session was closed.
    SessionClosed,
    /// The lock was released.
    Released,
}

/// Result of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// The lock was held until now. It is free, or held by the next contender.
    Released,
    /// It had been lost before.
    AlreadyLost,
}
