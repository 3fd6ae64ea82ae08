//! Finding instances: the traits of backends ([`resolver`]), the snapshot of a service with its freshness, and the
//! directory, which shares one watch among all views of a service. Begin with `resolver.rs`, then `snapshot.rs`.

pub(crate) mod directory;
pub(crate) mod freshness;
pub(crate) mod resolver;
pub(crate) mod snapshot;
