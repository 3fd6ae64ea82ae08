//! Building blocks for backends: the publisher of snapshots, the decisions of a registration, claims of keys within a
//! process, the task of a contender, and the terms of leases. Begin with `reconcile.rs`, for locks with `contender.rs`.

pub mod contender;
pub(crate) mod key_claims;
pub(crate) mod lease_pool;
pub(crate) mod lease_terms;
pub(crate) mod observation;
pub(crate) mod publisher;
pub mod reconcile;
pub mod registration_flow;
pub(crate) mod renewal;

#[doc(inline)]
pub use self::{
    key_claims::{Approach, Claim, KeyClaims},
    lease_pool::{LeasePoolKey, LeasePools, LeasePurpose, LeaseState, LeaseUse, SharedLease, lease_changed},
    lease_terms::LeaseTerms,
    observation::{Look, Observations},
    publisher::{OwnerHandle, Publisher, ServiceWatcher, Subscriber, Update},
    renewal::{Renewal, RenewalReply},
};
#[doc(inline)]
pub use crate::{
    lock::{
        GuardDriver, QueueEntry, QueuePosition,
        election::Proclamation,
        lock_guard,
        lock_validity::{LockValidity, safe_validity},
        queue_position,
    },
    model::instance::Interner,
    raw::{PrefixWatcher, RawCell, check_prefix, check_value, stand_in},
    registration::{
        Departures, Desired, Goal, RegistrationDriver, Shown, Withdrawal,
        lease::LeaseHandle,
        registration,
        registry::{check_ttl, whole_seconds},
    },
    runtime::{
        backoff::{jitter, reregistration_window},
        clock::{LONGEST, Rounded, rounded, sleep_until_elapsed},
        deadline::LastTrouble,
        sync::MutexExt,
        task::caught_now,
    },
    telemetry::{Timer, dropped_samples, measured},
};
