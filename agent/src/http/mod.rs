//! HTTP: the registry as JSON and as events, targets for Prometheus, metrics, and a web console. It is
//! read-only.
//!
//! Requests and event clients share one [follower](follower) per namespace or service, which publishes states that
//! share their structure ([`state`]). Each event client has a [cursor](cursor): the state that it has, from which the
//! difference to the latest state is made when it can be sent. Begin with `router.rs` and `state.rs`.

mod cache;
mod clients;
mod console;
mod cursor;
mod error;
mod events;
mod exposition;
mod follower;
mod freshness;
mod guard;
mod health;
mod history;
mod json;
mod limits;
mod metrics;
mod objects;
mod openapi;
mod options;
mod parameters;
mod position;
mod prometheus;
mod queues;
mod readiness;
mod responses;
mod router;
mod scope;
mod scopes;
mod server;
mod services;
mod shared;
mod state;
mod stop;
#[cfg(test)]
mod tests;

pub use self::options::{
    DEFAULT_HTTP_CONNECTIONS, DEFAULT_HTTP_EVENT_CLIENTS, DEFAULT_HTTP_PORT, DEFAULT_HTTP_SERVICES, DEFAULT_HTTP_VIEWS,
    HttpOptions,
};
pub(crate) use self::{server::HttpServer, shared::Sources};
