//! Followers of namespaces and services: requests and event clients share one for each, which publishes states that
//! share their structure. Begin with `state.rs`, then `follower.rs`.

mod departures;
pub(super) mod follower;
pub(super) mod history;
pub(super) mod position;
pub(super) mod scope;
pub(super) mod scopes;
pub(super) mod state;
