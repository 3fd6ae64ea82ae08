//! Deliberate defects, at most one at a time, which the simulation has to find. Without the feature `defects` there are
//! none, and the compiler removes the checks for them.
//!
//! Conditions and values that only defects need are here: in a file of `cargo xtask mutants`, their mutants would
//! change nothing without the feature, and survive.

use std::time::Duration;

use enlist::LockMode;

/// The defect that is turned on, counted from 1.
#[cfg(feature = "defects")]
static PRESENT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// Deliberate defect that the simulation has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "defects",
    expect(clippy::exhaustive_enums, reason = "the simulation lists the invariants that find each")
)]
#[cfg_attr(not(feature = "defects"), expect(unreachable_pub, reason = "public with the feature only"))]
pub enum DeliberateDefect {
    /// A watch resumes one revision later than where it ended.
    WatchFromTooLate,
    /// A watch continues without a list after its history was compacted.
    NoListAfterCompaction,
    /// A list does not remove keys that are gone.
    ListKeepsTheGone,
    /// A list is published with the revision of the state that it replaces.
    ListWithoutRevision,
    /// Every message of a watch counts as a proof of freshness.
    MessagesProve,
    /// A probe counts as a proof of freshness although the view has not reached it.
    ProbesProveAtOnce,
    /// Deletions that a watch reports are ignored.
    DeletionsIgnored,
    /// A broken watch is not opened again.
    BrokenWatchForgotten,
    /// A silent watch is not detected.
    SilenceTolerated,
    /// A waiting contender takes its turn without proof that its entry exists.
    TurnUnconfirmed,
    /// A contender ignores the entries before its own.
    QueueIgnored,
    /// A shared contender does not wait for exclusive ones before it.
    ReadersIgnoreWriters,
    /// A contender stays in the queue after its caller has gone.
    CallerGoneStays,
    /// The lock validity is twice the TTL of the lease.
    ValidTwiceAsLong,
    /// A holder does not notice that its entry was deleted.
    HolderDeaf,
    /// A release that etcd does not answer counts as done.
    ReleaseUnconfirmed,
    /// A shared holder hands its lock over although there are other shared holders.
    ReaderHandsOver,
    /// An entry that may still be created is not swept.
    LateEntryForgotten,
    /// All entries of a session in a queue have the same suffix.
    SuffixesShared,
    /// A lease is renewed only when it has run out.
    RenewedTooLate,
    /// An unused lease is not revoked.
    LeasesLeaked,
    /// A registration does not notice that its key is gone.
    RegistrationDeaf,
    /// A change of a registered instance is not written.
    UpdatesIgnored,
    /// A removal counts as done once it was tried.
    RemovalUnconfirmed,
    /// A creation without an answer counts as not applied once its key was found absent.
    LateCreationForgotten,
    /// A write that a transaction refused counts as done.
    RefusalsIgnored,
    /// A creation counts as stored before etcd acknowledges it.
    CreationsReportedEarly,
    /// A change counts as stored before etcd acknowledges it.
    UpdatesReportedEarly,
    /// A registration does not remember its writes of unknown outcome.
    UnknownWritesForgotten,
    /// An event of a watch changes the revision of a key, and not its value.
    OldValuesKept,
    /// The lock validity is a quarter of the TTL of the lease.
    ValidTooBriefly,
    /// A removal from a queue that fails is repeated almost at once.
    RemovalRetriedAtOnce,
    /// A registration counts as suspect after a write that etcd acknowledged.
    SuspectAfterWrites,
    /// The task that sends probes panics.
    ProbesPanic,
}

/// Returns the list of the named defects. It does not compile if one is missing.
#[cfg(feature = "defects")]
macro_rules! all {
    ($($defect:ident),+ $(,)?) => {{
        const fn _is_complete(defect: DeliberateDefect) {
            match defect {
                $(DeliberateDefect::$defect => {})+
            }
        }
        &[$(DeliberateDefect::$defect),+]
    }};
}

#[cfg(feature = "defects")]
impl DeliberateDefect {
    /// All of them.
    pub const ALL: &[Self] = all![
        WatchFromTooLate,
        NoListAfterCompaction,
        ListKeepsTheGone,
        ListWithoutRevision,
        MessagesProve,
        ProbesProveAtOnce,
        DeletionsIgnored,
        BrokenWatchForgotten,
        SilenceTolerated,
        TurnUnconfirmed,
        QueueIgnored,
        ReadersIgnoreWriters,
        CallerGoneStays,
        ValidTwiceAsLong,
        HolderDeaf,
        ReleaseUnconfirmed,
        ReaderHandsOver,
        LateEntryForgotten,
        SuffixesShared,
        RenewedTooLate,
        LeasesLeaked,
        RegistrationDeaf,
        UpdatesIgnored,
        RemovalUnconfirmed,
        LateCreationForgotten,
        RefusalsIgnored,
        CreationsReportedEarly,
        UpdatesReportedEarly,
        UnknownWritesForgotten,
        OldValuesKept,
        ValidTooBriefly,
        RemovalRetriedAtOnce,
        SuspectAfterWrites,
        ProbesPanic,
    ];

    /// Turns this defect on for the whole process, and all others off.
    pub fn turn_on(self) {
        PRESENT.store(self as usize + 1, std::sync::atomic::Ordering::SeqCst);
    }

    /// Returns `true` if this defect is turned on.
    pub(crate) fn is_on(self) -> bool {
        PRESENT.load(std::sync::atomic::Ordering::Relaxed) == self as usize + 1
    }
}

#[cfg(not(feature = "defects"))]
impl DeliberateDefect {
    /// Returns `false`.
    #[expect(clippy::unused_self, reason = "as with the feature")]
    pub(crate) const fn is_on(self) -> bool {
        false
    }
}

impl DeliberateDefect {
    /// Returns `true` if a contender in `mode` ignores the entries before its own.
    pub(crate) fn ignores_queue(mode: LockMode) -> bool {
        Self::QueueIgnored.is_on() || Self::ReadersIgnoreWriters.is_on() && mode == LockMode::Shared
    }

    /// Returns `true` if an update is not written. `own`: the present value is the registration's own.
    pub(crate) fn ignores_updates(own: bool) -> bool {
        own && Self::UpdatesIgnored.is_on()
    }

    /// Returns the time between two renewals if leases are renewed too late.
    pub(crate) fn late_renewal(interval: Duration) -> Option<Duration> {
        Self::RenewedTooLate.is_on().then(|| interval * 4)
    }
}
