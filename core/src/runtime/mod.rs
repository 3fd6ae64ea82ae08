//! Tasks with owners, clocks, deadlines, the backoff, and locks of mutexes. Begin with `task.rs`.

pub(crate) mod backoff;
pub(crate) mod clock;
pub(crate) mod deadline;
pub(crate) mod sync;
pub(crate) mod task;
