//! Discovery of instances: the traits of backends ([`resolver`]), the snapshot of a service with its freshness, and the
//! directory, which shares one watch among all views of a service. Begin with `resolver.rs`, then `snapshot.rs`.

pub(crate) mod directory;
mod disk_cache;
pub(crate) mod freshness;
mod mass_loss;
pub(crate) mod publication;
mod published_state;
pub(crate) mod resolver;
pub(crate) mod service_list;
pub(crate) mod service_view;
pub(crate) mod snapshot;
pub(crate) mod view_changes;
pub(crate) mod view_options;
mod view_state;
mod view_task;
pub(crate) mod view_user;
