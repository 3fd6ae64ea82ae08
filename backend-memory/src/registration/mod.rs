//! Registrations: the `Registry` of the backend, and one task per registration. Read `registration_task.rs` first.

pub(crate) mod registration_task;
pub(crate) mod registry;
