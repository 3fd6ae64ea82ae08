//! Building blocks for backends: the publisher of snapshots and their builders, the decisions of a registration, claims
//! of keys within a process, the task of a contender, and the terms of leases. Begin with `reconcile.rs`, for locks
//! with `contender.rs`.
//!
//! Two small items are here because every crate of the workspace uses them, and users need neither: [`MutexExt`] locks
//! a mutex without regard to poison, as no critical section here leaves its data half changed, and [`rounded`] shortens
//! durations in texts, so that logs can be grouped by them.

pub(crate) mod config;
pub mod contender;
pub(crate) mod counting;
pub(crate) mod departures;
pub(crate) mod desired_state;
pub(crate) mod guard_driver;
pub(crate) mod interner;
pub(crate) mod key_claims;
pub(crate) mod leadership;
pub(crate) mod lease_handle;
pub(crate) mod lease_pool;
pub(crate) mod lease_terms;
pub(crate) mod lock_validity;
pub(crate) mod observation;
pub(crate) mod permit_position;
pub(crate) mod proclamation;
pub(crate) mod proof_writer;
pub(crate) mod publisher;
pub(crate) mod queue_position;
pub(crate) mod queues;
pub(crate) mod raw_cell;
pub(crate) mod raw_values;
pub mod reconcile;
pub(crate) mod registration_driver;
pub mod registration_flow;
pub(crate) mod registry_results;
pub(crate) mod renewal;
pub(crate) mod retries;
pub(crate) mod service_lists;
pub(crate) mod snapshot_builder;

#[doc(inline)]
pub use self::{
    config::{ScopeWatcher, check_writes, config_change},
    counting::{Timer, count, count_several, measured},
    departures::Departures,
    desired_state::{Desired, Goal, Shown},
    guard_driver::{GuardDriver, guard_source, lock_guard},
    interner::Interner,
    key_claims::{Approach, Claim, KeyClaims},
    leadership::{leader_watcher, leadership},
    lease_handle::LeaseHandle,
    lease_pool::{LeasePoolKey, LeasePools, LeasePurpose, LeaseState, LeaseUse, SharedLease, lease_changed},
    lease_terms::{LeaseTerms, check_ttl, whole_seconds},
    lock_validity::{LockValidity, safe_validity},
    observation::{Look, Observations},
    permit_position::{PermitEntry, PermitPosition, PermitState, permit_guard, permit_position},
    proclamation::Proclamation,
    proof_writer::ProofWriter,
    publisher::{OwnerHandle, Publisher, ServiceWatcher, Subscriber, Update},
    queue_position::{QueueEntry, QueuePosition, queue_position},
    queues::{election_queue, lock_queue},
    raw_cell::RawCell,
    raw_values::{PrefixWatcher, check_prefix, raw_change, raw_registration},
    registration_driver::{RegistrationDriver, Withdrawal, registration, wait_for_start},
    registry_results::{evicted, granted_lease},
    renewal::{Renewal, RenewalReply},
    retries::{PERMANENT_ERROR_RETRY, audit_due, gives_up_after, permanent_error_delay, reregistration_window},
    service_lists::{ServiceListBuilder, services_watcher},
    snapshot_builder::{ConfigSnapshotBuilder, RawSnapshotBuilder, SnapshotBuilder},
};
#[doc(inline)]
pub use crate::runtime::{
    backoff::jitter,
    clock::{LONGEST, Rounded, rounded, sleep_until_elapsed},
    deadline::LastTrouble,
    disk_file::DiskFile,
    sync::MutexExt,
    task::{caught, caught_now},
};
