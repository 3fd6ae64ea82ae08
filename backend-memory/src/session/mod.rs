//! Leases of a client. Read `leases.rs` first, then `lease_task.rs`.

pub(crate) mod granted_lease;
pub(crate) mod lease;
pub(crate) mod lease_task;
pub(crate) mod leases;
