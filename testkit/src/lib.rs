//! The conformance suite of `enlist`, and the servers and faults to run it against.
//!
//! A backend implements [`Harness`] and [`ClientFaults`] in its tests and expands the suite with one line; see
//! [`conformance!`](crate::conformance). Each promise of the traits is one case, named as the promise. The cases use nothing but the
//! public traits and the faults of the harness, and wait for conditions, never for time.
//!
//! ```text
//! enlist_testkit::conformance!(#[tokio::test] MyHarness::new().await);
//! ```
//!
//! # Features
//!
//! `containers`: etcd servers as containers, through testcontainers. `etcd`: `FakeEtcd`, which needs protoc to build.

mod background_task;
pub mod cases;
mod cluster;
#[cfg(feature = "containers")]
mod container;
#[cfg(feature = "etcd")]
mod fake_etcd;
mod gateway;
mod harness;
pub mod history;
mod list;
pub mod lock_history;
mod proxy;
mod server;
mod wait;
mod without_locks;

pub use background_task::BackgroundTask;
pub use cluster::EtcdCluster;
#[cfg(feature = "etcd")]
pub use fake_etcd::{FakeEtcd, Link, Minority, Misbehavior, Requests, Written};
pub use harness::{Backend, Client, ClientFaults, Harness, LayoutFeature};
pub use proxy::{Connection, Direction, Mode, Proxy};
pub use server::{EtcdServer, Provider, ServerOptions};
pub use wait::{LIMIT, begun, eventually, soon};
