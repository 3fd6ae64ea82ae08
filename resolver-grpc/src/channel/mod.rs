//! The channel that generated clients take. A [`Channel`](crate::Channel) hands each call to a ready instance and
//! decides about further attempts; a manager shares channels among callers. Begin with `call.rs`, one call from its
//! beginning to its end; `builder.rs` has the options.

pub(crate) mod builder;
pub(crate) mod call;
#[expect(clippy::module_inception, reason = "the file is named after its one type")]
pub(crate) mod channel;
#[cfg(test)]
pub(crate) mod in_memory;
pub(crate) mod inner;
pub(crate) mod manager;

mod in_flight;
mod kept_head;
mod opening;
mod response;
