//! Registrations: the `Registry` of the backend, and one task per registration. One file.

pub(crate) mod registry;
