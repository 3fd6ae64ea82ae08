//! Targets and metrics for Prometheus. Begin with `targets.rs`.

pub(super) mod exposition;
pub(super) mod metrics;
pub(super) mod targets;
