//! The in-memory backend of `enlist`: the semantics of the etcd backend, faults on demand, no server.
//!
//! [`MemoryStore`] is the store, with the faults. [`MemoryStore::client`] represents a process that uses it. Under a
//! paused tokio clock a test that spans hours takes milliseconds. The backend passes the same conformance suite as
//! `enlist-etcd`.
//!
//! ```
//! use enlist::{Endpoint, Instance, InstanceId, RegisterOptions, Registry, Resolver, ServiceRef};
//! use enlist_memory::MemoryStore;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), enlist::Error> {
//! let store = MemoryStore::new();
//! let (server, client) = (store.client(), store.client());
//! let service = ServiceRef::parse("greeter")?;
//! let instance = Instance::new(InstanceId::parse("greeter-1")?, [Endpoint::parse("10.0.0.1:80")?])?;
//! let registration = server.register(&service, instance, RegisterOptions::new()).await?;
//! assert_eq!(client.resolve(&service).await?.len(), 1);
//! registration.deregister().await?;
//! assert!(client.resolve(&service).await?.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! # Under a paused clock
//!
//! Let time pass with `tokio::time::sleep`. It stops at each timer that is due in between, and lets the waiting tasks
//! run. `tokio::time::advance` jumps to the end: expired leases are gone at once, but the reports of tasks, such as the
//! state of a registration or the freshness of a view, stay unchanged until these tasks have run, for instance during a
//! sleep of a second.
//!
//! # Differences from etcd
//!
//! A cut link rejects requests at once instead of timing out, so no write has an unknown outcome. Watches always notice
//! a wipe. TTLs from 1 s are granted as requested; etcd's minimum is 2 s.
//!
//! # Features
//!
//! `defects`: deliberate defects for testing the conformance suite itself; not for users.

mod client;
mod config;
mod deliberate_defects;
mod discovery;
mod lock;
#[cfg(test)]
mod model;
mod registration;
mod session;
mod store;
mod watch;

pub use client::{MemoryClient, MemoryStore};
#[doc(hidden)]
pub use deliberate_defects::DeliberateDefect;
