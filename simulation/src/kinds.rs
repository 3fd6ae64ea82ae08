//! Kinds of operations, faults and observations, which are counted.

/// Defines an enum without data, and the list of its variants.
macro_rules! kinds {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum $name {
            $($(#[$of])* $variant,)+
        }

        impl $name {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),+];
        }
    };
}
pub(crate) use kinds;

kinds! {
    /// Operation of a client.
    Operation {
        Register,
        RegisterInBackground,
        /// The future of a registration is dropped at a random time.
        DropRegistering,
        Update,
        Deregister,
        DropDeregistering,
        DropRegistration,
        Watch,
        AcquireExclusive,
        AcquireShared,
        AcquireWithDeadline,
        AcquireUnderOwnLease,
        DropAcquiring,
        /// The lock is held until it is lost, for at most 20 s.
        HoldLong,
        Release,
        DropGuard,
        /// A write to the resource behind the fence.
        WriteResource,
        ReadConfig,
        WriteConfig,
        WatchConfig,
        Resolve,
        Close,
    }
}

kinds! {
    /// A kind of fault. Each run injects a random subset, because some defects show only without certain other faults.
    Fault {
        Freeze,
        Stall,
        Cut,
        Refuse,
        Compact,
        Revoke,
        DeleteInstance,
        DeleteQueueEntry,
        Garbage,
        HoldRenewals,
        HoldRevocations,
        Deny,
        Slow,
        Misbehavior,
    }
}

kinds! {
    /// Defect of the server, which lasts for one message or request.
    ServerDefect {
        Twice,
        Again,
        Silence,
        LateWatch,
        LateTxn,
        NoList,
        LeaseGone,
        UnknownType,
        NoKey,
        Lose,
        EarlyProgress,
        Refuse,
    }
}

kinds! {
    /// A known defect of etcd (`docs/faults.md`) that the server has from the start until the faults end.
    KnownDefect {
        EarlyProgress,
        ForgottenDeletion,
        FormerLeaderRevokes,
        OldEvents,
        StaleReads,
        RevokedLeaseRenewed,
    }
}

kinds! {
    /// Observation of a client, or of the run.
    Observed {
        InstanceRegistered,
        InstanceDeregistered,
        /// The key of a registered instance disappeared.
        InstanceLost,
        /// The same, without a fault that may delay its return.
        InstanceLostUndisturbed,
        LockGranted,
        SharedLockGranted,
        LockNotGranted,
        /// The queue entry of a holder disappeared while it held the lock, or before it noticed its loss.
        HolderLost,
        /// The same, without a fault that may delay the notice.
        HolderLostUndisturbed,
        HolderNoticedExpiry,
        HolderNoticedLease,
        HolderNoticedKey,
        ViewChanged,
        ViewIsStale,
        ConfigWritten,
        ConfigConflict,
        ConfigNotWritten,
        ConfigChanged,
        LeaseRenewed,
        LeaseLost,
        InstanceRegisteredAgain,
        WatchResumed,
        WatchListedAgain,
        WatchChecked,
        RepeatedEventDropped,
        MalformedValueSkipped,
        Audited,
        RepairedByAudit,
    }
}
