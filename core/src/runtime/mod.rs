//! Tasks with owners, clocks, deadlines, the backoff, locks of mutexes, and files of views. Begin with `task.rs`.

pub(crate) mod backoff;
pub(crate) mod clock;
pub(crate) mod deadline;
pub(crate) mod disk_file;
pub(crate) mod sync;
pub(crate) mod task;
