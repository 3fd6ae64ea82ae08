//! From a name to instances. A locator turns the name of a service into a target, and the scheme of a target names the
//! source of its instances: a registry, DNS or the target itself. Begin with `target.rs`.

pub(crate) mod invocation;
pub(crate) mod locator;
pub(crate) mod sources;
pub(crate) mod target;
