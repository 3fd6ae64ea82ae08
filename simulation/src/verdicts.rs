//! Invariants of a run, and the verdict that one is violated. A verdict names its invariant, so that a failure for
//! another reason, or a hang, is not mistaken for the one that was looked for.

use std::fmt;

use enlist_testkit::{history::Violation, lock_history::LockViolation, losses::LossViolation};

use crate::kinds::kinds;

kinds! {
    /// A condition that each run has to satisfy.
    Invariant {
        /// At the end, each transaction that was delayed is done.
        LateTransactionsEnd,
        /// At the end, each owner has its last instance.
        OwnersFinish,
        /// At the end, exactly the wanted instances are stored, with their last weights.
        StoreConverges,
        /// Each contender is granted the lock or refused.
        ContendersServed,
        /// At the end, the queue of the lock is empty.
        QueueEmpties,
        /// At the end, each watcher shows the last change and what is stored.
        WatchersConverge,
        /// A watch is neither refused nor ended.
        WatchesLast,
        /// At the end, a new client resolves the stored instances.
        ResolveAgrees,
        /// In no second do the clients together send more than a moderate number of requests.
        RequestRate,
        /// A client closes without an error.
        ClosesInOrder,
        /// After the clients have closed, no lease remains.
        LeasesRevoked,
        /// After the clients have closed, no instance remains.
        InstancesRemoved,
        /// No lease is lost without a fault that can end one.
        LeasesKept,
        /// No audit repairs a key although no event was lost.
        NothingRepaired,
        /// The queue entry of a confirmed release does not exist.
        ReleaseConfirmed,
        /// The key of a confirmed deregistration does not exist.
        DeregistrationConfirmed,
        /// An operation fails, and a registration has an unexpected state, only if a fault explains it.
        ErrorsJustified,
        /// An instance is stored when `register` returns, and at the revisions at which it is reported to be.
        RegistrationStored,
        /// A change is stored, at the revision that `update` returns.
        UpdateStored,
        /// A lock is lost only if a fault explains it.
        LocksKept,
        /// The loss of a lock is signalled when the lock is no longer held.
        LossSignalled,
        /// The events of a watcher lead from one snapshot to the next.
        EventsComplete,
        /// No view is reported younger than it is.
        AgesHonest,
        /// The revisions of a watcher do not decrease.
        ViewsInOrder,
        /// Each view is the content of the store at its revision.
        ViewsExist,
        /// Each instance in a view has the value that the store had at its revision.
        ValuesExist,
        /// No view is empty while the store is not.
        ViewsNotEmpty,
        /// The last view of each watcher is that of the store.
        ViewsConverge,
        /// No instance returns after its deregistration was confirmed.
        NothingComesBack,
        /// No contender holds a lock that was granted to another one.
        Exclusion,
        /// Each queue entry is granted the lock once.
        GrantedOnce,
        /// Queue entries are granted the lock in their order.
        QueueOrder,
        /// A lock that was lost is not held again.
        LossFinal,
        /// The resource refuses writes with smaller tokens than that of an earlier write.
        FenceHolds,
        /// Each accepted write counts.
        WritesKept,
        /// A holder notices the end of its queue entry within the documented bound.
        LossNoticed,
        /// A registered instance that was lost is back within the documented bound.
        InstanceReturns,
        /// A value of the configuration is changed only from the state that its writer read.
        ConfigGuarded,
        /// A confirmed write of the configuration is stored at its revision.
        ConfigConfirmed,
        /// Each configuration that a watcher shows is that of the store at its revision.
        ConfigViewsExist,
        /// At the end, each watcher shows the last configuration.
        ConfigConverges,
        /// No task panics, neither of the run nor of the library.
        NoPanic,
        /// The run ends: within half an hour of its clock, and within the limits of processor time and real time.
        Ends,
    }
}

/// First word of a line with a verdict.
const MARK: &str = "broken: ";

/// Verdict that an invariant is violated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Verdict {
    /// `None` for a failure that no invariant describes, such as a process that could not be started.
    pub(crate) invariant: Option<Invariant>,
    pub(crate) detail: String,
}

impl Verdict {
    pub(crate) fn of(invariant: Invariant, detail: impl fmt::Display) -> Self {
        Self { invariant: Some(invariant), detail: detail.to_string().replace('\n', " ") }
    }

    /// Returns the verdict in a line that [`Display`](fmt::Display) wrote, if it is one.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (name, detail) = line.strip_prefix(MARK)?.split_once(": ")?;
        let invariant = Invariant::ALL.iter().copied().find(|known| format!("{known:?}") == name);
        Some(Self { invariant, detail: detail.to_owned() })
    }

    pub(crate) fn of_instances(violation: &Violation) -> Self {
        let invariant = match violation {
            Violation::Torn { .. } => Some(Invariant::EventsComplete),
            Violation::Dishonest { .. } => Some(Invariant::AgesHonest),
            Violation::WentBack { .. } => Some(Invariant::ViewsInOrder),
            Violation::NeverSo { .. } => Some(Invariant::ViewsExist),
            Violation::Empty { .. } => Some(Invariant::ViewsNotEmpty),
            Violation::NotConverged { .. } => Some(Invariant::ViewsConverge),
            Violation::CameBack { .. } => Some(Invariant::NothingComesBack),
            _ => None,
        };
        Self { invariant, detail: violation.to_string() }
    }

    pub(crate) fn of_locks(violation: &LockViolation) -> Self {
        let invariant = match violation {
            LockViolation::Overlap { .. } => Some(Invariant::Exclusion),
            LockViolation::GrantedTwice { .. } => Some(Invariant::GrantedOnce),
            LockViolation::OutOfOrder { .. } => Some(Invariant::QueueOrder),
            LockViolation::Revived { .. } => Some(Invariant::LossFinal),
            LockViolation::FenceBroken { .. } => Some(Invariant::FenceHolds),
            LockViolation::LostUpdates { .. } => Some(Invariant::WritesKept),
            LockViolation::Starved { .. } => Some(Invariant::ContendersServed),
            LockViolation::Residue(_) => Some(Invariant::QueueEmpties),
            _ => None,
        };
        Self { invariant, detail: violation.to_string() }
    }

    pub(crate) fn of_losses(violation: &LossViolation) -> Self {
        let invariant = match violation {
            LossViolation::HeldTooLong { .. } => Some(Invariant::LossNoticed),
            LossViolation::StayedAway { .. } => Some(Invariant::InstanceReturns),
            _ => None,
        };
        Self { invariant, detail: violation.to_string() }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { invariant, detail } = self;
        match invariant {
            Some(invariant) => write!(f, "{MARK}{invariant:?}: {detail}"),
            None => write!(f, "{MARK}Unnamed: {detail}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_contains_a_whole_verdict() {
        let verdict = Verdict::of(Invariant::Ends, "one\ntwo: three");
        assert_eq!(verdict.to_string(), "broken: Ends: one two: three");
        assert_eq!(Verdict::parse(&verdict.to_string()), Some(verdict));
        let unnamed = Verdict { invariant: None, detail: "no such file".to_owned() };
        assert_eq!(Verdict::parse(&unnamed.to_string()), Some(unnamed));
        assert_eq!(Verdict::parse("       12 @3 fault: Freeze"), None);
    }
}
