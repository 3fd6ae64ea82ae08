//! The etcd backend of `enlist`: registrations that come back, watches without gaps, locks with fencing tokens.
//!
//! ```no_run
//! use enlist::{Endpoint, Instance, InstanceId, RegisterOptions, Registry, ServiceRef};
//! use enlist_etcd::Etcd;
//!
//! # async fn example() -> Result<(), enlist::Error> {
//! let etcd = Etcd::connect("127.0.0.1:2379").await?;
//! let service = ServiceRef::parse("greeter")?;
//! let instance = Instance::new(InstanceId::parse("greeter-1")?, [Endpoint::parse("grpc://10.0.0.1:8080")?])?;
//! let registration = etcd.register(&service, instance, RegisterOptions::new()).await?;
//! // … serve …
//! registration.deregister().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Building this crate needs `protoc` and the well-known protos, because `etcd-client` does: on Debian
//! `apt-get install protobuf-compiler libprotobuf-dev`.
//!
//! # How it is built
//!
//! | module | does |
//! |---|---|
//! | `etcd` | options, TLS, user; what the traits are implemented on |
//! | `endpoint_url` | addresses of etcd, as users write them |
//! | `channel` | one pinned endpoint, another one when it fails |
//! | `dial_settings`, `layers` | settings of dials and layers around requests, of the user's |
//! | `member_sync` | the member list of the cluster instead of the endpoints, if asked for |
//! | `connection` | requests with deadlines, token renewal |
//! | `writes` | guarded writes, several in one transaction |
//! | `error` | what etcd says, turned into what a caller can do |
//! | [`diagnose`] | examination of an etcd, for people who operate it |
//! | `session` | the runtime that owns leases and tasks |
//! | `lease` | grants and renewals |
//! | `pipeline`, `mirror`, `audit` | list and watch a range, for ever, and see whether that is still what etcd holds |
//! | `limits` | how large a range may be |
//! | `malformed` | values that are no instances: counted, some logged |
//! | `key_monitors` | what became of the keys of registrations |
//! | `registry`, `watcher`, `lock`, `election` | the traits |
//! | `queues` | who holds a lock and who waits, for people |
//! | `registrar` | the task behind one registration |
//! | `stander` | the task behind one place in a line |
//! | `numbers` | what tells the places of a session in a line apart |
//! | `handover` | who of this session waits for a lock of this session |
//! | `defects` | mistakes that the simulation has to find |
//! | [`layout`] | the only place that knows keys and values |

mod builder;
mod client;
mod defects;
pub mod diagnose;
mod discovery;
mod error;
mod etcd;
pub mod layout;
mod lock;
mod registration;
mod session;
mod watch;

#[cfg(feature = "defects")]
pub use self::defects::Defect;
pub use self::{
    builder::{
        DEFAULT_CONNECT_TIMEOUT, DEFAULT_KEEP_ALIVE_INTERVAL, DEFAULT_KEEP_ALIVE_TIMEOUT, DEFAULT_PROBE,
        DEFAULT_REQUEST_TIMEOUT, EtcdBuilder,
    },
    client::{
        endpoint_url::{Tls, endpoint_url, is_clear_text},
        layers::Requests,
        limits::{DEFAULT_MAX_RANGE_BYTES, DEFAULT_MAX_RANGE_KEYS},
    },
    discovery::watcher::Payload,
    etcd::Etcd,
    layout::{
        Dubbo, EtcdConcurrency, EtcdNaming, Fireflycore, FireflycoreByLease, GoKit, GoMicro, GoZero, Gobase,
        GobaseLock, Kitex, Kratos, Layout, LockLayout, Native,
    },
    lock::{
        lock_condition,
        queues::{LockQueue, QueuedContender},
    },
    session::lifecycle::SessionRuntime,
    watch::record::KeyRange,
};
