//! From a name to instances: targets, schemes and their sources, and the locator. Begin with `target.rs`.

pub(crate) mod locator;
pub(crate) mod sources;
pub(crate) mod target;
