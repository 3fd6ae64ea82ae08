//! Parts of a program whose behaviour follows the configuration: rate limit, feature flags, log level.

pub(crate) mod flags;
#[cfg(feature = "tracing")]
pub(crate) mod log_filter;
pub(crate) mod rate_limiter;
