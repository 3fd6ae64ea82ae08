//! The etcd backend of `enlist`: registrations that recover, watches without gaps, locks with fencing tokens.
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
//! # Features
//!
//! | feature | effect |
//! |---|---|
//! | `tls-ring` (default), `tls-aws-lc` | TLS, with one of two providers. Without them `https` endpoints are refused |
//! | `defects` | deliberate defects, for the simulation |
//!
//! # Structure
//!
//! | module | contents |
//! |---|---|
//! | `etcd`, `builder` | the client, its options, and the connection to etcd |
//! | `client` | failover over the endpoints, requests with deadlines, write batcher |
//! | `session` | runtime, tasks and leases of a client; see the table in `session/mod.rs` |
//! | `watch` | one range watch per key range, its replica and audits; monitors of own keys |
//! | `registration` | `Registry`, and one task per registration |
//! | `config` | `Config`, its watchers and transactions |
//! | `discovery` | `Resolver`, watchers of services and of lists of services, raw values |
//! | `lock` | `Lock`, `Election` and `Queues`, and one task per contender |
//! | [`layout`] | keys and values; nothing else joins or splits keys |
//! | `error` | the errors of etcd and its client, as causes for the caller |
//! | [`diagnose`] | examination of an etcd, for operators |
//! | `deliberate_defects` | deliberate defects, which the simulation has to find |

mod builder;
mod client;
mod config;
mod deliberate_defects;
pub mod diagnose;
mod discovery;
mod error;
mod etcd;
pub mod layout;
mod lock;
mod registration;
mod session;
#[cfg(test)]
mod testing;
mod watch;

#[cfg(feature = "defects")]
pub use self::deliberate_defects::DeliberateDefect;
pub use self::{
    builder::{
        DEFAULT_CONNECT_TIMEOUT, DEFAULT_KEEP_ALIVE_INTERVAL, DEFAULT_KEEP_ALIVE_TIMEOUT, DEFAULT_PROBE,
        DEFAULT_REQUEST_TIMEOUT, EtcdBuilder,
    },
    client::{
        connection::{
            endpoint_url::{Tls, endpoint_url, is_clear_text},
            layers::Requests,
        },
        requests::limits::{DEFAULT_MAX_RANGE_BYTES, DEFAULT_MAX_RANGE_KEYS},
    },
    discovery::watcher::Payload,
    etcd::Etcd,
    layout::{
        config::ConfigLayout,
        dubbo::Dubbo,
        etcd_concurrency::EtcdConcurrency,
        etcd_naming::EtcdNaming,
        fireflycore::{Fireflycore, FireflycoreByLease},
        go_kit::GoKit,
        go_micro::GoMicro,
        go_zero::GoZero,
        gobase::Gobase,
        gobase_lock::GobaseLock,
        kitex::Kitex,
        kratos::Kratos,
        native::Native,
    },
    lock::{PermitContender, SemaphoreQueue, lock_condition},
    session::lifecycle::SessionRuntime,
    watch::record::KeyRange,
};
