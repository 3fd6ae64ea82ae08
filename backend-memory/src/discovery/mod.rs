//! Discovery of instances: watchers of services and of lists of services, and raw values. Begin with `watcher.rs`.

pub(crate) mod raw;
mod service_list;
pub(crate) mod watcher;
