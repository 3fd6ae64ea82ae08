//! Registrations: the `Registry` of the backend, and one task per registration. Begin with `registration_task.rs`.

pub(crate) mod context;
pub(crate) mod registration_task;
pub(crate) mod registry;
