//! HTTP: the registry as JSON and as events, targets for Prometheus, metrics, and a web console. It is
//! read-only.
//!
//! Requests and event clients share one [follower](following::follower) per namespace or service, which publishes
//! states that share their structure ([`following::state`]). Each event client has a [cursor](events::cursor): the
//! state that it has, from which the difference to the latest state is made when it can be sent. Begin with `router.rs`
//! and `following/state.rs`.

mod api;
mod console;
mod events;
mod following;
mod messages;
mod options;
mod prometheus;
mod router;
mod server;
mod shared;
mod stop;
#[cfg(test)]
mod tests;

pub use self::options::{
    DEFAULT_HTTP_CONNECTIONS, DEFAULT_HTTP_EVENT_CLIENTS, DEFAULT_HTTP_PORT, DEFAULT_HTTP_SERVICES, DEFAULT_HTTP_VIEWS,
    HttpOptions,
};
pub(crate) use self::{server::HttpServer, shared::Sources};
