//! Deliberate mistakes, one at a time on request: the simulation has to find each of them. Without the feature
//! `defects` there are none, and the compiler removes the questions for them.

/// A mistake that the simulation has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(not(feature = "defects"), expect(unreachable_pub, reason = "public with the feature only"))]
pub enum Defect {
    /// A watch goes on one revision later than where it ended.
    WatchFromTooLate,
    /// A watch whose history is gone goes on without a list.
    NoListAfterCompaction,
    /// A list does not remove what is gone.
    ListKeepsTheGone,
    /// A list is published as being of the revision that it replaces.
    ListWithoutRevision,
    /// Every message of a watch counts as a proof of freshness.
    MessagesProve,
    /// A probe counts as a proof of freshness although the view has not reached it.
    ProbesProveAtOnce,
    /// Deletions that a watch reports are ignored.
    DeletionsIgnored,
    /// A watch that broke is left alone.
    BrokenWatchForgotten,
    /// A silent watch is never found out.
    SilenceTolerated,
    /// A waiting contender takes its turn without proof that its entry exists.
    TurnUnconfirmed,
    /// A contender ignores the entries before its own.
    QueueIgnored,
    /// A reader does not wait for writers before it.
    ReadersIgnoreWriters,
    /// A contender whose caller is gone stays in the queue.
    CallerGoneStays,
    /// The validity of a lock is twice what its lease was granted for.
    ValidTwiceAsLong,
    /// A holder does not notice that its entry was deleted.
    HolderDeaf,
    /// A release that etcd does not answer counts as done.
    ReleaseUnconfirmed,
    /// A reader hands its lock over although other readers hold it.
    ReaderHandsOver,
    /// An entry whose creation may still be applied is forgotten.
    LatePlaceForgotten,
    /// All entries of a session in a queue have the same suffix.
    NumbersShared,
    /// A lease is renewed only when it has run out.
    RenewedTooLate,
    /// An unused lease is not revoked.
    LeasesLeaked,
    /// A registration does not notice that its key is gone.
    RegistrationDeaf,
    /// A change of an instance that is registered is not written.
    UpdatesIgnored,
    /// A removal counts as done once it was tried.
    RemovalUnconfirmed,
    /// A creation whose answer was lost counts as not done once its key was found absent.
    LateCreationForgotten,
    /// A write that a transaction refused counts as done.
    RefusalsIgnored,
}

#[cfg(feature = "defects")]
impl Defect {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::WatchFromTooLate,
        Self::NoListAfterCompaction,
        Self::ListKeepsTheGone,
        Self::ListWithoutRevision,
        Self::MessagesProve,
        Self::ProbesProveAtOnce,
        Self::DeletionsIgnored,
        Self::BrokenWatchForgotten,
        Self::SilenceTolerated,
        Self::TurnUnconfirmed,
        Self::QueueIgnored,
        Self::ReadersIgnoreWriters,
        Self::CallerGoneStays,
        Self::ValidTwiceAsLong,
        Self::HolderDeaf,
        Self::ReleaseUnconfirmed,
        Self::ReaderHandsOver,
        Self::LatePlaceForgotten,
        Self::NumbersShared,
        Self::RenewedTooLate,
        Self::LeasesLeaked,
        Self::RegistrationDeaf,
        Self::UpdatesIgnored,
        Self::RemovalUnconfirmed,
        Self::LateCreationForgotten,
        Self::RefusalsIgnored,
    ];

    /// Makes this mistake from now on, in the whole process, and no other.
    pub fn turn_on(self) {
        PRESENT.store(self as usize + 1, std::sync::atomic::Ordering::SeqCst);
    }

    /// Returns `true` if this mistake is to be made.
    pub(crate) fn is_on(self) -> bool {
        PRESENT.load(std::sync::atomic::Ordering::Relaxed) == self as usize + 1
    }
}

/// The one that is turned on, counted from 1.
#[cfg(feature = "defects")]
static PRESENT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

#[cfg(not(feature = "defects"))]
impl Defect {
    /// Returns `false`.
    #[expect(clippy::unused_self, reason = "as with the feature")]
    pub(crate) const fn is_on(self) -> bool {
        false
    }
}
