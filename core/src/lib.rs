//! Service registration, discovery and distributed locks: the traits, the values, and the shared view.
//!
//! This crate knows no store. Take one backend beside it: `enlist-etcd` for etcd, `enlist-memory` for tests, which has
//! the same semantics and needs no server. Both pass the same conformance suite (`enlist-testkit`).
//!
//! | you want to | look at |
//! |---|---|
//! | publish an instance, and change it from other tasks | [`Registry::register`], [`Registration`], [`InstanceHandle`] |
//! | let instances live and die together | [`Registry::grant_lease`], [`Lease`] |
//! | find instances once, or watch them | [`Resolver`], [`Watcher`] |
//! | store and watch keys and values of one's own | [`RawValues`], [`RawWatcher`] |
//! | read and pick without thinking about watches | [`Directory`], [`ServiceView`], [`Picker`] |
//! | call instances over clients of your own | [`Pool`] |
//! | exclude others | [`Lock::acquire`], [`LockGuard`] |
//! | refuse who lost its lock, at the resource | [`LockGuard::fencing_token`], [`Fence`] |
//! | have one leader | [`Candidate`], [`Election::campaign`], [`Leadership`] |
//! | move a fleet from one registry to another | [`Migration`] |
//! | start and stop a server in order | [`Graceful`] |
//! | count what happens | [`telemetry`]; with the feature `metrics` it goes to the facade of that name |
//! | write a balancer | [`balance`], [`ejection`], [`AliasTable`], [`HashRing`] |
//! | show text that others stored | [`escape`] |
//! | write a backend | [`registration()`], [`lock_guard()`], [`Publisher`], [`queue_position()`], and `enlist-testkit` |
//!
//! # Example
//!
//! ```
//! use enlist::{Directory, Endpoint, Instance, InstanceId, Policy, RegisterOptions, Registry, ServiceRef};
//! use enlist_memory::MemoryStore;
//! use std::sync::Arc;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = MemoryStore::new();
//! let service = ServiceRef::parse("greeter")?;
//!
//! let instance = Instance::new(InstanceId::parse("greeter-1")?, [Endpoint::parse("grpc://10.0.0.1:8080")?])?;
//! let registration = store.client().register(&service, instance, RegisterOptions::new()).await?;
//!
//! let view = Directory::new(Arc::new(store.client())).view(&service);
//! view.ready().await?;
//! let mut picker = view.picker(Policy::Weighted);
//! println!("calling {}", picker.pick()?.instance().endpoints()[0]);
//!
//! registration.deregister().await?;
//! # Ok(())
//! # }
//! ```

pub mod advertise;
pub mod alias_table;
pub mod backoff;
pub mod balance;
mod bucket_index;
mod candidate;
pub mod clock;
pub mod deadline;
pub mod directory;
pub mod ejection;
pub mod election;
pub mod endpoint;
pub mod error;
pub mod escape;
mod fence;
mod freshness;
pub mod graceful;
pub mod instance;
pub mod key_claims;
mod lease;
mod lease_terms;
pub mod lock;
mod lock_validity;
mod migration;
pub mod name;
pub mod observation;
pub mod picker;
pub mod pool;
pub mod publisher;
pub mod raw;
pub mod reconcile;
pub mod registration;
pub mod registry;
mod resolver;
mod revision;
mod snapshot;
mod task;
pub mod telemetry;

#[doc(inline)]
pub use self::{
    advertise::advertise,
    alias_table::{AliasTable, HashRing},
    backoff::{Backoff, BackoffPolicy},
    candidate::Candidate,
    clock::Moment,
    directory::{Directory, DirectoryOptions, EmptyPolicy, ServiceView, ViewChanges},
    ejection::Ejection,
    election::{Election, Leader, LeaderWatcher, Leadership},
    endpoint::Endpoint,
    error::{Cause, Error, Owner, RangeUnit},
    fence::{Fence, StaleToken},
    freshness::{Freshness, Proof},
    graceful::{Graceful, Shutdown},
    instance::{Entry, Health, Instance, InstanceUpdate, Presence},
    lease::{Lease, LeaseHandle},
    lease_terms::LeaseTerms,
    lock::{Lock, LockGuard, LockMode, LockOptions, LockValidity, Loss, Released, lock_guard, queue_position},
    migration::{Migration, Side},
    name::{InstanceId, LockName, Namespace, ServiceName, ServiceRef},
    picker::{Filter, PickError, Picker, Policy},
    pool::{FailedAttempt, Pool, PoolError, PoolOptions, Retry},
    publisher::{Publisher, ServiceWatcher},
    raw::{RawChange, RawEntry, RawEvent, RawRegistration, RawSnapshot, RawValues, RawWatcher},
    registration::{
        Deregistered, InstanceHandle, Registration, RegistrationDriver, RegistrationState, RegistrationStates,
        registration,
    },
    registry::{Evicted, LeaseChoice, OnConflict, OnDelete, RegisterOptions, Registry, Start},
    resolver::{Change, Resolver, Watcher},
    revision::{Epoch, FencingToken, LeaseId, Revision},
    snapshot::{Event, Snapshot},
    task::{StopError, TaskOwner, caught_now},
    telemetry::{Counter, Counters},
};

/// Runs the program in the README as a test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
