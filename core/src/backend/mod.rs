//! Building blocks for backends: the publisher of snapshots and their builders, the decisions of a registration, claims
//! of keys within a process, the task of a contender, and the terms of leases. The folders are those of the backends.
//! Begin with `registration/reconcile.rs`, for locks with `lock/contender.rs`.
//!
//! Some small items are here because several crates of the workspace use them, and users need none: [`MutexExt`] locks
//! a mutex without regard to poison, as no critical section here leaves its data half changed, and [`rounded`] shortens
//! durations in texts, so that logs can be grouped by them. `JoinedWrites` saves writes of clients over HTTP/2: an
//! adapter over any `AsyncWrite`, which opens no connection.

pub(crate) mod config;
pub(crate) mod counting;
pub(crate) mod discovery;
pub(crate) mod head_write;
pub(crate) mod lock;
pub(crate) mod registration;
pub(crate) mod retries;
pub(crate) mod session;

#[doc(inline)]
pub use self::{
    config::{ScopeWatcher, check_writes, config_change},
    counting::{Timer, count, count_several, measured},
    discovery::{
        interner::Interner,
        proof_writer::ProofWriter,
        publisher::{OwnerHandle, Publisher, ServiceWatcher, Subscriber, Update},
        raw_values::{PrefixWatcher, check_prefix, raw_change, raw_registration},
        service_lists::{ServiceListBuilder, services_watcher},
        snapshot_builder::{ConfigSnapshotBuilder, RawSnapshotBuilder, SnapshotBuilder},
    },
    lock::{
        contender,
        guard_driver::{GuardDriver, guard_source, lock_guard},
        leadership::{leader_watcher, leadership},
        lock_validity::{LockValidity, safe_validity},
        permit_position::{PermitEntry, PermitPosition, PermitState, permit_guard, permit_position},
        proclamation::Proclamation,
        queue_position::{QueueEntry, QueuePosition, queue_position},
        queues::{election_queue, lock_queue},
    },
    registration::{
        departures::Departures,
        desired_state::{Desired, Goal, Shown},
        key_claims::{Approach, Claim, KeyClaims},
        observation::{Look, Observations},
        raw_cell::RawCell,
        reconcile,
        registration_driver::{RegistrationDriver, Withdrawal, registration, wait_for_start},
        registration_flow,
        registry_results::{evicted, granted_lease},
    },
    retries::{PERMANENT_ERROR_RETRY, audit_due, gives_up_after, permanent_error_delay, reregistration_window},
    session::{
        lease_handle::LeaseHandle,
        lease_pool::{LeasePoolKey, LeasePools, LeasePurpose, LeaseState, LeaseUse, SharedLease, lease_changed},
        lease_terms::{LeaseTerms, check_ttl, whole_seconds},
        renewal::{Renewal, RenewalReply},
    },
};
// Hidden, because it is for `enlist-etcd` and `enlist-grpc` only. It is here because neither depends on the other.
#[doc(hidden)]
pub use self::head_write::{FrameVisibility, JoinedWrites};
#[doc(inline)]
pub use crate::discovery::freshness::ProofLimit;
#[doc(inline)]
pub use crate::runtime::{
    backoff::jitter,
    clock::{LONGEST, Rounded, rounded, sleep_until_elapsed},
    deadline::LastTrouble,
    disk_file::DiskFile,
    sync::MutexExt,
    task::{caught, caught_now},
};
