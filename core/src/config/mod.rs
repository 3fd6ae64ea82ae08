//! Configuration: bytes by path under a namespace, read, watched, and written in guarded transactions. Formats are left
//! to the users of the trait. Begin with `store.rs`.

pub(crate) mod limit;
pub(crate) mod path;
pub(crate) mod snapshot;
pub(crate) mod store;
pub(crate) mod write;
