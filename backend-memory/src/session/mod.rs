//! Leases of a client. Begin with `lease.rs`.

pub(crate) mod granted_lease;
pub(crate) mod lease;
