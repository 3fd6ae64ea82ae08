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

mod backend;
mod balancing;
mod discovery;
pub mod error;
pub mod lock;
mod migration;
mod model;
pub mod raw;
pub mod registration;
mod runtime;
pub mod telemetry;

#[doc(inline)]
pub use self::{
    backend::{
        lease_terms::LeaseTerms,
        publisher::{Publisher, ServiceWatcher},
    },
    balancing::{
        alias_table::{AliasTable, HashRing},
        ejection::Ejection,
        picker::{Filter, PickError, Picker, Policy},
        pool::{FailedAttempt, Pool, PoolError, PoolOptions, Retry},
    },
    discovery::{
        directory::{Directory, DirectoryOptions, EmptyPolicy, ServiceView, ViewChanges},
        freshness::{Freshness, Proof},
        resolver::{Change, Resolver, Watcher},
        snapshot::{Event, Snapshot},
    },
    error::{Cause, Error, Owner, RangeUnit},
    lock::{
        Lock, LockGuard, LockMode, LockOptions, LockValidity, Loss, Released,
        candidate::Candidate,
        election::{Election, Leader, LeaderWatcher, Leadership},
        fence::{Fence, StaleToken},
        lock_guard, queue_position,
    },
    migration::{Migration, Side},
    model::{
        advertise::advertise,
        endpoint::Endpoint,
        instance::{Entry, Health, Instance, InstanceUpdate, Presence},
        name::{InstanceId, LockName, Namespace, ServiceName, ServiceRef},
        revision::{Epoch, FencingToken, LeaseId, Revision},
    },
    raw::{RawChange, RawEntry, RawEvent, RawRegistration, RawSnapshot, RawValues, RawWatcher},
    registration::{
        Deregistered, InstanceHandle, Registration, RegistrationDriver, RegistrationState, RegistrationStates,
        graceful::{Graceful, Shutdown},
        lease::{Lease, LeaseHandle},
        registration,
        registry::{Evicted, LeaseChoice, OnConflict, OnDelete, RegisterOptions, Registry, Start},
    },
    runtime::{
        backoff::{Backoff, BackoffPolicy},
        clock::Moment,
        task::{StopError, TaskOwner, caught_now},
    },
    telemetry::{Counter, Counters},
};

/// Runs the program in the README as a test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

pub use self::backend::{key_claims, observation, publisher, reconcile};
pub use self::balancing::{alias_table, balance, ejection, picker, pool};
pub use self::discovery::directory;
pub use self::lock::election;
pub use self::model::{advertise, endpoint, escape, instance, name};
pub use self::registration::{graceful, registry};
pub use self::runtime::{backoff, clock, deadline};
