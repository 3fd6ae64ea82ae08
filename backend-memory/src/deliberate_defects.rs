//! Deliberate defects, to show that the conformance suite detects each of them. Without the feature `defects` none can
//! be switched on.

/// Deliberate defect of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeliberateDefect {
    /// A registration overwrites an existing key with its id.
    OverwritesForeignKeys,
    /// A lost lease is not noticed.
    NeverReregisters,
    /// An update detaches the instance from its lease.
    UpdateLosesTheLease,
    /// Deregistration deletes without a guard.
    DeletesUnguarded,
    /// Dropping a registration does not remove the instance.
    DropLeavesTheInstance,
    /// An outage empties the view.
    OutageEmptiesTheView,
    /// After compaction the watch continues from the present revision, and misses the changes before it.
    SkipsOverCompaction,
    /// A wiped store is not noticed by watches.
    BlindToWipes,
    /// A watch without changes is not proven current again.
    AgesWhileHealthy,
    /// A service also shows instances of services with its name as a prefix.
    PrefixLeaks,
    /// A lock is granted without regard to the queue.
    GrantsToAnyone,
    /// All tokens of a lock are equal.
    ConstantTokens,
    /// A holder does not notice the deletion of its key.
    BlindToLoss,
    /// A holder notices the deletion of its key two seconds late.
    NoticesLossLate,
    /// A lock is granted at once after a crash, whatever the lock delay.
    IgnoresLockDelay,
    /// A cancelled contender stays in the queue.
    LeavesWaiters,
    /// Values that are written together are written one by one.
    TearsTransactions,
    /// A part of configuration also shows values whose path begins with the same text.
    ScopeLeaks,
    /// A semaphore grants permits that it does not have.
    ExceedsPermits,
    /// A semaphore grants a small request before a large one that was first.
    OvertakesLargeRequests,
}

impl DeliberateDefect {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::OverwritesForeignKeys,
        Self::NeverReregisters,
        Self::UpdateLosesTheLease,
        Self::DeletesUnguarded,
        Self::DropLeavesTheInstance,
        Self::OutageEmptiesTheView,
        Self::SkipsOverCompaction,
        Self::BlindToWipes,
        Self::AgesWhileHealthy,
        Self::PrefixLeaks,
        Self::GrantsToAnyone,
        Self::ConstantTokens,
        Self::BlindToLoss,
        Self::NoticesLossLate,
        Self::IgnoresLockDelay,
        Self::LeavesWaiters,
        Self::TearsTransactions,
        Self::ScopeLeaks,
        Self::ExceedsPermits,
        Self::OvertakesLargeRequests,
    ];
}
