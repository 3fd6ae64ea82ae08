//! Limit of the size of raw values.

/// Maximum bytes of a key and its value together. etcd refuses requests above 1.5 MiB, unless configured otherwise; the
/// difference is for guards.
pub const MAX_RAW_BYTES: usize = (3 << 19) - 65_536;
