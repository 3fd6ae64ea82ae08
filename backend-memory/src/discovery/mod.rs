//! Discovery of instances: watchers of services, and raw values. Begin with `watcher.rs`.

pub(crate) mod raw;
pub(crate) mod watcher;
