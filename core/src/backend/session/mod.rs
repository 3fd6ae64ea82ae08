//! Leases, as the parts that both backends share: their terms, pools with permits for keys, and the state after each
//! renewal. Begin with `lease_pool.rs`.

pub(crate) mod lease_handle;
pub(crate) mod lease_pool;
pub(crate) mod lease_terms;
pub(crate) mod renewal;
