//! Building blocks for backends: the publisher of snapshots, the decisions of a registration, claims of keys within a
//! process, and the terms of leases. Begin with `reconcile.rs`.

pub mod key_claims;
pub(crate) mod lease_terms;
pub mod observation;
pub mod publisher;
pub mod reconcile;
