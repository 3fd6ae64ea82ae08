//! Values: names, endpoints, instances, revisions. Begin with `instance.rs`.

pub(crate) mod advertise;
pub(crate) mod endpoint;
pub mod escape;
pub(crate) mod instance;
pub(crate) mod keyed_snapshot;
pub(crate) mod name;
mod parse_name;
pub(crate) mod revision;
