//! Values: names, endpoints, instances, revisions. Begin with `instance.rs`.

pub mod advertise;
pub mod endpoint;
pub mod escape;
pub mod instance;
pub mod name;
pub(crate) mod revision;
