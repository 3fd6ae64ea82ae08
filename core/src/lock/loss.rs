//! Ends of a held lock.

/// Reason for which a lock is no longer held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// No renewal was acknowledged in time.
    Expired,
    /// The store says that the lease is gone.
    LeaseGone,
    /// The key was deleted or replaced.
    KeyGone,
    /// The session was closed.
    SessionClosed,
    /// It was released.
    Released,
}

/// Result of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// The lock was held until now and is free, or the next waiter's.
    Released,
    /// It had been lost before.
    AlreadyLost,
}
