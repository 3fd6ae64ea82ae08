//! Watching ranges of keys: one task per range lists and watches, a replica holds the result, an audit repairs it,
//! probes prove its age, and key monitors report changes of the session's own keys. Begin with `range_watch.rs`, then
//! `watch_task.rs`.

pub(crate) mod audit;
pub(crate) mod context;
pub(crate) mod key_monitors;
pub(crate) mod malformed;
pub(crate) mod partial_list;
pub(crate) mod probe;
pub(crate) mod proofs;
pub(crate) mod range_watch;
pub(crate) mod record;
pub(crate) mod replica;
pub(crate) mod watch_stream;
pub(crate) mod watch_task;
