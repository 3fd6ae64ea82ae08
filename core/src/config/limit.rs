//! Limits of configuration values and of their transactions.

use crate::raw::limit::MAX_RAW_BYTES;

/// Maximum bytes of the paths and values of one transaction together, and so of one value with its path. It is that of
/// raw values: etcd refuses requests above 1.5 MiB, unless configured otherwise; the difference is for guards.
pub const MAX_CONFIG_BYTES: usize = MAX_RAW_BYTES;

/// Maximum number of writes in one transaction. etcd allows 128 operations, unless configured otherwise.
pub const MAX_CONFIG_WRITES: usize = 100;
