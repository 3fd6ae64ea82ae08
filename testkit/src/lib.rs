//! Conformance suite of `enlist`, with servers and faults for it.
//!
//! | folder | content |
//! |---|---|
//! | `conformance/` | the cases, one per guarantee, and the [`Harness`] that a backend implements |
//! | `etcd/` | etcd servers, clusters of three, and `FakeEtcd`, a scripted server |
//! | `faults/` | a TCP [`Proxy`] that delays, holds or cuts connections |
//! | `checkers/` | checkers for recorded runs: [`history`], [`lock_history`], [`semaphore_history`], [`losses`] |
//!
//! A backend implements [`Harness`] and [`ClientFaults`] in its tests and expands the suite with one line; see
//! [`conformance!`](crate::conformance). Each guarantee of the traits is one case, named after the guarantee. The cases
//! use only the public traits and the faults of the harness. They wait for conditions, never for a fixed time.
//!
//! ```text
//! enlist_testkit::conformance!(#[tokio::test] MyHarness::new().await);
//! ```
//!
//! # Features
//!
//! `containers`: etcd servers in containers, through testcontainers. `etcd`: `FakeEtcd`; building it requires protoc.

mod background_task;
mod checkers;
mod conformance;
mod etcd;
mod faults;
mod ports;
mod wait;

#[cfg(feature = "etcd")]
pub use etcd::fake::{
    ConcealedRevocation, EtcdDefect, FakeEtcd, FakeSnapshot, KeyChange, LateWrite, Link, Minority, Misbehaved,
    Misbehavior, Requests,
};
pub use {
    background_task::BackgroundTask,
    checkers::{history, lock_history, losses, semaphore_history},
    conformance::{
        cases,
        harness::{Backend, Client, ClientFaults, Harness, LayoutFeature},
    },
    etcd::{cluster::EtcdCluster, provider::Provider, server::EtcdServer, server_options::ServerOptions},
    faults::{
        modes::{Direction, Mode},
        proxy::{Proxy, ProxyConnection},
    },
    ports::free_port,
    wait::{LIMIT, begun, eventually, soon},
};
