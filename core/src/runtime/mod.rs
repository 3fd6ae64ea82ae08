//! Tasks with owners, clocks, deadlines and the one backoff. Begin with `task.rs`.

pub(crate) mod backoff;
pub(crate) mod clock;
pub(crate) mod deadline;
pub(crate) mod task;
