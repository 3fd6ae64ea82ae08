//! Tasks with owners, clocks, deadlines and the one backoff. Begin with `task.rs`.

pub mod backoff;
pub mod clock;
pub mod deadline;
pub(crate) mod task;
