//! Signs of life of an instance: its health service, probes of silent connections, and ejection after failed calls.
//! Begin with `health.rs`.

pub(crate) mod ejection;
pub(crate) mod health;
pub(crate) mod local_check;
pub(crate) mod probe;
pub(crate) mod probe_request;
