//! Service registration, discovery and distributed locks: the traits, the values, and the shared view.
//!
//! This crate contains no store. Add one backend: `enlist-etcd` for etcd, `enlist-memory` for tests, which has
//! the same semantics and needs no server. Both pass the same conformance suite (`enlist-testkit`).
//!
//! | you want to | look at |
//! |---|---|
//! | publish an instance, and change it from other tasks | [`Registry::register`], [`Registration`], [`InstanceHandle`] |
//! | let instances end together | [`Registry::grant_lease`], [`Lease`] |
//! | find instances once, or watch them | [`Resolver`], [`Watcher`] |
//! | read, watch and write configuration | [`Config`], [`ConfigWatcher`], [`ConfigWrite`] |
//! | list services and namespaces, or watch the list of services | [`Resolver::watch_services`], [`ServiceList`] |
//! | store and watch raw keys and values | [`RawValues`], [`RawWatcher`] |
//! | read and pick from a shared view | [`Directory`], [`ServiceView`], [`Picker`] |
//! | call instances over clients of your own | [`Pool`] |
//! | exclude others | [`Lock::acquire`], [`LockGuard`] |
//! | refuse former holders of a lock at the resource | [`LockGuard::fencing_token`], [`Fence`] |
//! | bound the number of users of a resource | [`Semaphore::acquire_permits`], [`PermitGuard`] |
//! | run a job once, whatever crashes | [`Once::run`], [`JobRecord`] |
//! | elect one leader | [`Candidate`], [`Election::campaign`], [`Leadership`] |
//! | show the holders and the waiting contenders of locks and elections | [`Queues`] |
//! | move a fleet from one registry to another | [`Migration`] |
//! | start and stop a server in order | [`Graceful`] |
//! | read counters | [`Counters`], [`telemetry`]; with the feature `metrics` they go to the facade of that name |
//! | write a balancer | [`balance`] |
//! | display foreign text from the store | [`escape`] |
//! | write a backend | [`backend`], and the conformance suite `enlist-testkit` |
//!
//! # Example
//!
//! ```
//! use enlist::{Directory, Endpoint, Instance, InstanceId, PickPolicy, RegisterOptions, Registry, ServiceRef};
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
//! let mut picker = view.picker(PickPolicy::Weighted);
//! println!("calling {}", picker.pick()?.instance().endpoints()[0]);
//!
//! registration.deregister().await?;
//! # Ok(())
//! # }
//! ```

pub mod backend;
mod balancing;
mod config;
mod discovery;
mod error;
mod lock;
mod migration;
mod model;
mod raw;
mod registration;
mod runtime;
pub mod telemetry;

#[doc(inline)]
pub use self::{
    balancing::{
        balance,
        candidate_table::PickError,
        ejection::Ejection,
        filter::Filter,
        picker::Picker,
        policy::PickPolicy,
        pool::{
            Pool,
            error::{FailedAttempt, PoolError},
            options::PoolOptions,
            retry::Retry,
        },
    },
    config::{
        limit::{MAX_CONFIG_BYTES, MAX_CONFIG_WRITES},
        path::{ConfigPath, ConfigScope, MAX_CONFIG_PATH_BYTES},
        snapshot::{ConfigEntry, ConfigEvent, ConfigSnapshot, ConfigVersion},
        store::{Config, ConfigChange, ConfigWatcher},
        write::{ConfigWrite, Expect},
    },
    discovery::{
        directory::Directory,
        freshness::{Freshness, Proof},
        resolver::{Change, Resolver, Watcher},
        service_list::{ServiceList, ServicesChange, ServicesWatcher},
        service_view::ServiceView,
        snapshot::{Event, Snapshot},
        view_changes::ViewChanges,
        view_options::{DEFAULT_DEBOUNCE, DEFAULT_HOLD, DEFAULT_IDLE, DirectoryOptions, EmptyPolicy},
    },
    error::{Cause, Error, Owner, RangeUnit, with_causes},
    lock::{
        candidate::Candidate,
        election::{Election, Leader, LeaderChange, LeaderWatcher, Leadership},
        fence::{Fence, StaleToken},
        guard::LockGuard,
        job_record::JobRecord,
        lock::Lock,
        loss::{Loss, Released},
        once::{Begun, Forgotten, JobRun, Once, OnceOutcome},
        options::{LockMode, LockOptions},
        queues::{ElectionQueue, LockQueue, QueuedCandidate, QueuedContender, Queues},
        semaphore::{PermitGuard, Semaphore},
        semaphore_options::SemaphoreOptions,
    },
    migration::{Migration, side::Side},
    model::{
        advertise::{ADVERTISE_ENV, Chosen, advertise},
        endpoint::{Endpoint, UNIX},
        escape,
        instance::{
            DEFAULT_WEIGHT, Entry, Health, Instance, InstanceUpdate, JSON_SUFFIX, MAX_INSTANCE_BYTES, Presence,
        },
        name::{
            DEFAULT_NAMESPACE, InstanceId, LockName, MAX_NAME_BYTES, NameFault, Namespace, ServiceName, ServiceRef,
        },
        revision::{Epoch, FencingToken, Incarnation, LeaseId, Revision},
    },
    raw::{MAX_RAW_BYTES, RawChange, RawEntry, RawEvent, RawRegistration, RawSnapshot, RawValues, RawWatcher},
    registration::{
        graceful::{DEFAULT_PROPAGATION, DEFAULT_SHUTDOWN, Graceful, Shutdown},
        handle::Registration,
        instance_handle::InstanceHandle,
        lease::Lease,
        options::{
            DEFAULT_AUDIT, DEFAULT_START, DEFAULT_TTL, LeaseChoice, OnConflict, OnDelete, RegisterOptions, Start,
        },
        registry::{Evicted, Registry},
        state::{Deregistered, RegistrationState},
        state_stream::RegistrationStates,
    },
    runtime::{
        backoff::{Backoff, BackoffPolicy},
        clock::Moment,
        task::{StopError, TaskOwner},
    },
    telemetry::counters::{Counter, Counters},
};

/// Runs the program in the README as a test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
