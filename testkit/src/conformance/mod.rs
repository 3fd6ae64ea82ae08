//! The conformance suite: each guarantee of the traits is one function in `cases/`, over a [`Harness`] that the backend
//! under test provides. `list.rs` is the only list of the cases and expands it into tests. Begin with `harness.rs`.

pub mod cases;
pub(crate) mod harness;
mod list;
mod without_locks;
