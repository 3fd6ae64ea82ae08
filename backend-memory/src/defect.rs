//! Deliberate defects. They exist to show that the conformance suite notices each of them; without the feature
//! `defects` there is no way to switch one on.

/// One way in which a backend could be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Defect {
    /// Registration overwrites whatever has the id.
    OverwritesForeignKeys,
    /// A lost lease is not noticed.
    NeverReregisters,
    /// An update forgets the lease.
    UpdateLosesTheLease,
    /// Deregistration deletes without a guard.
    DeletesUnguarded,
    /// Dropping a registration leaves the instance.
    DropLeavesTheInstance,
    /// An outage empties the view.
    OutageEmptiesTheView,
    /// After compaction the watch goes on from now and misses what happened between.
    SkipsOverCompaction,
    /// A wiped store is not noticed by watches.
    BlindToWipes,
    /// A watch on which nothing happens is not proven right again.
    AgesWhileHealthy,
    /// A service also shows what belongs to services whose name begins alike.
    PrefixLeaks,
    /// A lock is granted without regard to the line.
    GrantsToAnyone,
    /// A lock's tokens are all the same.
    ConstantTokens,
    /// A holder does not notice that its key was taken away.
    BlindToLoss,
    /// A holder notices two seconds late that its key was taken away.
    NoticesLossLate,
    /// A lock is granted at once after a crash, whatever the lock delay.
    IgnoresLockDelay,
    /// A cancelled contender stays in the queue.
    LeavesWaiters,
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 16] = [
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
    ];
}
