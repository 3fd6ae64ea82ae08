//! Server-sent events. Begin with `stream.rs`; `cursor.rs` is the state that one client has, from which the difference
//! to the latest state is made when it can be sent.

pub(super) mod cursor;
pub(super) mod stream;
