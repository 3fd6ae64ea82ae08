//! Registrations for users: the trait, its options, and the handles of a published instance. Begin with `registry.rs`,
//! then read `handle.rs`. The backend's end is in `backend/registration/registration_driver.rs`.

pub(crate) mod graceful;
pub(crate) mod handle;
mod health;
pub(crate) mod instance_handle;
pub(crate) mod lease;
pub(crate) mod options;
pub(crate) mod registration_cell;
pub(crate) mod registry;
pub(crate) mod state;
pub(crate) mod state_stream;
